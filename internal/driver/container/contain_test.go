package container

import (
	"context"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func TestAgentIsContained(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		before := owner(t, "/dev/null")
		b := p.box(p.spec())
		status := b.sh("cat /proc/self/status")
		for _, want := range []string{"NoNewPrivs:\t1", "Seccomp:\t2",
			"CapBnd:\t00000000000001eb", "CapInh:\t0000000000000000", "CapAmb:\t0000000000000000"} {
			if !strings.Contains(status, want+"\n") {
				t.Errorf("the agent's status lacks %q:\n%s", want, status)
			}
		}
		ids := strings.Fields(b.sh("cat /proc/self/uid_map"))
		base := p.base0(b)
		if len(ids) != 3 || ids[0] != "0" || ids[1] != strconv.Itoa(int(base)) || ids[2] != "65536" || base < rangeFirst {
			t.Errorf("ids are mapped %v, the range begins at %d", ids, base)
		}
		if links := b.sh("ls /sys/class/net"); links != "lo" {
			t.Errorf("interfaces: %q", links)
		}
		if after := owner(t, "/dev/null"); after != before {
			t.Errorf("the host's /dev/null belonged to %d and belongs to %d", before, after)
		}
	})
}

// base0 is the first id of the host that a sandbox has.
func (p *place) base0(b box) uint32 {
	bases, err := p.ranges().of(b.spec.ID)
	if err != nil || len(bases) != 1 {
		p.t.Fatalf("ranges of %s: %v, %v", b.spec.ID, bases, err)
	}
	return bases[0]
}

func owner(t *testing.T, name string) uint32 {
	t.Helper()
	var st unix.Stat_t
	if err := unix.Stat(name, &st); err != nil {
		t.Fatal(err)
	}
	return st.Uid
}

// TestKernelFilesAreShut: although the agent, as root with capabilities, asks for them.
func TestKernelFilesAreShut(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		b := p.box(p.spec())
		for _, path := range []string{"/proc/kcore", "/proc/keys", "/proc/timer_list", "/proc/interrupts"} {
			if out := b.sh("head -c 100 " + path + " 2>/dev/null | wc -c"); out != "0" {
				t.Errorf("%s can be read: %q", path, out)
			}
		}
		if out := b.sh("ls /sys/firmware /proc/acpi 2>/dev/null | grep -v :"); strings.Contains(out, "\n") {
			t.Errorf("masked directories show %q", out)
		}
		for _, path := range []string{"/sys/kernel/uevent_helper", "/proc/sys/kernel/core_pattern", "/proc/sysrq-trigger", "/sys/made"} {
			if out := b.sh("echo x 2>/dev/null >" + path + " && echo written"); strings.Contains(out, "written") {
				t.Errorf("%s can be written", path)
			}
		}
		for _, try := range []string{"mount -t tmpfs none /mnt", "unshare -Ur true", "chroot / true", "mknod /tmp/mem c 1 1", "dmesg"} {
			if out := b.sh(try + " >/dev/null 2>&1 && echo done"); strings.Contains(out, "done") {
				t.Errorf("%q succeeds", try)
			}
		}
	})
}

func TestOwnersAndLayers(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		b := p.box(p.spec())
		if out := b.sh("stat -c %u:%g / /usr /usr/bin/env /etc/passwd /home/user | tr '\\n' ' '"); out != "0:0 0:0 0:0 0:0 1000:1000" {
			t.Errorf("owners of the template's files: %q", out)
		}
		out := b.sh("echo x >/etc/new && echo y >>/etc/passwd && chown 1000:1000 /etc/new && rm /etc/hostname; stat -c %u /etc/new; touch /usr/new 2>/dev/null || echo refused")
		if out != "1000\nrefused" {
			t.Errorf("writing to the root and to the host's part: %q", out)
		}
		if _, err := os.Lstat(filepath.Join(p.root.Path, "etc/new")); err == nil {
			t.Error("the template was written")
		}
		if other := p.box(p.spec()); other.sh("ls /etc/new 2>/dev/null || echo none") != "none" {
			t.Error("another sandbox sees what the first has written")
		}
	})
}

func TestMounts(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		dir := filepath.Join(p.base, "data")
		if err := os.MkdirAll(filepath.Join(dir, "sub"), 0o755); err != nil {
			t.Fatal(err)
		}
		file := filepath.Join(p.base, "file")
		if err := os.WriteFile(file, []byte("one file"), 0o644); err != nil {
			t.Fatal(err)
		}
		if err := os.Chown(file, 1000, 1000); err != nil {
			t.Fatal(err)
		}
		spec := p.spec()
		spec.Mounts = []driver.Mount{{Source: dir, Target: "/new/place"}, {Source: dir, Target: "/ro", ReadOnly: true},
			{Source: file, Target: "/etc/one", ReadOnly: true}}
		b := p.box(spec)
		if out := b.sh("echo made >/new/place/sub/made; cat /ro/sub/made; cat /etc/one; stat -c %u /etc/one"); out != "made\none file1000" {
			t.Errorf("inside: %q", out)
		}
		if got := owner(t, filepath.Join(dir, "sub/made")); got != 0 {
			t.Errorf("what root made inside belongs to %d on the host", got)
		}
		if out := b.sh("touch /ro/x /etc/one 2>/dev/null || echo refused"); out != "refused" {
			t.Errorf("writing what is read-only: %q", out)
		}
		if out := b.sh("grep ' /new/place ' /proc/self/mountinfo"); !strings.Contains(out, "nosuid,nodev") || strings.Contains(out, "shared:") {
			t.Errorf("the mount is %q", out)
		}
	})
}

// TestHostileLinks: a template's links lead the driver, which is root, nowhere outside.
func TestHostileLinks(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		victim := filepath.Join(p.base, "victim")
		tree := filepath.Join(p.base, "tree")
		for _, err := range []error{os.Mkdir(victim, 0o755), os.Mkdir(tree, 0o755), os.Symlink(victim, filepath.Join(tree, "data")),
			os.Symlink("../../../../../.."+victim, filepath.Join(tree, "up")), os.Symlink(victim, filepath.Join(tree, ".firebreak")),
			os.Symlink("/proc/self/root"+victim, filepath.Join(tree, "magic"))} {
			if err != nil {
				t.Fatal(err)
			}
		}
		for _, target := range []string{"/data/in", "/up/in", "/magic/in"} {
			spec := p.spec()
			spec.Root = driver.Root{Form: driver.FormDirectory, Path: tree}
			spec.Mounts = []driver.Mount{{Source: p.base, Target: target}}
			if sb, err := p.Create(context.Background(), spec); err == nil {
				t.Logf("%s: created, within its own root: %v", target, sb)
			}
			if entries, err := os.ReadDir(victim); err != nil || len(entries) > 0 {
				t.Fatalf("%s: the host's directory got %v, %v", target, entries, err)
			}
		}
	})
}

func TestLimits(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		spec := p.spec()
		spec.Limits = firebreak.Limits{Disk: 32 << 20, Memory: 192 << 20, PIDs: 60, CPUs: 0.5}
		b := p.box(spec)
		if out := b.sh("dd if=/dev/zero of=/var/big bs=1M count=64 2>&1; rm /var/big"); !strings.Contains(out, "No space left on device") {
			t.Errorf("64 MiB on a disk of 32: %q", out)
		}
		b.sh("head -c 600m /dev/zero | tail -n 1 | wc -c")
		u, err := b.Usage(context.Background())
		if err != nil || u.OOMKills == 0 || u.Memory == 0 || u.CPU == 0 || u.MemoryPeak > 200<<20 {
			t.Errorf("usage after a memory bomb: %+v, %v", u, err)
		}
		if out := b.sh("for i in $(seq 200); do sleep 100 >/dev/null 2>&1 & done; echo all"); !strings.Contains(out, "ork") {
			t.Errorf("200 processes with a limit of 60: %q", out)
		}
		if u, err = b.Usage(context.Background()); err != nil || u.PIDsDenied == 0 || u.PIDs > 60+agentThreads {
			t.Errorf("usage after a fork bomb: %+v, %v", u, err)
		}
		if exit := b.sh("exit 7"); exit != "" {
			t.Errorf("the agent after the bombs: %q", exit)
		}
	})
}

// TestOutputIsBounded: nobody inside can fill the host by way of the agent's output.
func TestOutputIsBounded(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		spec := p.spec()
		spec.Limits.Disk = 16 << 20
		b := p.box(spec)
		if out := b.sh("shout 64"); !strings.Contains(out, "no space left") {
			t.Errorf("64 MiB to the agent's output: %q", out)
		}
		if taken := p.taken(spec.Dir); taken > spec.Limits.Disk+(1<<20) {
			t.Errorf("the directory takes %d bytes with a limit of %d", taken, spec.Limits.Disk)
		}
	})
}

// taken is what a directory takes of the host's disk.
func (p *place) taken(dir string) (bytes int64) {
	err := filepath.Walk(dir, func(path string, _ os.FileInfo, err error) error {
		if err != nil {
			return err
		}
		var st unix.Stat_t
		err = unix.Lstat(path, &st)
		bytes += st.Blocks * 512
		return err
	})
	if err != nil {
		p.t.Fatal(err)
	}
	return bytes
}
