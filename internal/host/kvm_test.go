package host

import (
	"context"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"
)

// TestProbeKVMHere tries a guest on this host for real. Whatever comes out, it must be of one piece.
func TestProbeKVMHere(t *testing.T) {
	start := time.Now()
	k := ProbeKVM(context.Background())
	t.Logf("after %v: %+v", time.Since(start).Round(time.Millisecond), k)
	_, err := os.Stat("/dev/kvm")
	if k.Present != (err == nil) {
		t.Errorf("present: %v, but stat says %v", k.Present, err)
	}
	if k.Usable && !k.Present {
		t.Error("usable without a device")
	}
	if k.Usable != (k.Mend == "") {
		t.Errorf("usable: %v, and to mend: %q", k.Usable, k.Mend)
	}
	if k.Detail == "" || strings.Contains(k.Detail, "\n") {
		t.Errorf("detail is not one line: %q", k.Detail)
	}
}

func TestProbeKVMWithoutTime(t *testing.T) {
	ctx, cancel := context.WithCancel(context.Background())
	cancel()
	if k := ProbeKVM(ctx); k.Usable || k.Present && k.Mend != "" && strings.Contains(k.Detail, "canceled") {
		t.Errorf("the caller went away, and the host is to blame: %+v", k)
	}
}

func TestDeviceThatDoesNotOpen(t *testing.T) {
	for _, test := range []struct {
		name         string
		err          error
		flags        string
		present      bool
		detail, mend string
	}{
		{"none, Intel", syscall.ENOENT, "fpu vmx", false, "there is no", "modprobe kvm_intel"},
		{"none, AMD", syscall.ENOENT, "fpu svm", false, "there is no", "modprobe kvm_amd"},
		{"none, a guest", syscall.ENOENT, "fpu hypervisor", false, "there is no", "bare metal"},
		{"a file without a driver", syscall.ENODEV, "fpu svm", true, "no driver", "modprobe kvm_amd"},
		{"not for this user", syscall.EACCES, "fpu vmx", true, "this user may not", "add the user to group kvm"},
		{"not for this cgroup", syscall.EPERM, "fpu vmx", true, "this container may not", "--device /dev/kvm"},
		{"something else", syscall.EIO, "fpu vmx", true, "input/output error", "bare metal"},
	} {
		t.Run(test.name, func(t *testing.T) {
			err := &fs.PathError{Op: "open", Path: "/dev/kvm", Err: test.err}
			k := cannotOpen(err, cpu{flags: strings.Fields(test.flags)})
			if k.Usable || k.Present != test.present || !strings.Contains(k.Detail, test.detail) || !strings.Contains(k.Mend, test.mend) {
				t.Errorf("%+v", k)
			}
		})
	}
}

func TestProbeKVMOfAnotherRoot(t *testing.T) {
	root := t.TempDir()
	if k := probeKVM(context.Background(), root); k.Present || k.Detail != "there is no /dev/kvm" {
		t.Errorf("without a device: %+v", k)
	}
	write(t, root, "dev/kvm", "an ordinary file")
	write(t, root, "proc/cpuinfo", "processor\t: 0\nflags\t\t: fpu hypervisor\n")
	write(t, root, "sys/module/kvm_pvm/refcnt", "0")
	k := probeKVM(context.Background(), root)
	if !k.Present || k.Usable || k.Mend == "" || !strings.HasSuffix(k.Detail, "a software KVM (kvm_pvm)") {
		t.Errorf("with a file that is no device: %+v", k)
	}
}

func TestProbeKVMAsNobody(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("only root can become somebody else")
	}
	root := t.TempDir()
	write(t, root, "dev/kvm", "")
	if err := os.Chmod(filepath.Join(root, "dev/kvm"), 0o600); err != nil {
		t.Fatal(err)
	}
	var k KVM
	if err := asNobody(func() error { k = probeKVM(context.Background(), root); return nil }); err != nil {
		t.Fatal(err)
	}
	if !k.Present || k.Usable || !strings.Contains(k.Mend, "group kvm") {
		t.Errorf("%+v", k)
	}
}

func TestSoftwareKVM(t *testing.T) {
	for _, test := range []struct{ cpuinfo, note string }{
		{"", ""},
		{"CPU implementer\t: 0x41\nFeatures\t: fp asimd\n", ""},
		{"processor\t: 0\nflags\t\t: fpu vmx sse\nvmx flags\t: ept\n", ""},
		{"processor\t: 0\nflags\t\t: fpu svm\n", ""},
		{"processor\t: 0\nvmx flags\t: ept\nflags\t\t: fpu svm_lock\n", "the CPU shows neither vmx nor svm: a software KVM"},
	} {
		root := t.TempDir()
		write(t, root, "proc/cpuinfo", test.cpuinfo)
		if note := lookCPU(root).software(); note != test.note {
			t.Errorf("%q: %q, want %q", test.cpuinfo, note, test.note)
		}
	}
}

// open lists what this process has open and mapped for virtual machines.
func open(t *testing.T) []string {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for _, e := range entries {
		if target, err := os.Readlink("/proc/self/fd/" + e.Name()); err == nil {
			all = append(all, target)
		}
	}
	maps, err := os.ReadFile("/proc/self/maps")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(maps)) {
		if strings.Contains(line, "kvm") {
			all = append(all, strings.TrimSpace(line))
		}
	}
	slices.Sort(all)
	return all
}

func threads(t *testing.T) int {
	t.Helper()
	entries, err := os.ReadDir("/proc/self/task")
	if err != nil {
		t.Fatal(err)
	}
	return len(entries)
}
