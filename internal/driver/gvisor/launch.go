package gvisor

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/pkg/control/server"
	"gvisor.dev/gvisor/pkg/hostos"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// A sandbox is two processes of this very program: the sentry, which is gVisor's kernel, and the gofer, which puts the
// root together and serves the sentry files. A sandbox whose root is a disk image, and that has no mounts, needs no gofer.
//
// gVisor's own package container would start them too, but changes the process that calls it: its resource limits, its
// namespaces and its standard streams. That does not do in a daemon that makes many sandboxes at once.

// request is what the gofer is told; it reads it from a descriptor.
type request struct {
	Spec     driver.Spec `json:"spec"`
	Record   string      `json:"record"`   // StateDir/<id>
	Rootless bool        `json:"rootless"` // we are root of a user namespace only
}

// launch is one start at work.
type launch struct {
	request
	conf  *config.Config
	group *oci.Cgroup
	spec  []byte // the OCI specification

	sentry, gofer *child
	lastWords     *os.File   // both write there why they give up
	ready         *os.File   // readable once the sentry has booted; at its end if it never will
	files         []*os.File // what both children are given
}

// launch starts the processes of a sandbox. The state holds those that were started, also where not all could be.
func (d *Driver) launch(spec driver.Spec, rec *record) (st state, ready *os.File, err error) {
	l := &launch{request: request{Spec: spec, Record: rec.path, Rootless: rootless()}}
	defer func() {
		for _, f := range l.files {
			f.Close()
		}
		if err != nil && l.ready != nil {
			l.ready.Close()
		}
	}()
	if err := l.prepare(d.cfg); err != nil {
		return state{}, nil, err
	}
	if st, err = l.start(); err != nil {
		return st, nil, fmt.Errorf("start gVisor: %w", err)
	}
	return st, l.ready, nil
}

// prepare makes all that the processes are given.
func (l *launch) prepare(cfg Config) (err error) {
	if l.group, err = makeCgroup(l.Spec); err != nil {
		return err
	}
	if l.conf, err = l.config(); err != nil {
		return err
	}
	// Where no part of the host is served, the sentry needs no access to files, and can be nobody.
	l.conf.DirectFS = l.needsGofer()
	if l.spec, err = json.Marshal(l.ociSpec()); err != nil {
		return err
	}
	l.sentry = newChild(cfg.Exe, sentryName, l.conf)
	if err := l.connectFiles(cfg.Exe); err != nil {
		return err
	}
	return l.giveSentry(cfg.Agent)
}

func (l *launch) needsGofer() bool {
	return l.Spec.Root.Form == driver.FormDirectory || len(l.Spec.Mounts) > 0
}

// connectFiles makes the connections between the sentry and the gofer, or opens what the sentry reads by itself.
func (l *launch) connectFiles(exe string) error {
	if err := l.panicLog(); err != nil {
		return err
	}
	l.sentry.command("boot", "--bundle="+l.bundlePath(), "--gofer-mount-confs="+l.mountConfs())
	disk := l.Spec.Root.Form == driver.FormDisk
	if disk {
		image, err := l.keep(os.Open(l.Spec.Root.Path))
		if err != nil {
			return fmt.Errorf("open image: %w", err)
		}
		l.sentry.give("io-fds", image)
	}
	if !l.needsGofer() {
		return nil
	}
	l.gofer = newChild(exe, goferName, l.conf)
	l.gofer.cmd.Stderr = l.lastWords
	if err := l.giveRequest(); err != nil {
		return err
	}
	l.gofer.command("gofer", "--bundle="+l.bundlePath(), "--gofer-mount-confs="+l.mountConfs())
	if err := l.giveSpec(l.gofer); err != nil {
		return err
	}
	connections := len(l.Spec.Mounts)
	if !disk {
		connections++
	}
	for range connections {
		if err := l.pair("io-fds", "io-fds"); err != nil {
			return err
		}
	}
	return l.giveGofer()
}

// giveGofer gives the gofer what is neither file nor socket of a mount.
func (l *launch) giveGofer() error {
	fromGofer, toSentry, err := os.Pipe()
	if err != nil {
		return err
	}
	l.files = append(l.files, fromGofer, toSentry)
	l.sentry.give("mounts-fd", fromGofer)
	l.gofer.give("mounts-fd", toSentry)
	// It would ask us to open what it may not open itself. There is nothing, so nobody is at the other end.
	if err := l.pair("", "rpc-fd"); err != nil {
		return err
	}
	l.gofer.cmd.Args = append(l.gofer.cmd.Args, string(l.Spec.ID))
	l.gofer.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET
	return l.gofer.mapIdentity()
}

func (l *launch) giveSentry(agent string) error {
	s := l.sentry
	if err := l.giveSpec(s); err != nil {
		return err
	}
	layer, err := l.keep(unnamedFile(l.Spec.Dir))
	if err != nil {
		return fmt.Errorf("make writable layer: %w", err)
	}
	s.give("gofer-filestore-fds", layer)
	if err := l.giveControl(); err != nil {
		return err
	}
	null, err := l.keep(os.OpenFile(os.DevNull, os.O_RDWR, 0))
	if err != nil {
		return err
	}
	s.give("stdio-fds", null, null, null)
	// The agent is handed in as a descriptor: it is visible nowhere inside, and needs no mount.
	program, err := l.keep(os.Open(agent))
	if err != nil {
		return fmt.Errorf("open agent: %w", err)
	}
	s.give("exec-fd", program)
	socket, err := l.keep(l.mailbox(agentSocket))
	if err != nil {
		return err
	}
	s.cmd.Args = append(s.cmd.Args, fmt.Sprintf("--pass-fd=%d:%d", s.add(socket), agentFD))
	memory, err := l.memory()
	if err != nil {
		return err
	}
	s.cmd.Args = append(s.cmd.Args, "--total-memory="+memory, "--total-host-memory="+memory, "--setup-root")
	s.cmd.SysProcAttr.Cloneflags = unix.CLONE_NEWNS | unix.CLONE_NEWIPC | unix.CLONE_NEWPID | unix.CLONE_NEWUTS | unix.CLONE_NEWNET
	if l.conf.DirectFS {
		s.cmd.Args = append(s.cmd.Args, "--apply-caps=true", string(l.Spec.ID))
		return s.mapIdentity()
	}
	s.cmd.Args = append(s.cmd.Args, string(l.Spec.ID))
	s.becomeNobody(l.Rootless)
	return nil
}

// giveControl gives the sentry its control socket, and the pipe on which it says that it listens there.
func (l *launch) giveControl() error {
	fd, err := server.CreateSocket(filepath.Join(l.Record, controlSocket))
	if err != nil {
		return fmt.Errorf("make control socket: %w", err)
	}
	unix.CloseOnExec(fd)
	control := os.NewFile(uintptr(fd), "control socket")
	l.files = append(l.files, control)
	l.sentry.give("controller-fd", control)
	if err := l.givePauser(); err != nil {
		return err
	}
	ready, booted, err := os.Pipe()
	if err != nil {
		return err
	}
	l.ready, l.files = ready, append(l.files, booted)
	l.sentry.give("start-sync-fd", booted)
	return nil
}

// givePauser gives the sentry a socket for its pauser.
func (l *launch) givePauser() error {
	socket, err := l.keep(l.mailbox(pauserSocket))
	if err != nil {
		return err
	}
	l.sentry.cmd.Env = append(l.sentry.cmd.Env, fmt.Sprintf("%s=%d", pauserVariable, l.sentry.add(socket)))
	return nil
}

// panicLog gives the sentry a file for its last words. Its flag belongs before the command.
func (l *launch) panicLog() error {
	file, err := l.keep(os.OpenFile(filepath.Join(l.Record, panicName), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o600))
	if err != nil {
		return fmt.Errorf("make log for last words: %w", err)
	}
	l.sentry.give("panic-log-fd", file)
	l.lastWords = file
	return nil
}

func (l *launch) giveRequest() error {
	text, err := json.Marshal(l.request)
	if err != nil {
		return err
	}
	file, err := l.keep(memoryFile("request", text))
	if err != nil {
		return err
	}
	if fd := l.gofer.add(file); fd != requestFD {
		return fmt.Errorf("the request has descriptor %d", fd)
	}
	return nil
}

// giveSpec gives a process the specification in a file of its own, because it moves in it.
func (l *launch) giveSpec(c *child) error {
	file, err := l.keep(memoryFile("config.json", l.spec))
	if err == nil {
		c.give("spec-fd", file)
	}
	return err
}

// pair connects the sentry and the gofer; where a flag is "", nobody has that end.
func (l *launch) pair(sentryFlag, goferFlag string) error {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return fmt.Errorf("connect sentry and gofer: %w", err)
	}
	ends := [2]*os.File{os.NewFile(uintptr(fds[0]), "sentry's end"), os.NewFile(uintptr(fds[1]), "gofer's end")}
	l.files = append(l.files, ends[:]...)
	if sentryFlag != "" {
		l.sentry.give(sentryFlag, ends[0])
	}
	l.gofer.give(goferFlag, ends[1])
	return nil
}

// keep has file closed when the children have it.
func (l *launch) keep(file *os.File, err error) (*os.File, error) {
	if err == nil {
		l.files = append(l.files, file)
	}
	return file, err
}

// mountConfs says who serves the root and each mount, and on what their writable layers lie.
func (l *launch) mountConfs() string {
	root := specutils.GoferMountConf{Lower: specutils.Lisafs, Upper: specutils.AnonOverlay}
	if l.Spec.Root.Form == driver.FormDisk {
		root.Lower = specutils.Erofs
	}
	if n := l.Spec.Limits.Disk; n > 0 {
		root.Size = strconv.FormatInt(n, 10)
	}
	confs := specutils.GoferMountConfFlags{root}
	for range l.Spec.Mounts {
		confs = append(confs, specutils.GoferMountConf{Lower: specutils.Lisafs, Upper: specutils.NoOverlay})
	}
	return confs.String()
}

// memory is what programs see as the size of the machine: the limit, so that they settle for it.
func (l *launch) memory() (string, error) {
	total, err := hostos.TotalSystemMemory()
	if err != nil {
		return "", fmt.Errorf("read size of memory: %w", err)
	}
	if limit := uint64(l.Spec.Limits.Memory); limit != 0 {
		total = min(total, limit)
	}
	return strconv.FormatUint(total, 10), nil
}

// start starts the processes. They wait at their gates until they are in the cgroup, and end if we do
// before that.
func (l *launch) start() (st state, err error) {
	// What others have opened in this process without care for its children is not for these.
	if err := unix.CloseRange(3, 1<<31-1, unix.CLOSE_RANGE_CLOEXEC); err != nil {
		return st, fmt.Errorf("keep descriptors: %w", err)
	}
	if st.Boot, err = hostproc.BootID(); err != nil {
		return st, err
	}
	if st.Sandbox, err = l.sentry.start(l.group); err != nil {
		return st, err
	}
	if l.gofer != nil {
		if st.Gofer, err = l.gofer.start(l.group); err != nil {
			return st, err
		}
	}
	if err := l.sentry.adjust(); err != nil && !l.Rootless {
		return st, err
	}
	if err := l.sentry.open(l.group); err != nil || l.gofer == nil {
		return st, err
	}
	return st, l.gofer.open(l.group)
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

// hostTasks is how many host threads a sandbox of so many processes may take: gVisor uses several for each, and does
// not survive a refusal. It is the outer wall; the limit that programs meet is set inside.
func hostTasks(pids int64) int64 { return 1024 + 8*min(pids, 1<<20) }

// memoryFile is a file that is only a descriptor.
func memoryFile(name string, data []byte) (*os.File, error) {
	fd, err := unix.MemfdCreate(name, unix.MFD_CLOEXEC)
	if err != nil {
		return nil, fmt.Errorf("make %s: %w", name, err)
	}
	file := os.NewFile(uintptr(fd), name)
	if _, err := file.WriteAt(data, 0); err != nil {
		file.Close()
		return nil, fmt.Errorf("write %s: %w", name, err)
	}
	return file, nil
}

// unnamedFile makes a file in dir that ends with its last descriptor.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "layer"), nil
	}
	if err := os.MkdirAll(filepath.Join(dir, layerName), 0o700); err != nil {
		return nil, err
	}
	file, err := os.CreateTemp(filepath.Join(dir, layerName), "layer")
	if err != nil {
		return nil, err
	}
	return file, os.Remove(file.Name())
}
