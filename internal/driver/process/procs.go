package process

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// markName is the environment variable by which every process of a sandbox is found.
const markName = "FIREBREAK_SANDBOX_ID"

// mark is the value of markName: the same ID under another state directory is another sandbox.
func (d *Driver) mark(id driver.ID) string {
	sum := sha256.Sum256([]byte(d.cfg.StateDir))
	return string(id) + "." + hex.EncodeToString(sum[:6])
}

// stat is what /proc/<pid>/stat says of a process.
type stat struct {
	pid, parent, session int
	state                byte
	start                uint64 // clock ticks since boot
	cpu                  uint64 // clock ticks, with the children that it has waited for
	threads, pages       int64
}

func (s stat) running() bool { return s.state != 'Z' && s.state != 'X' && s.state != 'x' }

func readStat(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, err
	}
	// The second field is a name that may hold anything, so fields are counted from its last parenthesis.
	end := bytes.LastIndexByte(data, ')')
	f := strings.Fields(string(data[end+1:]))
	if end < 0 || len(f) < 22 {
		return stat{}, fmt.Errorf("read /proc/%d/stat: malformed", pid)
	}
	n := func(field int) int64 { // as proc(5) counts
		v, _ := strconv.ParseInt(f[field-3], 10, 64)
		return v
	}
	return stat{
		pid: pid, state: f[0][0], parent: int(n(4)), session: int(n(6)), start: uint64(n(22)),
		cpu: uint64(n(14) + n(15) + n(16) + n(17)), threads: n(20), pages: n(24),
	}, nil
}

// members finds the processes of a sandbox: the agent, all that carry the mark, and all that descend from one of
// those or share its session. The agent is a subreaper, so while it lives nothing can leave its tree.
func (d *Driver) members(id driver.ID, agent identity) (map[int]stat, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	in, sessions := map[int]stat{}, map[int]bool{}
	add := func(s stat) {
		in[s.pid] = s
		sessions[s.session] = true
	}
	env := []byte(markName + "=" + d.mark(id))
	for pid, s := range all {
		if pid == agent.PID && s.start == agent.Start || marked(pid, env) {
			add(s)
		}
	}
	for grown := len(in) > 0; grown; {
		grown = false
		for pid, s := range all {
			_, already := in[pid]
			_, child := in[s.parent]
			if !already && (child || sessions[s.session]) {
				add(s)
				grown = true
			}
		}
	}
	return in, nil
}

// processes lists what runs on the host, without the kernel's own threads, pid 1 and the caller.
func processes() (map[int]stat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := map[int]stat{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		if s, err := readStat(pid); err == nil && s.session != 0 && s.running() {
			all[pid] = s
		}
	}
	return all, nil
}

// marked reports whether the process was started with env in its environment. That of others' processes is unreadable.
func marked(pid int, env []byte) bool {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid))
	if err != nil {
		return false
	}
	for field := range bytes.SplitSeq(data, []byte{0}) {
		if bytes.Equal(field, env) {
			return true
		}
	}
	return false
}

// signal sends sig to the very process that s describes, never to a later one with its pid.
func (s stat) signal(sig unix.Signal) error {
	fd, err := unix.PidfdOpen(s.pid, 0)
	if err != nil {
		return ignoreGone(err)
	}
	defer unix.Close(fd)
	if now, err := readStat(s.pid); err != nil || now.start != s.start {
		return nil
	}
	return ignoreGone(unix.PidfdSendSignal(fd, sig, nil, 0))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// killAll ends every process of a sandbox, and returns when none is left. All are stopped before any is killed, so
// that a fork bomb cannot outrun us; the agent goes last, because its tree is what nothing can leave.
func (d *Driver) killAll(ctx context.Context, id driver.ID) error {
	agent, err := d.readAgent(id)
	if err != nil {
		agent = identity{}
	}
	stopped := map[identity]bool{}
	for {
		in, err := d.members(id, agent)
		if err != nil || len(in) == 0 {
			return err
		}
		fresh := false
		for _, s := range in {
			who := identity{PID: s.pid, Start: s.start}
			if !stopped[who] {
				stopped[who], fresh = true, true
				if err := s.signal(unix.SIGSTOP); err != nil {
					return fmt.Errorf("stop process %d: %w", s.pid, err)
				}
			}
		}
		if fresh {
			continue
		}
		if err := killRound(in, agent); err != nil {
			return err
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// killRound kills all but the agent, or the agent if nothing else is left.
func killRound(in map[int]stat, agent identity) error {
	for _, s := range in {
		if s.pid == agent.PID && len(in) > 1 {
			continue
		}
		if err := s.signal(unix.SIGKILL); err != nil {
			return fmt.Errorf("kill process %d: %w", s.pid, err)
		}
	}
	return nil
}
