package manager

import (
	"context"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/store"
)

func TestLiveProcessesLeaveEachOtherAlone(t *testing.T) {
	h := newHost(t)
	a, b := h.process(t), h.process(t)
	ours := mustCreate(t, a, Request{Name: "a"})
	if got := records(t, b); len(got) != 1 {
		t.Errorf("b sees %v", got)
	}
	c := h.process(t)
	records(t, c) // its recovery is through
	h.holds(t, ours.ID)
	if _, err := c.Guest(operator(t.Context()), "a"); err != nil {
		t.Errorf("c does not reach a's sandbox: %v", err)
	}
	if err := c.Close(); err != nil {
		t.Fatal(err)
	}
	h.holds(t, ours.ID)
	waiting := make(chan store.Record, 1)
	go func() {
		rec, err := a.Wait(operator(context.Background()), "a")
		if errors.Is(err, fs.ErrNotExist) { // it was gone before this began
			rec.State, err = firebreak.StateEnded, nil
		}
		if err != nil {
			t.Error(err)
		}
		waiting <- rec
	}()
	if rec, err := b.Delete(operator(t.Context()), "a"); err != nil || rec.ID != ours.ID {
		t.Errorf("b deletes a's: %v", err)
	}
	if rec := <-waiting; rec.State != firebreak.StateEnded {
		t.Errorf("a waited for %+v", rec)
	}
	h.holds(t)
	if got := records(t, a); len(got) != 0 {
		t.Errorf("a still knows %v", got)
	}
}

func TestDetachedPastItsDeadlineIsRemoved(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	rec := mustCreate(t, m, Request{Detached: true, Timeout: time.Second})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	h.holds(t, rec.ID)
	time.Sleep(time.Until(rec.Deadline) + 10*time.Millisecond)
	next := h.process(t)
	if got := records(t, next)[rec.ID]; got.Exit.Reason != firebreak.EndDeadline || got.State != firebreak.StateEnded {
		t.Errorf("%+v", got)
	}
	h.holds(t)
}

func TestDetachedGoneIsLost(t *testing.T) {
	h := newHost(t)
	m := h.process(t)
	a, b := mustCreate(t, m, Request{Detached: true}), mustCreate(t, m, Request{Detached: true})
	if err := m.Close(); err != nil {
		t.Fatal(err)
	}
	if err := h.fake.Destroy(operator(t.Context()), a.Spec); err != nil {
		t.Fatal(err)
	}
	next := h.process(t)
	got := records(t, next)
	if got[a.ID].Exit.Reason != firebreak.EndLost || got[a.ID].State != firebreak.StateEnded || got[b.ID].State != firebreak.StateRunning {
		t.Errorf("a %+v, b %s", got[a.ID].Exit, got[b.ID].State)
	}
	h.holds(t, b.ID)
	if err := h.fake.Destroy(operator(t.Context()), b.Spec); err != nil {
		t.Fatal(err)
	}
	if got, err := next.Wait(operator(t.Context()), string(b.ID)); err != nil || got.State != firebreak.StateEnded {
		t.Errorf("b destroyed under the manager: %+v, %v", got, err)
	}
	h.holds(t)
}

func TestWhatNoRecordTellsOfIsCleared(t *testing.T) {
	h := newHost(t)
	dir := filepath.Join(h.dir, "sandboxes", "stray")
	for _, d := range []string{dir, filepath.Join(h.dir, "sandboxes", "onlydir")} {
		if err := os.MkdirAll(d, 0o700); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := h.fake.Create(operator(t.Context()), driver.Spec{ID: "stray", Dir: dir}); err != nil {
		t.Fatal(err)
	}
	m := h.process(t)
	if got := records(t, m); len(got) != 0 {
		t.Errorf("records %v", got)
	}
	h.holds(t)
}
