package engine

import (
	"context"
	"fmt"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"

	"github.com/firebreak-dev/firebreak"
)

// Host is the module that a plugin imports what it is given from. Bytes are passed as an address and a length; what
// comes back is one i64: the address in its upper half, the length in its lower one. Room for it is had from the
// plugin's own function Alloc.
const (
	Host  = "firebreak"
	Alloc = "alloc" // (i32 length) -> i32 address, 0 for none
)

// MaxBytes bounds what is passed to and from a plugin at a time.
const MaxBytes = 64 << 20

// Given is a function of the host that a run is given under a name: bytes in, bytes out. An error ends the run.
type Given func(ctx context.Context, in []byte) ([]byte, error)

// hostFunctions are the names under which something can be given.
func hostFunctions() []string { return []string{"fetch", "log"} }

// offerHost gives modules the functions of Host. Which of them a run may call, its Config says.
func offerHost(ctx context.Context, r wazero.Runtime) error {
	b := r.NewHostModuleBuilder(Host)
	for _, name := range hostFunctions() {
		call := func(ctx context.Context, m api.Module, stack []uint64) {
			stack[0] = ctx.Value(bound{}).(*Instance).give(ctx, m, name, uint32(stack[0]), uint32(stack[1]))
		}
		b.NewFunctionBuilder().WithGoModuleFunction(api.GoModuleFunc(call),
			[]api.ValueType{api.ValueTypeI32, api.ValueTypeI32}, []api.ValueType{api.ValueTypeI64}).Export(name)
	}
	if _, err := b.Instantiate(ctx); err != nil {
		return fmt.Errorf("make the host's functions: %w", err)
	}
	return nil
}

// give calls what the run was given. A panic is an error of the run.
func (i *Instance) give(ctx context.Context, m api.Module, name string, address, length uint32) uint64 {
	do := i.given[name]
	if do == nil {
		panic(fmt.Errorf("it called %s, which it is not given", name))
	}
	in, ok := m.Memory().Read(address, length)
	if !ok || length > MaxBytes {
		panic(fmt.Errorf("it called %s with %d bytes at %#x, which it does not have", name, length, address))
	}
	run, cancel := context.WithCancel(ctx)
	defer cancel()
	defer context.AfterFunc(i.ended, cancel)()
	out, err := do(run, append([]byte(nil), in...)) // the plugin's memory is its own to change
	if err != nil {
		panic(fmt.Errorf("%s: %w", name, err))
	}
	at, err := put(ctx, m, out)
	if err != nil {
		panic(err)
	}
	return at
}

// put writes bytes into room that the module gives.
func put(ctx context.Context, m api.Module, data []byte) (uint64, error) {
	alloc := m.ExportedFunction(Alloc)
	if alloc == nil || len(alloc.Definition().ParamTypes()) != 1 || len(alloc.Definition().ResultTypes()) != 1 {
		return 0, fmt.Errorf("it exports no function %s of a length that returns an address", Alloc)
	}
	if len(data) > MaxBytes {
		return 0, fmt.Errorf("%d bytes are more than the %d that can be passed", len(data), MaxBytes)
	}
	result, err := alloc.Call(ctx, uint64(len(data)))
	if err != nil {
		return 0, err
	}
	address := uint32(result[0])
	if address == 0 && len(data) > 0 || !m.Memory().Write(address, data) {
		return 0, fmt.Errorf("its %s has no room for %d bytes", Alloc, len(data))
	}
	return uint64(address)<<32 | uint64(len(data)), nil
}

// CallBytes calls an exported function (i32 address, i32 length) -> i64 with bytes, and returns those that it returns. If
// there is none, the error is of KindNotFound, and of KindInvalid if it is another kind of function.
func (i *Instance) CallBytes(ctx context.Context, name string, in []byte) (out []byte, err error) {
	f := i.module.ExportedFunction(name)
	if f == nil {
		return nil, &firebreak.Error{Kind: firebreak.KindNotFound, Op: "call a function", Err: fmt.Errorf("it exports no function %s", name)}
	}
	i32, i64 := api.ValueTypeI32, api.ValueTypeI64
	if d := f.Definition(); string(d.ParamTypes()) != string([]byte{i32, i32}) || string(d.ResultTypes()) != string([]byte{i64}) {
		return nil, invalid("its function %s does not take an address and a length and return both in one i64", name)
	}
	err = i.within(ctx, func(run context.Context) error {
		at, err := put(run, i.module, in)
		if err != nil {
			return err
		}
		result, err := f.Call(run, at>>32, at&(1<<32-1))
		if err != nil {
			return err
		}
		address, length := uint32(result[0]>>32), uint32(result[0])
		data, ok := i.module.Memory().Read(address, length)
		if !ok || length > MaxBytes {
			return fmt.Errorf("its function %s returned %d bytes at %#x, which it does not have", name, length, address)
		}
		out = append([]byte{}, data...)
		return nil
	})
	return out, err
}

// Initialize runs what a module without _start wants run first, if it has that.
func (i *Instance) Initialize(ctx context.Context) error {
	if i.module.ExportedFunction("_initialize") == nil {
		return nil
	}
	_, err := i.Call(ctx, "_initialize")
	return err
}
