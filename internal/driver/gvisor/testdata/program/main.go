// Program is what the driver's tests re-execute as gVisor: the product's own main does the same.
package main

import (
	"os"

	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
)

func main() {
	gvisor.MaybeMain()
	os.Exit(2)
}
