package oci

import (
	"fmt"

	"github.com/moby/profiles/seccomp"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Seccomp is Docker's list of permitted system calls, for a program with no capability whatever: an agent's
// capabilities open no system call to the code that it runs. What is not listed fails with EPERM.
func Seccomp() (*specs.LinuxSeccomp, error) {
	bare := &specs.Spec{Process: &specs.Process{Capabilities: &specs.LinuxCapabilities{}}}
	profile, err := seccomp.GetDefaultProfile(bare)
	if err != nil {
		return nil, fmt.Errorf("read seccomp profile: %w", err)
	}
	return profile, nil
}

// MaskedPaths are the files of /proc and /sys that tell of the host or reach into it: Docker's list.
func MaskedPaths() []string {
	return []string{"/proc/acpi", "/proc/asound", "/proc/interrupts", "/proc/kcore", "/proc/keys",
		"/proc/latency_stats", "/proc/sched_debug", "/proc/scsi", "/proc/timer_list", "/proc/timer_stats",
		"/sys/devices/virtual/powercap", "/sys/firmware"}
}

// ReadonlyPaths are the parts of /proc that may be read but never written: Docker's list.
func ReadonlyPaths() []string {
	return []string{"/proc/bus", "/proc/fs", "/proc/irq", "/proc/sys", "/proc/sysrq-trigger"}
}
