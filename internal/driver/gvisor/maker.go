package gvisor

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// recordFD is the maker's descriptor of the record's directory, with the lock on it.
const recordFD = 3

// request is what a maker is asked for.
type request struct {
	Spec     driver.Spec `json:"spec"`
	Record   string      `json:"record"` // StateDir/<id>
	Agent    string      `json:"agent"`
	Rootless bool        `json:"rootless"` // we are root of a user namespace only
}

type answer struct {
	State state  `json:"state"`
	Error string `json:"error,omitempty"`
}

// maker is the process that makes a sandbox, as its parent sees it: what gVisor's code does to the process that calls it
// (standard streams handed on and chowned, resource limits raised, cgroups and namespaces joined by threads) would harm
// a daemon. It is in the sandbox's cgroup and mount namespace before it starts anything, so all that it starts is too.
type maker struct {
	cmd    *exec.Cmd
	out    io.Reader
	log    bytes.Buffer
	record string
}

// startMaker starts a maker, and hands it its request once it is in the cgroup of the sandbox.
func (d *Driver) startMaker(ctx context.Context, spec driver.Spec, rec *record) (*maker, error) {
	req, err := json.Marshal(request{Spec: spec, Record: rec.path, Agent: d.cfg.Agent, Rootless: rootless()})
	if err != nil {
		return nil, err
	}
	group, err := makeCgroup(spec)
	if err != nil {
		return nil, err
	}
	m := &maker{cmd: exec.CommandContext(ctx, d.cfg.Exe), record: rec.path}
	m.cmd.Args = []string{makerName, filepath.Join(rec.path, bundleName)}
	m.cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin"}
	m.cmd.Dir, m.cmd.Stderr = "/", &m.log
	m.cmd.ExtraFiles = []*os.File{rec.dir}
	m.cmd.WaitDelay = 5 * time.Second
	m.cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true, Cloneflags: unix.CLONE_NEWNS | unix.CLONE_NEWNET}
	if err := m.start(group, req); err != nil {
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return nil, fmt.Errorf("start maker: %w", err)
	}
	return m, nil
}

func (m *maker) start(group *oci.Cgroup, req []byte) error {
	dir, err := group.Directory()
	if err != nil {
		return err
	}
	if dir != nil {
		defer dir.Close()
		m.cmd.SysProcAttr.UseCgroupFD, m.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	in, err := m.cmd.StdinPipe()
	if err == nil {
		m.out, err = m.cmd.StdoutPipe()
	}
	if err == nil {
		err = m.cmd.Start()
	}
	if err != nil {
		return err
	}
	if dir == nil {
		err = group.Join(m.cmd.Process.Pid) // which takes as long as the program does to start
	}
	if err == nil {
		_, err = in.Write(req)
	}
	if err = errors.Join(err, in.Close()); err != nil {
		m.wait()
	}
	return err
}

// wait returns when the maker has ended. How it ended says no more than its answer, or that there was none.
func (m *maker) wait() { _ = m.cmd.Wait() }

// answer returns what the maker has made. It may take some time yet to end.
func (m *maker) answer(ctx context.Context) (state, error) {
	var ans answer
	err := json.NewDecoder(m.out).Decode(&ans)
	if ctx.Err() != nil {
		return state{}, fmt.Errorf("make gVisor sandbox: %w", context.Cause(ctx))
	}
	if err != nil {
		m.wait() // for the end of its log
		return state{}, fmt.Errorf("make gVisor sandbox: no answer (%v)%s", err, tail(m.log.String()))
	}
	if ans.Error != "" {
		return state{}, &firebreak.Error{Kind: kindOfMaking(ans.Error), Op: "make gVisor sandbox",
			Err: errors.New(ans.Error + lastWords(m.record))}
	}
	return ans.State, nil
}

// makeCgroup makes the sandbox's cgroup in what hierarchies the host lets us have.
func makeCgroup(spec driver.Spec) (*oci.Cgroup, error) {
	host, err := oci.FindCgroups()
	if err != nil {
		return nil, err
	}
	limits := spec.Limits
	if limits.PIDs > 0 {
		limits.PIDs = hostTasks(limits.PIDs)
	}
	if !host.Caps().Has(driver.CapLimitPIDs) {
		limits.PIDs = 0 // gVisor's own limit has to do
	}
	return host.Create(spec.ID, limits)
}

// kindOfMaking classes what gVisor says only in words.
func kindOfMaking(text string) firebreak.Kind {
	if strings.Contains(text, unix.ENOSPC.Error()) {
		return firebreak.KindExhausted
	}
	return firebreak.KindHost
}

// lastWords is what gVisor itself wrote before it gave up, for a person.
func lastWords(record string) string {
	file, err := os.Open(filepath.Join(record, panicName))
	if err != nil {
		return ""
	}
	defer file.Close()
	text := make([]byte, 4096)
	n, _ := file.Read(text)
	return tail(string(text[:n]))
}

// tail is the first line of text, after a colon.
func tail(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if line == "" {
		return ""
	}
	return ": " + line
}

// rootless reports whether we are root of a user namespace only, rather than of the host.
func rootless() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(data)), " ") != "0 0 4294967295"
}

// make makes the sandbox; it runs in the maker. Whoever asked clears what is left if it fails.
func (r request) make() (state, error) {
	unix.CloseOnExec(recordFD)
	if err := r.mount(); err != nil {
		return state{}, err
	}
	sandboxPID, goferPID, err := r.boot()
	if err != nil {
		return state{}, err
	}
	if err := preferAsVictim(sandboxPID); err != nil && !r.Rootless {
		return state{}, err
	}
	var st state
	if st.Boot, err = hostproc.BootID(); err != nil {
		return state{}, err
	}
	if st.Sandbox, err = findProcess(sandboxPID); err != nil {
		return state{}, fmt.Errorf("find sandbox's process: %w", err)
	}
	if goferPID != 0 {
		if st.Gofer, err = findProcess(goferPID); err != nil {
			return state{}, fmt.Errorf("find sandbox's file server: %w", err)
		}
	}
	return st, st.save(r.Record)
}

// hostTasks is how many host threads a sandbox of so many processes may take: gVisor uses several for each, and does
// not survive a refusal. It is the outer wall; the limit that programs meet is set inside.
func hostTasks(pids int64) int64 { return 1024 + 8*min(pids, 1<<20) }

// preferAsVictim has the kernel kill the whole sandbox when memory runs out, rather than one of the processes that carry
// its programs, which gVisor would not survive in an orderly way.
func preferAsVictim(pid int) error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", pid), []byte("1000"), 0)
}
