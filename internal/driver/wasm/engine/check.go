package engine

import (
	"errors"
	"math"
)

// What a module may be. All are far above what compilers make of programs, and bound what compiling can take.
const (
	maxModule  = 128 << 20 // bytes
	maxItems   = 200_000   // types, functions, globals, exports, elements' segments, data segments: of each
	maxImports = 10_000
	maxBody    = 1 << 20 // bytes of one function: compiling one cannot be ended
	maxLocals  = 20_000  // of one function
	maxTable   = 1 << 20 // elements that all tables begin with
	maxPages   = 1 << 16 // of memory: 4 GiB
)

// facts are what a check learns about a module.
type facts struct {
	minPages  uint32 // of its memory
	functions int
	largest   int // bytes of its largest function
}

var errShort = errors.New("it ends too early")

// check reads the parts of a module that decide what compiling and instantiating it takes. The compiler validates the
// rest.
func check(wasm []byte) (facts, error) {
	var found facts
	if int64(len(wasm)) > maxModule {
		return found, invalid("it has %d bytes; %d is the most", len(wasm), int64(maxModule))
	}
	if !IsModule(wasm) {
		return found, invalid("it does not begin as a WebAssembly module of version 1 does")
	}
	r := &reader{data: wasm[8:]}
	for len(r.data) > 0 && r.err == nil {
		id := r.byte()
		section := &reader{data: r.bytes(r.u32())}
		if r.err != nil {
			break
		}
		if err := found.section(id, section); err != nil {
			return found, err
		}
		r.err = section.err
	}
	if r.err != nil {
		return found, invalid("%w", r.err)
	}
	return found, nil
}

// The sections that are looked into.
const (
	sectionImport = 2
	sectionTable  = 4
	sectionMemory = 5
	sectionCode   = 10
)

func (f *facts) section(id byte, r *reader) error {
	if id == 0 || id == 8 || id == 12 { // custom, start, count of data: no vectors
		return nil
	}
	count := r.u32()
	if count > maxItems {
		return invalid("its section %d has %d entries; %d is the most", id, count, maxItems)
	}
	switch id {
	case sectionImport:
		return checkImports(r, count)
	case sectionTable:
		return checkTables(r, count)
	case sectionMemory:
		return f.memory(r, count)
	case sectionCode:
		return f.code(r, count)
	}
	return nil
}

func checkImports(r *reader, count uint32) error {
	if count > maxImports {
		return invalid("it imports %d things; %d is the most", count, maxImports)
	}
	for range count {
		module, name := string(r.bytes(r.u32())), string(r.bytes(r.u32()))
		if kind := r.byte(); kind != 0 && r.err == nil {
			return invalid("it imports %s.%s, which is no function: memories, tables and globals must be its own", module, name)
		}
		r.u32()
	}
	return nil
}

func checkTables(r *reader, count uint32) error {
	total := uint64(0)
	for range count {
		r.byte()
		least, _ := r.limits()
		if total += uint64(least); total > maxTable {
			return invalid("its tables begin with more than %d elements", maxTable)
		}
	}
	return nil
}

func (f *facts) memory(r *reader, count uint32) error {
	if count > 1 {
		return invalid("it has %d memories; one is the most", count)
	}
	if count == 1 {
		least, shared := r.limits()
		if shared {
			return invalid("its memory is shared: there are no threads here")
		}
		if f.minPages = least; least > maxPages {
			return invalid("its memory begins with %d pages; %d is the most", least, maxPages)
		}
	}
	return nil
}

func (f *facts) code(r *reader, count uint32) error {
	f.functions = int(count)
	for range count {
		size := r.u32()
		body := &reader{data: r.bytes(size)}
		if r.err != nil {
			return nil
		}
		f.largest = max(f.largest, int(size))
		if size > maxBody {
			return invalid("one of its functions has %d bytes; %d is the most", size, maxBody)
		}
		locals := uint64(0)
		for range body.u32() {
			locals += uint64(body.u32())
			body.byte()
			if body.err != nil {
				return invalid("%w", body.err)
			}
			if locals > maxLocals {
				return invalid("one of its functions has more than %d variables", maxLocals)
			}
		}
	}
	return nil
}

// reader reads what a module is made of. After an error it gives zeros.
type reader struct {
	data []byte
	err  error
}

func (r *reader) fail() {
	r.data, r.err = nil, errShort
}

func (r *reader) byte() byte {
	if len(r.data) == 0 {
		r.fail()
		return 0
	}
	b := r.data[0]
	r.data = r.data[1:]
	return b
}

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(r.data)) {
		r.fail()
		return nil
	}
	b := r.data[:n]
	r.data = r.data[n:]
	return b
}

// u32 reads a number of at most five bytes of seven bits.
func (r *reader) u32() uint32 {
	value := uint64(0)
	for shift := 0; shift < 35; shift += 7 {
		b := r.byte()
		value |= uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			if value > math.MaxUint32 {
				r.fail()
				return 0
			}
			return uint32(value)
		}
	}
	r.fail()
	return 0
}

func (r *reader) limits() (least uint32, shared bool) {
	flags := r.byte()
	least = r.u32()
	if flags&1 != 0 {
		r.u32()
	}
	return least, flags&2 != 0
}
