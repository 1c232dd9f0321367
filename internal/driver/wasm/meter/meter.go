// Package meter rewrites WebAssembly modules so that they count the instructions that they execute, and call out before
// it is much: each piece of code without branches takes its length from what is left, and at the beginning of a function
// and of each round of a loop, an imported function is called if that is below zero. So a run can be given a limit that
// is the same each time, be ended at any moment, and let the collector of this process have its turn, at a fraction of
// what leaving the code in each round costs.
package meter

import (
	"errors"
	"fmt"
	"slices"
)

// What is added to a module. No other may use these names.
const (
	Module = "firebreak:meter" // that Tick is imported from
	Tick   = "tick"            // () -> (): called when Fuel is below zero
	Fuel   = "firebreak:fuel"  // an exported mutable i64: instructions until the next tick
)

// Version changes with what is written into modules.
const Version = "1"

// The sections of a module.
const (
	sectionCustom = iota
	sectionType
	sectionImport
	sectionFunction
	sectionTable
	sectionMemory
	sectionGlobal
	sectionExport
	sectionStart
	sectionElement
	sectionCode
	sectionData
	sectionDataCount
)

// maxElements is of all segments for tables together: the compiler takes some fifty bytes for each.
const maxElements = 1 << 20

// order is that of the sections in a module.
func order() []byte {
	return []byte{sectionType, sectionImport, sectionFunction, sectionTable, sectionMemory, sectionGlobal, sectionExport,
		sectionStart, sectionElement, sectionDataCount, sectionCode, sectionData}
}

const header = "\x00asm\x01\x00\x00\x00"

// rewriter is one module being rewritten.
type rewriter struct {
	sections map[byte][]byte
	params   []uint32 // of each type
	types    []uint32 // of each function that is not imported
	imported uint32   // functions
	globals  uint32   // imported and own
	elements uint64   // of all segments
	slice    int64
}

// Rewrite returns the module that counts, whose Fuel begins with slice. Custom sections are dropped. An error is the
// module's fault; what it does not find, the compiler will.
func Rewrite(wasm []byte, slice int64) (_ []byte, err error) {
	defer func() {
		if r := recover(); r != nil {
			bad, ours := r.(malformed)
			if !ours {
				panic(r)
			}
			err = bad.error
		}
	}()
	w := &rewriter{sections: map[byte][]byte{}, slice: slice}
	w.split(wasm)
	w.addType()
	w.addImport()
	w.readFunctions()
	w.addGlobal()
	w.rewriteExports()
	w.rewriteStart()
	w.rewriteElements()
	w.checkData()
	w.rewriteCode()
	out := []byte(header)
	for _, id := range order() {
		if body, ok := w.sections[id]; ok {
			out = append(out, id)
			out = appendUint(out, uint64(len(body)))
			out = append(out, body...)
		}
	}
	return out, nil
}

func (w *rewriter) split(wasm []byte) {
	if !slices.Equal(wasm[:min(8, len(wasm))], []byte(header)) {
		fail("it does not begin as a module does")
	}
	r := &reader{data: wasm[8:]}
	for len(r.data) > 0 {
		id := r.byte()
		body := r.bytes(r.u32())
		if id == sectionCustom {
			continue
		}
		if _, twice := w.sections[id]; twice || !slices.Contains(order(), id) {
			fail("its section %d is unknown or there twice", id)
		}
		if entries := (&reader{data: body}); id != sectionStart && id != sectionDataCount && entries.u32() > uint32(len(entries.data)) {
			fail("its section %d is shorter than it says", id)
		}
		w.sections[id] = body
	}
}

// extend appends entries to a section, which begins with their number.
func (w *rewriter) extend(id byte, entry []byte) (before uint32, rest *reader) {
	r := &reader{data: w.sections[id]}
	if len(r.data) > 0 {
		before = r.u32()
	}
	body := appendUint(nil, uint64(before)+1)
	w.sections[id] = append(append(body, r.data...), entry...)
	return before, r
}

func (w *rewriter) addType() {
	count, r := w.extend(sectionType, []byte{0x60, 0, 0})
	for range count {
		if r.byte() != 0x60 {
			fail("one of its types is no function's")
		}
		params := r.u32()
		r.bytes(params)
		r.bytes(r.u32())
		w.params = append(w.params, params)
	}
}

func (w *rewriter) addImport() {
	entry := appendName(appendName(nil, Module), Tick)
	entry = appendUint(append(entry, 0), uint64(len(w.params)))
	count, r := w.extend(sectionImport, entry)
	for range count {
		if module := r.bytes(r.u32()); string(module) == Module {
			fail("it imports %s, which is for us", Module)
		}
		r.bytes(r.u32())
		switch kind := r.byte(); kind {
		case 0:
			r.u32()
			w.imported++
		case 3:
			r.bytes(2)
			w.globals++
		default:
			fail("it imports something of kind %d: memories and tables must be its own", kind)
		}
	}
}

func (w *rewriter) readFunctions() {
	r := &reader{data: w.sections[sectionFunction]}
	if len(r.data) == 0 {
		return
	}
	for range r.u32() {
		t := r.u32()
		if int(t) >= len(w.params) {
			fail("one of its functions has a type that does not exist")
		}
		w.types = append(w.types, t)
	}
}

func (w *rewriter) addGlobal() {
	r := &reader{data: w.sections[sectionGlobal]}
	count := uint32(0)
	if len(r.data) > 0 {
		count = r.u32()
	}
	body := appendUint(nil, uint64(count)+1)
	for range count {
		body = append(body, r.bytes(2)...)
		body = w.expression(body, r)
	}
	w.globals += count
	body = append(body, 0x7e, 1, 0x42)
	w.sections[sectionGlobal] = append(appendInt(body, w.slice), 0x0b)
}

func (w *rewriter) rewriteExports() {
	r := &reader{data: w.sections[sectionExport]}
	count := uint32(0)
	if len(r.data) > 0 {
		count = r.u32()
	}
	body := appendUint(nil, uint64(count)+1)
	for range count {
		name := string(r.bytes(r.u32()))
		if name == Fuel {
			fail("it exports %s, which is for us", Fuel)
		}
		kind, index := r.byte(), r.u32()
		if kind == 0 {
			index = w.function(index)
		}
		body = appendUint(append(appendName(body, name), kind), uint64(index))
	}
	w.sections[sectionExport] = appendUint(append(appendName(body, Fuel), 3), uint64(w.globals))
}

// function is the index of a function after ours was imported.
func (w *rewriter) function(index uint32) uint32 {
	if index >= w.imported {
		index++
	}
	return index
}

func (w *rewriter) rewriteStart() {
	if body, ok := w.sections[sectionStart]; ok {
		r := &reader{data: body}
		w.sections[sectionStart] = appendUint(nil, uint64(w.function(r.u32())))
	}
}

func (w *rewriter) rewriteElements() {
	old, ok := w.sections[sectionElement]
	if !ok {
		return
	}
	r := &reader{data: old}
	count := r.u32()
	body := appendUint(nil, uint64(count))
	for range count {
		body = w.element(body, r)
	}
	w.sections[sectionElement] = body
}

// element copies one segment of elements. The bits of its kind: passive or declared; with a table or declared; of
// expressions instead of functions.
func (w *rewriter) element(to []byte, r *reader) []byte {
	kind := r.u32()
	if kind > 7 {
		fail("a segment of elements has kind %d", kind)
	}
	to = appendUint(to, uint64(kind))
	if kind&1 == 0 {
		if kind&2 != 0 {
			to = appendUint(to, uint64(r.u32()))
		}
		to = w.expression(to, r)
	}
	if kind&3 != 0 {
		to = append(to, r.byte())
	}
	count := r.u32()
	if w.elements += uint64(count); w.elements > maxElements {
		fail("it has more than %d elements for its tables, which are the most", maxElements)
	}
	to = appendUint(to, uint64(count))
	for range count {
		if kind&4 != 0 {
			to = w.expression(to, r)
		} else {
			to = appendUint(to, uint64(w.function(r.u32())))
		}
	}
	return to
}

// checkData refuses segments of data that are shorter than they say: the compiler makes room for what they say first.
func (w *rewriter) checkData() {
	old, ok := w.sections[sectionData]
	if !ok {
		return
	}
	r := &reader{data: old}
	for range r.u32() {
		kind := r.u32()
		if kind > 2 {
			fail("a segment of data has kind %d", kind)
		}
		if kind == 2 {
			r.u32()
		}
		if kind != 1 {
			w.expression(nil, r)
		}
		r.bytes(r.u32())
	}
}

// expression copies a constant expression with its end.
func (w *rewriter) expression(to []byte, r *reader) []byte {
	for {
		i := r.instruction()
		to = w.copy(to, i)
		if i.op == opEnd {
			return to
		}
	}
}

// copy appends an instruction, with the index of its function as it is now.
func (w *rewriter) copy(to []byte, i instruction) []byte {
	if i.op == opCall || i.op == opRefFunc {
		return appendUint(append(to, i.op), uint64(w.function(i.index)))
	}
	return append(to, i.text...)
}

func (w *rewriter) rewriteCode() {
	old, ok := w.sections[sectionCode]
	if !ok {
		return
	}
	r := &reader{data: old}
	count := r.u32()
	if int(count) != len(w.types) {
		fail("it has %d functions and the code of %d", len(w.types), count)
	}
	body := appendUint(make([]byte, 0, len(old)*2), uint64(count))
	for i := range count {
		code := w.code(r.bytes(r.u32()), w.params[w.types[i]])
		body = append(appendUint(body, uint64(len(code))), code...)
	}
	w.sections[sectionCode] = body
}

// malformed carries an error out of the reading.
type malformed struct{ error }

func fail(format string, args ...any) { panic(malformed{fmt.Errorf(format, args...)}) }

var errShort = errors.New("it ends too early")
