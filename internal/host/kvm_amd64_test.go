package host

import (
	"context"
	"errors"
	"os"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"
)

func openKVM(t *testing.T) *os.File {
	t.Helper()
	dev, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		t.Skip(err)
	}
	t.Cleanup(func() { dev.Close() })
	return dev
}

// TestPlantedTroubles puts what a guest can meet between two steps that every KVM can do.
func TestPlantedTroubles(t *testing.T) {
	dev := openKVM(t)
	plain := guestSteps()[0]
	for _, test := range []struct {
		name string
		code []byte
		says []string // one of these: a KVM in software may fail in its own way
	}{
		{"nothing", nil, nil},
		{"ud2", []byte{0x0f, 0x0b}, []string{"exception 6, invalid opcode", "internal error"}},
		{"a division by zero", []byte{0x31, 0xc9, 0xf7, 0xf1}, []string{"exception 0", "internal error"}}, // xor ecx, ecx; div ecx
		{"an unknown MSR", []byte{0xb9, 0xff, 0xff, 0x00, 0x00, 0x0f, 0x32}, // mov ecx, 0xffff; rdmsr
			[]string{"exception 13, general protection", "internal error"}},
		{"a page that stays missing", []byte{0x8b, 0x04, 0x25, 0x00, 0x00, 0x00, 0x40}, // mov eax, [1 GiB]
			[]string{"exception 14, page fault", "internal error"}},
		{"hlt", []byte{0xf4}, []string{"it halted"}},
		{"a wrong result", []byte{0xb0, wrongResult, 0xe6, portTrouble}, []string{"it gave a wrong result"}},
		{"a port that is no report", []byte{0xb0, 0x2a, 0xe6, 0x80}, []string{"it wrote 0x2a to port 0x80"}},
		{"a report out of order", []byte{0xb0, 0x07, 0xe6, portDone}, []string{"it wrote 0x7 to port 0xf1"}},
		{"memory that is missing", []byte{ // mov rax, cr3; mov dword ptr [pdAddress+8], 0x40000087; mov eax, [2 MiB]
			0x0f, 0x20, 0xd8, 0xc7, 0x04, 0x25, 0x08, 0x30, 0x00, 0x00, 0x87, 0x00, 0x00, 0x40,
			0x8b, 0x04, 0x25, 0x00, 0x00, 0x20, 0x00}, []string{"it used memory that it does not have"}},
		{"a triple fault", []byte{ // mov word ptr [idtPointer], 0; lidt [idtPointer]; ud2
			0x66, 0xc7, 0x04, 0x25, 0x10, 0x68, 0x00, 0x00, 0x00, 0x00, 0x0f, 0x01, 0x1c, 0x25, 0x10, 0x68, 0x00, 0x00,
			0x0f, 0x0b}, []string{"shutdown", "internal error"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), guestTime)
			defer cancel()
			err := runGuest(ctx, dev, []step{plain, {test.name, test.code}, plain})
			if test.says == nil {
				if err != nil {
					t.Error(err)
				}
				return
			}
			if err == nil || !slices.ContainsFunc(test.says, func(s string) bool {
				return strings.HasPrefix(err.Error(), "the guest stopped at "+test.name+": "+s)
			}) {
				t.Errorf("%v, want one of %q", err, test.says)
			}
		})
	}
}

// TestEachStepAlone shows which steps this KVM can do. If all together work, each must.
func TestEachStepAlone(t *testing.T) {
	dev := openKVM(t)
	m := machine{vm: -1, vcpu: -1}
	if err := m.create(int(dev.Fd())); err != nil {
		t.Fatal(errors.Join(err, m.close()))
	}
	xsave := m.hasXSAVE()
	if err := m.close(); err != nil {
		t.Fatal(err)
	}
	usable := ProbeKVM(context.Background()).Usable
	var enable []step
	for _, s := range guestSteps() {
		steps := []step{s}
		switch s.name {
		case "xsetbv":
			enable = steps
		case "xsave", "xrstor":
			steps = slices.Concat(enable, steps)
		}
		if !xsave && len(withoutXSAVE(steps)) == 0 {
			t.Logf("%s: the processor of the guest has no XSAVE", s.name)
			continue
		}
		ctx, cancel := context.WithTimeout(context.Background(), guestTime)
		err := runGuest(ctx, dev, steps)
		cancel()
		t.Logf("%s: %v", s.name, err)
		if usable && err != nil {
			t.Errorf("all steps together work, but %s alone does not: %v", s.name, err)
		}
	}
}

func TestEndlessGuestIsStopped(t *testing.T) {
	dev := openKVM(t)
	cause := errors.New("time is up")
	for _, guest := range []step{
		{"a loop", []byte{0xeb, 0xfe}},                                  // 1: jmp 1b
		{"a loop with cli", []byte{0xfa, 0xeb, 0xfe}},                   // cli; 1: jmp 1b
		{"a loop of cpuid", []byte{0x31, 0xc0, 0x0f, 0xa2, 0xeb, 0xfa}}, // 1: xor eax, eax; cpuid; jmp 1b
	} {
		t.Run(guest.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeoutCause(context.Background(), 100*time.Millisecond, cause)
			defer cancel()
			start := time.Now()
			err := runGuest(ctx, dev, []step{guest})
			if !errors.Is(err, cause) || !strings.Contains(err.Error(), guest.name) {
				t.Errorf("%v, want %v", err, cause)
			}
			if took := time.Since(start); took < 100*time.Millisecond || took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
		})
	}
}

func TestNothingLeaks(t *testing.T) {
	dev := openKVM(t)
	loop := []step{{"a loop", []byte{0xeb, 0xfe}}}
	probe := func() {
		ProbeKVM(context.Background())
		ctx, cancel := context.WithTimeout(context.Background(), 5*time.Millisecond)
		defer cancel()
		if err := runGuest(ctx, dev, loop); !errors.Is(err, context.DeadlineExceeded) {
			t.Error(err)
		}
	}
	probe() // the runtime opens what it needs for good
	files, goroutines, started := open(t), runtime.NumGoroutine(), threads(t)
	for range 20 {
		probe()
	}
	if after := open(t); !slices.Equal(after, files) {
		t.Errorf("open before: %v\nafter: %v", files, after)
	}
	for end := time.Now().Add(10 * time.Second); runtime.NumGoroutine() > goroutines && time.Now().Before(end); {
		time.Sleep(10 * time.Millisecond) // one that has done its work may still be ending
	}
	if after := runtime.NumGoroutine(); after > goroutines {
		t.Errorf("%d goroutines, then %d", goroutines, after)
	}
	if after := threads(t); after > started+5 { // the runtime may start a few
		t.Errorf("%d threads, then %d", started, after)
	}
}

// TestFailedCreationLeaksNothing hands in a file that is no KVM.
func TestFailedCreationLeaksNothing(t *testing.T) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	before := open(t)
	if err := runGuest(context.Background(), f, guestSteps()); err == nil || !strings.Contains(err.Error(), "version") {
		t.Error(err)
	}
	if after := open(t); !slices.Equal(after, before) {
		t.Errorf("open before: %v\nafter: %v", before, after)
	}
}

func TestWithoutXSAVE(t *testing.T) {
	all := guestSteps()
	some := withoutXSAVE(all)
	if len(all)-len(some) != 3 || len(all) != len(guestSteps()) || slices.ContainsFunc(some, func(s step) bool { return strings.HasPrefix(s.name, "xs") }) {
		t.Errorf("%d steps of %d", len(some), len(all))
	}
}

func TestProgramFits(t *testing.T) {
	size := 3
	for _, s := range guestSteps() {
		size += len(s.code) + 4
	}
	if size > dataAddress-codeAddress || len(guestSteps()) > 250 {
		t.Errorf("%d bytes of code in %d steps", size, len(guestSteps()))
	}
}
