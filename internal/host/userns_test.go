package host

import (
	"errors"
	"os"
	"slices"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// ids are the four user ids of a thread; see proc_pid_status(5).
func ids(t *testing.T, status string) []string {
	t.Helper()
	text, err := os.ReadFile(status)
	if err != nil {
		t.Error(err)
	}
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "Uid:"); ok {
			return strings.Fields(rest)
		}
	}
	return nil
}

// TestAsNobody shows that only one thread loses its rights, that it does not live on, and that the process is as before.
func TestAsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	before, planted := ids(t, "/proc/self/status"), errors.New("planted")
	dumpable, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0)
	for range 50 {
		err := asNobody(func() error {
			if got := ids(t, "/proc/thread-self/status"); !slices.Equal(got, []string{"65534", "65534", "65534", "65534"}) {
				t.Errorf("the thread is %q", got)
			}
			if _, err := os.Open("/etc/shadow"); !errors.Is(err, syscall.EACCES) && !errors.Is(err, syscall.ENOENT) {
				t.Errorf("it reads what only root may: %v", err)
			}
			return planted
		})
		if !errors.Is(err, planted) {
			t.Fatalf("%v, want %v", err, planted)
		}
	}
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		status := "/proc/self/task/" + e.Name() + "/status"
		if _, err := os.Stat(status); err != nil {
			continue // it has ended
		}
		if got := ids(t, status); !slices.Equal(got, before) {
			t.Errorf("thread %s is %q, and was %q", e.Name(), got, before)
		}
	}
	if after, _ := unix.PrctlRetInt(unix.PR_GET_DUMPABLE, 0, 0, 0, 0); after != dumpable {
		t.Errorf("dumpable %d, then %d", dumpable, after)
	}
}

// TestRefusalIsTold has the kernel refuse a map that names an id twice.
func TestRefusalIsTold(t *testing.T) {
	attr := &syscall.SysProcAttr{UidMappings: []syscall.SysProcIDMap{{HostID: 1, Size: 1}, {HostID: 2, Size: 1}}}
	if err := tryUserNamespace(attr); err == nil || !strings.HasPrefix(err.Error(), "make one: ") {
		t.Errorf("a bad map passes: %v", err)
	}
}

func TestUserNamespacesHere(t *testing.T) {
	l := looker{root: "/"}
	l.userNamespaces()
	if !l.facts.UserNamespaces && len(l.facts.Problems) == 0 {
		t.Error("they do not work, and nothing says why")
	}
	for _, p := range l.facts.Problems {
		t.Logf("%+v", p)
		if p.Mend == "" {
			t.Error("no way out")
		}
	}
}
