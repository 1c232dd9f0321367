package idle

import (
	"bufio"
	"debug/elf"
	"fmt"
	"os"
	"strings"
	"testing"
	"unsafe"
)

// resident returns how much of the mapping that holds an address is in memory, in KiB, and how the mapping may be used.
func resident(t *testing.T, address uintptr) (kib int, access string) {
	t.Helper()
	f, err := os.Open("/proc/self/smaps")
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	inside := false
	for scan := bufio.NewScanner(f); scan.Scan(); {
		var start, end uintptr
		var rights string
		if n, _ := fmt.Sscanf(scan.Text(), "%x-%x %s ", &start, &end, &rights); n == 3 {
			if inside = start <= address && address < end; inside {
				access = rights
			}
		}
		if inside && strings.HasPrefix(scan.Text(), "Rss:") {
			if _, err := fmt.Sscanf(scan.Text(), "Rss: %d kB", &kib); err != nil {
				t.Fatal(err)
			}
			return kib, access
		}
	}
	t.Fatalf("nothing is mapped at %x", address)
	return 0, ""
}

func TestDrop(t *testing.T) {
	all := readOnly(DropText)
	if len(all) < 2 {
		t.Fatalf("%d parts of this program cannot be written: want its text and its constants", len(all))
	}
	for _, part := range all {
		at := uintptr(unsafe.Pointer(&part[0]))
		before, access := resident(t, at)
		if strings.Contains(access, "w") {
			t.Fatalf("the part at %x may be written: %s", at, access)
		}
		sum := read(part)
		all, _ := resident(t, at)
		drop(KeepText)
		kept, _ := resident(t, at)
		if isText := strings.Contains(access, "x"); isText && kept < all || !isText && kept >= all {
			t.Errorf("of the part at %x (%s), %d KiB are in memory, before %d: text is to stay, and nothing else", at, access, kept, all)
		}
		read(part)
		drop(DropText)
		if after, _ := resident(t, at); after >= all {
			t.Errorf("of the part at %x, %d KiB are in memory, before it was dropped %d, at first %d", at, after, all, before)
		}
		if read(part) != sum {
			t.Errorf("the part at %x came back different", at)
		}
	}
}

// read has all of a part come into memory.
func read(part []byte) (sum byte) {
	for i := 0; i < len(part); i += 4096 {
		sum ^= part[i]
	}
	return sum
}

func TestParts(t *testing.T) {
	headers := []elf.Prog64{
		{Type: uint32(elf.PT_PHDR), Vaddr: 0x400040},
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_X), Vaddr: 0x400000, Memsz: 0x2800},
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R), Vaddr: 0x403000, Memsz: 0x800},
		{Type: uint32(elf.PT_LOAD), Flags: uint32(elf.PF_R | elf.PF_W), Vaddr: 0x404000, Memsz: 0x2000},
	}
	for _, moved := range []uintptr{0, 0x10000} {
		all := parts(headers, 0x400040+moved, DropText)
		if len(all) != 1 || uintptr(unsafe.Pointer(&all[0][0])) != 0x400000+moved || len(all[0]) != 0x2000 {
			t.Errorf("moved by %x: %d parts, the first of %d bytes", moved, len(all), len(all[0]))
		}
		if all := parts(headers, 0x400040+moved, KeepText); len(all) != 0 {
			t.Errorf("moved by %x: %d parts without text, want none", moved, len(all))
		}
	}
}
