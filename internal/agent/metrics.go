package agent

import (
	"bufio"
	"net/http"
	"os"
	"runtime"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent/files"
)

// metrics is the answer of GET /metrics.
type metrics struct {
	Timestamp   int64   `json:"ts"`
	CPUs        int     `json:"cpu_count"`
	CPUUsed     float64 `json:"cpu_used_pct"`
	MemTotal    uint64  `json:"mem_total"`
	MemUsed     uint64  `json:"mem_used"`
	MemCache    uint64  `json:"mem_cache"`
	MemTotalMiB uint64  `json:"mem_total_mib"`
	MemUsedMiB  uint64  `json:"mem_used_mib"`
	DiskUsed    uint64  `json:"disk_used"`
	DiskTotal   uint64  `json:"disk_total"`
}

// sampler remembers the processors' times of the last look: their use is measured from one look to the next.
type sampler struct {
	mu          sync.Mutex
	busy, total uint64
	percent     float64
}

func (a *Agent) serveMetrics(w http.ResponseWriter, _ *http.Request) {
	m := a.measure()
	m.Timestamp, m.MemTotalMiB, m.MemUsedMiB = time.Now().Unix(), m.MemTotal>>20, m.MemUsed>>20
	files.JSON(w, http.StatusOK, m)
}

// machine is what is taken of the machine that the agent runs on.
func (s *sampler) machine() metrics {
	m := metrics{CPUs: runtime.NumCPU(), CPUUsed: s.sample()}
	info := keyed("/proc/meminfo")
	m.MemTotal = info["MemTotal:"] << 10
	m.MemCache = (info["Cached:"] + info["Buffers:"]) << 10
	m.MemUsed = m.MemTotal - min(m.MemTotal, info["MemFree:"]<<10+m.MemCache)
	m.narrow()
	var disk unix.Statfs_t
	if unix.Statfs("/", &disk) == nil {
		m.DiskTotal = disk.Blocks * uint64(disk.Bsize)
		m.DiskUsed = (disk.Blocks - min(disk.Blocks, disk.Bfree)) * uint64(disk.Bsize)
	}
	return m
}

// narrow replaces the host's memory by the sandbox's own where its cgroup is visible, version 2 or 1.
func (m *metrics) narrow() {
	for _, c := range []struct{ dir, limit, used, cache string }{
		{"/sys/fs/cgroup/", "memory.max", "memory.current", "file"},
		{"/sys/fs/cgroup/memory/", "memory.limit_in_bytes", "memory.usage_in_bytes", "cache"},
	} {
		limit, ok1 := number(c.dir + c.limit)
		used, ok2 := number(c.dir + c.used)
		if ok1 && ok2 && limit < m.MemTotal {
			m.MemTotal, m.MemCache = limit, keyed(c.dir + "memory.stat")[c.cache]
			m.MemUsed = used - min(used, m.MemCache)
			return
		}
	}
}

func number(path string) (uint64, bool) {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0, false
	}
	n, err := strconv.ParseUint(strings.TrimSpace(string(text)), 10, 64)
	return n, err == nil
}

// keyed reads lines of "key number".
func keyed(path string) map[string]uint64 {
	values := map[string]uint64{}
	f, err := os.Open(path)
	if err != nil {
		return values
	}
	defer f.Close() //nolint:errcheck // opened for reading
	for lines := bufio.NewScanner(f); lines.Scan(); {
		if fields := strings.Fields(lines.Text()); len(fields) >= 2 {
			values[fields[0]], _ = strconv.ParseUint(fields[1], 10, 64)
		}
	}
	return values
}

func (s *sampler) sample() float64 {
	text, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0
	}
	line, _, _ := strings.Cut(string(text), "\n")
	var busy, total uint64
	for i, field := range strings.Fields(line) {
		n, err := strconv.ParseUint(field, 10, 64)
		if err != nil || i > 8 { // the word cpu; guests' time is in user time already
			continue
		}
		total += n
		if i != 4 && i != 5 { // idle and waiting
			busy += n
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if total > s.total && busy >= s.busy {
		s.percent = 100 * float64(busy-s.busy) / float64(total-s.total)
		s.busy, s.total = busy, total
	}
	return s.percent
}
