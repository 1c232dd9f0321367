// Package driver is the contract between the manager and the technologies that isolate: a driver makes a sandbox and
// hands back streams to the agent in it. Everything a sandbox does is then spoken over those streams, the same for all.
package driver

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
)

// ID names a sandbox: lower-case letters and digits only, because it becomes host names, cgroup and container names.
type ID string

const maxID = 40

// Check returns an error of firebreak.KindInvalid unless id is well formed.
func (id ID) Check() error {
	other := func(r rune) bool { return (r < 'a' || r > 'z') && (r < '0' || r > '9') }
	if id == "" || len(id) > maxID || strings.ContainsFunc(string(id), other) {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read sandbox id", Err: fmt.Errorf("%q is not 1 to 40 of a-z and 0-9", string(id))}
	}
	return nil
}

// Driver makes sandboxes with one technology. All methods block, may be called concurrently, and return promptly with
// ctx.Err() once ctx is done. Drivers keep no state of their own in memory that Open could not rebuild from Spec.Dir.
type Driver interface {
	// Probe tries for real what works here, now. A host that cannot serve is not an error: it is Info.Problems.
	// The caller caches.
	Probe(ctx context.Context) (Info, error)

	// Create makes a sandbox whose agent answers on Dial, or returns an error and leaves nothing behind, also when
	// ctx ends in the middle. fs.ErrExist if spec.ID lives already; errors.ErrUnsupported (wrapped) if spec.Needs()
	// asks for what Probe's Caps do not offer. spec.Dir exists, is empty and private to this sandbox.
	// The sandbox outlives ctx and, with CapDetach, the calling process.
	Create(ctx context.Context, spec Spec) (Sandbox, error)

	// Open finds a sandbox that Create made, perhaps in an earlier process. fs.ErrNotExist if it is gone or is a
	// wreck that nobody can talk to; Destroy clears such wrecks.
	Open(ctx context.Context, spec Spec) (Sandbox, error)

	// List returns all that this driver holds on this host under its state directory, half-made ones too.
	List(ctx context.Context) ([]ID, error)

	// Destroy ends a sandbox and removes whatever Create made for it: processes, mounts, namespaces, cgroups, files
	// within Dir (Dir itself stays). It needs only spec.ID and spec.Dir, is idempotent, and is nil for the unknown.
	Destroy(ctx context.Context, spec Spec) error
}

// Fleeting is a driver whose sandboxes are parts of this process and leave nothing on the host, however it ends. Spec.Dir
// need not be there.
type Fleeting interface {
	Driver
	Fleeting()
}

// Sandbox is a live sandbox. Handles may be used concurrently and need no closing.
type Sandbox interface {
	// Dial opens a new stream to the agent. fs.ErrNotExist once the sandbox has ended.
	Dial(ctx context.Context) (net.Conn, error)
	// Wait blocks until the sandbox ends, for whatever reason.
	Wait(ctx context.Context) (Exit, error)
	// Usage reads what the sandbox has taken so far. Fields that the host cannot tell are zero.
	Usage(ctx context.Context) (Usage, error)
}

// Local is a sandbox whose agent is a part of this very process: a request to it needs no stream.
type Local interface {
	Sandbox
	// Agent answers requests as it does on streams. The context is done when it begins to end; no request may outlive it.
	Agent() (context.Context, http.Handler)
}

// Pauser is a sandbox that can be frozen with its memory kept (CapPause). Both methods are idempotent: nothing is counted.
// fs.ErrNotExist once the sandbox has ended.
type Pauser interface {
	// Pause returns when nothing in the sandbox runs any more. It stays so until Resume, whatever becomes of the caller.
	// Meanwhile streams stay open and nothing answers on them, a new one may be had or not; all else works as ever.
	// With an error the sandbox runs on, unless it was paused before.
	Pause(ctx context.Context) error
	// Resume has everything go on where it was. Time has passed for it: a timer that was due meanwhile fires at once,
	// so whoever gave the agent a deadline takes it away before the pause.
	Resume(ctx context.Context) error
}

// Form is the shape in which a root file system reaches a driver.
type Form uint8

// The forms.
const (
	FormInvalid   Form = iota
	FormDirectory      // a directory tree, with binds of host directories on top of it
	FormDisk           // one EROFS image file
	FormModule         // a directory with module.wasm, a program for WASI, and perhaps lib, what it is to see as /lib
	FormScript         // a directory of JavaScript modules, for a driver that has their engine
)

func (f Form) String() string {
	switch f {
	case FormDirectory:
		return "directory"
	case FormDisk:
		return "disk"
	case FormModule:
		return "module"
	case FormScript:
		return "script"
	}
	return "invalid"
}

// Root is what a sandbox starts from. It is read-only: writes go to a layer of the sandbox's own.
type Root struct {
	Form  Form    `json:"form"`
	Path  string  `json:"path"`            // absolute: the directory or the image file
	Binds []Mount `json:"binds,omitempty"` // FormDirectory only: read-only parts of the host that complete the tree

	// FormModule and FormScript only.
	Language string   `json:"language,omitempty"` // that its program runs, or that it is written in; empty: none in particular
	Command  []string `json:"command,omitempty"`  // FormModule: the names by which its program is run, one at least
}

// Mount makes a file or directory of the host visible in the sandbox.
type Mount struct {
	Source   string `json:"source"` // absolute path on the host
	Target   string `json:"target"` // absolute path in the sandbox
	ReadOnly bool   `json:"read_only,omitempty"`
}

// Network is what a sandbox can reach. The zero value is loopback only.
type Network uint8

// The networks.
const (
	NetworkNone Network = iota // no interface but loopback
)

// Hostname is what every sandbox calls itself. It is the same for all, because templates name it in /etc/hosts, and forks
// of a sandbox share what it has read.
const Hostname = "sandbox"

// Spec is all that a driver is told about a sandbox: plain data, saved before Create and enough for Open and Destroy.
type Spec struct {
	ID      ID                `json:"id"`
	Root    Root              `json:"root"`
	Dir     string            `json:"dir"` // absolute; private to this sandbox; the directory is the state
	Limits  firebreak.Limits  `json:"limits"`
	Network Network           `json:"network"`
	Mounts  []Mount           `json:"mounts,omitempty"`
	Options map[string]string `json:"options,omitempty"` // the driver's own; unknown keys are errors
	Tenant  string            `json:"tenant,omitempty"`  // whose sandboxes may share a process; empty: with nobody
}

// OptionExclusive is the key of the option that a sandbox shares a process with no other, of the drivers whose sandboxes
// could; those whose sandboxes never do take it, too.
const OptionExclusive = "exclusive"

// Caps is the set of what a driver can do on this host: inputs to Create and actions on live sandboxes.
type Caps uint32

// The capabilities.
const (
	CapLimitCPU    Caps = 1 << iota // Spec.Limits.CPUs
	CapLimitMemory                  // Spec.Limits.Memory
	CapLimitDisk                    // Spec.Limits.Disk
	CapLimitPIDs                    // Spec.Limits.PIDs
	CapMounts                       // Spec.Mounts
	CapProcesses                    // programs can be run: process.Process
	CapTerminal                     // with a terminal
	CapUsers                        // as another user of the sandbox
	CapRootUser                     // as the sandbox's root, who may chown and install
	CapPrivateRoot                  // the root file system is the sandbox's own, not the host's
	CapPrivatePIDs                  // processes of the host and of other sandboxes are invisible
	CapPrivateNet                   // network interfaces are the sandbox's own
	CapPause                        // Pauser
	CapDetach                       // a sandbox outlives the process that made it; else it ends with that
)

var capNames = [...]string{"limit-cpu", "limit-memory", "limit-disk", "limit-pids", "mounts", "processes", "terminal",
	"users", "root-user", "private-root", "private-pids", "private-net", "pause", "detach"}

// Names returns the names of the bits that are set, in the order of their declaration.
func (c Caps) Names() []string {
	var names []string
	for i, name := range capNames {
		if c&(1<<i) != 0 {
			names = append(names, name)
		}
	}
	return names
}

// Has reports whether all of want are in c.
func (c Caps) Has(want Caps) bool { return c&want == want }

// Missing returns what need asks for beyond have.
func Missing(have, need Caps) Caps { return need &^ have }

// Needs returns the capabilities without which Create must refuse s.
func (s Spec) Needs() Caps {
	var need Caps
	for _, n := range []struct {
		bit  Caps
		want bool
	}{
		{CapLimitCPU, s.Limits.CPUs > 0}, {CapLimitMemory, s.Limits.Memory > 0},
		{CapLimitDisk, s.Limits.Disk > 0}, {CapLimitPIDs, s.Limits.PIDs > 0}, {CapMounts, len(s.Mounts) > 0},
	} {
		if n.want {
			need |= n.bit
		}
	}
	return need
}

// Problem is something this host lacks, and how to mend it.
type Problem struct {
	Text string `json:"text"`
	Mend string `json:"mend,omitempty"` // a command or one sentence
}

// Info is what Probe found. A driver serves on this host only if Problems is empty; Warnings do not stop it.
type Info struct {
	Name     string             `json:"name"`
	Version  string             `json:"version,omitempty"`
	Boundary firebreak.Boundary `json:"boundary"`
	Forms    []Form             `json:"-"` // root forms that Create takes, the preferred first
	Caps     Caps               `json:"-"`
	Usual    firebreak.Limits   `json:"-"` // what a sandbox is given that nobody says anything of; where zero, what those of all drivers are
	Problems []Problem          `json:"problems,omitempty"`
	Warnings []Problem          `json:"warnings,omitempty"`
}

// Healthy reports whether the driver can make sandboxes here.
func (i Info) Healthy() bool { return len(i.Problems) == 0 }

// Err returns nil if the driver can serve, else an error of firebreak.KindHost that names the first problem.
func (i Info) Err() error {
	if i.Healthy() {
		return nil
	}
	p := i.Problems[0]
	return &firebreak.Error{Kind: firebreak.KindHost, Op: i.Name + " cannot run here", Err: errors.New(p.Text), Mend: p.Mend}
}

// Exit is how a sandbox ended.
type Exit struct {
	Reason firebreak.EndReason `json:"reason"`
	Code   int                 `json:"code"`             // the agent's exit status; -1 if unknown or killed
	Detail string              `json:"detail,omitempty"` // one line for a person: "the kernel killed it at its limit of 512 MiB"
}

// Usage is what a sandbox has taken.
type Usage struct {
	CPU        time.Duration `json:"cpu"`
	Memory     int64         `json:"memory"`      // bytes, now
	MemoryPeak int64         `json:"memory_peak"` // bytes
	PIDs       int64         `json:"pids"`        // host processes and threads, now
	OOMKills   int64         `json:"oom_kills"`   // times the kernel killed something at the memory limit
	PIDsDenied int64         `json:"pids_denied"` // times a new process was refused at the limit
}
