package gvisor

import (
	"errors"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// TestCloseStrays: what another child is mapped with is closed, and nothing else.
func TestCloseStrays(t *testing.T) {
	kept, err := os.Open("/proc/self/status")
	if err != nil {
		t.Fatal(err)
	}
	defer kept.Close()
	var strays []int
	for _, name := range []string{"uid_map", "gid_map", "setgroups"} {
		fd, err := unix.Open("/proc/self/"+name, unix.O_RDONLY, 0)
		if err != nil {
			t.Fatal(err)
		}
		strays = append(strays, fd)
	}
	const high = 254 // where gVisor wants a stream
	if err := unix.Dup2(strays[0], high); err != nil {
		t.Fatal(err)
	}
	closeStrays()
	for _, fd := range append(strays, high) {
		if _, err := unix.FcntlInt(uintptr(fd), unix.F_GETFD, 0); !errors.Is(err, unix.EBADF) {
			t.Errorf("descriptor %d: %v, want it closed", fd, err)
		}
	}
	if _, err := kept.Stat(); err != nil {
		t.Error(err)
	}
}
