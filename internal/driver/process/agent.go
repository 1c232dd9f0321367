package process

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

// child is an agent that this process started; a goroutine reaps it, Destroy and a failed Create wait for that.
type child struct {
	agent identity
	done  chan struct{} // closed when it has been reaped
	code  int           // its exit status, -1 if a signal ended it; valid once done is closed
}

// start runs the agent of a new sandbox in a session of its own, so that it outlives this process.
func (d *Driver) start(spec driver.Spec, rec *record) (*child, error) {
	work := filepath.Join(spec.Dir, workName)
	if err := os.Mkdir(work, 0o755); err != nil {
		return nil, fmt.Errorf("make working directory: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(spec.Dir, logName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600)
	if err != nil {
		return nil, fmt.Errorf("open agent's log: %w", err)
	}
	defer out.Close()
	// What was open when this process was started may lack the flag, and would be the agent's and its programs' too.
	if err := unix.CloseRange(3, math.MaxInt32, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return nil, fmt.Errorf("keep our descriptors from the agent: %w", err)
	}
	// The socket's path is relative to the working directory: an absolute one may exceed the 108 bytes of a socket's name.
	cmd := exec.Command(d.cfg.Agent, "--listen", "unix:../"+socketName, "--mark", d.mark(spec.ID))
	cmd.Dir, cmd.Stdout, cmd.Stderr = work, out, out
	cmd.Env = d.environ(spec.ID, work)
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start agent: %w", err)
	}
	c := &child{done: make(chan struct{}), code: -1}
	st, err := hostproc.ReadStat(cmd.Process.Pid) // not reaped yet, so this is no other process
	boot, bootErr := hostproc.BootID()
	err = errors.Join(err, bootErr)
	c.agent = identity{PID: cmd.Process.Pid, Start: st.Start, Boot: boot}
	d.mu.Lock()
	d.children[spec.ID] = c
	d.mu.Unlock()
	go d.reap(spec.ID, cmd, c)
	if err == nil {
		err = rec.save(c.agent)
	}
	if err != nil {
		return nil, fmt.Errorf("record agent: %w", err)
	}
	return c, nil
}

// environ gives programs what any login has, and none of the secrets that may be in our own environment.
func (d *Driver) environ(id driver.ID, work string) []string {
	env := []string{"HOME=" + work, "TMPDIR=" + work, markName + "=" + d.mark(id)}
	for _, name := range []string{"PATH", "LANG", "TZ", "USER", "LOGNAME"} {
		if v, ok := os.LookupEnv(name); ok {
			env = append(env, name+"="+v)
		}
	}
	return env
}

func (d *Driver) reap(id driver.ID, cmd *exec.Cmd, c *child) {
	_ = cmd.Wait() // how it ended is in ProcessState
	c.code = cmd.ProcessState.ExitCode()
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.children[id] == c {
		delete(d.children, id)
	}
	close(c.done)
}

// reaped waits until the agent of a sandbox is no zombie of ours.
func (d *Driver) reaped(ctx context.Context, id driver.ID) error {
	d.mu.Lock()
	c := d.children[id]
	d.mu.Unlock()
	if c == nil {
		return nil
	}
	select {
	case <-c.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// await returns when the agent listens.
func (d *Driver) await(ctx context.Context, spec driver.Spec, c *child) error {
	ctx, cancel := context.WithTimeoutCause(ctx, startLimit, fmt.Errorf("agent does not listen after %v", startLimit))
	defer cancel()
	pause := time.Millisecond
	for {
		conn, err := dialAgent(ctx, spec.Dir)
		if err == nil {
			return conn.Close()
		}
		select {
		case <-c.done:
			return fmt.Errorf("start agent: it ended with status %d%s", c.code, d.lastWords(spec))
		default:
		}
		if sleep(ctx, pause) != nil {
			return fmt.Errorf("start agent: %w", context.Cause(ctx))
		}
		pause = min(2*pause, 20*time.Millisecond)
	}
}

// lastWords returns the end of what the agent wrote before it ended, for a person.
func (d *Driver) lastWords(spec driver.Spec) string {
	f, err := os.Open(filepath.Join(spec.Dir, logName))
	if err != nil {
		return ""
	}
	defer f.Close()
	if size, err := f.Seek(0, io.SeekEnd); err == nil {
		_, _ = f.Seek(max(0, size-500), io.SeekStart)
	}
	text, err := io.ReadAll(io.LimitReader(f, 500))
	if err != nil || len(text) == 0 {
		return ""
	}
	return ": " + strings.ToValidUTF8(strings.TrimSpace(string(text)), "?")
}

// clearDir removes what Create and the programs of a sandbox made in its directory, and keeps the directory.
func clearDir(dir string) error {
	if err := unmountBelow(dir); err != nil {
		return err
	}
	var errs []error
	for _, name := range []string{socketName, logName, workName} {
		errs = append(errs, removeTree(filepath.Join(dir, name)))
	}
	return errors.Join(errs...)
}
