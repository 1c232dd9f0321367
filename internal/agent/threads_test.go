package agent

import (
	"os"
	"testing"
)

func TestKeepThreads(t *testing.T) {
	threads := func() int {
		entries, err := os.ReadDir("/proc/self/task")
		if err != nil {
			t.Fatal(err)
		}
		return len(entries)
	}
	const n = 40 // more than this program has needed
	keepThreads(n)
	if got := threads(); got < n {
		t.Errorf("there are %d threads, want at least %d", got, n)
	}
}
