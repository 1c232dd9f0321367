package gvisor

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"sync"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
	"gvisor.dev/gvisor/runsc/boot"
)

// pauserVariable tells a sentry which descriptor is the socket on which it is to take calls to its pauser.
const pauserVariable = "FIREBREAK_PAUSER"

// The calls to a pauser.
const (
	pauserPause  = "pauser.Pause"
	pauserResume = "pauser.Resume"
	pauserPaused = "pauser.Paused"
)

// stopTime is what a resume leaves a pause that is at work: long for any but one that will never be done.
const stopTime = time.Second

// pauser stops and starts all programs of a sandbox from within the sentry. gVisor itself counts pauses, tells nobody the
// count, and ends with one resume too many; a caller may be killed at any moment and leave it unknown. So the count is
// kept here, where it lives and dies with what it counts.
type pauser struct {
	mu   sync.Mutex
	now  *pause // guarded by mu; nil while programs run
	last int64  // guarded by mu: of the calls so far, the largest number
}

// pause is one, from its beginning.
type pause struct {
	done chan struct{} // closed when gVisor is done with it
	err  error         // valid after done
}

// order is what a call to the pauser carries: a connection to gVisor's control socket, which cannot be reached from within
// its empty root, and a number, which grows from call to call.
type order struct {
	urpc.FilePayload
	Number int64 `json:"number"`
}

// obey makes sure that an order whose sender has given up or died, and that was on its way meanwhile, does not undo a
// later one. It needs mu.
func (p *pauser) obey(o *order) error {
	if o.Number < p.last {
		return errors.New("it came too late")
	}
	p.last = o.Number
	return nil
}

// pass makes a call to gVisor.
func (o *order) pass(method string) error {
	if len(o.Files) != 1 {
		return fmt.Errorf("%d connections were given", len(o.Files))
	}
	fd, err := o.ReleaseFD(0)
	if err != nil {
		return err
	}
	socket, err := unet.NewSocket(fd.Release())
	if err != nil {
		return err
	}
	defer socket.Close()
	return urpc.NewClient(socket).Call(method, nil, nil)
}

// Pause returns when all programs have stopped.
func (p *pauser) Pause(o *order, _ *struct{}) error {
	p.mu.Lock()
	if err := p.obey(o); err != nil {
		p.mu.Unlock()
		return err
	}
	now := p.now
	begins := now == nil
	if begins {
		now = &pause{done: make(chan struct{})}
		p.now = now
	}
	p.mu.Unlock()
	if begins {
		now.err = o.pass(boot.ContMgrPause)
		close(now.done)
	}
	<-now.done
	if now.err != nil {
		p.mu.Lock()
		defer p.mu.Unlock()
		if p.now == now {
			p.now = nil
		}
	}
	return now.err
}

// Resume has all programs go on, also those that a pause still waits for.
func (p *pauser) Resume(o *order, _ *struct{}) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	if err := p.obey(o); err != nil {
		return err
	}
	if p.now == nil {
		return nil
	}
	wait := time.NewTimer(stopTime)
	defer wait.Stop()
	select {
	case <-p.now.done:
	case <-wait.C:
	}
	if err := o.pass(boot.ContMgrResume); err != nil {
		return err
	}
	p.now = nil
	return nil
}

// Paused tells whether somebody has begun to pause the sandbox, and nobody has resumed it since.
func (p *pauser) Paused(_ *struct{}, paused *bool) error {
	p.mu.Lock()
	defer p.mu.Unlock()
	*paused = p.now != nil
	return nil
}

// servePauser takes calls to the pauser, if this sentry was given a socket for it. Each caller sends a connection of its own
// to that socket: gVisor lets the sentry accept none but those of its control socket.
func servePauser() error {
	text := os.Getenv(pauserVariable)
	if text == "" {
		return nil
	}
	fd, err := strconv.Atoi(text)
	if err != nil {
		return errors.New("its pauser's socket is no number")
	}
	socket, err := unet.NewSocket(fd)
	if err != nil {
		return fmt.Errorf("take calls to its pauser: %w", err)
	}
	s := urpc.NewServer()
	s.Register(&pauser{})
	go func() {
		awaitCall(fd)
		for {
			conn, err := receive(socket)
			if err != nil {
				return // it lives as long as this process
			}
			if conn != nil {
				s.StartHandling(conn)
			}
		}
	}()
	return nil
}

// awaitCall waits for a message, or a second. While gVisor boots it stops all threads again and again, which interrupts who
// waits in the kernel. Go 1.26 can miss a thread that just then begins to wait once more: it stops that only when it comes back,
// and all wait for it. So this one comes back soon, at first. Without, one boot in two hundred took a second more.
func awaitCall(fd int) {
	for wait := time.Millisecond; wait < time.Second; {
		limit := unix.NsecToTimespec(wait.Nanoseconds())
		n, err := unix.Ppoll([]unix.PollFd{{Fd: int32(fd), Events: unix.POLLIN}}, &limit, nil)
		switch {
		case errors.Is(err, unix.EINTR):
		case err != nil || n > 0:
			return // receive finds out what the error is
		default:
			wait *= 2
		}
	}
}

// receive waits for a message and returns the connection in it, nil if there is none.
func receive(socket *unet.Socket) (*unet.Socket, error) {
	r := socket.Reader(true)
	r.EnableFDs(1)
	if _, err := r.ReadVec([][]byte{make([]byte, 1)}); err != nil {
		return nil, err
	}
	fds, err := r.ExtractFDs()
	if err != nil || len(fds) != 1 {
		r.CloseFDs()
		return nil, nil
	}
	conn, err := unet.NewSocket(fds[0])
	if err != nil {
		_ = unix.Close(fds[0])
		return nil, nil
	}
	return conn, nil
}
