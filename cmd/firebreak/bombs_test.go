package main_test

import (
	"bytes"
	"context"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"
)

// bomb is a program that does harm, and what is to be seen of it.
type bomb struct {
	name   string
	flags  string
	script string // for bash; it is dead or given up when it ends
	status int
	stdout string // a part of it
	says   string // a part of what firebreak or the program says on standard error
}

// bombs are those that any boundary contains. They are the real thing, without a bound of their own where the sandbox has
// one for them.
func bombs() []bomb {
	const python = "exec python3 -c '"
	return []bomb{
		{"fork bomb", "--pids 80 --timeout 3s", ":(){ :|:& };:; sleep 60", 124, "", "stopped at its time limit of 3s"},
		{"many processes", "--pids 80", python + "import os\nwhile os.fork():\n  pass\nelse:\n  os.execlp(\"sleep\", \"sleep\", \"60\")'", 1, "", "BlockingIOError"},
		{"memory", "--memory 128m", python + "x = bytearray(1 << 30)'", 137, "", "killed at its memory limit of 128 MiB"},
		{"memory of many", "--memory 128m", `for i in 1 2 3 4 5 6 7 8; do python3 -c 'x = bytearray(60 << 20)
while True: pass' & p="$p $!"; done; while sleep 0.1; do for i in $p; do kill -0 $i || exit 137; done; done`, 137, "", "killed at its memory limit"},
		{"disk", "--disk 32m", "dd if=/dev/zero of=big bs=1M count=4096", 1, "", "No space left on device"},
		{"names on the disk", "--disk 32m --memory 256m", "i=0; while echo $i >$i; do i=$((i+1)); done; exit 9", 9, "", "No space left on device"},
		{"descriptors", "", python + "import os\ntry:\n  while True: os.open(\"/dev/null\", 0)\nexcept OSError as e: print(e)'", 0, "Too many open files", ""},
		{"deaf to signals", "--timeout 1s", `trap "" TERM INT HUP QUIT; while :; do sleep 1; done`, 124, "", "stopped at its time limit of 1s"},
		{"zombies", "--pids 200", "for i in $(seq 150); do (exit 0) & done; exec sleep 0.5", 0, "", ""},
	}
}

// TestBombs lets off each bomb beside a neighbour, which answers as if nothing were. The reason is said, and nothing is
// left behind.
func TestBombs(t *testing.T) {
	for _, isolation := range []string{"gvisor", "container"} {
		t.Run(isolation, func(t *testing.T) {
			serves(t, binary(t), isolation)
			a := newAlone(t, t.TempDir())
			a.must("run", "-q", "--isolation", isolation, "--detach", "--name", "neighbour", "--", "sleep", "3600")
			for _, b := range bombs() {
				if testing.Short() && b.name == "names on the disk" {
					continue // it takes some seconds
				}
				t.Run(b.name, func(t *testing.T) {
					a.besides(t, func() { a.explode(t, isolation, b) })
				})
			}
			// The one that is let off in a sandbox that lives on: that sandbox answers afterwards, too.
			a.must("run", "-q", "--isolation", isolation, "--pids", "80", "--detach", "--name", "victim", "--", "sleep", "3600")
			a.run("exec", "--timeout", "3s", "victim", "--", "bash", "-c", ":(){ :|:& };:; sleep 60")
			a.must("kill", "victim")
		})
	}
}

func (a alone) explode(t *testing.T, isolation string, b bomb) {
	args := append([]string{"run", "-q", "--isolation", isolation}, strings.Fields(b.flags)...)
	out, errs, status := a.run(append(args, "--", "bash", "-c", b.script)...)
	if status != b.status || !strings.Contains(out, b.stdout) || !strings.Contains(errs, b.says) {
		t.Errorf("status %d, want %d; printed %.300q, want %q; said, want %q:\n%s", status, b.status, out, b.stdout, b.says,
			errs[max(0, len(errs)-2000):]) // the reason comes last
	}
	if ids := a.must("ls", "-aq"); strings.Count(ids, "\n") != 1 {
		t.Errorf("beside the neighbour there are sandboxes: %q", ids)
	}
}

// besides asks the neighbour again and again while do runs, and once more afterwards.
func (a alone) besides(t *testing.T, do func()) {
	t.Helper()
	a.t = t
	ctx, cancel := context.WithCancel(t.Context())
	asked := make(chan int)
	go func() {
		n := 0
		for ; ctx.Err() == nil; n++ {
			if out, errs, status := a.run("exec", "neighbour", "--", "echo", "answers"); out != "answers\n" || status != 0 {
				t.Errorf("the neighbour suffers: status %d, %q: %s", status, out, errs)
				break
			}
		}
		asked <- n
	}()
	defer func() {
		cancel()
		t.Logf("the neighbour answered %d times meanwhile", <-asked)
		a.must("exec", "neighbour", "--", "true")
	}()
	do()
}

// TestMuchOutput reads a gigabyte through firebreak, fast and by a reader that is slow at first, in the memory of a few
// megabytes.
func TestMuchOutput(t *testing.T) {
	size := int64(1 << 30)
	if testing.Short() {
		size = 64 << 20
	}
	for _, isolation := range []string{"gvisor", "container"} {
		t.Run(isolation, func(t *testing.T) {
			serves(t, binary(t), isolation)
			a := newAlone(t, t.TempDir())
			cmd := a.command(t.Context(), "run", "-q", "--isolation", isolation, "--", "head", "-c", strconv.FormatInt(size, 10), "/dev/zero")
			var errs bytes.Buffer
			cmd.Stderr = &errs
			n := readSlowly(t, cmd)
			if err := cmd.Wait(); err != nil || errs.Len() > 0 || n != size {
				t.Errorf("%d bytes came through, want %d; %v: %s", n, size, err, errs.String())
			}
			const most = 256 << 10 // KiB; the program itself takes most of what is used
			if peak := cmd.ProcessState.SysUsage().(*syscall.Rusage).Maxrss; peak > most {
				t.Errorf("firebreak took %d KiB of memory", peak)
			} else {
				t.Logf("firebreak took %d KiB of memory", peak)
			}
		})
	}
}

// readSlowly starts the command and reads nothing of its output for two seconds, then all.
func readSlowly(t *testing.T, cmd *exec.Cmd) int64 {
	t.Helper()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	time.Sleep(2 * time.Second)
	n, err := io.Copy(io.Discard, out)
	if err != nil {
		t.Error(err)
	}
	return n
}

// TestStubbornProgram ignores the signals that firebreak passes on: with the second one, and when it is killed in its
// sandbox, it goes.
func TestStubbornProgram(t *testing.T) {
	for _, isolation := range []string{"gvisor", "container"} {
		t.Run(isolation, func(t *testing.T) {
			serves(t, binary(t), isolation)
			a := newAlone(t, t.TempDir())
			cmd := a.command(t.Context(), "run", "-q", "--isolation", isolation, "--", "sh", "-c", `trap "" TERM INT; echo ready; while :; do sleep 1; done`)
			out, err := cmd.StdoutPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := cmd.Start(); err != nil {
				t.Fatal(err)
			}
			if _, err := io.ReadFull(out, make([]byte, len("ready\n"))); err != nil {
				t.Fatal(err)
			}
			ended := make(chan struct{})
			go func() {
				for _, pause := range []time.Duration{100 * time.Millisecond, 10 * time.Second, 10 * time.Second, 0} {
					_ = cmd.Process.Signal(syscall.SIGINT) // two at once are one, and then there must be another
					select {
					case <-ended:
						return
					case <-time.After(pause):
					}
				}
			}()
			_ = cmd.Wait() // the status is looked at below
			close(ended)
			if got := cmd.ProcessState.ExitCode(); got != 128+int(syscall.SIGKILL) {
				t.Errorf("after two interrupts the status is %d, want that of a program that was killed", got)
			}
			if out := a.must("ls", "-aq"); out != "" {
				t.Errorf("there are sandboxes: %q", out)
			}
		})
	}
}

// TestZombies leaves children that nobody waits for to the sandbox's first process, which does.
func TestZombies(t *testing.T) {
	const orphans = `for i in $(seq 100); do (sh -c "exit 0" & exec sleep 0.2) & done; wait`
	const count = `grep -l "State:.Z" /proc/[0-9]*/status 2>/dev/null | wc -l`
	for _, isolation := range []string{"gvisor", "container"} {
		t.Run(isolation, func(t *testing.T) {
			serves(t, binary(t), isolation)
			a := newAlone(t, t.TempDir())
			a.must("run", "-q", "--isolation", isolation, "--detach", "--name", "maker", "--", "sleep", "3600")
			a.must("exec", "maker", "--", "bash", "-c", orphans)
			left := ""
			for end := time.Now().Add(time.Minute); left != "0" && time.Now().Before(end); {
				left = strings.TrimSpace(a.must("exec", "maker", "--", "sh", "-c", count))
			}
			if left != "0" {
				t.Errorf("%s zombies are left", left)
			}
		})
	}
}
