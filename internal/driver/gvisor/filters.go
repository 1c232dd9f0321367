package gvisor

import (
	"os"
	_ "unsafe" // for go:linkname

	"gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"
	sentryfilter "gvisor.dev/gvisor/runsc/boot/filter"
	goferfilter "gvisor.dev/gvisor/runsc/fsgofer/filter"
)

//go:generate go test -run TestCompiledFilters -count=1 . -update

// gVisor compiles the seccomp filters of its two processes anew at each start, which is a third of all that the start of
// a sandbox costs, unless it finds them compiled. It fills these tables in its own build; who links its packages gets
// them empty.
//
//go:linkname sentryPrograms gvisor.dev/gvisor/runsc/boot/filter.precompiledPrograms
var sentryPrograms map[string]precompiledseccomp.Program

//go:linkname goferPrograms gvisor.dev/gvisor/runsc/fsgofer/filter.precompiledPrograms
var goferPrograms map[string]precompiledseccomp.Program

// filterPID is the process that the filters are compiled for, which is part of one of their rules: the sentry is the
// first process of a pid namespace of its own.
const filterPID = 1

// useCompiledFilters has gVisor find the filters that are compiled already. A configuration that is not among them is
// compiled as before.
func useCompiledFilters() {
	sentryfilter.ListPrecompiled() // makes the tables, once and for all
	goferfilter.ListPrecompiled()
	if os.Getpid() == filterPID {
		for _, p := range compiledSentryFilters() {
			sentryPrograms[p.Name] = p
		}
	}
	for _, p := range compiledGoferFilters() {
		goferPrograms[p.Name] = p
	}
}
