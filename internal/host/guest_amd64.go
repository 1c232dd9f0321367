package host

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"slices"
	"unsafe"
)

// The guest's memory: tables of the processor, then code, then data. The first 2 MiB of its addresses are this memory,
// as one large page that user mode may use too. The next 2 MiB are missing until a page fault maps the same memory.
const (
	memorySize = 2 << 20

	pml4Address  = 0x1000
	pdptAddress  = 0x2000
	pdAddress    = 0x3000
	gdtAddress   = 0x4000
	idtAddress   = 0x5000
	tssAddress   = 0x6000
	gdtPointer   = 0x6800 // operand of lgdt
	idtPointer   = 0x6810 // operand of lidt
	stubAddress  = 0x7000 // one stub of 16 bytes for each exception
	breakAddress = 0x7800 // handler of int3
	faultAddress = 0x7900 // handler of page faults
	codeAddress  = 0x8000
	dataAddress  = 0x10000 // zero, and room for XSAVE at 0x10040
	markAddress  = 0x10800
	stackAddress = 0x1f000 // grows down

	exceptions = 32
	mark       = "fire"
)

// What the guest writes to ports: the number of each step that it has done, or the number of an exception that it did
// not expect, or wrongResult.
const (
	portDone    = 0xf1
	portTrouble = 0xf2
	wrongResult = 0xff
)

// step is something that an ordinary kernel does. The code starts with rsp at stackAddress; it may change all registers
// but rsp, and lies anywhere.
type step struct {
	name string
	code []byte
}

// guestSteps are what Linux needs on its way to the first process and software KVMs are known to fail at, in the order
// in which it comes to them.
func guestSteps() []step {
	return slices.Concat(privilegedSteps(), stateSteps(), trapSteps())
}

// withoutXSAVE leaves out what a processor without XSAVE need not do.
func withoutXSAVE(steps []step) []step {
	return slices.DeleteFunc(slices.Clone(steps), func(s step) bool {
		return s.name == "xsetbv" || s.name == "xsave" || s.name == "xrstor"
	})
}

func privilegedSteps() []step {
	return []step{
		{"its first instruction", nil},
		{"loading descriptor tables", []byte{
			0x0f, 0x01, 0x14, 0x25, 0x00, 0x68, 0x00, 0x00, // lgdt [gdtPointer]
			0x0f, 0x01, 0x1c, 0x25, 0x10, 0x68, 0x00, 0x00, // lidt [idtPointer]
			0x66, 0xb8, 0x30, 0x00, 0x0f, 0x00, 0xd8, // mov ax, 0x30; ltr ax
			0x66, 0xb8, 0x10, 0x00, 0x8e, 0xd0, 0x8e, 0xd8, // mov ax, 0x10; mov ss, ax; mov ds, ax
			0x6a, 0x08, // push 0x08
			0x48, 0x8d, 0x05, 0x03, 0x00, 0x00, 0x00, // lea rax, [rip+1f]
			0x50, 0x48, 0xcb, // push rax; retfq; 1:
		}},
		{"changing page tables", []byte{
			0x0f, 0x20, 0xd8, 0x0f, 0x22, 0xd8, // mov rax, cr3; mov cr3, rax
			0x0f, 0x01, 0x3c, 0x25, 0x00, 0x00, 0x01, 0x00, // invlpg [dataAddress]
		}},
		{"cpuid", []byte{
			0x31, 0xc0, 0x0f, 0xa2, // xor eax, eax; cpuid
			0x83, 0xf8, 0x01, // cmp eax, 1
			0x73, 0x04, // jae 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
		{"wrmsr and rdmsr", []byte{
			0xb9, 0x02, 0x01, 0x00, 0xc0, // mov ecx, KERNEL_GS_BASE
			0x31, 0xd2, 0xb8, 0x45, 0x23, 0x01, 0x00, // xor edx, edx; mov eax, 0x12345
			0x0f, 0x30, 0x31, 0xc0, 0x0f, 0x32, // wrmsr; xor eax, eax; rdmsr
			0x3d, 0x45, 0x23, 0x01, 0x00, // cmp eax, 0x12345
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
		{"swapgs", []byte{
			0x0f, 0x01, 0xf8, // swapgs
		}},
	}
}

func stateSteps() []step {
	return []step{
		{"cmpxchg16b", []byte{
			0x31, 0xc0, 0x31, 0xd2, // xor eax, eax; xor edx, edx
			0xbb, 0x01, 0x00, 0x00, 0x00, 0xb9, 0x02, 0x00, 0x00, 0x00, // mov ebx, 1; mov ecx, 2
			0xf0, 0x48, 0x0f, 0xc7, 0x0c, 0x25, 0x00, 0x00, 0x01, 0x00, // lock cmpxchg16b [dataAddress]
			0x75, 0x0b, // jne 2f
			0x48, 0x83, 0x3c, 0x25, 0x08, 0x00, 0x01, 0x00, 0x02, // cmp qword ptr [dataAddress+8], 2
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // 2: mov al, wrongResult; out portTrouble, al; 1:
		}},
		{"fxsave and fxrstor", []byte{
			0xdb, 0xe3, 0x48, 0x0f, 0xae, 0x04, 0x25, 0x40, 0x00, 0x01, 0x00, // fninit; fxsave64 [dataAddress+0x40]
			0x66, 0xc7, 0x04, 0x25, 0x40, 0x00, 0x01, 0x00, 0x7f, 0x02, // mov word ptr [dataAddress+0x40], 0x27f
			0x48, 0x0f, 0xae, 0x0c, 0x25, 0x40, 0x00, 0x01, 0x00, // fxrstor64 [dataAddress+0x40]
			0xd9, 0x3c, 0x25, 0x00, 0x00, 0x01, 0x00, // fnstcw [dataAddress]
			0x66, 0x81, 0x3c, 0x25, 0x00, 0x00, 0x01, 0x00, 0x7f, 0x02, // cmp word ptr [dataAddress], 0x27f
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
		{"xsetbv", []byte{
			0x0f, 0x20, 0xe0, 0x0d, 0x00, 0x00, 0x04, 0x00, // mov rax, cr4; or eax, OSXSAVE
			0x0f, 0x22, 0xe0, // mov cr4, rax
			0x31, 0xc9, 0x31, 0xd2, 0xb8, 0x03, 0x00, 0x00, 0x00, // xor ecx, ecx; xor edx, edx; mov eax, X87|SSE
			0x0f, 0x01, 0xd1, // xsetbv
		}},
		{"xsave", []byte{
			0xdb, 0xe3, 0xb8, 0x03, 0x00, 0x00, 0x00, 0x31, 0xd2, // fninit; mov eax, X87|SSE; xor edx, edx
			0x48, 0x0f, 0xae, 0x24, 0x25, 0x40, 0x00, 0x01, 0x00, // xsave64 [dataAddress+0x40]
			0x66, 0x81, 0x3c, 0x25, 0x40, 0x00, 0x01, 0x00, 0x7f, 0x03, // cmp word ptr [dataAddress+0x40], 0x37f
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
		{"xrstor", []byte{
			0x66, 0xc7, 0x04, 0x25, 0x40, 0x00, 0x01, 0x00, 0x7f, 0x02, // mov word ptr [dataAddress+0x40], 0x27f
			0x83, 0x0c, 0x25, 0x40, 0x02, 0x01, 0x00, 0x01, // or dword ptr [dataAddress+0x240], X87
			0xb8, 0x03, 0x00, 0x00, 0x00, 0x31, 0xd2, // mov eax, X87|SSE; xor edx, edx
			0x48, 0x0f, 0xae, 0x2c, 0x25, 0x40, 0x00, 0x01, 0x00, // xrstor64 [dataAddress+0x40]
			0xd9, 0x3c, 0x25, 0x00, 0x00, 0x01, 0x00, // fnstcw [dataAddress]
			0x66, 0x81, 0x3c, 0x25, 0x00, 0x00, 0x01, 0x00, 0x7f, 0x02, // cmp word ptr [dataAddress], 0x27f
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
	}
}

func trapSteps() []step {
	return []step{
		{"int3", []byte{
			0x31, 0xdb, 0xcc, // xor ebx, ebx; int3
			0x83, 0xfb, 0x03, // cmp ebx, 3
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
		{"a page fault", []byte{
			0x8b, 0x04, 0x25, 0x00, 0x08, 0x21, 0x00, // mov eax, [2 MiB + markAddress]
			0x3d, 0x66, 0x69, 0x72, 0x65, // cmp eax, mark
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
		{"a system call from user mode", []byte{
			0xb9, 0x81, 0x00, 0x00, 0xc0, // mov ecx, STAR
			0x31, 0xc0, 0xba, 0x08, 0x00, 0x18, 0x00, 0x0f, 0x30, // xor eax, eax; mov edx, 0x180008; wrmsr
			0xff, 0xc1, 0x48, 0x8d, 0x05, 0x30, 0x00, 0x00, 0x00, // inc ecx (LSTAR); lea rax, [rip+entry]
			0x31, 0xd2, 0x0f, 0x30, // xor edx, edx; wrmsr
			0xb9, 0x84, 0x00, 0x00, 0xc0, 0x31, 0xc0, 0x0f, 0x30, // mov ecx, FMASK; xor eax, eax; wrmsr
			0xb9, 0x80, 0x00, 0x00, 0xc0, 0x0f, 0x32, // mov ecx, EFER; rdmsr
			0x83, 0xc8, 0x01, 0x0f, 0x30, // or eax, SCE; wrmsr
			0x49, 0x89, 0xe7, 0x48, 0x8d, 0x0d, 0x09, 0x00, 0x00, 0x00, // mov r15, rsp; lea rcx, [rip+user]
			0x41, 0xbb, 0x02, 0x00, 0x00, 0x00, 0x48, 0x0f, 0x07, // mov r11d, 2; sysretq
			0x8c, 0xcb, 0x0f, 0x05, // user: mov ebx, cs; syscall
			0x4c, 0x89, 0xfc, 0x83, 0xfb, 0x2b, // entry: mov rsp, r15; cmp ebx, 0x2b
			0x74, 0x04, // je 1f
			0xb0, 0xff, 0xe6, 0xf2, // mov al, wrongResult; out portTrouble, al; 1:
		}},
	}
}

// load writes into an empty memory all that the guest needs.
func load(memory []byte, steps []step) {
	const present, writable, user, large = 1, 2, 4, 0x80
	put := func(address int, values ...uint64) {
		for i, v := range values {
			binary.LittleEndian.PutUint64(memory[address+8*i:], v)
		}
	}
	// Intel SDM volume 3, section 4.5: a table per level, each with one entry, and one page of 2 MiB.
	put(pml4Address, pdptAddress|present|writable|user)
	put(pdptAddress, pdAddress|present|writable|user)
	put(pdAddress, 0|present|writable|user|large)
	loadDescriptors(memory, put)
	copy(memory[breakAddress:], []byte{
		0xbb, 0x03, 0x00, 0x00, 0x00, 0x48, 0xcf, // mov ebx, 3; iretq
	})
	copy(memory[faultAddress:], []byte{
		0x50, 0x0f, 0x20, 0xd0, 0x48, 0xc1, 0xe8, 0x15, // push rax; mov rax, cr2; shr rax, 21
		0x48, 0x83, 0xf8, 0x01, 0x75, 0x14, // cmp rax, 1; jne 1f
		0xb8, 0x87, 0x00, 0x00, 0x00, // mov eax, large|user|writable|present
		0x48, 0x89, 0x04, 0x25, 0x08, 0x30, 0x00, 0x00, // mov [pdAddress+8], rax
		0x58, 0x48, 0x83, 0xc4, 0x08, 0x48, 0xcf, // pop rax; add rsp, 8; iretq
		0xb0, 0x0e, 0xe6, 0xf2, 0xf4, // 1: mov al, 14; out portTrouble, al; hlt
	})
	copy(memory[markAddress:], mark)
	var code bytes.Buffer
	for i, s := range steps {
		code.Write(s.code)
		code.Write([]byte{0xb0, byte(i + 1), 0xe6, portDone}) // mov al, i+1; out portDone, al
	}
	code.Write([]byte{0xf4, 0xeb, 0xfd}) // 1: hlt; jmp 1b
	copy(memory[codeAddress:dataAddress], code.Bytes())
}

// loadDescriptors writes the segments, the gates and the task state, as the Intel SDM volume 3 shows them in sections
// 3.4.5, 6.14.1 and 7.7, and what the guest loads them with.
func loadDescriptors(memory []byte, put func(address int, values ...uint64)) {
	const kernelCode, kernelData = 0x00af9b000000ffff, 0x00cf93000000ffff
	const dpl3, tssSize = 3 << 45, 0x68
	put(gdtAddress, 0, kernelCode, kernelData, 0 /* user code of 32 bits */, kernelData|dpl3, kernelCode|dpl3,
		tssAddress<<16|0x89<<40|(tssSize-1), 0)
	put(tssAddress+4, stackAddress) // the stack for exceptions in user mode
	put(gdtPointer, gdtAddress<<16|(8*8-1), 0)
	put(idtPointer, idtAddress<<16|(16*exceptions-1), 0)
	for vector := range exceptions {
		handler := stubAddress + 16*vector
		copy(memory[handler:], []byte{
			0xb0, byte(vector), 0xe6, portTrouble, 0xf4, // mov al, vector; out portTrouble, al; hlt
		})
		switch vector {
		case 3:
			handler = breakAddress
		case 14:
			handler = faultAddress
		}
		put(idtAddress+16*vector, uint64(handler)|0x08<<16|0x8e<<40, 0)
	}
}

// enterLongMode puts the processor where a boot loader leaves a kernel: in 64-bit mode, at the first instruction.
func (m *machine) enterLongMode() error {
	const (
		cr0  = 1 | 1<<1 | 1<<4 | 1<<5 | 1<<16 | 1<<31 // PE, MP, ET, NE, WP, PG
		cr4  = 1<<5 | 1<<9 | 1<<10                    // PAE, OSFXSR, OSXMMEXCPT
		efer = 1<<8 | 1<<10                           // LME, LMA
	)
	var s kvmSregs
	if err := ioctlPointer(m.vcpu, kvmGetSregs, unsafe.Pointer(&s)); err != nil {
		return fmt.Errorf("read the processor's registers: %w", err)
	}
	s.cr0, s.cr3, s.cr4, s.efer = cr0, pml4Address, cr4, efer
	s.cs = kvmSegment{limit: 1<<32 - 1, selector: 0x08, kind: 11, present: 1, s: 1, l: 1, g: 1}
	data := kvmSegment{limit: 1<<32 - 1, selector: 0x10, kind: 3, present: 1, db: 1, s: 1, g: 1}
	s.ds, s.es, s.fs, s.gs, s.ss = data, data, data, data, data
	s.tr = kvmSegment{base: tssAddress, limit: 0x67, selector: 0x30, kind: 11, present: 1}
	s.gdt = kvmTable{base: gdtAddress, limit: 8*8 - 1}
	s.idt = kvmTable{base: idtAddress, limit: 16*exceptions - 1}
	if err := ioctlPointer(m.vcpu, kvmSetSregs, unsafe.Pointer(&s)); err != nil {
		return fmt.Errorf("enter 64-bit mode: %w", err)
	}
	r := kvmRegs{rip: codeAddress, rsp: stackAddress, rflags: 2}
	if err := ioctlPointer(m.vcpu, kvmSetRegs, unsafe.Pointer(&r)); err != nil {
		return fmt.Errorf("set the processor's registers: %w", err)
	}
	return nil
}

// troubleText says what the guest met that it did not expect.
func troubleText(value byte) string {
	switch value {
	case wrongResult:
		return "it gave a wrong result"
	case 6:
		return "exception 6, invalid opcode"
	case 13:
		return "exception 13, general protection"
	case 14:
		return "exception 14, page fault"
	}
	return fmt.Sprintf("exception %d", value)
}
