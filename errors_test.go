package firebreak_test

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

func TestKindOf(t *testing.T) {
	for _, c := range []struct {
		err  error
		want firebreak.Kind
	}{
		{errors.New("odd"), firebreak.KindInternal},
		{fmt.Errorf("open: %w", fs.ErrNotExist), firebreak.KindNotFound},
		{fmt.Errorf("make: %w", fs.ErrExist), firebreak.KindExists},
		{fmt.Errorf("write: %w", fs.ErrPermission), firebreak.KindDenied},
		{fmt.Errorf("pause: %w", errors.ErrUnsupported), firebreak.KindUnsupported},
		{fmt.Errorf("run: %w", context.DeadlineExceeded), firebreak.KindDeadline},
		{fmt.Errorf("run: %w", context.Canceled), firebreak.KindCanceled},
		{fmt.Errorf("a: %w", &firebreak.Error{Kind: firebreak.KindHost, Err: fs.ErrNotExist}), firebreak.KindHost},
	} {
		if got := firebreak.KindOf(c.err); got != c.want {
			t.Errorf("KindOf(%v) = %v, want %v", c.err, got, c.want)
		}
	}
}

func TestEveryKindHasItsEdge(t *testing.T) {
	codes := map[string]firebreak.Kind{}
	for k := firebreak.KindInternal; k <= firebreak.KindUnavailable; k++ {
		e := k.Edge()
		if e.Name == "" || e.Blame == "" || e.HTTP < 400 || e.Connect == "" || e.Exit == 0 {
			t.Errorf("kind %d has a hole in its row: %+v", k, e)
		}
		if other, twice := codes[e.Connect]; twice {
			t.Errorf("kinds %v and %v share the Connect code %q: the client could not tell them apart", other, k, e.Connect)
		}
		codes[e.Connect] = k
		if firebreak.KindOfConnect(e.Connect) != k {
			t.Errorf("KindOfConnect(%q) is not %v", e.Connect, k)
		}
	}
}

func TestErrorTellsTheMend(t *testing.T) {
	err := &firebreak.Error{Op: "make sandbox", Err: errors.New("no runtime"), Mend: "apt-get install crun"}
	if got, want := err.Error(), "make sandbox: no runtime; to mend it: apt-get install crun"; got != want {
		t.Errorf("got %q, want %q", got, want)
	}
}

func TestBoundaryText(t *testing.T) {
	for b := firebreak.BoundaryNone; b <= firebreak.BoundaryVirtualMachine; b++ {
		text, _ := b.MarshalText()
		var back firebreak.Boundary
		if err := back.UnmarshalText(text); err != nil || back != b {
			t.Errorf("%s came back as %v, %v", text, back, err)
		}
	}
	var b firebreak.Boundary
	if err := b.UnmarshalText([]byte("invalid")); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("the word invalid was taken: %v", err)
	}
}
