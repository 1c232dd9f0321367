// Package firebreak is the vocabulary of Firebreak: the words that code, API, documents and messages share. It imports
// nothing of ours, so that every other package may import it.
package firebreak

import "fmt"

// Boundary says what stands between a sandbox's code and the host's kernel. The zero value is invalid.
type Boundary uint8

// The boundaries, weakest first. Language is narrow rather than weak: no shell and no processes exist behind it.
const (
	BoundaryInvalid        Boundary = iota
	BoundaryNone                    // a plain process of the host
	BoundaryLanguage                // a language runtime without system calls: WASM, V8
	BoundarySharedKernel            // namespaces, cgroups, seccomp
	BoundaryUserKernel              // a kernel in user space: gVisor
	BoundaryVirtualMachine          // a guest kernel behind hardware or emulation
)

var boundaryNames = [...]string{"invalid", "none", "language", "shared-kernel", "user-kernel", "virtual-machine"}

func (b Boundary) String() string {
	if int(b) < len(boundaryNames) {
		return boundaryNames[b]
	}
	return fmt.Sprintf("boundary(%d)", uint8(b))
}

// MarshalText implements encoding.TextMarshaler.
func (b Boundary) MarshalText() ([]byte, error) { return []byte(b.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error of KindInvalid.
func (b *Boundary) UnmarshalText(text []byte) error {
	for i, name := range boundaryNames {
		if i > 0 && name == string(text) {
			*b = Boundary(i)
			return nil
		}
	}
	return &Error{Kind: KindInvalid, Op: "read boundary", Err: fmt.Errorf("%q is none of %v", text, boundaryNames[1:])}
}

// State is where a sandbox stands, as observed. Package lifecycle holds the table of moves between states.
type State string

// The states of a sandbox.
const (
	StateCreating State = "creating" // its record is saved, its driver is at work
	StateRunning  State = "running"  // its agent answers
	StatePaused   State = "paused"   // frozen, with its memory kept
	StateStopping State = "stopping" // being destroyed
	StateEnded    State = "ended"    // nothing of it is left but what the record says
)

// Limits bound what a sandbox may take of its host. Zero means: the manager's default where the driver can enforce one.
type Limits struct {
	CPUs   float64 `json:"cpus,omitempty"`   // host processors, fractions allowed
	Memory int64   `json:"memory,omitempty"` // bytes, all processes of the sandbox together
	Disk   int64   `json:"disk,omitempty"`   // bytes in the writable layer
	PIDs   int64   `json:"pids,omitempty"`   // processes and threads
}

// TimeoutAction is what becomes of a sandbox when its time is up. Empty is TimeoutKill.
type TimeoutAction string

// The actions at the end of a sandbox's time.
const (
	TimeoutKill  TimeoutAction = "kill"
	TimeoutPause TimeoutAction = "pause" // until somebody resumes it
)

// EndReason says why a sandbox ended.
type EndReason string

// The reasons for which a sandbox ends.
const (
	EndExited      EndReason = "exited"        // its agent ended by itself
	EndOutOfMemory EndReason = "out-of-memory" // the kernel killed it at its memory limit
	EndDestroyed   EndReason = "destroyed"     // somebody asked for it
	EndDeadline    EndReason = "deadline"      // its time was up
	EndLost        EndReason = "lost"          // it was gone when we looked: host restart, or killed from outside
)
