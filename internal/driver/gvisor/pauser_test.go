package gvisor

import (
	"errors"
	"os"
	"strings"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/unet"
	"gvisor.dev/gvisor/pkg/urpc"
)

// containerManager counts like the one in gVisor, whose name it has to have.
type containerManager struct {
	mu    sync.Mutex
	count int           // guarded by mu
	least int           // guarded by mu: that count ever was
	hold  chan struct{} // a pause is done when it is closed; nil at once
	begun chan struct{} // gets one for each pause
}

func (m *containerManager) Pause(_, _ *struct{}) error {
	m.mu.Lock()
	m.count++
	m.mu.Unlock()
	m.begun <- struct{}{}
	if m.hold != nil {
		<-m.hold
	}
	return nil
}

func (m *containerManager) Resume(_, _ *struct{}) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	m.count--
	m.least = min(m.least, m.count)
	return nil
}

func (m *containerManager) paused() int {
	m.mu.Lock()
	defer m.mu.Unlock()
	return m.count
}

// gvisorStub serves m, and returns what gives orders to p with a connection to it.
func gvisorStub(t *testing.T, m *containerManager, p *pauser) (pause, resume func(number int64) error) {
	t.Helper()
	m.begun = make(chan struct{}, 100)
	s := urpc.NewServer()
	s.Register(m)
	t.Cleanup(func() { s.Stop(time.Minute) })
	give := func(number int64, do func(*order, *struct{}) error) error {
		ours, theirs, err := unet.SocketPair(false)
		if err != nil {
			return err
		}
		s.StartHandling(theirs)
		fd, err := ours.Release()
		if err != nil {
			return err
		}
		file := os.NewFile(uintptr(fd), "control")
		defer file.Close()
		return do(&order{FilePayload: urpc.FilePayload{Files: []*os.File{file}}, Number: number}, nil)
	}
	return func(n int64) error { return give(n, p.Pause) }, func(n int64) error { return give(n, p.Resume) }
}

func wantPaused(t *testing.T, m *containerManager, p *pauser, want int) {
	t.Helper()
	var says bool
	if err := p.Paused(nil, &says); err != nil || says != (want > 0) || m.paused() != want || m.least < 0 {
		t.Errorf("the pauser says %v, %v; gVisor counts %d, %d at least, want %d", says, err, m.paused(), m.least, want)
	}
}

func TestPauserKeepsTheCount(t *testing.T) {
	m, p := &containerManager{}, &pauser{}
	pause, resume := gvisorStub(t, m, p)
	n := int64(0)
	for _, step := range []struct {
		do   func(int64) error
		want int
	}{{resume, 0}, {pause, 1}, {pause, 1}, {resume, 0}, {resume, 0}, {pause, 1}, {resume, 0}} {
		n++
		if err := step.do(n); err != nil {
			t.Fatal(err)
		}
		wantPaused(t, m, p, step.want)
	}
}

func TestPauserRefusesTheLate(t *testing.T) {
	m, p := &containerManager{}, &pauser{}
	pause, resume := gvisorStub(t, m, p)
	if err := errors.Join(pause(1), resume(3)); err != nil {
		t.Fatal(err)
	}
	if err := pause(2); err == nil || !strings.Contains(err.Error(), "too late") {
		t.Errorf("a pause that was overtaken by a resume: %v", err)
	}
	wantPaused(t, m, p, 0)
	if err := pause(4); err != nil {
		t.Fatal(err)
	}
	if err := resume(3); err == nil {
		t.Error("a resume that was overtaken by a pause")
	}
	wantPaused(t, m, p, 1)
}

// TestPauserGivesUp: a pause that is never done can be resumed, and its caller is told in the end.
func TestPauserGivesUp(t *testing.T) {
	m, p := &containerManager{hold: make(chan struct{})}, &pauser{}
	pause, resume := gvisorStub(t, m, p)
	paused := make(chan error, 2)
	for range 2 {
		go func() { paused <- pause(1) }()
	}
	<-m.begun
	if err := resume(2); err != nil {
		t.Fatal(err)
	}
	wantPaused(t, m, p, 0)
	close(m.hold)
	<-paused // nobody listens to them any more
	<-paused
	wantPaused(t, m, p, 0)
	if err := pause(3); err != nil {
		t.Fatal(err)
	}
	wantPaused(t, m, p, 1)
}

func TestPauserWithoutConnection(t *testing.T) {
	p := &pauser{}
	if err := p.Pause(&order{Number: 1}, nil); err == nil {
		t.Error("a pause without a connection")
	}
	var paused bool
	if err := p.Paused(nil, &paused); err != nil || paused {
		t.Errorf("paused: %v, %v", paused, err)
	}
	m := &containerManager{}
	pause, _ := gvisorStub(t, m, p)
	if err := pause(2); err != nil {
		t.Fatal(err)
	}
	wantPaused(t, m, p, 1)
}
