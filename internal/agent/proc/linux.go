package proc

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strconv"
	"strings"
	"syscall"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// Linux starts processes of the machine that the agent runs on. What ends them is the Reaper's to tell.
type Linux struct {
	*Reaper
	Session *account.Session
	Spawner *Spawner
	Mark    map[string]string // environment that every process gets: of it, nobody can rid himself
	Log     *slog.Logger

	oom []byte // what children's oom_score_adj becomes; nil to leave it
}

var _ Launcher = (*Linux)(nil)

// NewLinux returns l, ready for use.
func NewLinux(l Linux) *Linux {
	l.oom = childrenOOM()
	return &l
}

// childrenOOM makes children likelier victims than the agent when memory runs out: it must live to tell what happened.
func childrenOOM() []byte {
	text, err := os.ReadFile("/proc/self/oom_score_adj")
	own, err2 := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || err2 != nil {
		return nil
	}
	return strconv.AppendInt(nil, int64(min(own+500, 1000)), 10)
}

// environ is the whole environment of a process.
func (l *Linux) environ(u account.User, request map[string]string) (map[string]string, error) {
	path := os.Getenv("PATH")
	if path == "" {
		path = DefaultPath
	}
	return Environ(u, path, l.Session.Defaults().Envs, request, l.Mark)
}

// prepared is what a process needs before its fork.
type prepared struct {
	file, dir string
	argv, env []string
}

func (l *Linux) prepare(u account.User, c *processv1.ProcessConfig) (*prepared, error) {
	invalid := func(err error) error { return connect.NewError(connect.CodeInvalidArgument, err) }
	for _, arg := range c.GetArgs() {
		if strings.Contains(arg, "\x00") {
			return nil, invalid(fmt.Errorf("argument %q holds a zero byte", arg))
		}
	}
	if strings.Contains(c.GetCwd(), "\x00") {
		return nil, invalid(fmt.Errorf("cwd %q holds a zero byte", c.GetCwd()))
	}
	env, err := l.environ(u, c.GetEnvs())
	if err != nil {
		return nil, invalid(err)
	}
	p := &prepared{argv: append([]string{c.GetCmd()}, c.GetArgs()...), env: environList(env), dir: l.Session.Path(u, c.GetCwd())}
	err = l.Session.Do(u, func() error {
		err := checkDir(p.dir)
		if err != nil && c.Cwd != nil {
			return err
		}
		if err != nil {
			p.dir = "/" // an account without a home of its own, and nobody asked for a directory
		}
		p.file, err = lookPath(c.GetCmd(), p.dir, env["PATH"])
		return err
	})
	if err != nil {
		return nil, invalid(err)
	}
	return p, nil
}

// Prepare implements Launcher.
func (l *Linux) Prepare(u account.User, req *processv1.StartRequest) (Launch, error) {
	prep, err := l.prepare(u, req.GetProcess())
	if err != nil {
		return nil, err
	}
	return func(io *Stdio, started func(pid int), ended func(unix.WaitStatus)) error {
		fds, err := io.Descriptors()
		if err != nil {
			return err
		}
		defer closeAll(fds)
		// Of a terminal, descriptor 0 becomes the controlling one.
		return l.fork(u, prep, &syscall.SysProcAttr{Setsid: true, Setctty: req.GetPty() != nil}, fds, started, ended)
	}, nil
}

// fork starts a child with these descriptors; -1 is one that is closed there.
func (l *Linux) fork(
	u account.User, prep *prepared, sys *syscall.SysProcAttr, fds []int, started func(int), ended func(unix.WaitStatus),
) (err error) {
	sys.Credential = l.Session.Credential(u)
	attr := &syscall.ProcAttr{Dir: prep.dir, Env: prep.env, Sys: sys}
	for _, fd := range fds {
		attr.Files = append(attr.Files, uintptr(fd))
	}
	l.Spawner.Do(func() {
		_, err = l.Start(func() (int, error) {
			pid, err := syscall.ForkExec(prep.file, prep.argv, attr)
			if err == nil {
				started(pid)
				l.exposeToOOM(pid, u)
			}
			return pid, err
		}, ended)
	})
	if err != nil {
		return startError(prep.file, err)
	}
	return nil
}

// exposeToOOM is best effort: /proc may be read-only, and the child's file belongs to its user.
func (l *Linux) exposeToOOM(pid int, u account.User) {
	if l.oom == nil {
		return
	}
	name := fmt.Sprintf("/proc/%d/oom_score_adj", pid)
	write := func() error { // os.WriteFile makes nine system calls of these three
		fd, err := unix.Open(name, unix.O_WRONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		_, err = unix.Write(fd, l.oom)
		return errors.Join(err, unix.Close(fd))
	}
	if errors.Is(write(), os.ErrPermission) {
		if err := l.Session.Do(u, write); err != nil {
			l.Log.Debug("raise oom_score_adj", "pid", pid, "error", err)
		}
	}
}
