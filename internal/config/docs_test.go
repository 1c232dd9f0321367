package config_test

import (
	"fmt"
	"os"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/config"
)

const (
	docsFile   = "../../docs/serve.md"
	docsMarker = "<!-- What follows is made by: FIREBREAK_UPDATE=1 go test ./internal/config -run TestDocs -->\n"
)

// TestDocsAreUpToDate holds the table of settings to what there is.
func TestDocsAreUpToDate(t *testing.T) {
	c := config.Default()
	var made strings.Builder
	made.WriteString("\n| in the file | flag | environment | built in | what |\n|---|---|---|---|---|\n")
	for _, s := range config.Settings() {
		builtIn := s.Text(c)
		if builtIn != "" {
			builtIn = "`" + builtIn + "`"
		}
		fmt.Fprintf(&made, "| `%s` | `--%s` | `%s` | %s | %s |\n", s.Key, s.Flag(), s.Variable(), builtIn, strings.ReplaceAll(s.Usage, "`", ""))
	}
	made.WriteString("| `pools` | | | | see above |\n")
	have, err := os.ReadFile(docsFile)
	if err != nil {
		t.Fatal(err)
	}
	byHand, generated, found := strings.Cut(string(have), docsMarker)
	if !found {
		t.Fatalf("%s has lost the line %q", docsFile, docsMarker)
	}
	if os.Getenv("FIREBREAK_UPDATE") != "" {
		if err := os.WriteFile(docsFile, []byte(byHand+docsMarker+made.String()), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	if generated != made.String() {
		t.Errorf("%s is out of date: run FIREBREAK_UPDATE=1 go test ./internal/config -run TestDocs", docsFile)
	}
}
