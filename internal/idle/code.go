package idle

import (
	"bytes"
	"debug/elf"
	"slices"
	"unsafe"

	"golang.org/x/sys/unix"
)

// What the auxiliary vector says of the program headers, see getauxval(3).
const (
	auxHeaders = 3
	auxCount   = 5
)

// readOnly returns the parts of the running program that are mapped without the right to write, as its program headers have
// them. None if they cannot be found.
func readOnly() []part {
	vector, err := unix.Auxv()
	if err != nil {
		return nil
	}
	var at, count uintptr
	for _, entry := range vector {
		switch entry[0] {
		case auxHeaders:
			at = entry[1]
		case auxCount:
			count = entry[1]
		}
	}
	if at == 0 {
		return nil
	}
	return parts(unsafe.Slice((*elf.Prog64)(pointer(at)), count), at)
}

// part is whole pages of a program.
type part struct {
	memory []byte
	text   bool // it is machine code
}

// parts returns what headers, which lie at the address at, map without the right to write.
func parts(headers []elf.Prog64, at uintptr) []part {
	var moved uintptr // how far from where it was linked for the program lies
	var all []part
	for _, h := range headers {
		switch {
		case elf.ProgType(h.Type) == elf.PT_PHDR:
			moved = at - uintptr(h.Vaddr) // it comes before all that is loaded
		case elf.ProgType(h.Type) == elf.PT_LOAD && elf.ProgFlag(h.Flags)&elf.PF_W == 0:
			page := uintptr(unix.Getpagesize())
			start := (uintptr(h.Vaddr) + moved) &^ (page - 1)
			end := (uintptr(h.Vaddr) + moved + uintptr(h.Memsz)) &^ (page - 1) // the last page may be shared with what follows
			if end > start {
				all = append(all, part{unsafe.Slice((*byte)(pointer(start)), end-start), elf.ProgFlag(h.Flags)&elf.PF_X != 0})
			}
		}
	}
	return all
}

const (
	callSize = 7  // with the move
	mostRead = 64 // pages of code that come into memory only to be looked at
)

// withoutCalls calls do with all pages that have no part of a system call, in runs, soon after it has looked at them.
func withoutCalls(text []byte, do func(pages []byte)) {
	// What may be seen of a call on amd64, where gVisor makes a jump of it and of the move before it: the call itself, what is
	// there for a moment, and the jump. With luck it is something else; then too much is kept. See PatchSyscall in gVisor's
	// package usertrap.
	calls := [][]byte{{0x0f, 0x05}, {0x06, 0x05}, {0x24, 0x25}}
	page := unix.Getpagesize()
	from := 0 // what was looked at begins here
	for at := 0; at < len(text); at += page {
		// What is seen of a call may be in one page, and the rest in the next.
		around := text[max(at-callSize, 0):min(at+page+callSize, len(text))]
		found := slices.ContainsFunc(calls, func(call []byte) bool { return bytes.Contains(around, call) })
		if !found && at-from < mostRead*page {
			continue
		}
		if at > from {
			do(text[from:at])
		}
		from = at
		if found {
			from += page
		}
	}
	if len(text) > from {
		do(text[from:])
	}
}

// pointer is the kernel's word for where something of this program lies, which no collector moves.
func pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
