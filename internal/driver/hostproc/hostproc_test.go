package hostproc

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

func sleeper(t *testing.T) (*exec.Cmd, Stat) {
	t.Helper()
	cmd := exec.Command("sleep", "1000")
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		cmd.Process.Kill()
		cmd.Wait()
	})
	for end := time.Now().Add(time.Minute); ; {
		s, err := ReadStat(cmd.Process.Pid)
		if err != nil || time.Now().After(end) {
			t.Fatalf("%+v, %v", s, err)
		}
		if s.Code != 0 { // Start returns in the midst of its exec
			return cmd, s
		}
	}
}

func TestStatOfAChild(t *testing.T) {
	cmd, s := sleeper(t)
	if s.PID != cmd.Process.Pid || s.Parent != os.Getpid() || s.Threads != 1 || !s.Running() || s.Start == 0 {
		t.Errorf("%+v", s)
	}
}

func TestStopped(t *testing.T) {
	if Stopped(os.Getpid()) {
		t.Error("this process is stopped")
	}
	cmd, _ := sleeper(t)
	for _, step := range []struct {
		sig  os.Signal
		want bool
	}{{unix.SIGSTOP, true}, {unix.SIGCONT, false}, {unix.SIGSTOP, true}, {unix.SIGKILL, true}} {
		if err := cmd.Process.Signal(step.sig); err != nil {
			t.Fatal(err)
		}
		for end := time.Now().Add(time.Minute); Stopped(cmd.Process.Pid) != step.want; time.Sleep(time.Millisecond) {
			if time.Now().After(end) {
				t.Fatalf("after %v: Stopped is not %v within a minute", step.sig, step.want)
			}
		}
	}
	_ = cmd.Wait() // it was killed, so this is an error
	if !Stopped(cmd.Process.Pid) {
		t.Error("one that is gone is not stopped")
	}
}

func TestANumberThatIsUsedAgainIsAnotherProcess(t *testing.T) {
	_, s := sleeper(t)
	for start, want := range map[uint64]error{s.Start: nil, s.Start - 1: unix.ESRCH, s.Start + 1: unix.ESRCH} {
		file, err := Open(s.PID, start)
		if !errors.Is(err, want) {
			t.Errorf("opened the process that began at %d, asked for %d: %v, want %v", s.Start, start, err, want)
		}
		if err == nil {
			file.Close()
		}
	}
	for _, pid := range []int{-1, 0, 1} {
		if _, err := Open(pid, 0); !errors.Is(err, unix.ESRCH) {
			t.Errorf("opened %d: %v", pid, err)
		}
	}
}

func TestWait(t *testing.T) {
	cmd, s := sleeper(t)
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	first, err := Open(s.PID, s.Start)
	if err != nil {
		t.Fatal(err)
	}
	defer first.Close()
	if err := Wait(canceled, first); !errors.Is(err, context.Canceled) {
		t.Errorf("wait with a context that has ended: %v", err)
	}
	second, err := Open(s.PID, s.Start)
	if err != nil {
		t.Fatal(err)
	}
	defer second.Close()
	if Ended(second) {
		t.Error("a process that runs has ended")
	}
	cmd.Process.Kill()
	if err := Wait(t.Context(), second); err != nil || !Ended(second) {
		t.Errorf("wait for a killed process: %v, ended %v", err, Ended(second))
	}
	if zombie, err := ReadStat(s.PID); err != nil || zombie.Running() || zombie.Start != s.Start || zombie.Status != int(unix.SIGKILL) {
		t.Errorf("a killed child before it is reaped: %+v, %v", zombie, err)
	}
	cmd.Wait()
	if _, err := Open(s.PID, s.Start); !errors.Is(err, unix.ESRCH) {
		t.Errorf("opened a process that is gone: %v", err)
	}
}

func FuzzParseStat(f *testing.F) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		f.Fatal(err)
	}
	f.Add(own)
	f.Add([]byte(strings.Replace(string(own), "(", "() R 1 1 1 ) (", 1)))
	f.Add([]byte("1 (x)"))
	f.Add([]byte(""))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := parseStat(data)
		if err == nil && s.State == 0 {
			t.Errorf("%q has no state", data)
		}
	})
}

func TestANameCannotForgeFields(t *testing.T) {
	own, err := os.ReadFile("/proc/self/stat")
	if err != nil {
		t.Fatal(err)
	}
	want, err := parseStat(own)
	if err != nil {
		t.Fatal(err)
	}
	forged := strings.Replace(string(own), "(", "(a) Z 1 1 1 1 (", 1)
	if got, err := parseStat([]byte(forged)); err != nil || got != want {
		t.Errorf("got %+v, %v; want %+v", got, err, want)
	}
	if _, err := parseStat([]byte("1 (x) R 2")); !errors.Is(err, fs.ErrInvalid) {
		t.Errorf("took a short line: %v", err)
	}
}
