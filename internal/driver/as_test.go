package driver_test

import (
	"context"
	"errors"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

type plain struct{ driver.Sandbox }

type pauser struct {
	driver.Sandbox
	name string
}

func (pauser) Pause(context.Context) error  { return nil }
func (pauser) Resume(context.Context) error { return nil }

type wrapper struct {
	driver.Sandbox
	inner driver.Sandbox
}

func (w wrapper) Unwrap() driver.Sandbox { return w.inner }

func TestAs(t *testing.T) {
	for name, tc := range map[string]struct {
		sb    driver.Sandbox
		finds string // the name of the pauser; "" means errors.ErrUnsupported
	}{
		"itself":                    {pauser{name: "a"}, "a"},
		"wrapped":                   {wrapper{inner: pauser{name: "a"}}, "a"},
		"wrapped twice":             {wrapper{inner: wrapper{inner: pauser{name: "a"}}}, "a"},
		"plain":                     {plain{}, ""},
		"wrapped plain":             {wrapper{inner: plain{}}, ""},
		"nothing":                   {nil, ""},
		"a wrapper about nothing":   {wrapper{}, ""},
		"hidden by a plain wrapper": {plain{pauser{name: "a"}}, ""},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := driver.As[driver.Pauser](tc.sb)
			if tc.finds == "" {
				if !errors.Is(err, errors.ErrUnsupported) || got != nil {
					t.Errorf("As = %v, %v; want errors.ErrUnsupported", got, err)
				}
				return
			}
			if p, ok := got.(pauser); err != nil || !ok || p.name != tc.finds {
				t.Errorf("As = %v, %v; want the pauser %s", got, err, tc.finds)
			}
		})
	}
}

func TestAsTakesTheOutermost(t *testing.T) {
	outer := outerPauser{pauser: pauser{name: "outer"}, inner: pauser{name: "inner"}}
	got, err := driver.As[driver.Pauser](outer)
	if p, ok := got.(outerPauser); err != nil || !ok || p.name != "outer" {
		t.Errorf("As = %v, %v; want the outermost", got, err)
	}
}

// outerPauser has the action itself and wraps another that has it too.
type outerPauser struct {
	pauser
	inner driver.Sandbox
}

func (o outerPauser) Unwrap() driver.Sandbox { return o.inner }
