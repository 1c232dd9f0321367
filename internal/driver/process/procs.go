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

// members finds those of all that are a sandbox's: the agent, all that carry the mark, and all that descend from one of
// those or share its session. The agent is a subreaper, so while it lives nothing can leave its tree.
func (d *Driver) members(all map[int]hostproc.Stat, id driver.ID, agent identity) map[int]hostproc.Stat {
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
	return in
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

// nascent reports whether one of all is in the midst of its exec: until then it has no environment that says whose it is,
// as the agent of a creator that was killed just now. Only what had begun by then is asked, and for a second.
func nascent(all map[int]hostproc.Stat, begun uint64) bool {
	now := sinceBoot()
	for pid, s := range all {
		if s.Start > begun || now >= s.Start+uint64(time.Second/ticks) {
			continue
		}
		if env, err := os.ReadFile(fmt.Sprintf("/proc/%d/environ", pid)); err != nil || len(env) > 0 {
			continue
		}
		// Some never have one, and gVisor's stubs unmap theirs; but all have code a moment later.
		if s, err := hostproc.ReadStat(pid); err == nil && s.Code == 0 {
			return true
		}
	}
	return false
}

// sinceBoot is the time now as hostproc.Stat has it.
func sinceBoot() uint64 {
	var now unix.Timespec
	_ = unix.ClockGettime(unix.CLOCK_BOOTTIME, &now) // every kernel that we run on has it
	return uint64(now.Nano()) / uint64(ticks)
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
	stopped, begun := map[identity]bool{}, sinceBoot()
	for {
		still := hostproc.Stopped(agent.PID) // before the look: what it does not find did not begin since
		all, err := processes()
		if err != nil {
			return err
		}
		unsure := nascent(all, begun) // before the look, too: what it finds through its exec is marked
		in := d.members(all, id, agent)
		if len(in) == 0 && !unsure {
			return nil
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
