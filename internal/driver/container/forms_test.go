package container

import (
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// image makes an EROFS image of the host template's tree.
func (p *place) image() string {
	p.t.Helper()
	name := filepath.Join(p.base, "template.erofs")
	if out, err := exec.Command("mkfs.erofs", "-E", "noinline_data", name, p.root.Path).CombinedOutput(); err != nil {
		p.t.Fatalf("mkfs.erofs: %v: %s", err, out)
	}
	return name
}

func TestDiskImage(t *testing.T) {
	each(t, func(t *testing.T, p *place) {
		spec := p.spec()
		spec.Root, spec.Mounts = driver.Root{Form: driver.FormDisk, Path: p.image()}, p.root.Binds
		b := p.box(spec)
		if out := b.sh("stat -c %u:%g / /etc/passwd /home/user | tr '\\n' ' '; echo x >>/etc/passwd && tail -n 1 /etc/passwd"); out != "0:0 0:0 1000:1000 x" {
			t.Errorf("inside an image: %q", out)
		}
		other := p.spec()
		other.Root, other.Mounts = spec.Root, spec.Mounts
		if out := p.box(other).sh("tail -n 1 /etc/passwd"); out == "x" {
			t.Error("the image was written")
		}
	})
}

// TestImageThroughLoop is the way of kernels that mount EROFS from devices only.
func TestImageThroughLoop(t *testing.T) {
	p := newPlace(t, "crun")
	image := p.image()
	var device string
	err := inOwnMounts(func() error {
		dev, err := loopDevice(image, true)
		if err != nil {
			return err
		}
		defer dev.Close()
		device = dev.Name()
		lower, err := newTree("erofs", unix.MOUNT_ATTR_RDONLY, "source="+device, "ro")
		if err != nil {
			return err
		}
		defer lower.Close()
		if err := lower.attach("/mnt"); err != nil {
			return err
		}
		_, err = os.Stat("/mnt/etc/passwd")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat("/mnt/etc/passwd"); err == nil {
		t.Error("the mount can be seen from outside")
	}
	// The thread, and with it the mount, ends a moment after what was done on it.
	for end := time.Now().Add(10 * time.Second); ; time.Sleep(time.Millisecond) {
		backing, err := os.ReadFile("/sys/block/" + filepath.Base(device) + "/loop/backing_file")
		if err != nil || !strings.Contains(string(backing), p.base) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("%s is still in use: %s", device, backing)
		}
	}
}

// TestDiskInMemory is the way of hosts without loop devices or mkfs.ext4: the limit holds there too.
func TestDiskInMemory(t *testing.T) {
	newPlace(t, "crun") // skips where this host cannot
	err := inOwnMounts(func() error {
		disk, err := mountDisk("", 2<<20, false)
		if err != nil {
			return err
		}
		defer disk.Close()
		if err := disk.attach("/mnt"); err != nil {
			return err
		}
		return os.WriteFile("/mnt/big", make([]byte, 3<<20), 0o600)
	})
	if !errors.Is(err, unix.ENOSPC) {
		t.Errorf("3 MiB on a disk of 2: %v", err)
	}
}
