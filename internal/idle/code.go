package idle

import (
	"bytes"
	"debug/elf"
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

// On amd64, gVisor writes a jump to where a system call and the move before it are, which says which one it is. With luck
// these bytes are something else; then too much is kept.
const (
	systemCall = "\x0f\x05"
	moveSize   = 5
	mostRead   = 64 // pages of code that come into memory only to be looked at
)

// withoutCalls calls do with all pages that have no part of a system call, in runs, soon after it has looked at them.
func withoutCalls(text []byte, do func(pages []byte)) {
	page := unix.Getpagesize()
	from := 0 // what was looked at begins here
	for at := 0; at < len(text); at += page {
		// A call may begin at the end of the page before, and one in the next page have its move in this one.
		around := text[max(at-len(systemCall)+1, 0):min(at+page+moveSize+len(systemCall)-1, len(text))]
		found := bytes.Contains(around, []byte(systemCall))
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
