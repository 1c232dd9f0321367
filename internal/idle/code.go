package idle

import (
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
func readOnly(text Text) [][]byte {
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
	return parts(unsafe.Slice((*elf.Prog64)(pointer(at)), count), at, text)
}

// parts returns what headers, which lie at the address at, map without the right to write.
func parts(headers []elf.Prog64, at uintptr, text Text) [][]byte {
	var moved uintptr // how far from where it was linked for the program lies
	unwanted := elf.PF_W
	if text == KeepText {
		unwanted |= elf.PF_X
	}
	var all [][]byte
	for _, h := range headers {
		switch {
		case elf.ProgType(h.Type) == elf.PT_PHDR:
			moved = at - uintptr(h.Vaddr) // it comes before all that is loaded
		case elf.ProgType(h.Type) == elf.PT_LOAD && elf.ProgFlag(h.Flags)&unwanted == 0:
			page := uintptr(unix.Getpagesize())
			start := (uintptr(h.Vaddr) + moved) &^ (page - 1)
			end := (uintptr(h.Vaddr) + moved + uintptr(h.Memsz)) &^ (page - 1) // the last page may be shared with what follows
			if end > start {
				all = append(all, unsafe.Slice((*byte)(pointer(start)), end-start))
			}
		}
	}
	return all
}

// pointer is the kernel's word for where something of this program lies, which no collector moves.
func pointer(address uintptr) unsafe.Pointer { return *(*unsafe.Pointer)(unsafe.Pointer(&address)) }
