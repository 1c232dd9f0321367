package cli

import (
	"context"
	"os"
	"os/signal"
	"sync"
	"syscall"
)

// osSignals subscribes to the signals that end or steer a command. SIGPIPE is among them so that writing to a closed
// pipe is an error and not the end of this process, which has sandboxes to clear away.
func osSignals() (<-chan os.Signal, func()) {
	ch := make(chan os.Signal, 8)
	signal.Notify(ch, syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT, syscall.SIGPIPE,
		syscall.SIGWINCH, syscall.SIGCONT, syscall.SIGUSR1, syscall.SIGUSR2)
	return ch, func() { signal.Stop(ch) }
}

// signalError is why a command's context was cancelled.
type signalError struct{ signal syscall.Signal }

func (e *signalError) Error() string { return "stopped by signal: " + e.signal.String() }

func (e *signalError) ExitCode() int { return e.exitCode() }

func (e *signalError) exitCode() int { return 128 + int(e.signal) }

// signalRouter gives each signal to the program in the sandbox while there is one, and otherwise ends the command: the
// first signal cancels its context, the second ends the process.
type signalRouter struct {
	mu      sync.Mutex
	handler func(syscall.Signal) bool // guarded by mu; reports whether it has dealt with the signal
}

// handle makes h the receiver of signals; nil takes the last one's place. h must not block, and is not called any more
// once handle has returned.
func (r *signalRouter) handle(h func(syscall.Signal) bool) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.handler = h
}

func (r *signalRouter) offer(sig syscall.Signal) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.handler != nil && r.handler(sig)
}

// start routes signals until the returned function is called, which waits for the routing to end.
func (r *signalRouter) start(subscribe func() (<-chan os.Signal, func()), cancel context.CancelCauseFunc, abort func(int)) func() {
	signals, unsubscribe := subscribe()
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		cancelled := false
		for {
			select {
			case <-done:
				return
			case s := <-signals:
				sig, ok := s.(syscall.Signal)
				switch {
				case !ok || r.offer(sig) || !deadly(sig):
				case cancelled:
					abort(128 + int(sig))
				default:
					cancelled = true
					cancel(&signalError{sig})
				}
			}
		}
	}()
	return func() {
		unsubscribe()
		close(done)
		<-ended
	}
}

func deadly(sig syscall.Signal) bool {
	switch sig {
	case syscall.SIGINT, syscall.SIGTERM, syscall.SIGHUP, syscall.SIGQUIT:
		return true
	}
	return false
}
