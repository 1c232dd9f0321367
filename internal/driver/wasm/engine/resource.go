package engine

import (
	"context"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero"
	"github.com/tetratelabs/wazero/api"
)

// resources is the module from which bindings of wit-bindgen (of Ruby, say) import what keeps their objects: numbers that
// are handed out for what they call by addresses.
const resources = "canonical_abi"

// offerResource makes a function of resources, by its name. Those that nobody needs here are traps.
func offerResource(b wazero.HostModuleBuilder, f api.FunctionDefinition) bool {
	_, name, _ := f.Import()
	var do func(i *Instance, value uint32) uint32
	switch {
	case len(f.ParamTypes()) != 1 || len(f.ResultTypes()) != 1:
		return false
	case strings.HasPrefix(name, "resource_new_"):
		do = func(i *Instance, value uint32) uint32 {
			if len(i.objects) >= 1<<20 {
				panic(fmt.Errorf("it keeps more than %d objects for the host", len(i.objects)))
			}
			i.objects = append(i.objects, value)
			return uint32(len(i.objects) - 1)
		}
	case strings.HasPrefix(name, "resource_get_"):
		do = func(i *Instance, handle uint32) uint32 {
			if int64(handle) >= int64(len(i.objects)) {
				panic(fmt.Errorf("it asked for an object that it has not given"))
			}
			return i.objects[handle]
		}
	default:
		return false
	}
	b.NewFunctionBuilder().WithGoFunction(api.GoFunc(func(ctx context.Context, stack []uint64) {
		stack[0] = uint64(do(ctx.Value(bound{}).(*Instance), uint32(stack[0])))
	}), f.ParamTypes(), f.ResultTypes()).Export(name)
	return true
}

// Write puts bytes into the instance's memory; false if it has no such place.
func (i *Instance) Write(address uint32, data []byte) bool {
	return i.module.Memory().Write(address, data)
}
