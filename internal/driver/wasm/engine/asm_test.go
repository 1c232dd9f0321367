package engine_test

import "slices"

// The parts of hand-made modules. A module is its sections, a function its body of instructions without the last end.

func leb(n int) (b []byte) {
	for ; n >= 0x80; n >>= 7 {
		b = append(b, byte(n)|0x80)
	}
	return append(b, byte(n))
}

func vec(items ...[]byte) []byte { return append(leb(len(items)), slices.Concat(items...)...) }

func named(name string, rest ...byte) []byte {
	return append(append(leb(len(name)), name...), rest...)
}

func section(id byte, body []byte) []byte {
	return append(append([]byte{id}, leb(len(body))...), body...)
}

func module(sections ...[]byte) []byte {
	return append([]byte("\x00asm\x01\x00\x00\x00"), slices.Concat(sections...)...)
}

func body(code ...byte) []byte {
	code = append(append([]byte{0}, code...), 0x0b)
	return append(leb(len(code)), code...)
}

// command is a module of one function, _start, with a memory of so many pages at first.
func command(pages int, code ...byte) []byte {
	return module(
		section(1, vec([]byte{0x60, 0, 0})),
		section(3, vec([]byte{0})),
		section(5, vec(append([]byte{0}, leb(pages)...))),
		section(7, vec(named("_start", 0, 0), named("memory", 2, 0))),
		section(10, vec(body(code...))),
	)
}

// importing is a command that calls one imported function without parameters or results.
func importing(from, name string) []byte {
	return module(
		section(1, vec([]byte{0x60, 0, 0})),
		section(2, vec(append(append(named(from), named(name)...), 0, 0))),
		section(3, vec([]byte{0})),
		section(7, vec(named("_start", 0, 1))),
		section(10, vec(body(0x10, 0))),
	)
}

var (
	loop     = []byte{0x03, 0x40, 0x0c, 0, 0x0b}                                     // loop br 0 end
	touching = []byte{0x03, 0x40, 0x41, 0, 0x41, 1, 0x36, 2, 0, 0x0c, 0, 0x0b}       // loop i32.store(0, 1) br 0 end
	recurse  = []byte{0x10, 0}                                                       // call 0
	outside  = []byte{0x41, 0x7f, 0x28, 2, 0, 0x1a}                                  // i32.const -1 i32.load drop
	growing  = []byte{0x03, 0x40, 0x41, 1, 0x40, 0, 0x41, 0x7f, 0x47, 0x0d, 0, 0x0b} // loop memory.grow(1) != -1 br_if 0 end
)
