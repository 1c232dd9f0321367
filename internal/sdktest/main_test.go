package sdktest_test

import (
	"flag"
	"os"
	"testing"
)

// TestMain lets more programs run at once than there are processors, since most of the time they wait: for the server, and
// the first builds for the template that they begin with.
func TestMain(m *testing.M) {
	flag.Parse()
	if f := flag.Lookup("test.parallel"); f.Value.String() == f.DefValue {
		if err := f.Value.Set("4"); err != nil {
			panic(err) // a flag of package testing, which takes numbers
		}
	}
	os.Exit(m.Run())
}
