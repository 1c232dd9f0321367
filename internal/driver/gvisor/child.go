package gvisor

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/config"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// gateVariable tells a child which descriptor is its gate.
const gateVariable = "FIREBREAK_GATE"

// requestFD is the gofer's descriptor of its request, the first that it is given after its gate.
const requestFD = 4

// child is a process of gVisor to be: its arguments, the descriptors that it is given, and its gate, at which it waits
// until it is let through.
type child struct {
	cmd        *exec.Cmd
	wait, gate *os.File // its end and ours
	pid        int
}

func newChild(exe, name string, conf *config.Config) *child {
	c := &child{cmd: exec.Command(exe, conf.ToFlags()...)}
	c.cmd.Args[0] = name
	c.cmd.Dir = "/"
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	return c
}

// command ends gVisor's own flags and begins those of its command.
func (c *child) command(args ...string) { c.cmd.Args = append(c.cmd.Args, args...) }

// give gives the child files and names their descriptors with a flag.
func (c *child) give(flag string, files ...*os.File) {
	for _, file := range files {
		c.cmd.Args = append(c.cmd.Args, fmt.Sprintf("--%s=%d", flag, c.add(file)))
	}
}

// add gives the child a file and returns its descriptor there. The first is the gate's.
func (c *child) add(file *os.File) int {
	const first = 4
	c.cmd.ExtraFiles = append(c.cmd.ExtraFiles, file)
	return first + len(c.cmd.ExtraFiles) - 1
}

// mapIdentity has the child be root of a user namespace in which all ids are what they are here, so that what it may do
// to files it may do to nothing else.
func (c *child) mapIdentity() (err error) {
	attr := c.cmd.SysProcAttr
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.Credential = &syscall.Credential{Uid: 0, Gid: 0}
	if attr.UidMappings, err = identity("/proc/self/uid_map"); err != nil {
		return err
	}
	attr.GidMappings, err = identity("/proc/self/gid_map")
	return err
}

// identity reads a map of ids, see user_namespaces(7), and returns one of the same ids to themselves.
func identity(path string) ([]syscall.SysProcIDMap, error) {
	text, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("read own ids: %w", err)
	}
	var ids []syscall.SysProcIDMap
	for line := range strings.Lines(string(text)) {
		var own, outer, size int
		if _, err := fmt.Sscan(line, &own, &outer, &size); err != nil {
			return nil, fmt.Errorf("read own ids: %s: %w", path, err)
		}
		ids = append(ids, syscall.SysProcIDMap{ContainerID: own, HostID: own, Size: size})
	}
	return ids, nil
}

// becomeNobody has the child be nobody in a user namespace of its own; it keeps what it needs to make itself an empty
// root.
func (c *child) becomeNobody(rootless bool) {
	const nobody = 65534
	host := nobody
	if rootless {
		host = 0 // the one id that there is
	}
	attr := c.cmd.SysProcAttr
	attr.Cloneflags |= unix.CLONE_NEWUSER
	attr.Credential = &syscall.Credential{Uid: nobody, Gid: nobody}
	attr.UidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: host, Size: 1}}
	attr.GidMappings = []syscall.SysProcIDMap{{ContainerID: nobody, HostID: host, Size: 1}}
	attr.AmbientCaps = []uintptr{unix.CAP_SYS_ADMIN, unix.CAP_SYS_CHROOT, unix.CAP_SETPCAP, unix.CAP_SYS_PTRACE}
}

// start starts the child, which waits at its gate.
func (c *child) start(group *oci.Cgroup) (process, error) {
	dir, err := group.Directory()
	if err != nil {
		return process{}, err
	}
	if dir != nil {
		defer dir.Close()
		c.cmd.SysProcAttr.UseCgroupFD, c.cmd.SysProcAttr.CgroupFD = true, int(dir.Fd())
	}
	if c.wait, c.gate, err = os.Pipe(); err != nil {
		return process{}, err
	}
	defer c.wait.Close()
	c.cmd.ExtraFiles = append([]*os.File{c.wait}, c.cmd.ExtraFiles...)
	c.cmd.Env = append(c.cmd.Env, gateVariable+"=3")
	if err := c.cmd.Start(); err != nil {
		return process{}, errors.Join(startError(err), c.gate.Close())
	}
	p, err := findProcess(c.cmd.Process.Pid)
	if err != nil {
		return process{}, errors.Join(err, c.gate.Close(), c.cmd.Wait())
	}
	c.pid = p.PID
	// gVisor locks parts of memory for a moment, to have them at once.
	unlimited := unix.Rlimit{Cur: unix.RLIM_INFINITY, Max: unix.RLIM_INFINITY}
	_ = unix.Prlimit(c.pid, unix.RLIMIT_MEMLOCK, &unlimited, nil) // it does without, only slower
	return p, c.cmd.Process.Release()                             // whoever sees its end reaps it
}

// startError tells the refusal of a namespace, for which clone(2) says that no space is left, from a full disk.
func startError(err error) error {
	if !errors.Is(err, unix.ENOSPC) {
		return err
	}
	return &firebreak.Error{Kind: firebreak.KindHost, Op: "make its namespaces", Err: errors.New("this host allows no more of them"),
		Mend: "allow namespaces to this process: sysctl -w user.max_user_namespaces=10000, and the other limits below /proc/sys/user"}
}

// open lets the child through its gate, once it is in the cgroup.
func (c *child) open(group *oci.Cgroup) error {
	defer c.gate.Close()
	if !c.cmd.SysProcAttr.UseCgroupFD {
		if err := group.Join(c.pid); err != nil {
			return err
		}
	}
	_, err := c.gate.Write([]byte{0})
	return err
}

// adjust has the kernel kill the whole sandbox when memory runs out, rather than one of the processes that carry its
// programs, which gVisor would not survive in an orderly way. They inherit it.
func (c *child) adjust() error {
	return os.WriteFile(fmt.Sprintf("/proc/%d/oom_score_adj", c.pid), []byte("1000"), 0)
}

// awaitGate waits until this process, a child, is let through. False if nobody will let it through.
func awaitGate() bool {
	if os.Getenv(gateVariable) == "" {
		return true // it went through before it executed itself again
	}
	os.Unsetenv(gateVariable)
	gate := os.NewFile(3, "gate")
	defer gate.Close()
	n, _ := gate.Read(make([]byte, 1))
	return n == 1
}
