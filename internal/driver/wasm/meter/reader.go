package meter

// reader reads the parts of a module. It panics with malformed.
type reader struct{ data []byte }

func (r *reader) byte() byte { return r.bytes(1)[0] }

func (r *reader) bytes(n uint32) []byte {
	if uint64(n) > uint64(len(r.data)) {
		panic(malformed{errShort})
	}
	b := r.data[:n:n]
	r.data = r.data[n:]
	return b
}

// u32 reads an unsigned number of at most five bytes.
func (r *reader) u32() uint32 {
	value := uint64(0)
	for shift := 0; shift < 35; shift += 7 {
		b := r.byte()
		value |= uint64(b&0x7f) << shift
		if b&0x80 == 0 {
			if value>>32 != 0 {
				break
			}
			return uint32(value)
		}
	}
	fail("a number is too large")
	return 0
}

// skip skips a number of at most so many bytes.
func (r *reader) skip(most int) {
	for range most {
		if r.byte()&0x80 == 0 {
			return
		}
	}
	fail("a number is too long")
}

// instruction is one, as it is written.
type instruction struct {
	op    byte
	index uint32 // of a function, of the outermost block that a branch leads to, or which one after a prefix it is
	text  []byte
}

// instruction reads one instruction with all that belongs to it.
func (r *reader) instruction() (i instruction) {
	before := r.data
	i.op = r.byte()
	switch {
	case i.op >= 0x28 && i.op <= 0x3e: // loads and stores
		r.address()
	case i.op >= 0x45 && i.op <= 0xc4: // comparisons, arithmetic, conversions
	default:
		r.immediates(&i)
	}
	i.text = before[:len(before)-len(r.data)]
	return i
}

func (r *reader) immediates(i *instruction) {
	switch i.op {
	case opUnreachable, opNop, opElse, opEnd, opReturn, 0x1a, 0x1b, 0xd1: // also drop, select, ref.is_null
	case opBlock, opLoop, opIf, opI64Const, 0x41: // a type or a signed number
		r.skip(10)
	case opBranch, opBranchIf:
		i.index = r.u32()
	case opBranchTable:
		n := r.u32()
		if n > maxBranch {
			fail("one of its branches has a table of %d targets; %d are the most", n, maxBranch)
		}
		for range n {
			i.index = max(i.index, r.u32())
		}
		i.index = max(i.index, r.u32())
	case 0x20, 0x21, 0x22, 0x23, 0x24, 0x25, 0x26: // variables, table.get and set
		r.u32()
	case opCall, opRefFunc:
		i.index = r.u32()
	case opCallIndirect:
		r.u32()
		r.u32()
	case 0x1c: // select of a type
		r.bytes(r.u32())
	case 0x3f, opMemoryGrow, 0xd0: // memory.size, ref.null
		r.byte()
	case 0x43:
		r.bytes(4)
	case 0x44:
		r.bytes(8)
	case opBulk:
		r.bulk(i)
	case 0xfd:
		r.vector(i)
	default:
		fail("its instruction %#x is not known here", i.op)
	}
}

func (r *reader) address() {
	r.u32()
	r.skip(10)
}

// bulk reads what follows 0xfc.
func (r *reader) bulk(i *instruction) {
	i.index = r.u32()
	switch {
	case i.index < bulkMemoryInit: // conversions
	case i.index == bulkMemoryInit, i.index == bulkMemoryCopy, i.index == bulkTableInit, i.index == bulkTableCopy:
		r.u32()
		r.u32()
	case i.index <= bulkTableFill:
		r.u32()
	default:
		fail("its instruction 0xfc %#x is not known here", i.index)
	}
}

// vector reads what follows 0xfd.
func (r *reader) vector(i *instruction) {
	i.index = r.u32()
	switch {
	case i.index <= 11, i.index == 92, i.index == 93: // loads and stores
		r.address()
	case i.index == 12, i.index == 13: // a constant, a shuffle
		r.bytes(16)
	case i.index >= 21 && i.index <= 34: // of one lane
		r.byte()
	case i.index >= 84 && i.index <= 91: // loads and stores of one lane
		r.address()
		r.byte()
	case i.index > 255:
		fail("its instruction 0xfd %#x is not known here", i.index)
	}
}

func appendUint(to []byte, n uint64) []byte {
	for ; n >= 0x80; n >>= 7 {
		to = append(to, byte(n)|0x80)
	}
	return append(to, byte(n))
}

func appendInt(to []byte, n int64) []byte {
	for ; n < -64 || n > 63; n >>= 7 {
		to = append(to, byte(n)|0x80)
	}
	return append(to, byte(n)&0x7f)
}

func appendName(to []byte, name string) []byte {
	return append(appendUint(to, uint64(len(name))), name...)
}
