package engine

import (
	"context"
	"errors"
	"fmt"
	"runtime"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/meter"
)

// slice is how many instructions a module executes at a time, about: a millisecond or so. Until then its thread stops for
// nothing, the collector of this process included.
const slice = 1 << 20

// fuel counts what an instance executes. Only the goroutine that runs it uses it.
type fuel struct {
	limit int64 // 0: none
	used  int64
	given int64 // in the present slice
}

// errEnded leaves the code; why, the instance knows.
var errEnded = errors.New("the run was ended")

// bound is the key of a call's context under which its instance is found.
type bound struct{}

func (i *Instance) bind(ctx context.Context) context.Context {
	return context.WithValue(ctx, bound{}, i)
}

// offerTick gives modules the function that they call when a slice is over.
func offerTick(ctx context.Context, r wazero.Runtime) error {
	_, err := r.NewHostModuleBuilder(meter.Module).NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(tick), nil, nil).
		Export(meter.Tick).Instantiate(ctx)
	if err != nil {
		return fmt.Errorf("make the host's functions: %w", err)
	}
	return nil
}

// tick grants another slice, or ends the run.
func tick(ctx context.Context, m api.Module, _ []uint64) {
	i := ctx.Value(bound{}).(*Instance)
	if i.refuel(m); i.ended.Err() != nil || ctx.Err() != nil {
		panic(errEnded)
	}
	runtime.Gosched()
}

// refuel counts what was executed since the last time, and grants another slice or ends the instance.
func (i *Instance) refuel(m api.Module) {
	left := m.ExportedGlobal(meter.Fuel).(api.MutableGlobal)
	i.fuel.used += i.fuel.given - int64(left.Get())
	i.fuel.given = slice
	if i.fuel.limit > 0 {
		i.fuel.given = min(slice, i.fuel.limit-i.fuel.used)
	}
	if i.fuel.given < 0 {
		i.end(ErrFuel)
	}
	left.Set(uint64(i.fuel.given))
}
