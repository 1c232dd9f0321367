package server

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/coreos/go-systemd/v22/activation"

	"github.com/firebreak-dev/firebreak"
)

// Addresses say where to listen; an empty one is none.
type Addresses struct {
	Plain  string
	TLS    string
	Socket string // path of a unix socket
}

// Listeners is what a server listens on.
type Listeners struct {
	All    []Listener
	Plain  net.Addr // the first plain TCP port; nil: none
	TLS    net.Addr // the first encrypted port; nil: none
	Socket string   // path of the unix socket; empty: none
}

// Listen opens the sockets that systemd passed on, if it did, and otherwise those of the addresses. The passed ones are
// plain unless systemd names them "tls" (FileDescriptorName=).
func Listen(ctx context.Context, a Addresses) (*Listeners, error) {
	l := &Listeners{}
	passed, err := l.addPassed()
	if err == nil && !passed {
		err = l.open(ctx, a)
	}
	if err != nil {
		return nil, errors.Join(err, l.Close())
	}
	return l, nil
}

// Close closes all, and with it removes the unix socket that was made here.
func (l *Listeners) Close() error {
	var errs []error
	for _, one := range l.All {
		if err := one.Close(); err != nil && !errors.Is(err, net.ErrClosed) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// Far reports whether another host can connect.
func (l *Listeners) Far() bool {
	for _, one := range l.All {
		if tcp, ok := one.Addr().(*net.TCPAddr); ok && !tcp.IP.IsLoopback() {
			return true
		}
	}
	return false
}

func (l *Listeners) add(nl net.Listener, tls bool) {
	l.All = append(l.All, Listener{Listener: nl, TLS: tls})
	addr := nl.Addr()
	switch {
	case addr.Network() == "unix" && l.Socket == "":
		l.Socket = addr.String()
	case addr.Network() == "tcp" && tls && l.TLS == nil:
		l.TLS = addr
	case addr.Network() == "tcp" && !tls && l.Plain == nil:
		l.Plain = addr
	}
}

func (l *Listeners) addPassed() (bool, error) {
	adoptPassed()
	files := activation.Files(true)
	var errs []error
	for _, f := range files {
		nl, err := net.FileListener(f)
		if err != nil {
			errs = append(errs, fmt.Errorf("use socket %s of the service manager: %w", f.Name(), err))
		} else {
			l.add(nl, f.Name() == "tls")
		}
		errs = append(errs, f.Close())
	}
	return len(files) > 0, errors.Join(errs...)
}

// adoptPassed takes over what was passed to our parent, which is this program too: it has run us in a user namespace and
// passed the files on, but could not know our number.
func adoptPassed() {
	if parent := fmt.Sprint(os.Getppid()); os.Getenv("LISTEN_PID") == parent && os.Getenv(PassedVariable) == parent {
		_ = os.Setenv("LISTEN_PID", fmt.Sprint(os.Getpid())) // its name and value are well formed
	}
	_ = os.Unsetenv(PassedVariable)
}

// PassedVariable is set, to its own process number, by a process that passes on what the service manager passed to it.
const PassedVariable = "FIREBREAK_LISTEN_PARENT"

func (l *Listeners) open(ctx context.Context, a Addresses) error {
	for _, one := range []struct {
		address string
		tls     bool
	}{{a.Plain, false}, {a.TLS, true}} {
		if one.address == "" {
			continue
		}
		nl, err := (&net.ListenConfig{}).Listen(ctx, "tcp", one.address)
		if err != nil {
			return listenError(one.address, err)
		}
		l.add(nl, one.tls)
	}
	if a.Socket == "" {
		return nil
	}
	nl, err := listenUnix(ctx, a.Socket)
	if err != nil {
		return listenError(a.Socket, err)
	}
	l.add(nl, false)
	return nil
}

func listenError(address string, err error) error {
	e := &firebreak.Error{Kind: firebreak.KindHost, Op: "listen on " + address, Err: err}
	switch {
	case errors.Is(err, syscall.EADDRINUSE):
		e.Mend = "another program has it: end that, or choose another address"
	case errors.Is(err, fs.ErrPermission) && !strings.HasPrefix(address, "/"):
		e.Mend = "choose a port from 1024 on, or run firebreak as root"
	case errors.Is(err, syscall.EADDRNOTAVAIL):
		e.Mend = "choose an address that this host has"
	}
	return e
}

// listenUnix makes a socket that only this user may connect to. One that a dead server has left is removed.
func listenUnix(ctx context.Context, path string) (net.Listener, error) {
	nl, err := (&net.ListenConfig{}).Listen(ctx, "unix", path)
	if errors.Is(err, syscall.EADDRINUSE) && isDead(ctx, path) {
		if err := os.Remove(path); err != nil {
			return nil, err
		}
		nl, err = (&net.ListenConfig{}).Listen(ctx, "unix", path)
	}
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		return nil, errors.Join(err, nl.Close())
	}
	return nl, nil
}

// isDead reports whether a path is a socket on which nobody listens.
func isDead(ctx context.Context, path string) bool {
	if fi, err := os.Lstat(path); err != nil || fi.Mode()&fs.ModeSocket == 0 {
		return false
	}
	conn, err := (&net.Dialer{Timeout: time.Second}).DialContext(ctx, "unix", path)
	if err == nil {
		_ = conn.Close() // it is alive, which is all there was to know
	}
	return errors.Is(err, syscall.ECONNREFUSED)
}
