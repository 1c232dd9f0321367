package container

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
)

const (
	defaultDisk = 10 << 30 // where nobody said how much; it takes of the host what is written, no more
	smallDisk   = 1 << 20  // below this no ext4 fits its own books
	keptDisks   = 64       // empty file systems kept for copying, one for each size that was asked for
)

// mkfsPath finds the program also where PATH is that of an ordinary user; "" if it is not there.
func mkfsPath() string {
	for _, name := range []string{"mkfs.ext4", "/usr/sbin/mkfs.ext4", "/sbin/mkfs.ext4"} {
		if found, err := exec.LookPath(name); err == nil {
			return found
		}
	}
	return ""
}

// diskInFile reports whether the writable layer can be a file. Otherwise it is a tmpfs of the same size.
func diskInFile() bool {
	_, err := os.Stat("/dev/loop-control")
	return err == nil && mkfsPath() != ""
}

// mountDisk mounts the writable layer.
func mountDisk(file string, size int64, inFile bool) (tree, error) {
	if size == 0 {
		size = defaultDisk
	}
	const attrs = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOATIME
	if !inFile {
		// Inodes are bounded too: they are memory of the kernel.
		return newTree("tmpfs", attrs, "mode=0755", fmt.Sprintf("size=%d", size), fmt.Sprintf("nr_inodes=%d", max(size/8192, 1024)))
	}
	dev, err := loopDevice(file, false)
	if err != nil {
		return tree{}, err
	}
	defer dev.Close()
	// Neither barriers nor late initialisation: nothing of this is worth more than the sandbox. Discard gives back to
	// the host what is deleted inside.
	return newTree("ext4", attrs, "source="+dev.Name(), "nobarrier", "noinit_itable", "discard")
}

// makeDisk makes the file that becomes the writable layer: a sparse ext4 file system of the size of the limit. A file
// system of its own is what makes the limit hold; a file, rather than memory, keeps what is written out of the
// sandbox's memory limit. mkfs takes longer than all else that is done here, so its results are kept and copied.
func (d *Driver) makeDisk(ctx context.Context, name string, size int64) error {
	if size == 0 {
		size = defaultDisk
	}
	if size < smallDisk {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "make disk",
			Err: fmt.Errorf("a limit of %d bytes is less than the %d that a file system needs", size, smallDisk)}
	}
	kept := filepath.Join(d.cfg.StateDir, ".disks", strconv.FormatInt(size/4096*4096, 10))
	if err := copySparse(kept, name); err == nil || !errors.Is(err, os.ErrNotExist) {
		return err
	}
	if err := mkfs(ctx, name, size/4096*4096); err != nil {
		return err
	}
	if err := keep(name, kept); err != nil {
		d.log.Debug("an empty disk was not kept for copying", "error", err)
	}
	return nil
}

func mkfs(ctx context.Context, name string, size int64) error {
	f, err := os.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	if err := errors.Join(f.Truncate(size), f.Close()); err != nil {
		return fmt.Errorf("make disk: %w", err)
	}
	// No journal: the disk never outlives a crash. One inode for 8 KiB, since packages come as many small files.
	out, err := exec.CommandContext(ctx, mkfsPath(), "-q", "-F", "-b", "4096", "-m", "0", "-i", "8192", "-O", "^has_journal,^resize_inode",
		"-E", "lazy_itable_init=1,nodiscard,root_owner=0:0", name).CombinedOutput()
	if err != nil {
		return fmt.Errorf("make disk: mkfs.ext4: %w: %s", err, bytes.TrimSpace(out))
	}
	return nil
}

func keep(name, kept string) error {
	dir := filepath.Dir(kept)
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	if entries, err := os.ReadDir(dir); err != nil || len(entries) >= keptDisks {
		return errors.Join(err, fmt.Errorf("%d are kept already", len(entries)))
	}
	fresh := kept + ".new." + strconv.Itoa(os.Getpid())
	if err := copySparse(name, fresh); err != nil {
		return errors.Join(err, os.Remove(fresh))
	}
	return os.Rename(fresh, kept)
}

// copySparse copies only what is written of a sparse file.
func copySparse(from, to string) (err error) {
	src, err := os.Open(from)
	if err != nil {
		return err
	}
	defer src.Close()
	st, err := src.Stat()
	if err != nil {
		return err
	}
	dst, err := os.OpenFile(to, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, dst.Close()) }()
	if err := dst.Truncate(st.Size()); err != nil {
		return err
	}
	for at := int64(0); at < st.Size(); {
		begin, err := src.Seek(at, unix.SEEK_DATA)
		if errors.Is(err, unix.ENXIO) { // nothing but a hole
			return nil
		}
		if err != nil {
			return err
		}
		if at, err = src.Seek(begin, unix.SEEK_HOLE); err != nil {
			return err
		}
		if _, err := io.Copy(io.NewOffsetWriter(dst, begin), io.NewSectionReader(src, begin, at-begin)); err != nil {
			return err
		}
	}
	return nil
}

// loopDevice puts a file behind a block device that goes when its last user does.
func loopDevice(file string, readOnly bool) (*os.File, error) {
	access, flags := os.O_RDWR, uint32(unix.LO_FLAGS_AUTOCLEAR)
	if readOnly {
		access, flags = os.O_RDONLY, flags|unix.LO_FLAGS_READ_ONLY
	}
	backing, err := os.OpenFile(file, access, 0)
	if err != nil {
		return nil, fmt.Errorf("open disk: %w", err)
	}
	defer backing.Close()
	control, err := os.OpenFile("/dev/loop-control", os.O_RDWR, 0)
	if err != nil {
		return nil, fmt.Errorf("find loop device: %w", err)
	}
	defer control.Close()
	for range 100 { // another process may take a free device first
		n, err := unix.IoctlRetInt(int(control.Fd()), unix.LOOP_CTL_GET_FREE)
		if err != nil {
			return nil, fmt.Errorf("find loop device: %w", err)
		}
		dev, err := os.OpenFile("/dev/loop"+strconv.Itoa(n), access, 0)
		if err != nil {
			return nil, fmt.Errorf("open loop device: %w", err)
		}
		config := &unix.LoopConfig{Fd: uint32(backing.Fd()), Size: 4096, Info: unix.LoopInfo64{Flags: flags}}
		if err = unix.IoctlLoopConfigure(int(dev.Fd()), config); err == nil {
			return dev, nil
		}
		_ = dev.Close() // nothing is behind it
		if !errors.Is(err, unix.EBUSY) {
			return nil, fmt.Errorf("set loop device up: %w", err)
		}
	}
	return nil, fmt.Errorf("find loop device: %w", unix.EBUSY)
}
