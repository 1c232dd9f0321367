package drivertest

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// facts is what package inside reports; the names are its own.
type facts struct {
	UID, GID int
	Uname    map[string]string
	Init     string
	PIDs     map[int]string
	Zombies  int
	Mounts   string
	Links    []string
	Status   map[string]string
	Env      []string
	Attempts map[string]string
	Kmsg     string
	Paths    map[string]bool
}

func containChecks() []check {
	const runs = driver.CapProcesses
	walls := []firebreak.Boundary{firebreak.BoundarySharedKernel, firebreak.BoundaryUserKernel, firebreak.BoundaryVirtualMachine}
	shared := []firebreak.Boundary{firebreak.BoundarySharedKernel}
	return []check{
		{name: "environment-clean", needs: runs, run: checkEnvironmentClean},
		{name: "descriptors-clean", needs: runs, run: checkDescriptorsClean},
		{name: "uname", needs: runs, boundaries: walls, run: checkUname},
		{name: "pid-one", needs: runs | driver.CapPrivatePIDs, boundaries: walls, run: checkPIDOne},
		{name: "host-processes-invisible", needs: runs | driver.CapPrivatePIDs, run: checkHostProcesses},
		{name: "neighbour-processes-invisible", needs: runs | driver.CapPrivatePIDs, run: checkNeighbourProcesses},
		{name: "host-files-invisible", needs: runs | driver.CapPrivateRoot, run: checkHostFiles},
		{name: "mounts-safe", needs: runs | driver.CapPrivateRoot, boundaries: walls, run: checkMountsSafe},
		{name: "network-loopback-only", needs: runs | driver.CapPrivateNet, run: checkLoopbackOnly},
		{name: "host-sockets-unreachable", needs: runs | driver.CapPrivateNet | driver.CapPrivateRoot, run: checkHostSockets},
		{name: "neighbour-unreachable", needs: runs | driver.CapPrivateNet, run: checkNeighbourUnreachable},
		{name: "capabilities-dropped", needs: runs, boundaries: shared, run: checkCapabilities},
		{name: "no-new-privileges", needs: runs, boundaries: shared, run: checkNoNewPrivileges},
		{name: "seccomp", needs: runs, boundaries: shared, run: checkSeccomp},
		{name: "kernel-out-of-reach", needs: runs, boundaries: walls, run: checkKernelOutOfReach},
		{name: "kernel-log-hidden", needs: runs, boundaries: walls, run: checkKernelLog},
	}
}

// accounts are those as whom a fact must hold.
func (c *C) accounts() []string {
	if c.info.Caps.Has(driver.CapUsers | driver.CapRootUser) {
		return []string{c.User, "root"}
	}
	return []string{""}
}

// eachAccount gathers the facts as every account.
func (c *C) eachAccount(args []string, judge func(user string, f facts)) {
	c.Helper()
	b := c.box(c.spec())
	for _, user := range c.accounts() {
		p := b.inside(append([]string{"facts"}, args...)...)
		p.user = user
		var f facts
		b.report(p, &f)
		judge(user, f)
	}
}

// checkEnvironmentClean: the environment of whoever makes a sandbox holds secrets, and none of it is passed on.
func checkEnvironmentClean(c *C) {
	const name = "FIREBREAK_TEST_SECRET"
	if err := os.Setenv(name, "secret-"+c.tag); err != nil {
		c.Fatal(err)
	}
	defer os.Unsetenv(name)
	b := c.box(c.spec())
	p := b.inside("facts")
	var f facts
	b.report(p, &f)
	for _, env := range f.Env {
		if strings.Contains(env, "secret-"+c.tag) {
			c.Errorf("a program inherits %s", env)
		}
	}
	// Not the agent's either: programs may read that.
	if out := b.must(sh("cat /proc/1/environ /proc/$PPID/environ 2>/dev/null | tr '\\0' '\\n'; true")).stdout; strings.Contains(out, "secret-"+c.tag) {
		c.Errorf("the agent has inherited the secret")
	}
}

// checkDescriptorsClean: nothing that was open where the sandbox was made is open inside. It asks ls rather than the
// probe, because a Go program opens some of its own at its start.
func checkDescriptorsClean(c *C) {
	host, err := unix.Open(c.base, unix.O_RDONLY|unix.O_DIRECTORY, 0) // on purpose without O_CLOEXEC
	if err != nil {
		c.Fatal(err)
	}
	defer unix.Close(host)
	b := c.box(c.spec())
	for _, user := range c.accounts() {
		p := program{cmd: "/bin/ls", args: []string{"/proc/self/fd"}, user: user}
		// 3 is the directory that ls reads.
		if got := strings.Fields(b.must(p).stdout); !slices.Equal(got, []string{"0", "1", "2", "3"}) {
			p.args = []string{"-l", "/proc/self/fd"}
			c.Errorf("as %q a program inherits descriptors:\n%s", user, b.must(p).stdout)
		}
	}
	// Not the agent either: programs may be able to look into it.
	script := "for f in /proc/1/fd/* /proc/$PPID/fd/*; do readlink $f; done 2>/dev/null | grep -cx " + c.base + "; true"
	if out := strings.TrimSpace(b.must(sh(script)).stdout); out != "0" {
		c.Errorf("the agent has inherited %s descriptors of the host's", out)
	}
}

func checkUname(c *C) {
	var host syscall.Utsname
	if err := syscall.Uname(&host); err != nil {
		c.Fatal(err)
	}
	hostname, err := os.Hostname()
	if err != nil {
		c.Fatal(err)
	}
	release := strings.TrimSpace(read("/proc/sys/kernel/osrelease"))
	b := c.box(c.spec())
	var f facts
	b.report(b.inside("facts"), &f)
	if got := f.Uname["nodename"]; got != driver.Hostname || got == hostname {
		c.Errorf("the host name inside is %q, want %s", got, driver.Hostname)
	}
	if own := c.info.Boundary != firebreak.BoundarySharedKernel; own && f.Uname["release"] == release {
		c.Errorf("boundary %v, but the kernel inside is the host's: %v", c.info.Boundary, f.Uname)
	}
	if f.Uname["sysname"] != "Linux" {
		c.Errorf("uname says %v", f.Uname)
	}
}

func checkPIDOne(c *C) {
	c.eachAccount(nil, func(user string, f facts) {
		if !strings.Contains(f.Init, " --listen ") {
			c.Errorf("as %q pid 1 is %.100q, want the agent", user, f.Init)
		}
		if len(f.PIDs) > 10 {
			c.Errorf("as %q %d processes are visible: %.400s", user, len(f.PIDs), fmt.Sprint(f.PIDs))
		}
	})
}

// hostProcess starts a process of the host that can be told by its arguments.
func (c *C) hostProcess() (pid int, argument string) {
	c.Helper()
	argument = "1" + strconv.Itoa(os.Getpid()) + "000.125"
	cmd := exec.Command("sleep", argument)
	if err := cmd.Start(); err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait() // it was killed, so this is an error
	})
	return cmd.Process.Pid, argument
}

func checkHostProcesses(c *C) {
	_, argument := c.hostProcess()
	c.eachAccount(nil, func(user string, f facts) {
		for pid, line := range f.PIDs {
			if strings.Contains(line, argument) {
				c.Errorf("as %q the host's process is visible as %d: %s", user, pid, line)
			}
		}
	})
}

func checkNeighbourProcesses(c *C) {
	one, two := c.box(c.spec()), c.box(c.spec())
	const argument = "86000.375"
	ctx, cancel := context.WithCancel(c.ctx)
	p := program{cmd: "/bin/sleep", args: []string{argument}, started: func(uint32) { cancel() }}
	if _, err := one.run(ctx, p); !errors.Is(ctx.Err(), context.Canceled) {
		c.Fatalf("start the neighbour's program: %v", err)
	}
	var seen [2]bool
	for i, b := range []*box{one, two} {
		var f facts
		b.report(b.inside("facts"), &f)
		for _, line := range f.PIDs {
			seen[i] = seen[i] || strings.Contains(line, argument)
		}
	}
	if !seen[0] {
		c.Error("a program is invisible in its own sandbox, so that this check proves nothing")
	}
	if seen[1] {
		c.Error("a neighbour's program is visible")
	}
}

// plant writes a marker file wherever on the host that is possible, and returns the paths.
func (c *C) plant() []string {
	c.Helper()
	home, _ := os.UserHomeDir()
	var planted []string
	for _, dir := range []string{"/root", "/home", home, "/tmp", "/var/tmp", "/run", "/var/lib", "/opt", "/srv", "/mnt", "/etc", "/dev/shm", c.base} {
		if dir == "" {
			continue
		}
		at := filepath.Join(dir, "marker-of-"+strconv.Itoa(os.Getpid())+"-"+strconv.FormatInt(c.count.Add(1), 10))
		if os.WriteFile(at, []byte("the host's"), 0o644) != nil {
			continue
		}
		planted = append(planted, at)
		c.Cleanup(func() { _ = os.Remove(at) })
	}
	if len(planted) == 0 {
		c.Fatal("no marker could be planted")
	}
	return planted
}

func checkHostFiles(c *C) {
	planted := c.plant()
	also := []string{"/var/run/docker.sock", "/run/docker.sock", "/run/systemd/private", "/run/containerd/containerd.sock",
		c.place.StateDir, c.base, "/boot/grub", "/lost+found"}
	var there []string
	for _, p := range also {
		if _, err := os.Lstat(p); err == nil {
			there = append(there, p)
		}
	}
	c.eachAccount(append(planted, there...), func(user string, f facts) {
		for at, visible := range f.Paths {
			if visible {
				c.Errorf("as %q the host's %s is visible", user, at)
			}
		}
	})
}

func checkMountsSafe(c *C) {
	c.eachAccount(nil, func(user string, f facts) {
		if !strings.Contains(f.Mounts, " / ") {
			c.Errorf("as %q the mounts cannot be read: %q", user, f.Mounts)
		}
		for line := range strings.Lines(f.Mounts) {
			before, after, _ := strings.Cut(line, " - ")
			fields, kind := strings.Fields(before), strings.Fields(after)
			if len(fields) < 6 || len(kind) == 0 {
				c.Errorf("a line of mountinfo: %q", line)
				continue
			}
			c.judgeMount(user, fields[4], kind[0], slices.Contains(strings.Split(fields[5], ","), "ro"))
		}
	})
}

func (c *C) judgeMount(user, target, kind string, readOnly bool) {
	switch kind {
	case "devtmpfs", "debugfs", "tracefs", "securityfs", "bpf", "efivarfs", "configfs", "fusectl", "pstore", "binfmt_misc", "rpc_pipefs":
		c.Errorf("as %q a %s of the host is mounted at %s", user, kind, target)
	case "sysfs", "cgroup", "cgroup2":
		if !readOnly {
			c.Errorf("as %q %s at %s is writable", user, kind, target)
		}
	}
}

func checkLoopbackOnly(c *C) {
	c.eachAccount(nil, func(user string, f facts) {
		if !slices.Equal(f.Links, []string{"lo"}) {
			c.Errorf("as %q the network interfaces are %v, want only lo", user, f.Links)
		}
	})
	b := c.box(c.spec())
	c.unreachable(b, "tcp|1.1.1.1:443", "tcp|10.0.0.1:80", "tcp|169.254.169.254:80", "udp|8.8.8.8:53", "tcp|[2606:4700::1111]:443")
}

// unreachable fails the check for every "network|address" that can be dialled in b.
func (c *C) unreachable(b *box, targets ...string) {
	c.Helper()
	var got map[string]string
	b.report(b.inside(append([]string{"dial"}, targets...)...), &got)
	for _, target := range targets {
		if err, tried := got[target]; !tried || err == "" {
			c.Errorf("%s can be reached from inside", target)
		}
	}
}

func checkHostSockets(c *C) {
	var targets []string
	at := filepath.Join(os.TempDir(), "socket-of-"+strconv.Itoa(os.Getpid()))
	for network, address := range map[string]string{"tcp": "127.0.0.1:0", "unix": at} {
		targets = append(targets, network+"|"+c.hostListener(network, address))
	}
	targets = append(targets, "unix|"+c.hostListener("unix", "@socket-of-"+strconv.Itoa(os.Getpid())))
	c.unreachable(c.box(c.spec()), targets...)
}

// hostListener listens on the host until the check ends; nobody should come.
func (c *C) hostListener(network, address string) string {
	c.Helper()
	l, err := net.Listen(network, address)
	if err != nil {
		c.Fatal(err)
	}
	c.Cleanup(func() { _ = l.Close() })
	return l.Addr().String()
}

func checkNeighbourUnreachable(c *C) {
	one, two := c.box(c.spec()), c.box(c.spec())
	agent := "tcp|127.0.0.1:49983"
	var reached map[string]string
	one.report(one.inside("dial", agent), &reached)
	listening := reached[agent] == ""
	p := one.inside("listen")
	ctx, cancel := context.WithCancel(c.ctx)
	port := make(chan string, 1)
	p.output = func(chunk []byte) {
		select {
		case port <- strings.TrimSpace(string(chunk)):
			cancel()
		default:
		}
	}
	_, _ = one.run(ctx, p) // left running: it is the caller who goes away
	cancel()
	target := "tcp|127.0.0.1:" + <-port
	one.report(one.inside("dial", target), &reached)
	if reached[target] != "" {
		c.Errorf("a sandbox cannot reach its own port: %s", reached[target])
	}
	c.unreachable(two, target)
	c.Logf("the agent's port is reachable from within its sandbox: %v", listening)
}

func checkCapabilities(c *C) {
	c.eachAccount(nil, func(user string, f facts) {
		for _, set := range []string{"CapInh", "CapPrm", "CapEff", "CapBnd", "CapAmb"} {
			if strings.Trim(f.Status[set], "0") != "" || f.Status[set] == "" {
				c.Errorf("as %q %s = %q, want none", user, set, f.Status[set])
			}
		}
	})
}

func checkNoNewPrivileges(c *C) {
	c.eachAccount(nil, func(user string, f facts) {
		if f.Status["NoNewPrivs"] != "1" {
			c.Errorf("as %q NoNewPrivs = %q, want 1", user, f.Status["NoNewPrivs"])
		}
	})
}

func checkSeccomp(c *C) {
	c.eachAccount(nil, func(user string, f facts) {
		if f.Status["Seccomp"] != "2" {
			c.Errorf("as %q Seccomp = %q, want 2: a filter", user, f.Status["Seccomp"])
		}
	})
}

// ownKernel are the attempts that a kernel of the sandbox's own may grant: they reach nothing of the host.
func ownKernel() []string {
	return []string{"mount", "write /proc/sys/kernel/core_pattern", "write /proc/sys/vm/drop_caches", "write /proc/sys/kernel/modprobe",
		"write /proc/sysrq-trigger", "write /dev/fuse", "write /dev/net/tun", "write /dev/kmsg", "read /dev/kmsg", "write /dev/userfaultfd"}
}

func checkKernelOutOfReach(c *C) {
	var allowed []string
	if c.info.Boundary != firebreak.BoundarySharedKernel {
		allowed = ownKernel()
	}
	c.eachAccount(nil, func(user string, f facts) {
		if len(f.Attempts) == 0 {
			c.Error("nothing was attempted")
		}
		for name, err := range f.Attempts {
			if err == "" && !slices.Contains(allowed, name) {
				c.Errorf("as %q one can %s", user, name)
			}
		}
	})
}

// checkKernelLog: the log of a kernel of the sandbox's own is no secret, the host's is.
func checkKernelLog(c *C) {
	release := strings.TrimSpace(read("/proc/sys/kernel/osrelease"))
	c.eachAccount(nil, func(user string, f facts) {
		if c.info.Boundary == firebreak.BoundarySharedKernel && f.Kmsg != "" || strings.Contains(f.Kmsg, release) {
			c.Errorf("as %q the host's kernel log can be read: %.80q", user, f.Kmsg)
		}
	})
}

// checkMounts: what the caller gives is there, and read-only where it says so.
func checkMounts(c *C) {
	data := c.path("data")
	if err := errors.Join(os.Mkdir(data, 0o755), os.Chmod(data, 0o777), os.WriteFile(data+"/given", []byte("given"), 0o644)); err != nil {
		c.Fatal(err)
	}
	spec := c.spec()
	spec.Mounts = []driver.Mount{{Source: data, Target: "/mnt/rw"}, {Source: data, Target: "/mnt/ro", ReadOnly: true}}
	b := c.box(spec)
	for _, dir := range []string{"/mnt/rw", "/mnt/ro"} {
		if got := b.must(program{cmd: "/bin/cat", args: []string{path.Join(dir, "given")}}).stdout; got != "given" {
			c.Errorf("%s/given holds %q", dir, got)
		}
	}
	for _, user := range c.accounts() {
		p := sh("echo x >/mnt/ro/refused")
		p.user = user
		if res, err := b.run(c.ctx, p); err != nil || res.code == 0 {
			c.Errorf("as %q a read-only mount can be written: %+v, %v", user, res, err)
		}
	}
	back := sh("echo back >/mnt/rw/made")
	if c.info.Caps.Has(driver.CapRootUser) {
		back.user = "root" // who else may depends on the ids that the caller has on the host
	}
	b.must(back)
	if got := read(data + "/made"); got != "back\n" {
		c.Errorf("what the sandbox wrote is %q on the host", got)
	}
}
