package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// cpuPeriod is the time over which processor time is shared out.
const cpuPeriod = 100 * time.Millisecond

// leastQuota is the smallest share that kernels accept.
const leastQuota = time.Millisecond

// limit sets what limits ask for. A limit without its controller is an error: Caps has told so.
func (g *Cgroup) limit(l firebreak.Limits) error {
	var errs []error
	if l.Memory > 0 {
		errs = append(errs, g.limitMemory(strconv.FormatInt(l.Memory, 10)))
	}
	if l.PIDs > 0 {
		errs = append(errs, g.set("pids", "pids.max", "pids.max", strconv.FormatInt(l.PIDs, 10)))
	}
	if l.CPUs > 0 {
		quota := max(time.Duration(l.CPUs*float64(cpuPeriod)), leastQuota).Microseconds()
		period := cpuPeriod.Microseconds()
		if dir := g.v1["cpu"]; dir != "" {
			errs = append(errs, writeFile(dir, "cpu.cfs_period_us", fmt.Sprint(period)),
				writeFile(dir, "cpu.cfs_quota_us", fmt.Sprint(quota)))
		} else {
			errs = append(errs, g.set("cpu", "", "cpu.max", fmt.Sprintf("%d %d", quota, period)))
		}
	}
	return errors.Join(errs...)
}

// limitMemory leaves no way out into swap; where the kernel can, it ends all processes of the sandbox at the limit, since
// the rest of one is of no use.
func (g *Cgroup) limitMemory(bytes string) error {
	if dir := g.v1["memory"]; dir != "" {
		err := writeFile(dir, "memory.limit_in_bytes", bytes)
		return errors.Join(err, ignoreMissing(writeFile(dir, "memory.memsw.limit_in_bytes", bytes)))
	}
	err := g.set("memory", "", "memory.max", bytes)
	return errors.Join(err, ignoreMissing(writeFile(g.v2, "memory.swap.max", "0")),
		ignoreMissing(writeFile(g.v2, "memory.oom.group", "1")))
}

// set writes name1 in the controller's version 1 hierarchy, else name2 in version 2.
func (g *Cgroup) set(controller, name1, name2, text string) error {
	if dir := g.v1[controller]; dir != "" {
		return writeFile(dir, name1, text)
	}
	if g.v2 == "" {
		return fmt.Errorf("no cgroup controller %s: %w", controller, errors.ErrUnsupported)
	}
	return writeFile(g.v2, name2, text)
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// Usage reads what the processes of g have taken so far. What this host cannot tell is zero.
func (g *Cgroup) Usage() driver.Usage {
	var u driver.Usage
	if dir := g.v1["memory"]; dir != "" {
		u.Memory = readNumber(dir, "memory.usage_in_bytes", "")
		u.MemoryPeak = readNumber(dir, "memory.max_usage_in_bytes", "")
		u.OOMKills = readNumber(dir, "memory.oom_control", "oom_kill")
	} else if g.v2 != "" {
		u.Memory = readNumber(g.v2, "memory.current", "")
		u.MemoryPeak = readNumber(g.v2, "memory.peak", "")
		u.OOMKills = readNumber(g.v2, "memory.events", "oom_kill")
	}
	if dir := g.v1["cpuacct"]; dir != "" {
		u.CPU = time.Duration(readNumber(dir, "cpuacct.usage", ""))
	} else if g.v2 != "" {
		u.CPU = time.Duration(readNumber(g.v2, "cpu.stat", "usage_usec")) * time.Microsecond
	}
	dir := g.v1["pids"]
	if dir == "" {
		dir = g.v2
	}
	if dir != "" {
		u.PIDs = readNumber(dir, "pids.current", "")
		u.PIDsDenied = readNumber(dir, "pids.events", "max")
	}
	return u
}

// readNumber reads the number in a cgroup's file, or the one after key in a file of keys and numbers; 0 if there is none.
func readNumber(dir, name, key string) int64 {
	text, err := os.ReadFile(filepath.Join(dir, name))
	if err != nil {
		return 0
	}
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if key == "" && len(fields) == 1 || len(fields) == 2 && fields[0] == key {
			n, _ := strconv.ParseInt(fields[len(fields)-1], 10, 64) // 0 for a word such as max
			return n
		}
	}
	return 0
}
