package drivertest

import (
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"time"
)

// view is what a check could leave on the host. Most of it is found by the check's tag, because other sandboxes may
// come and go on the same host at the same time; goroutines, descriptors and children are the test process's own.
type view struct {
	goroutines map[string]string // by number: the stack
	fds        map[string]bool   // "3 -> /path"
	children   map[string]bool   // living and dead children of this process
	tagged     map[string]bool   // processes, mounts, cgroups, loop devices and files that carry the tag
}

func (c *C) look() view {
	v := view{goroutines: goroutines(), fds: descriptors(), children: map[string]bool{}, tagged: map[string]bool{}}
	c.seeProcesses(v)
	c.seeMounts(v)
	c.seeFiles(v)
	return v
}

// compare fails the check for all that is there now and was not before. What is just going away gets time to do so.
func (c *C) compare(before view) {
	var left []string
	for end := time.Now().Add(c.Patience); ; time.Sleep(20 * time.Millisecond) {
		left = c.left(before)
		if len(left) == 0 {
			return
		}
		if time.Now().After(end) {
			break
		}
	}
	c.Errorf("left behind:\n%s", strings.Join(left, "\n"))
}

func (c *C) left(before view) []string {
	now := c.look()
	var left []string
	for n, stack := range now.goroutines {
		if before.goroutines[n] == "" {
			left = append(left, "goroutine "+stack)
		}
	}
	for _, pair := range []struct {
		what        string
		now, before map[string]bool
	}{{"descriptor ", now.fds, before.fds}, {"child ", now.children, before.children}, {"", now.tagged, before.tagged}} {
		for _, key := range slices.Sorted(maps.Keys(pair.now)) {
			if !pair.before[key] {
				left = append(left, pair.what+key)
			}
		}
	}
	return left
}

// goroutines returns those that somebody has started; the runtime's and the testing package's own are not counted.
func goroutines() map[string]string {
	buf := make([]byte, 4<<20)
	all := map[string]string{}
	for i, stack := range strings.Split(string(buf[:runtime.Stack(buf, true)]), "\n\n") {
		number, _, _ := strings.Cut(strings.TrimPrefix(stack, "goroutine "), " ")
		if i == 0 || strings.Contains(stack, "testing.(*T).Run(") || strings.Contains(stack, "os/signal.loop") ||
			strings.Contains(stack, "os/signal.signal_recv") || strings.Contains(stack, "testing.(*M).startAlarm") {
			continue // i == 0 is the caller
		}
		all[number] = stack
	}
	return all
}

func descriptors() map[string]bool {
	out := map[string]bool{}
	entries, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		return out
	}
	for _, e := range entries {
		target, err := os.Readlink("/proc/self/fd/" + e.Name())
		// The runtime opens its poller once, and ReadDir's own descriptor is gone by now.
		if err == nil && !strings.Contains(target, "eventpoll") && !strings.Contains(target, "[eventfd") {
			out[e.Name()+" -> "+target] = true
		}
	}
	return out
}

// seeProcesses finds the children of this process, zombies too, and all others that carry the tag.
func (c *C) seeProcesses(v view) {
	self := os.Getpid()
	entries, err := os.ReadDir("/proc")
	if err != nil {
		c.Fatal(err)
	}
	for _, e := range entries {
		pid, err := strconv.Atoi(e.Name())
		if err != nil || pid == self {
			continue
		}
		stat := read(fmt.Sprintf("/proc/%d/stat", pid))
		end := strings.LastIndexByte(stat, ')')
		if end < 0 {
			continue
		}
		rest := strings.Fields(stat[end+1:])
		cmdline := strings.ReplaceAll(read(fmt.Sprintf("/proc/%d/cmdline", pid)), "\x00", " ")
		name := fmt.Sprintf("process %d (%s) %s", pid, rest[0], cmdline)
		if rest[1] == strconv.Itoa(self) {
			v.children[name] = true
		}
		cwd, _ := os.Readlink(fmt.Sprintf("/proc/%d/cwd", pid))
		for _, text := range []string{cmdline, cwd, read(fmt.Sprintf("/proc/%d/environ", pid)), read(fmt.Sprintf("/proc/%d/cgroup", pid))} {
			if strings.Contains(text, c.tag) {
				v.tagged[name] = true
			}
		}
	}
}

func read(path string) string {
	data, err := os.ReadFile(path)
	if err != nil {
		return ""
	}
	return string(data)
}

// seeMounts finds mounts, namespaces kept by a mount, and loop devices.
func (c *C) seeMounts(v view) {
	for line := range strings.Lines(read("/proc/self/mountinfo")) {
		if strings.Contains(line, c.tag) {
			v.tagged["mount "+strings.TrimSpace(line)] = true
		}
	}
	loops, err := filepath.Glob("/sys/block/loop*/loop/backing_file")
	if err != nil {
		c.Fatal(err)
	}
	for _, path := range loops {
		if file := read(path); strings.Contains(file, c.tag) {
			v.tagged["loop device "+path+" of "+strings.TrimSpace(file)] = true
		}
	}
}

// seeFiles finds cgroups and files by the tag in their names, and whatever lies in the directory of a sandbox.
func (c *C) seeFiles(v view) {
	note := func(what, root string, deep bool) {
		_ = filepath.WalkDir(root, func(path string, e fs.DirEntry, err error) error {
			if err != nil || path == c.base {
				return fs.SkipDir
			}
			if path != root && strings.Contains(strings.TrimPrefix(path, c.base), c.tag) {
				v.tagged[what+path] = true
			}
			if e.IsDir() && path != root && !deep {
				return fs.SkipDir
			}
			return nil
		})
	}
	note("cgroup ", "/sys/fs/cgroup", true)
	note("state ", c.path("state"), true)
	for _, dir := range []string{"/run", "/run/netns", "/var/run/netns", "/dev/shm", "/dev/mqueue", "/var/lib", os.TempDir()} {
		note("file ", dir, false)
	}
	dirs, err := filepath.Glob(c.path("sandboxes", "*", "*"))
	if err != nil {
		c.Fatal(err)
	}
	for _, path := range dirs {
		v.tagged["in its directory: "+path] = true
	}
}
