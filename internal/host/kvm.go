package host

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"
)

// guestTime is what the guest may take. It needs milliseconds.
const guestTime = 5 * time.Second

const mendHardware = "use a host with hardware virtualization (VMX or SVM) that is exposed to this machine, or bare metal"

// ProbeKVM finds out whether virtual machines run here, by running one that does what an operating system's kernel does
// while it boots. That the device opens proves nothing: a software KVM may run a few instructions and fail at the rest.
// It takes at most guestTime and leaves nothing behind. If ctx ends first, the answer is not Usable, with the reason
// in Detail and without a Mend: it says nothing about this host and is not to be kept.
func ProbeKVM(ctx context.Context) KVM { return probeKVM(ctx, "/") }

func probeKVM(ctx context.Context, root string) KVM {
	cpu := lookCPU(root)
	dev, err := os.OpenFile(filepath.Join(root, "dev/kvm"), os.O_RDWR, 0)
	if err != nil {
		return cannotOpen(err, cpu)
	}
	defer dev.Close()
	bounded, cancel := context.WithTimeoutCause(ctx, guestTime, fmt.Errorf("no end within %v", guestTime))
	defer cancel()
	k := KVM{Present: true, Detail: "a guest ran to its end"}
	if err := tryGuest(bounded, dev); err != nil {
		k.Detail, k.Mend = err.Error(), mendHardware
		if ctx.Err() != nil {
			k.Mend = ""
		}
	} else {
		k.Usable = true
	}
	if note := cpu.software(); note != "" {
		k.Detail += "; " + note
	}
	return k
}

// cannotOpen says why the device does not open, and what would change that.
func cannotOpen(err error, cpu cpu) KVM {
	k := KVM{Present: true, Detail: err.Error(), Mend: mendHardware}
	switch {
	case errors.Is(err, syscall.ENOENT):
		k.Present, k.Detail, k.Mend = false, "there is no /dev/kvm", cpu.mendModule()
	case errors.Is(err, syscall.ENODEV), errors.Is(err, syscall.ENXIO): // a file without a driver behind it
		k.Detail, k.Mend = "no driver serves /dev/kvm", cpu.mendModule()
	case errors.Is(err, syscall.EACCES):
		k.Detail, k.Mend = "this user may not open /dev/kvm", "add the user to group kvm: sudo usermod -aG kvm $USER"
	case errors.Is(err, syscall.EPERM): // not the file's mode: the devices that this cgroup may use
		k.Detail, k.Mend = "this container may not use /dev/kvm", "start the container with that device: --device /dev/kvm"
	}
	return k
}

// cpu is what bears on virtual machines in the processor and in the kernel's modules.
type cpu struct {
	flags   []string // of /proc/cpuinfo; nil if unknown, as on processors of another kind
	modules []string // kvm_intel, kvm_amd, kvm_pvm …
}

func lookCPU(root string) cpu {
	var c cpu
	text, _ := os.ReadFile(filepath.Join(root, "proc/cpuinfo"))
	c.flags = parseFlags(string(text))
	paths, _ := filepath.Glob(filepath.Join(root, "sys/module/kvm_*"))
	for _, path := range paths {
		c.modules = append(c.modules, filepath.Base(path))
	}
	return c
}

// parseFlags reads the flags of the first x86 processor; see proc_cpuinfo(5).
func parseFlags(cpuinfo string) []string {
	for line := range strings.Lines(cpuinfo) {
		name, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(name) == "flags" {
			return strings.Fields(value)
		}
	}
	return nil
}

// software notes that guests do not run on the processor's own support, as the flags show; "" if they may.
func (c cpu) software() string {
	if c.flags == nil || slices.Contains(c.flags, "vmx") || slices.Contains(c.flags, "svm") {
		return ""
	}
	note := "the CPU shows neither vmx nor svm: a software KVM"
	if len(c.modules) > 0 {
		note += " (" + strings.Join(c.modules, ", ") + ")"
	}
	return note
}

// mendModule is how to get a /dev/kvm.
func (c cpu) mendModule() string {
	switch {
	case slices.Contains(c.flags, "vmx"):
		return "load KVM: sudo modprobe kvm_intel"
	case slices.Contains(c.flags, "svm"):
		return "load KVM: sudo modprobe kvm_amd"
	}
	return mendHardware
}
