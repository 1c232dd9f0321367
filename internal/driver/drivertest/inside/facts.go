package main

import (
	"bytes"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"unsafe"
)

// Facts is what a program in a sandbox can see and do.
type Facts struct {
	UID, GID int
	Uname    map[string]string
	Init     string            // command line of pid 1
	PIDs     map[int]string    // visible processes and their command lines
	Zombies  int               // visible processes that nobody has waited for
	Mounts   string            // /proc/self/mountinfo
	Links    []string          // network interfaces
	Status   map[string]string // Cap*, NoNewPrivs, Seccomp of /proc/self/status
	Env      []string
	Attempts map[string]string // what was tried, and the error; "" for what succeeded
	Kmsg     string            // the kernel's log, if it can be read
	Paths    map[string]bool   // of the arguments: whether each exists
}

func facts(paths []string) Facts {
	f := Facts{
		UID: os.Getuid(), GID: os.Getgid(), Uname: uname(), Init: cmdline(1), PIDs: map[int]string{}, Env: os.Environ(),
		Status: map[string]string{}, Paths: map[string]bool{}, Attempts: attempts(),
	}
	f.Mounts = text("/proc/self/mountinfo")
	f.readProcesses()
	for line := range strings.Lines(text("/proc/self/status")) {
		key, value, _ := strings.Cut(strings.TrimSpace(line), ":")
		if strings.HasPrefix(key, "Cap") || key == "NoNewPrivs" || key == "Seccomp" {
			f.Status[key] = strings.TrimSpace(value)
		}
	}
	if links, err := net.Interfaces(); err == nil {
		for _, l := range links {
			f.Links = append(f.Links, l.Name)
		}
	}
	buf := make([]byte, 1<<20)
	const readAll = 3
	if n, err := syscall.Klogctl(readAll, buf); err == nil {
		f.Kmsg = string(buf[:n])
	}
	for _, p := range paths {
		_, err := os.Lstat(p)
		f.Paths[p] = err == nil
	}
	return f
}

func (f *Facts) readProcesses() {
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil {
			continue
		}
		f.PIDs[pid] = cmdline(pid)
		if stat := text("/proc/" + e.Name() + "/stat"); strings.Contains(stat, ") Z ") {
			f.Zombies++
		}
	}
}

func text(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(data)
}

func cmdline(pid int) string {
	return strings.TrimSpace(strings.ReplaceAll(text("/proc/"+strconv.Itoa(pid)+"/cmdline"), "\x00", " "))
}

func uname() map[string]string {
	var u syscall.Utsname
	if err := syscall.Uname(&u); err != nil {
		return nil
	}
	read := func(a *[65]int8) string {
		return string(bytes.TrimRight(unsafe.Slice((*byte)(unsafe.Pointer(a)), 65), "\x00"))
	}
	return map[string]string{
		"sysname": read(&u.Sysname), "nodename": read(&u.Nodename), "release": read(&u.Release), "version": read(&u.Version),
	}
}

// attempts tries what code behind a boundary must not be able to do. Nothing here harms a host where it succeeds.
func attempts() map[string]string {
	out := map[string]string{}
	note := func(name string, err error) {
		out[name] = ""
		if err != nil {
			out[name] = err.Error()
		}
	}
	for _, path := range []string{"/proc/sysrq-trigger", "/proc/sys/kernel/core_pattern", "/proc/sys/kernel/modprobe",
		"/proc/sys/vm/drop_caches", "/sys/kernel/uevent_helper", "/sys/power/state", "/dev/mem", "/dev/kmsg", "/dev/port",
		"/dev/kvm", "/dev/fuse", "/dev/net/tun", "/dev/loop-control", "/dev/userfaultfd"} {
		note("write "+path, tryOpen(path, os.O_WRONLY))
	}
	note("read /proc/kcore", tryRead("/proc/kcore"))
	note("read /dev/kmsg", tryOpen("/dev/kmsg", os.O_RDONLY))
	note("see disks", seeDisks())
	note("make device", makeDevice())
	const mountFlags = 0
	dir, err := os.MkdirTemp("", "fbmount")
	if err == nil {
		err = syscall.Mount("none", dir, "tmpfs", mountFlags, "")
		if err == nil {
			_ = syscall.Unmount(dir, 0)
		}
		_ = os.Remove(dir)
	}
	note("mount", err)
	// An image of no bytes is refused as malformed after the permission was checked.
	if _, _, errno := syscall.Syscall(syscall.SYS_INIT_MODULE, 0, 0, 0); errno == syscall.ENOEXEC || errno == syscall.EFAULT || errno == syscall.EINVAL {
		note("load kernel module", nil)
	} else {
		note("load kernel module", errno)
	}
	return out
}

func tryOpen(path string, flags int) error {
	f, err := os.OpenFile(path, flags|syscall.O_NONBLOCK, 0)
	if err != nil {
		return err
	}
	return f.Close()
}

func tryRead(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = f.Read(make([]byte, 64))
	return err
}

// seeDisks succeeds if any block device can be opened.
func seeDisks() error {
	entries, err := os.ReadDir("/dev")
	if err != nil {
		return err
	}
	for _, e := range entries {
		info, err := e.Info()
		if err == nil && info.Mode()&os.ModeDevice != 0 && info.Mode()&os.ModeCharDevice == 0 {
			if tryOpen("/dev/"+e.Name(), os.O_RDONLY) == nil {
				return nil
			}
		}
	}
	return os.ErrNotExist
}

// makeDevice succeeds if a node for the kernel's memory can be made and opened.
func makeDevice() error {
	dir, err := os.MkdirTemp("", "fbdev")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	path := filepath.Join(dir, "mem")
	const devMem = 1<<8 | 1
	if err := syscall.Mknod(path, syscall.S_IFCHR|0o600, devMem); err != nil {
		return err
	}
	return tryOpen(path, os.O_RDONLY)
}
