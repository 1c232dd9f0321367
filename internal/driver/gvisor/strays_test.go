package gvisor

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCloseStrays: what lies where gVisor wants its streams is closed, and nothing below.
func TestCloseStrays(t *testing.T) {
	kept, err := os.Open("/proc/self/uid_map")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	for _, high := range []int{253, 255, 400} {
		if err := unix.Dup2(int(kept.Fd()), high); err != nil {
			t.Fatal(err)
		}
	}
	closeStrays()
	for _, high := range []int{253, 255, 400} {
		if _, err := unix.FcntlInt(uintptr(high), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("descriptor %d: %v, want it closed", high, err)
		}
	}
	if _, err := kept.Stat(); err != nil {
		t.Error(err)
	}
}
