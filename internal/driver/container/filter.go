package container

import (
	"bytes"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A runtime compiles the list of system calls anew for every container, which takes a third of its time. crun takes a
// filter that is compiled already, so the one that it has installed in the first container is read back from there and
// kept: it is the runtime's own work for this list and this machine, and no compiler of ours.

// filterAnnotation is where crun looks for a filter. Other runtimes do not know it, and compile the list, which is always
// in the specification too.
const filterAnnotation = "run.oci.seccomp_bpf_data"

// maxFilter is the most instructions that the kernel takes, see BPF_MAXINSNS.
const maxFilter = 4096

// filterPath names the filter by all that it depends on; "" where none is kept.
func (d *Driver) filterPath(t tool, list *specs.LinuxSeccomp) string {
	if t.Name != "crun" {
		return ""
	}
	text, err := json.Marshal(list)
	if err != nil {
		return ""
	}
	var uts unix.Utsname
	if err := unix.Uname(&uts); err != nil {
		return ""
	}
	sum := sha256.Sum256(fmt.Appendf(text, "\n%s %d %d\n%s", t.Path, t.Size, t.Mtime.UnixNano(), uts.Release))
	return filepath.Join(d.cfg.StateDir, fmt.Sprintf(".filter-%x", sum[:16]))
}

// addFilter hands a kept filter on to the runtime.
func addFilter(s *specs.Spec, path string) {
	if filter := readFilter(path); filter != nil {
		s.Annotations = map[string]string{filterAnnotation: base64.StdEncoding.EncodeToString(filter)}
	}
}

// readFilter returns a kept filter, which lies behind its digest; nil if there is none or it is damaged.
func readFilter(path string) []byte {
	text, err := os.ReadFile(path)
	if err != nil || len(text) <= sha256.Size {
		return nil
	}
	filter := text[sha256.Size:]
	if sum := sha256.Sum256(filter); !bytes.Equal(sum[:], text[:sha256.Size]) {
		return nil
	}
	return filter
}

// keepFilter reads the filter of a fresh agent and keeps it, unless there is one already.
func (d *Driver) keepFilter(path string, pid int) {
	if path == "" || readFilter(path) != nil {
		return
	}
	filter, err := installedFilter(pid)
	if err == nil {
		sum := sha256.Sum256(filter)
		err = writeAtomic(path, append(sum[:], filter...))
	}
	if err != nil {
		d.log.Debug("the filter of system calls is compiled for each container", "error", err)
	}
}

// installedFilter returns the filter of a process that has one, see PTRACE_SECCOMP_GET_FILTER in ptrace(2). The process
// stands still meanwhile; it goes on if we die.
func installedFilter(pid int) ([]byte, error) {
	runtime.LockOSThread() // a tracer is a thread
	defer runtime.UnlockOSThread()
	if err := unix.PtraceSeize(pid); err != nil {
		return nil, fmt.Errorf("trace the agent: %w", err)
	}
	defer unix.PtraceDetach(pid)
	if err := unix.PtraceInterrupt(pid); err != nil {
		return nil, fmt.Errorf("stop the agent: %w", err)
	}
	for {
		if _, err := unix.Wait4(pid, nil, unix.WALL, nil); err == nil {
			break
		} else if !errors.Is(err, unix.EINTR) {
			return nil, fmt.Errorf("stop the agent: %w", err)
		}
	}
	code := make([]unix.SockFilter, maxFilter)
	n, err := getFilter(pid, 0, code)
	if err != nil {
		return nil, fmt.Errorf("read the agent's filter: %w", err)
	}
	if _, err := getFilter(pid, 1, nil); err == nil {
		return nil, errors.New("read the agent's filter: it has more than one")
	}
	whole := unsafe.Slice((*byte)(unsafe.Pointer(&code[0])), n*int(unsafe.Sizeof(code[0])))
	return bytes.Clone(whole), nil
}

func getFilter(pid, index int, code []unix.SockFilter) (int, error) {
	var at unsafe.Pointer
	if len(code) > 0 {
		at = unsafe.Pointer(&code[0])
	}
	n, _, errno := unix.Syscall6(unix.SYS_PTRACE, unix.PTRACE_SECCOMP_GET_FILTER, uintptr(pid), uintptr(index), uintptr(at), 0, 0)
	if errno != 0 {
		return 0, errno
	}
	return int(n), nil
}

// isFiltered reports whether a process is under a filter of system calls, see proc(5).
func isFiltered(pid int) (bool, error) {
	status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return false, fmt.Errorf("look at the agent: %w", err)
	}
	return bytes.Contains(status, []byte("\nSeccomp:\t2\n")), nil
}
