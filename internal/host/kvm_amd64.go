package host

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"runtime"
	"sync"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"
)

// Requests of include/uapi/linux/kvm.h; Documentation/virt/kvm/api.rst says what they do.
const (
	kvmGetAPIVersion       = 0xae00
	kvmCreateVM            = 0xae01
	kvmGetVCPUMmapSize     = 0xae04
	kvmGetSupportedCPUID   = 0xc008ae05
	kvmCreateVCPU          = 0xae41
	kvmSetUserMemoryRegion = 0x4020ae46
	kvmSetTSSAddr          = 0xae47
	kvmRun                 = 0xae80
	kvmSetRegs             = 0x4090ae82
	kvmGetSregs            = 0x8138ae83
	kvmSetSregs            = 0x4138ae84
	kvmSetCPUID2           = 0x4008ae90

	kvmAPIVersion = 12 // the only one since Linux 2.6.22
)

// The structures of arch/x86/include/uapi/asm/kvm.h and include/uapi/linux/kvm.h.
type (
	kvmMemoryRegion struct {
		slot, flags                   uint32
		guest, size, userspaceAddress uint64
	}
	kvmCPUID struct {
		n, _    uint32
		entries [256]kvmCPUIDEntry
	}
	kvmCPUIDEntry struct {
		function, index, flags, eax, ebx, ecx, edx uint32
		_                                          [3]uint32
	}
	kvmRegs struct {
		rax, rbx, rcx, rdx, rsi, rdi, rsp, rbp uint64
		r8, r9, r10, r11, r12, r13, r14, r15   uint64
		rip, rflags                            uint64
	}
	kvmSegment struct {
		base                                              uint64
		limit                                             uint32
		selector                                          uint16
		kind, present, dpl, db, s, l, g, avl, unusable, _ uint8
	}
	kvmTable struct {
		base  uint64
		limit uint16
		_     [3]uint16
	}
	kvmSregs struct {
		cs, ds, es, fs, gs, ss, tr, ldt     kvmSegment
		gdt, idt                            kvmTable
		cr0, cr2, cr3, cr4, cr8, efer, apic uint64
		interrupts                          [4]uint64
	}
)

// machine is a virtual machine with one processor.
type machine struct {
	vm, vcpu int
	memory   []byte // of the guest, from its address 0 on
	state    []byte // struct kvm_run, shared with the kernel
	cpuid    kvmCPUID
}

func tryGuest(ctx context.Context, dev *os.File) error { return runGuest(ctx, dev, guestSteps()) }

// runGuest runs a guest that does these steps. The error says at which it stopped, and how.
func runGuest(ctx context.Context, dev *os.File, steps []step) (err error) {
	runtime.LockOSThread() // KVM wants all that concerns a processor from one thread, and the kick needs to know it
	defer runtime.UnlockOSThread()
	m := machine{vm: -1, vcpu: -1}
	defer func() {
		if closeErr := m.close(); err == nil {
			err = closeErr
		}
	}()
	if err := m.create(int(dev.Fd())); err != nil {
		return err
	}
	if !m.hasXSAVE() {
		steps = withoutXSAVE(steps)
	}
	load(m.memory, steps)
	if err := m.enterLongMode(); err != nil {
		return err
	}
	return m.run(ctx, steps)
}

func (m *machine) create(dev int) error {
	version, err := ioctl(dev, kvmGetAPIVersion, 0)
	if err != nil {
		return fmt.Errorf("ask /dev/kvm for its version: %w", err)
	}
	if version != kvmAPIVersion {
		return fmt.Errorf("/dev/kvm speaks version %d, not %d", version, kvmAPIVersion)
	}
	if m.vm, err = ioctl(dev, kvmCreateVM, 0); err != nil {
		return fmt.Errorf("create a virtual machine: %w", err)
	}
	// Intel's processors without "unrestricted guest" need three pages of the guest's for themselves.
	if _, err := ioctl(m.vm, kvmSetTSSAddr, 0xfffbd000); err != nil {
		return fmt.Errorf("set the address of the task state: %w", err)
	}
	if m.memory, err = unix.Mmap(-1, 0, memorySize, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_PRIVATE|unix.MAP_ANONYMOUS); err != nil {
		return fmt.Errorf("get memory: %w", err)
	}
	region := kvmMemoryRegion{size: memorySize, userspaceAddress: uint64(uintptr(unsafe.Pointer(&m.memory[0])))}
	if err := ioctlPointer(m.vm, kvmSetUserMemoryRegion, unsafe.Pointer(&region)); err != nil {
		return fmt.Errorf("give the guest memory: %w", err)
	}
	if m.vcpu, err = ioctl(m.vm, kvmCreateVCPU, 0); err != nil {
		return fmt.Errorf("create a virtual processor: %w", err)
	}
	size, err := ioctl(dev, kvmGetVCPUMmapSize, 0)
	if err != nil {
		return fmt.Errorf("ask for the size of the processor's state: %w", err)
	}
	if m.state, err = unix.Mmap(m.vcpu, 0, size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_SHARED); err != nil {
		return fmt.Errorf("map the processor's state: %w", err)
	}
	m.cpuid.n = uint32(len(m.cpuid.entries))
	if err := ioctlPointer(dev, kvmGetSupportedCPUID, unsafe.Pointer(&m.cpuid)); err != nil {
		return fmt.Errorf("ask which processor can be had: %w", err)
	}
	if err := ioctlPointer(m.vcpu, kvmSetCPUID2, unsafe.Pointer(&m.cpuid)); err != nil {
		return fmt.Errorf("choose the processor: %w", err)
	}
	return nil
}

// close frees everything that was made so far, the last first.
func (m *machine) close() error {
	var errs []error
	if m.state != nil {
		errs = append(errs, unix.Munmap(m.state))
	}
	for _, fd := range []int{m.vcpu, m.vm} {
		if fd >= 0 {
			errs = append(errs, unix.Close(fd))
		}
	}
	if m.memory != nil {
		errs = append(errs, unix.Munmap(m.memory))
	}
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("free the virtual machine: %w", err)
	}
	return nil
}

// hasXSAVE looks at bit 26 of ecx in leaf 1 of CPUID: there are processors that virtualize and lack it.
func (m *machine) hasXSAVE() bool {
	for _, e := range m.cpuid.entries[:min(int(m.cpuid.n), len(m.cpuid.entries))] {
		if e.function == 1 {
			return e.ecx&(1<<26) != 0
		}
	}
	return false
}

// run lets the guest run until it is through with its steps, or stops, or ctx ends.
func (m *machine) run(ctx context.Context, steps []step) error {
	defer m.kickAtEnd(ctx)()
	for done := 0; ; {
		at := "its end"
		if done < len(steps) {
			at = steps[done].name
		}
		if ctx.Err() != nil {
			return fmt.Errorf("the guest stopped at %s: %w", at, context.Cause(ctx))
		}
		if _, err := ioctl(m.vcpu, kvmRun, 0); errors.Is(err, unix.EINTR) || errors.Is(err, unix.EAGAIN) {
			continue
		} else if err != nil {
			return fmt.Errorf("the guest stopped at %s: run it: %w", at, err)
		}
		e := m.exit()
		switch {
		case e.reason == exitIntr:
		case e.port == portDone && int(e.value) == done+1:
			done++
		case e.reason == exitHlt && done == len(steps):
			return nil
		default:
			return fmt.Errorf("the guest stopped at %s: %s", at, e.text(m.state))
		}
	}
}

// kickAtEnd gets this thread out of the guest once ctx ends. The caller calls what it returns when it is out.
func (m *machine) kickAtEnd(ctx context.Context) (stop func()) {
	thread, out := unix.Gettid(), make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		select {
		case <-out:
			return
		case <-ctx.Done():
		}
		// A signal gets the thread out of the guest if it is in it. If not yet, this has it leave when it enters.
		m.state[runImmediateExit] = 1
		for {
			_ = unix.Tgkill(os.Getpid(), thread, unix.SIGURG) // which Go's runtime ignores; the thread lives until out
			select {
			case <-out:
				return
			case <-time.After(10 * time.Millisecond):
			}
		}
	})
	return func() { close(out); wg.Wait() }
}

func ioctl(fd int, request, arg uintptr) (int, error) {
	n, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, arg)
	if errno != 0 {
		return -1, errno
	}
	return int(n), nil
}

func ioctlPointer(fd int, request uintptr, arg unsafe.Pointer) error {
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), request, uintptr(arg)); errno != 0 {
		return errno
	}
	return nil
}

// Offsets into struct kvm_run, and reasons in it.
const (
	runImmediateExit = 1
	runExitReason    = 8
	runUnion         = 32

	exitIO            = 2
	exitHlt           = 5
	exitMMIO          = 6
	exitShutdown      = 8
	exitFailEntry     = 9
	exitIntr          = 10
	exitInternalError = 17
)

// exit is why the processor left the guest.
type exit struct {
	reason uint32
	port   uint16 // of exitIO
	value  byte   // that was written there
}

func (m *machine) exit() exit {
	e := exit{reason: binary.NativeEndian.Uint32(m.state[runExitReason:])}
	if e.reason == exitIO {
		e.port = binary.NativeEndian.Uint16(m.state[runUnion+2:])
		if at := binary.NativeEndian.Uint64(m.state[runUnion+8:]); at < uint64(len(m.state)) {
			e.value = m.state[at]
		}
	}
	return e
}

// text says in words why the processor left the guest for good.
func (e exit) text(state []byte) string {
	union := state[runUnion:]
	switch e.reason {
	case exitIO:
		if e.port == portTrouble {
			return troubleText(e.value)
		}
		return fmt.Sprintf("it wrote %#x to port %#x, which is no report", e.value, e.port)
	case exitHlt:
		return "it halted"
	case exitMMIO:
		return "it used memory that it does not have"
	case exitShutdown:
		return "shutdown: it could not handle an exception"
	case exitFailEntry:
		return fmt.Sprintf("the processor refused to enter it, reason %#x", binary.NativeEndian.Uint64(union))
	case exitInternalError:
		return "internal error, " + internalErrorText(union)
	}
	return fmt.Sprintf("KVM left it with reason %d", e.reason)
}

// internalErrorText reads the part of struct kvm_run that belongs to KVM_EXIT_INTERNAL_ERROR.
func internalErrorText(union []byte) string {
	switch suberror := binary.NativeEndian.Uint32(union); suberror {
	case 1:
		return "emulation failure"
	case 2:
		return "two exceptions at once"
	case 3:
		return "an exception could not be delivered"
	case 4:
		return "the processor left it for a reason that KVM does not know"
	default:
		return fmt.Sprintf("kind %d", suberror)
	}
}
