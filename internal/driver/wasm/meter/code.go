package meter

// The instructions that matter here.
const (
	opUnreachable  = 0x00
	opNop          = 0x01
	opBlock        = 0x02
	opLoop         = 0x03
	opIf           = 0x04
	opElse         = 0x05
	opEnd          = 0x0b
	opBranch       = 0x0c
	opBranchIf     = 0x0d
	opBranchTable  = 0x0e
	opReturn       = 0x0f
	opCall         = 0x10
	opCallIndirect = 0x11
	opLocalGet     = 0x20
	opLocalSet     = 0x21
	opGlobalGet    = 0x23
	opGlobalSet    = 0x24
	opMemoryGrow   = 0x40
	opI64Const     = 0x42
	opI64Less      = 0x53
	opI64Sub       = 0x7d
	opI64ShiftU    = 0x88
	opI64FromI32U  = 0xad
	opRefFunc      = 0xd2
	opBulk         = 0xfc
	emptyBlock     = 0x40
	growCost       = 1000 // instructions that a growing of the memory is taken for
	bytesPerUnit   = 3    // as a power of two: bytes of a bulk operation that count as one instruction
	bulkMemoryInit = 8
	bulkMemoryCopy = 10
	bulkMemoryFill = 11
	bulkTableInit  = 12
	bulkTableCopy  = 14
	bulkTableGrow  = 15
	bulkTableFill  = 17
)

// code rewrites the body of one function. The fuel is in a local of it, which a register may hold, and in the global
// while other code runs: that of the functions it calls, of its caller, and of the host.
func (w *rewriter) code(old []byte, params uint32) []byte {
	costs := costs(old)
	r := &reader{data: old}
	groups := r.u32()
	locals := uint64(params)
	f := &function{rewriter: w}
	f.out = appendUint(make([]byte, 0, len(old)*2), uint64(groups)+2)
	for range groups {
		n := r.u32()
		locals += uint64(n)
		f.out = append(appendUint(f.out, uint64(n)), r.byte())
	}
	f.fuel, f.size = locals, locals+1
	f.out = append(f.out, 1, 0x7e, 1, 0x7f)
	f.load()
	f.charge(costs[0])
	f.check()
	for depth, segment := uint32(1), 0; depth > 0; {
		i := r.instruction()
		switch i.op {
		case opBlock, opLoop, opIf:
			depth++
		case opEnd:
			depth--
		}
		f.before(i, depth)
		f.out = w.copy(f.out, i)
		f.after(i)
		if !i.ends() || depth == 0 {
			continue
		}
		segment++
		f.charge(costs[segment])
		if i.op == opLoop {
			f.check()
		}
	}
	if len(r.data) > 0 {
		fail("one of its functions goes on after its end")
	}
	return f.out
}

// before is what comes before an instruction, at a depth of blocks.
func (f *function) before(i instruction, depth uint32) {
	switch i.op {
	case opCall, opCallIndirect, opReturn:
		f.store()
	case opBranch, opBranchIf, opBranchTable:
		if i.index+1 == depth { // it leaves the function
			f.store()
		}
	case opEnd:
		if depth == 0 {
			f.store()
		}
	case opMemoryGrow:
		f.charge(growCost)
		f.check()
	case opBulk:
		f.chargeBulk(i.index)
	}
}

func (f *function) after(i instruction) {
	if i.op == opCall || i.op == opCallIndirect {
		f.load()
	}
}

// What a function may be, because compiling one takes the square of it and cannot be ended.
const (
	maxDepth  = 4000 // blocks in each other
	maxBranch = 8000 // targets of one table of branches
)

// small is how many instructions after a conditional branch are taken for executed whether or not it branches, which is
// cheaper than counting them apart.
const small = 8

// costs are the numbers of instructions of the segments of a function: pieces with no branch in them and no place where
// one leads to, in their order.
func costs(body []byte) []int64 {
	r := &reader{data: body}
	for range r.u32() {
		r.u32()
		r.byte()
	}
	costs, last := []int64{0}, 0 // the segment that what follows is counted in
	for depth := 1; depth > 0; {
		i := r.instruction()
		switch i.op {
		case opBlock, opLoop, opIf:
			depth++
		case opEnd:
			depth--
		}
		if depth > maxDepth {
			fail("one of its functions has more than %d blocks in each other", maxDepth)
		}
		if i.counts() {
			costs[len(costs)-1]++
		}
		if !i.ends() {
			continue
		}
		if now := len(costs) - 1; now != last && costs[now] <= small {
			costs[last] += costs[now]
			costs[now] = 0
		}
		if i.op != opBranchIf || len(costs)-1 != last && costs[len(costs)-1] > 0 {
			last = len(costs)
		}
		costs = append(costs, 0)
	}
	return costs
}

// ends reports whether another segment begins after an instruction.
func (i instruction) ends() bool {
	switch i.op {
	case opUnreachable, opLoop, opIf, opElse, opEnd, opBranch, opBranchIf, opBranchTable, opReturn:
		return true
	}
	return false
}

// counts reports whether an instruction is more than a mark.
func (i instruction) counts() bool {
	switch i.op {
	case opNop, opBlock, opElse, opEnd:
		return false
	}
	return true
}

// function is the code that is written.
type function struct {
	*rewriter
	out        []byte
	fuel, size uint64 // our locals, an i64 and an i32
}

func (f *function) op(op byte, index uint64) { f.out = appendUint(append(f.out, op), index) }

// load takes the fuel from the global.
func (f *function) load() {
	f.op(opGlobalGet, uint64(f.globals))
	f.op(opLocalSet, f.fuel)
}

// store gives the fuel to the global.
func (f *function) store() {
	f.op(opLocalGet, f.fuel)
	f.op(opGlobalSet, uint64(f.globals))
}

// charge takes a number of instructions from the fuel.
func (f *function) charge(cost int64) {
	if cost > 0 {
		f.take(appendInt([]byte{opI64Const}, cost))
	}
}

// take takes from the fuel what the code leaves on the stack.
func (f *function) take(amount []byte) {
	f.op(opLocalGet, f.fuel)
	f.out = append(append(f.out, amount...), opI64Sub)
	f.op(opLocalSet, f.fuel)
}

// check calls out if there is no fuel left.
func (f *function) check() {
	f.op(opLocalGet, f.fuel)
	f.out = append(f.out, opI64Const, 0, opI64Less, opIf, emptyBlock)
	f.store()
	f.op(opCall, uint64(f.imported))
	f.load()
	f.out = append(f.out, opEnd)
}

// chargeBulk takes for what one instruction does to many bytes; their number is on top of the stack.
func (f *function) chargeBulk(operation uint32) {
	shift := byte(bytesPerUnit)
	switch operation {
	case bulkMemoryInit, bulkMemoryCopy, bulkMemoryFill:
	case bulkTableInit, bulkTableCopy, bulkTableGrow, bulkTableFill:
		shift = 0
	default:
		return
	}
	f.op(opLocalSet, f.size)
	f.take(append(appendUint([]byte{opLocalGet}, f.size), opI64FromI32U, opI64Const, shift, opI64ShiftU))
	f.check()
	f.op(opLocalGet, f.size)
}
