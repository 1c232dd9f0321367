package idle

import (
	"bufio"
	"debug/elf"
	"fmt"
	"os"
	"slices"
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
	all := readOnly()
	if len(all) < 2 {
		t.Fatalf("%d parts of this program cannot be written: want its text and its constants", len(all))
	}
	for _, p := range all {
		at := uintptr(unsafe.Pointer(&p.memory[0]))
		sum := read(p.memory)
		before, access := resident(t, at)
		if strings.Contains(access, "w") || strings.Contains(access, "x") != p.text {
			t.Fatalf("the part at %x, text: %v, may be used so: %s", at, p.text, access)
		}
		for _, text := range []Text{DropText, KeepCalls} {
			drop(text)
			if after, _ := resident(t, at); after >= before {
				t.Errorf("of the part at %x, %d KiB are in memory, before it was dropped (%v) %d", at, after, text, before)
			}
			if read(p.memory) != sum {
				t.Errorf("the part at %x came back different", at)
			}
		}
	}
}

func TestWithoutCalls(t *testing.T) {
	page := os.Getpagesize()
	for name, tc := range map[string]struct {
		at   []int // where the move before a call begins
		want []int // numbers of the pages that have none
	}{
		"none":                    {nil, []int{0, 1, 2, 3}},
		"in the middle":           {[]int{page + 100}, []int{0, 2, 3}},
		"two in a page":           {[]int{page + 100, page + 300}, []int{0, 2, 3}},
		"at the start":            {[]int{0}, []int{1, 2, 3}},
		"at the end":              {[]int{4*page - callSize}, []int{0, 1, 2}},
		"its end is over":         {[]int{2*page - 6}, []int{0, 3}},
		"its beginning is before": {[]int{2*page - 1}, []int{0, 3}},
		"everywhere":              {[]int{1, page + 9, 2*page + 9, 3*page + 9}, nil},
	} {
		for state, call := range map[string]string{
			"as it was": "\xb8\x01\x00\x00\x00\x0f\x05", "begun": "\xb8\x01\x00\x00\x00\x06\x05",
			"half done": "\xb8\x24\x25\xa0\x01\x06\x00", "made a jump": "\xff\x24\x25\xa0\x01\x06\x00",
		} {
			text := make([]byte, 4*page)
			for _, at := range tc.at {
				copy(text[at:], call)
			}
			var got []int
			withoutCalls(text, func(pages []byte) {
				at := int(uintptr(unsafe.Pointer(&pages[0])) - uintptr(unsafe.Pointer(&text[0])))
				for i := at / page; i < (at+len(pages))/page; i++ {
					got = append(got, i)
				}
			})
			if !slices.Equal(got, tc.want) {
				t.Errorf("%s, %s: %v, want %v", name, state, got, tc.want)
			}
		}
	}
	long := make([]byte, 3*mostRead*page)
	runs, sum := 0, 0
	withoutCalls(long, func(pages []byte) {
		runs++
		sum += len(pages)
	})
	if runs < 3 || sum != len(long) {
		t.Errorf("%d runs of %d bytes, want more than two of all %d", runs, sum, len(long))
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
		all := parts(headers, 0x400040+moved)
		if len(all) != 1 || uintptr(unsafe.Pointer(&all[0].memory[0])) != 0x400000+moved || len(all[0].memory) != 0x2000 || !all[0].text {
			t.Errorf("moved by %x: %d parts", moved, len(all))
		}
	}
}
