package image

import (
	"bufio"
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// TestAtOnce makes, serves, deletes and collects from many goroutines through several stores on one directory.
func TestAtOnce(t *testing.T) {
	dir := t.TempDir()
	stores := []*Store{openStore(t, dir), openStore(t, dir), openStore(t, dir)}
	sources := []string{smallTree(t, "0"), smallTree(t, "1"), smallTree(t, "2")}
	make1(t, stores[0], Source{Path: sources[0]}, MakeOptions{Name: "kept"})
	var wg sync.WaitGroup
	for w := range 12 {
		wg.Go(func() {
			s := stores[w%3]
			for i := range 15 {
				name := fmt.Sprintf("t%d", (w+i)%4)
				var err error
				switch (w + i) % 5 {
				case 0, 1:
					_, err = s.Make(t.Context(), Source{Path: sources[(w+i)%3]}, MakeOptions{Name: name, IfMissing: i%2 == 0})
				case 2:
					if err = s.Delete(name); errors.Is(err, fs.ErrNotExist) {
						err = nil
					}
				case 3:
					_, _, err = s.Collect(t.Context(), func(string) bool { return false })
				}
				root, rootErr := s.Root(t.Context(), "kept", []driver.Form{driver.FormDirectory})
				if data, readErr := os.ReadFile(root.Path + "/motd"); string(data) != "0" {
					err = errors.Join(err, rootErr, readErr, fmt.Errorf("kept says %q", data))
				}
				if err != nil {
					t.Errorf("worker %d, turn %d: %v", w, i, err)
				}
			}
		})
	}
	wg.Wait()
	checkStore(t, stores[0])
}

// checkStore opens every template of a store, after a collection.
func checkStore(t testing.TB, s *Store) {
	t.Helper()
	_, _, err := s.Collect(t.Context(), func(string) bool { return false })
	must(t, err)
	work, err := os.ReadDir(filepath.Join(s.dir, workDir))
	if err != nil || len(work) > 0 {
		t.Errorf("%d leftovers, %v", len(work), err)
	}
	list, err := s.List()
	must(t, err)
	for _, tmpl := range list[1:] {
		root, err := s.Root(t.Context(), tmpl.Name, []driver.Form{driver.FormDisk})
		must(t, err)
		data, err := os.ReadFile(root.Path)
		must(t, err)
		if got := digestOf(data); got != tmpl.Digest {
			t.Errorf("%s: image has %s, its template says %s", tmpl.Name, got, tmpl.Digest)
		}
	}
}

const killedEnv = "FIREBREAK_IMAGE_TEST_STORE"

// TestKilledAtAnyMoment kills processes that make, unpack and collect, again and again, and expects a whole store.
func TestKilledAtAnyMoment(t *testing.T) {
	if dir := os.Getenv(killedEnv); dir != "" {
		busyUntilKilled(t, dir)
		return
	}
	dir := t.TempDir()
	s, started := openStore(t, dir), time.Now()
	make1(t, s, Source{Path: smallTree(t, "kept")}, MakeOptions{Name: "kept"})
	rounds, scratch := 30, t.TempDir() // the killed cannot clear their own away
	if testing.Short() {
		rounds = 5
	}
	for i := range rounds {
		cmd := exec.Command(os.Args[0], "-test.run=^TestKilledAtAnyMoment$", "-test.v")
		cmd.Env = append(os.Environ(), killedEnv+"="+dir, "TMPDIR="+scratch)
		cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
		out, err := cmd.StdoutPipe()
		must(t, err, cmd.Start())
		lines := bufio.NewScanner(out)
		for lines.Scan() && !strings.Contains(lines.Text(), "busy") { // what the child prints once it is at work
		}
		if !strings.Contains(lines.Text(), "busy") {
			t.Fatalf("round %d: the child ended", i)
		}
		time.Sleep(time.Duration(i*i%37) * time.Millisecond)
		must(t, cmd.Process.Kill())
		_, _ = io.Copy(io.Discard, out)
		_ = cmd.Wait() // it was killed
		if data, err := s.Root(t.Context(), "kept", []driver.Form{driver.FormDisk}); err != nil {
			t.Fatalf("round %d: %v %v", i, data, err)
		}
	}
	checkStore(t, s)
	root, err := s.Root(t.Context(), "kept", []driver.Form{driver.FormDirectory})
	must(t, err)
	if data, err := os.ReadFile(root.Path + "/motd"); err != nil || string(data) != "kept" {
		t.Errorf("kept says %q, %v", data, err)
	}
	t.Logf("%d kills in %v", rounds, time.Since(started).Round(time.Millisecond))
}

func busyUntilKilled(t *testing.T, dir string) {
	s := openStore(t, dir)
	source := smallTree(t, "busy")
	must(t, os.WriteFile(source+"/more", bytes.Repeat([]byte("0123456789abcdef"), 1<<16), 0o644))
	fmt.Println("busy")
	for i := 0; ; i++ {
		must(t, os.WriteFile(source+"/etc/motd", fmt.Append(nil, i), 0o644))
		name := fmt.Sprintf("t%d", i%3)
		make1(t, s, Source{Path: source}, MakeOptions{Name: name})
		_, err := s.Root(t.Context(), name, []driver.Form{driver.FormDirectory})
		must(t, err)
		s.now = func() time.Time { return time.Now().Add(time.Hour) }
		_, _, err = s.Collect(t.Context(), func(string) bool { return false })
		must(t, err)
		s.now = time.Now
	}
}
