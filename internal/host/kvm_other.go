//go:build !amd64

package host

import (
	"context"
	"fmt"
	"os"
	"runtime"
)

// tryGuest has no guest for this kind of processor. It does not say that one would run.
func tryGuest(context.Context, *os.File) error {
	return fmt.Errorf("Firebreak cannot try a guest on %s yet", runtime.GOARCH)
}
