package proc

import (
	"bytes"
	"context"
	"errors"
	"math/rand/v2"
	"testing"
	"time"
)

// pattern makes bytes that say where they belong.
func pattern(from uint64, n int) []byte {
	b := make([]byte, n)
	for i := range b {
		at := from + uint64(i)
		b[i] = byte(at ^ at>>8 ^ at>>16)
	}
	return b
}

// FuzzRing drives a ring by a script and compares it with a plain slice.
func FuzzRing(f *testing.F) {
	f.Add([]byte{200, 3, 255, 0, 255, 9, 255, 255, 1, 1}, uint16(8))
	f.Add([]byte{1, 2, 3, 4, 255, 255, 255, 255, 255, 255, 255, 255}, uint16(64))
	f.Fuzz(func(t *testing.T, script []byte, budget uint16) {
		b := NewBudget(int64(budget) << 10)
		r := ring{limit: 64 << 10, budget: b}
		var all []byte
		keep := uint64(0)
		for i, op := range script {
			if i%3 == 2 { // a reader goes on
				keep = min(uint64(len(all)), keep+uint64(op)<<7)
				continue
			}
			n := r.reserve(int(op)<<6, keep)
			if n > int(op)<<6 || r.base() > keep && r.base() > 0 && keep < r.base() {
				t.Fatalf("reserved %d of %d, base %d, keep %d", n, int(op)<<6, r.base(), keep)
			}
			p := pattern(uint64(len(all)), n)
			all = append(all, p...)
			r.write(p)
			if r.head != uint64(len(all)) || r.kept > len(r.buf) || len(r.buf) > r.limit {
				t.Fatalf("head %d of %d, kept %d of %d", r.head, len(all), r.kept, len(r.buf))
			}
			got := make([]byte, r.kept)
			for at := r.base(); at < r.head; {
				n := r.read(at, got[at-r.base():])
				if n == 0 {
					t.Fatalf("nothing at %d of %d to %d", at, r.base(), r.head)
				}
				at += uint64(n)
			}
			if !bytes.Equal(got, all[r.base():]) {
				t.Fatal("the ring holds other bytes than were written")
			}
		}
		r.free()
		if left := b.left.Load(); left != int64(budget)<<10 {
			t.Fatalf("budget %d after all was given back", left)
		}
	})
}

// readAll reads to the end, pausing now and then, and checks every byte.
func readAll(t *testing.T, r *Reader, s Stream, slow time.Duration) uint64 {
	buf := make([]byte, 3000)
	at := r.Next()
	for {
		c, err := r.Read(t.Context(), nil, buf)
		if errors.Is(err, errEnded) {
			return at[s]
		}
		if err != nil {
			t.Error(err)
			return at[s]
		}
		if c.Offset != at[c.Stream] || !bytes.Equal(c.Data, pattern(c.Offset, len(c.Data))) {
			t.Errorf("stream %d: wrong bytes at %d, want %d", c.Stream, c.Offset, at[c.Stream])
			return at[s]
		}
		at[c.Stream] += uint64(len(c.Data))
		if slow > 0 && rand.IntN(20) == 0 {
			time.Sleep(slow)
		}
		r.Sent(c)
	}
}

func TestReadersHoldTheWriterBack(t *testing.T) {
	o := newOutput(16<<10, NewBudget(0))
	const size = 2 << 20
	totals := make(chan uint64, 6)
	for i := range 3 {
		r, err := o.Subscribe(nil)
		if err != nil {
			t.Fatal(err)
		}
		go func() {
			defer r.Close()
			totals <- readAll(t, r, Stdout, time.Duration(i)*time.Millisecond)
		}()
	}
	done := make(chan struct{})
	for _, s := range []Stream{Stdout, Stderr} {
		go func() {
			for at := uint64(0); at < size; {
				n := min(1+rand.IntN(9000), int(size-at))
				o.Write(s, pattern(at, n))
				at += uint64(n)
			}
			done <- struct{}{}
		}()
	}
	<-done
	<-done
	o.end()
	for range 3 {
		if n := <-totals; n != size {
			t.Errorf("a reader got %d of %d bytes", n, size)
		}
	}
}

func TestWriterGoesOnWhenTheReaderLeaves(t *testing.T) {
	o := newOutput(16<<10, NewBudget(0))
	r, err := o.Subscribe(nil)
	if err != nil {
		t.Fatal(err)
	}
	written := make(chan struct{})
	go func() {
		o.Write(PTY, pattern(0, 100_000))
		close(written)
	}()
	c, err := r.Read(t.Context(), nil, make([]byte, 1000))
	if err != nil || c.Offset != 0 {
		t.Fatal(c.Offset, err)
	}
	select {
	case <-written:
		t.Fatal("the writer did not wait")
	case <-time.After(50 * time.Millisecond):
	}
	r.Close()
	<-written
	again, err := o.Subscribe(nil)
	if err != nil || again.Next()[PTY] != 100_000-16<<10 {
		t.Errorf("a later reader begins at %d, %v", again.Next()[PTY], err)
	}
}

func TestSubscribeBeginsAtWhatNobodyWasSent(t *testing.T) {
	o := newOutput(16<<10, NewBudget(0))
	o.Write(Stdout, pattern(0, 1000))
	r, _ := o.Subscribe(nil)
	c, _ := r.Read(t.Context(), nil, make([]byte, 300))
	r.Sent(c)
	if _, err := r.Read(t.Context(), nil, make([]byte, 300)); err != nil { // read, but never sent
		t.Fatal(err)
	}
	r.Close()
	second, err := o.Subscribe(nil)
	if err != nil || second.Next()[Stdout] != 300 {
		t.Errorf("begins at %d, %v; want 300", second.Next()[Stdout], err)
	}
	resumed, err := o.Subscribe(&Offsets{100})
	if err != nil || resumed.Next()[Stdout] != 100 {
		t.Errorf("resumes at %d, %v; want 100", resumed.Next()[Stdout], err)
	}
	for _, bad := range []Offsets{{1001}, {0, 1}} {
		if _, err := o.Subscribe(&bad); !errors.Is(err, ErrDropped) {
			t.Errorf("%v: %v, want ErrDropped", bad, err)
		}
	}
	o.release()
	if _, err := o.Subscribe(&Offsets{100}); !errors.Is(err, ErrDropped) {
		t.Errorf("%v after the release, want ErrDropped", err)
	}
}

func TestReadEndsWithItsContext(t *testing.T) {
	o := newOutput(16<<10, NewBudget(0))
	r, _ := o.Subscribe(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Millisecond)
	defer cancel()
	if _, err := r.Read(ctx, nil, make([]byte, 1)); !errors.Is(err, context.DeadlineExceeded) {
		t.Error(err)
	}
	if c, err := r.Read(t.Context(), time.After(time.Millisecond), make([]byte, 1)); err != nil || len(c.Data) > 0 {
		t.Errorf("a tick gave %v, %v", c, err)
	}
}

func TestBudgetIsShared(t *testing.T) {
	budget := NewBudget(100 << 10)
	var all []*Output
	total := 0
	for range 20 {
		o := newOutput(64<<10, budget)
		o.Write(Stdout, make([]byte, 200<<10))
		total += len(o.rings[Stdout].buf)
		all = append(all, o)
	}
	if limit := 100<<10 + 20*minRing; total > limit {
		t.Errorf("%d bytes are kept, %d allowed", total, limit)
	}
	for _, o := range all {
		o.release()
	}
	if left := budget.left.Load(); left != 100<<10 {
		t.Errorf("%d bytes came back", left)
	}
}
