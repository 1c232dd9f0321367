//go:build !amd64

package gvisor

import "gvisor.dev/gvisor/pkg/seccomp/precompiledseccomp"

func compiledSentryFilters() []precompiledseccomp.Program { return nil }

func compiledGoferFilters() []precompiledseccomp.Program { return nil }
