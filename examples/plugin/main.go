//go:build wasip1

// Plugin is an example of a module whose functions are called with bytes and return bytes:
//
//	GOOS=wasip1 GOARCH=wasm go build -buildmode=c-shared -o plugin.wasm ./examples/plugin
//	firebreak template import plugin.wasm
//	echo -n world | firebreak run --template plugin -- call greet
package main

import (
	"strings"
	"unsafe"
)

func main() {} // never called: the module is a library

// kept holds what was allocated for the other side, until the instance ends with its call.
var kept = map[uint32][]byte{}

// alloc gives the host room to write what it passes.
//
//go:wasmexport alloc
func alloc(length uint32) uint32 {
	if length == 0 {
		return 0
	}
	room := make([]byte, length)
	address := uint32(uintptr(unsafe.Pointer(&room[0])))
	kept[address] = room
	return address
}

// give returns bytes to the host: their address and length in one number.
func give(data []byte) uint64 {
	if len(data) == 0 {
		return 0
	}
	address := alloc(uint32(len(data)))
	copy(kept[address], data)
	return uint64(address)<<32 | uint64(len(data))
}

func take(address, length uint32) []byte { return kept[address][:length] }

// greet needs nothing but what it is given.
//
//go:wasmexport greet
func greet(address, length uint32) uint64 {
	return give([]byte("hello, " + strings.ToUpper(string(take(address, length)))))
}

// hostFetch asks the host for a page. A sandbox without --allow fetch=HOST ends when it is called.
//
//go:wasmimport firebreak fetch
func hostFetch(address, length uint32) uint64

// fetch passes its request on to the host, {"url":"https://…"}, and returns the answer.
//
//go:wasmexport fetch
func fetch(address, length uint32) uint64 {
	answer := hostFetch(address, length)
	return give(take(uint32(answer>>32), uint32(answer)))
}
