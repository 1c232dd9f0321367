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
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

// markName is the environment variable by which every process of a sandbox is found.
const markName = "FIREBREAK_SANDBOX_ID"

// mark is the value of markName: the same ID under another state directory is another sandbox.
func (d *Driver) mark(id driver.ID) string {
	sum := sha256.Sum256([]byte(d.cfg.StateDir))
	return string(id) + "." + hex.EncodeToString(sum[:6])
}

// members finds the processes of a sandbox: the agent, all that carry the mark, and all that descend from one of
// those or share its session. The agent is a subreaper, so while it lives nothing can leave its tree.
func (d *Driver) members(id driver.ID, agent identity) (map[int]hostproc.Stat, error) {
	all, err := processes()
	if err != nil {
		return nil, err
	}
	in, sessions := map[int]hostproc.Stat{}, map[int]bool{}
	add := func(s hostproc.Stat) {
		in[s.PID] = s
		sessions[s.Session] = true
	}
	env := []byte(markName + "=" + d.mark(id))
	for pid, s := range all {
		if pid == agent.PID && s.Start == agent.Start || marked(pid, env) {
			add(s)
		}
	}
	for grown := len(in) > 0; grown; {
		grown = false
		for pid, s := range all {
			_, already := in[pid]
			_, child := in[s.Parent]
			if !already && (child || sessions[s.Session]) {
				add(s)
				grown = true
			}
		}
	}
	return in, nil
}

// processes lists what runs on the host, without the kernel's own threads, pid 1 and the caller.
func processes() (map[int]hostproc.Stat, error) {
	dir, err := os.Open("/proc")
	if err != nil {
		return nil, err
	}
	defer dir.Close()
	names, err := dir.Readdirnames(-1)
	if err != nil {
		return nil, err
	}
	all := map[int]hostproc.Stat{}
	for _, name := range names {
		pid, err := strconv.Atoi(name)
		if err != nil || pid == 1 || pid == os.Getpid() {
			continue
		}
		if s, err := hostproc.ReadStat(pid); err == nil && s.Session != 0 && s.Running() {
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
func signal(s hostproc.Stat, sig unix.Signal) error {
	pidfd, err := hostproc.Open(s.PID, s.Start)
	if err != nil {
		return ignoreGone(err)
	}
	defer pidfd.Close()
	return ignoreGone(unix.PidfdSendSignal(int(pidfd.Fd()), sig, nil, 0))
}

func ignoreGone(err error) error {
	if errors.Is(err, unix.ESRCH) {
		return nil
	}
	return err
}

// killAll ends every process of a sandbox, and returns when none is left. All are stopped before any is killed, so
// that a fork bomb cannot outrun us; the agent goes last, because its tree is what nothing can leave, and not before it
// was seen stopped: what it starts just before it dies would be nobody's child, and has no mark yet in its environment.
func (d *Driver) killAll(ctx context.Context, id driver.ID) error {
	agent, err := d.readAgent(id)
	if err != nil {
		agent = identity{}
	}
	stopped := map[identity]bool{}
	for {
		still := hostproc.Stopped(agent.PID) // before the look: what it does not find did not begin since
		in, err := d.members(id, agent)
		if err != nil || len(in) == 0 {
			return err
		}
		fresh := false
		for _, s := range in {
			who := identity{PID: s.PID, Start: s.Start}
			if !stopped[who] {
				stopped[who], fresh = true, true
				if err := signal(s, unix.SIGSTOP); err != nil {
					return fmt.Errorf("stop process %d: %w", s.PID, err)
				}
			}
		}
		if fresh {
			continue
		}
		if err := killRound(in, agent, still); err != nil {
			return err
		}
		if err := sleep(ctx, time.Millisecond); err != nil {
			return err
		}
	}
}

// killRound kills all but the agent, or the agent if nothing else is left and it was still, that is stopped, before.
func killRound(in map[int]hostproc.Stat, agent identity, still bool) error {
	for _, s := range in {
		sig := unix.SIGKILL
		if s.PID == agent.PID && len(in) > 1 {
			continue
		} else if s.PID == agent.PID && !still {
			sig = unix.SIGSTOP // again, in case that something continued it
		}
		if err := signal(s, sig); err != nil {
			return fmt.Errorf("kill process %d: %w", s.PID, err)
		}
	}
	return nil
}
