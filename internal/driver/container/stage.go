package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// stdio is what the agent gets. Both files lie on the sandbox's own limited disk: nobody can fill the host by the
// agent's output, and it is not the host's /dev/null that runtimes give to the sandbox's root by chown.
type stdio struct{ in, out *os.File }

func openStdio(disk string) (stdio, error) {
	in, err := os.OpenFile(filepath.Join(disk, "stdin"), os.O_CREATE|os.O_RDONLY, 0o400)
	if err != nil {
		return stdio{}, fmt.Errorf("open standard input: %w", err)
	}
	out, err := os.OpenFile(filepath.Join(disk, "agent.log"), os.O_CREATE|os.O_RDWR|os.O_APPEND, 0o600)
	if err != nil {
		in.Close()
		return stdio{}, fmt.Errorf("open standard output: %w", err)
	}
	return stdio{in, out}, nil
}

func (s stdio) close() {
	if s.in != nil {
		s.in.Close()
		s.out.Close()
	}
}

// stage puts the root file system of a sandbox together, in the mount namespace of the calling thread.
func (d *Driver) stage(spec driver.Spec, at string, base uint32, userns *os.File) (stdio, error) {
	lower, err := lowerTree(spec.Root, userns)
	if err != nil {
		return stdio{}, fmt.Errorf("mount template: %w", err)
	}
	defer lower.Close()
	binds, err := d.bindTrees(spec, userns)
	defer closeTrees(binds)
	if err != nil {
		return stdio{}, err
	}
	disk, err := mountDisk(filepath.Join(ownDir(spec), diskName), spec.Limits.Disk, diskInFile())
	if err != nil {
		return stdio{}, fmt.Errorf("mount writable layer: %w", err)
	}
	defer disk.Close()
	if err := mountLayers(at, lower, disk); err != nil {
		return stdio{}, err
	}
	if err := overlay(at, base); err != nil {
		return stdio{}, err
	}
	root, err := os.Open(filepath.Join(at, "root"))
	if err != nil {
		return stdio{}, fmt.Errorf("open root: %w", err)
	}
	defer root.Close()
	for _, b := range binds {
		if err := b.attachIn(root, b.target, base); err != nil {
			return stdio{}, err
		}
	}
	if err := devices(base); err != nil {
		return stdio{}, err
	}
	return openStdio(filepath.Join(at, "disk"))
}

// stageDir is where the root file system is mounted in the thread's mount namespace. The runtime enters the sandbox's
// user namespace before it takes the root, and then may walk only through directories open to all, which those that lead
// to Spec.Dir rarely are. So a directory is covered that every host has, and below which nothing of what is needed lies.
func (d *Driver) stageDir(spec driver.Spec, runtime string) (string, error) {
	needed := []string{spec.Dir, d.cfg.StateDir, runtime}
	for i, name := range needed {
		if real, err := filepath.EvalSymlinks(name); err == nil {
			needed[i] = real
		}
	}
	candidates := []string{"/mnt", "/media", "/srv", "/opt", "/home", "/var/tmp", "/tmp"}
	for _, dir := range candidates {
		below := func(p string) bool { return p == dir || strings.HasPrefix(p, dir+"/") }
		st, err := os.Lstat(dir)
		if err == nil && st.IsDir() && !slices.ContainsFunc(needed, below) {
			return dir, nil
		}
	}
	return "", &firebreak.Error{Kind: firebreak.KindHost, Op: "mount root",
		Err: fmt.Errorf("none of %v is there and free of this sandbox's files", candidates), Mend: "mkdir /mnt"}
}

// lowerTree is the template, read-only, with the owners mapped.
func lowerTree(root driver.Root, userns *os.File) (tree, error) {
	const attrs = unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV
	var t tree
	var err error
	if root.Form == driver.FormDisk {
		t, err = imageTree(root.Path, attrs)
	} else if t, err = cloneTree(root.Path); err == nil {
		if err = t.set(attrs); err != nil {
			t.Close()
		}
	}
	if err != nil {
		return tree{}, err
	}
	if err := t.shift(userns); err != nil {
		t.Close()
		return tree{}, &firebreak.Error{Kind: firebreak.KindHost, Err: err,
			Mend: "use Linux 5.19 or later, and a state directory on ext4, xfs, btrfs or tmpfs; or use --isolation gvisor"}
	}
	return t, nil
}

// imageTree mounts an EROFS image: straight from the file since Linux 6.12, else through a loop device.
func imageTree(image string, attrs int) (tree, error) {
	t, err := newTree("erofs", attrs, "source="+image, "ro")
	if !errors.Is(err, unix.ENOTBLK) {
		return t, err
	}
	dev, err := loopDevice(image, true)
	if err != nil {
		return tree{}, err
	}
	defer dev.Close()
	return newTree("erofs", attrs, "source="+dev.Name(), "ro")
}

// bind is a mount of the host for a place in the sandbox.
type bind struct {
	tree
	target string
}

func closeTrees(binds []bind) {
	for _, b := range binds {
		b.Close()
	}
}

// bindTrees clones what the template, the caller and the driver itself bring in from the host.
func (d *Driver) bindTrees(spec driver.Spec, userns *os.File) ([]bind, error) {
	agent := driver.Mount{Source: d.cfg.Agent, Target: oci.AgentPath, ReadOnly: true}
	var binds []bind
	for _, m := range slices.Concat(spec.Root.Binds, spec.Mounts, []driver.Mount{agent}) {
		t, err := cloneTree(m.Source)
		if err != nil {
			return binds, fmt.Errorf("mount %s: %w", m.Target, err)
		}
		binds = append(binds, bind{t, m.Target})
		attrs := uint64(unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV)
		if m.ReadOnly {
			attrs |= unix.MOUNT_ATTR_RDONLY
		}
		if err := t.set(attrs); err != nil {
			return binds, err
		}
		// Where the file system cannot map owners, what is read-only still serves: its files seem to be nobody's.
		if err := t.shift(userns); err != nil && (!m.ReadOnly || !unshiftable(err)) {
			return binds, &firebreak.Error{Kind: firebreak.KindHost, Op: "mount " + m.Target, Err: err,
				Mend: "take a directory on ext4, xfs, btrfs or tmpfs, mount it read-only, or use --isolation gvisor"}
		}
	}
	return binds, nil
}

// mountLayers covers the directory at, and mounts the layers there.
func mountLayers(at string, lower, disk tree) error {
	scratch, err := newTree("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV, "mode=0755", "size=64k")
	if err != nil {
		return err
	}
	defer scratch.Close()
	if err := scratch.attach(at); err != nil {
		return err
	}
	if err := os.Mkdir(filepath.Join(at, "root"), 0o755); err != nil {
		return fmt.Errorf("make mount point: %w", err)
	}
	for name, t := range map[string]tree{"lower": lower, "disk": disk} {
		dir := filepath.Join(at, name)
		if err := os.Mkdir(dir, 0o755); err != nil {
			return fmt.Errorf("make mount point: %w", err)
		}
		if err := t.attach(dir); err != nil {
			return err
		}
	}
	return nil
}

// overlay mounts the writable layer over the template. It need not survive a crash, hence volatile.
func overlay(at string, base uint32) error {
	upper, work := filepath.Join(at, "disk/upper"), filepath.Join(at, "disk/work")
	err := errors.Join(os.Mkdir(upper, 0o755), os.Chmod(upper, 0o755), os.Mkdir(work, 0o700), os.Chown(upper, int(base), int(base)))
	if err != nil {
		return fmt.Errorf("prepare writable layer: %w", err)
	}
	t, err := newTree("overlay", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NODEV|unix.MOUNT_ATTR_NOATIME,
		"source=overlay", "lowerdir="+filepath.Join(at, "lower"), "upperdir="+upper, "workdir="+work, "volatile")
	if err != nil {
		return err
	}
	defer t.Close()
	return t.attach(filepath.Join(at, "root"))
}

// devices covers the host's /dev, in the thread's mount namespace, with nodes of the sandbox's own: runtimes bind those
// that they find into the sandbox, and nothing that is done to them there may reach the host's.
func devices(base uint32) error {
	t, err := newTree("tmpfs", unix.MOUNT_ATTR_NOSUID|unix.MOUNT_ATTR_NOEXEC, "mode=0755", "size=64k")
	if err != nil {
		return err
	}
	defer t.Close()
	if err := t.attach("/dev"); err != nil {
		return err
	}
	for name, number := range map[string]uint64{
		"null": unix.Mkdev(1, 3), "zero": unix.Mkdev(1, 5), "full": unix.Mkdev(1, 7),
		"random": unix.Mkdev(1, 8), "urandom": unix.Mkdev(1, 9), "tty": unix.Mkdev(5, 0),
	} {
		name = filepath.Join("/dev", name)
		err := errors.Join(unix.Mknod(name, unix.S_IFCHR|0o666, int(number)), os.Chmod(name, 0o666), os.Chown(name, int(base), int(base)))
		if err != nil {
			return fmt.Errorf("make device %s: %w", name, err)
		}
	}
	return nil
}
