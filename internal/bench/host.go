package main

import (
	"bufio"
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"runtime/debug"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pidsOf returns the host processes that belong to a sandbox: its id is in their cgroup, command line or environment.
func pidsOf(id string) []string {
	var pids []string
	entries, _ := os.ReadDir("/proc")
	for _, e := range entries {
		if _, err := strconv.Atoi(e.Name()); err != nil || e.Name() == strconv.Itoa(os.Getpid()) {
			continue
		}
		for _, file := range []string{"cgroup", "cmdline", "environ"} {
			text, err := os.ReadFile(filepath.Join("/proc", e.Name(), file))
			if err == nil && bytes.Contains(text, []byte(id)) {
				pids = append(pids, e.Name())
				break
			}
		}
	}
	return pids
}

// pss sums the proportional set size of all processes of a sandbox, in bytes. gVisor has processes that share their
// memory as threads do: they count once.
func pss(id string) int64 {
	var sum int64
	var counted []string
	for _, pid := range pidsOf(id) {
		if slices.ContainsFunc(counted, func(other string) bool { return sameMemory(pid, other) }) {
			continue
		}
		counted = append(counted, pid)
		f, err := os.Open(filepath.Join("/proc", pid, "smaps_rollup"))
		if err != nil {
			continue // it ended
		}
		for scan := bufio.NewScanner(f); scan.Scan(); {
			if fields := strings.Fields(scan.Text()); len(fields) == 3 && fields[0] == "Pss:" {
				kib, _ := strconv.ParseInt(fields[1], 10, 64)
				sum += kib << 10
			}
		}
		f.Close()
	}
	return sum
}

// sameMemory reports whether two processes have one address space, see kcmp(2).
func sameMemory(a, b string) bool {
	const kcmpVM = 1
	x, _ := strconv.Atoi(a)
	y, _ := strconv.Atoi(b)
	order, _, errno := unix.Syscall6(unix.SYS_KCMP, uintptr(x), uintptr(y), kcmpVM, 0, 0, 0)
	return errno == 0 && order == 0
}

// readFromDisk has the program's pages come from the disk when they are used, as after a boot of the host: what has just
// been written lies in the page cache in pieces so large that a process maps much more of it than it uses.
func readFromDisk(path string) error {
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := f.Sync(); err != nil {
		return err
	}
	return unix.Fadvise(int(f.Fd()), 0, 0, unix.FADV_DONTNEED)
}

// leftovers lists processes, mounts and cgroups whose name holds prefix.
func leftovers(prefix string) []string {
	var left []string
	for _, pid := range pidsOf(prefix) {
		left = append(left, "process "+pid)
	}
	mounts, _ := os.ReadFile("/proc/self/mountinfo")
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, prefix) {
			left = append(left, "mount "+strings.TrimSpace(line))
		}
	}
	filepath.WalkDir("/sys/fs/cgroup", func(path string, d os.DirEntry, err error) error {
		if err == nil && d.IsDir() && strings.Contains(d.Name(), prefix) && isCgroup(path) {
			left = append(left, "cgroup "+path)
		}
		return nil
	})
	return left
}

// isCgroup reports whether path is on a file system of cgroups, and no plain directory in a place where one could be.
func isCgroup(path string) bool {
	var st unix.Statfs_t
	err := unix.Statfs(path, &st)
	return err == nil && (st.Type == unix.CGROUP_SUPER_MAGIC || st.Type == unix.CGROUP2_SUPER_MAGIC)
}

// touches is what it takes to touch some pages of memory once more, after a rest and at once: hypervisors and kernels that look
// for memory nobody uses take its mappings away meanwhile.
func touches(pages int, rest time.Duration) (pair, error) {
	size := os.Getpagesize()
	memory, err := unix.Mmap(-1, 0, pages*size, unix.PROT_READ|unix.PROT_WRITE, unix.MAP_ANON|unix.MAP_PRIVATE)
	if err != nil {
		return pair{}, err
	}
	defer unix.Munmap(memory) //nolint:errcheck // the process ends soon
	return pairs(10, rest, func() error {
		for i := range pages {
			memory[i*size]++
		}
		return nil
	})
}

// ownMemory is how many bytes of memory this process has, after what it does not need was given back.
func ownMemory() int64 {
	debug.FreeOSMemory()
	text, err := os.ReadFile("/proc/self/statm")
	if err != nil {
		return 0
	}
	var total, resident int64
	if _, err := fmt.Sscan(string(text), &total, &resident); err != nil {
		return 0
	}
	return resident * int64(os.Getpagesize())
}
