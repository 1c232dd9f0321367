package agent

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"log/slog"
	"net"
	"os"
	"os/signal"
	"runtime/debug"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/idle"
)

const (
	exitUsage    = 2
	exitError    = 1
	exitDeadline = 124

	maxThreads = 1000

	stopGrace = 3 * time.Second // that processes get after a signal to the agent
	drainTime = time.Second     // that clients get then to read the last of their output
)

// Main is the program: it serves until a signal or the deadline ends it, and returns its exit status.
func Main(args []string, stderr io.Writer) int {
	// Little memory is worth more here than speed: there is an agent in every sandbox.
	idle.Later(50, idle.KeepCalls)
	debug.SetMemoryLimit(32 << 20)

	unix.Umask(0o022) // of the files that clients make, and of processes, whatever started us

	log := slog.New(slog.NewTextHandler(stderr, nil))
	var c Config
	flags := flag.NewFlagSet("firebreak-agent", flag.ContinueOnError)
	flags.SetOutput(stderr)
	listen := flags.String("listen", "tcp:127.0.0.1:49983",
		"where to serve: tcp:HOST:PORT, unix:PATH, or fd:NUMBER of a socket that connections are passed on")
	flags.BoolVar(&c.DropCapabilities, "drop-capabilities", false, "give processes no capabilities and no new privileges")
	flags.Int64Var(&c.PIDsMax, "pids-max", 0, "limit the `number` of processes by the sandbox's own means")
	flags.StringVar(&c.Mark, "mark", "", "set FIREBREAK_SANDBOX_ID=`ID` for all processes")
	threads := flags.Int("threads", 0, "make this `number` of threads at once, so that none is needed when there is none to be had")
	if err := flags.Parse(args); err != nil {
		return exitUsage
	}
	if flags.NArg() > 0 || c.PIDsMax < 0 || *threads < 0 || *threads > maxThreads {
		fmt.Fprintln(stderr, "firebreak-agent: unknown arguments or a limit that is none; see -help")
		return exitUsage
	}
	keepThreads(*threads)
	c.Adopt, c.Log = true, log
	code, err := run(c, *listen)
	if err != nil {
		log.Error("agent", "error", err)
	}
	return code
}

func run(c Config, address string) (int, error) {
	// Before anything is started: what arrives while we begin must not be lost, and pid 1 ignores what it does not catch.
	signals := make(chan os.Signal, 4)
	signal.Notify(signals, unix.SIGTERM, unix.SIGINT, unix.SIGHUP, unix.SIGQUIT)
	defer signal.Stop(signals)
	l, err := open(address)
	if err != nil {
		return exitError, err
	}
	a, err := New(c)
	if err != nil {
		_ = l.Close()
		return exitError, err
	}
	defer a.Close()
	ctx, cancel := context.WithCancel(context.Background())
	defer cancel()
	served := make(chan error, 1)
	go func() { served <- a.Serve(ctx, l) }()
	select {
	case sig := <-signals:
		// Streams stay open meanwhile, so that clients still get the last output and the end.
		a.procs.Stop(sig.(syscall.Signal), stopGrace)
		drain, stop := context.WithTimeout(ctx, drainTime)
		defer stop()
		a.procs.Drain(drain)
		cancel()
		<-served
		return 128 + int(sig.(syscall.Signal)), nil
	case err := <-served:
		if errors.Is(err, ErrDeadline) {
			return exitDeadline, nil
		}
		return exitError, err
	}
}

// open listens at tcp:HOST:PORT, unix:PATH or fd:NUMBER. A socket that an earlier agent left behind is replaced.
func open(address string) (net.Listener, error) {
	network, where, ok := strings.Cut(address, ":")
	if network == "fd" {
		return listenPassed(where)
	}
	if !ok || network != "tcp" && network != "unix" {
		return nil, fmt.Errorf("listen at %q: not tcp:HOST:PORT, unix:PATH nor fd:NUMBER", address)
	}
	if network == "unix" {
		if conn, err := net.Dial(network, where); err == nil {
			_ = conn.Close()
			return nil, fmt.Errorf("listen at %q: another agent serves there", address)
		}
		if info, err := os.Lstat(where); err == nil && info.Mode().Type() == os.ModeSocket {
			_ = os.Remove(where)
		}
	}
	l, err := net.Listen(network, where)
	if err != nil {
		return nil, fmt.Errorf("listen: %w", err)
	}
	if network == "unix" {
		if err := os.Chmod(where, 0o600); err != nil {
			_ = l.Close()
			return nil, fmt.Errorf("listen: %w", err)
		}
	}
	return l, nil
}
