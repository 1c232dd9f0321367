package drivertest

import (
	"context"
	"net/http"
	"os"
	"path"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func limitChecks() []check {
	const runs = driver.CapProcesses
	return []check{
		{name: "limit-memory", needs: runs | driver.CapLimitMemory, run: checkLimitMemory},
		{name: "limit-processes", needs: runs | driver.CapLimitPIDs, run: checkLimitPIDs},
		{name: "limit-disk", needs: runs | driver.CapLimitDisk, run: checkLimitDisk},
		{name: "limit-cpu", needs: runs | driver.CapLimitCPU, run: checkLimitCPU},
		{name: "descriptor-bomb", needs: runs, run: checkDescriptorBomb},
		{name: "much-output", needs: runs, run: checkMuchOutput},
		{name: "stubborn-program", needs: runs, run: checkStubborn},
		{name: "zombies-reaped", needs: runs | driver.CapPrivatePIDs, run: checkZombies},
		{name: "orphans-destroyed", needs: runs, run: checkOrphans},
		{name: "fork-bomb-destroyed", needs: runs, run: checkForkBombDestroyed},
		{name: "locked-leftovers", needs: runs, run: checkLockedLeftovers},
	}
}

// count is what the bombs of package inside report.
type count struct {
	Made int64  `json:"made"`
	Err  string `json:"err"`
}

const mib = 1 << 20

// besides runs do while a neighbour is asked again and again; it must always answer, also once more afterwards.
func (c *C) besides(do func()) {
	c.Helper()
	neighbour := c.create(c.spec())
	c.answers(neighbour)
	var (
		all   sync.WaitGroup
		asked atomic.Int64
	)
	stop := make(chan struct{})
	all.Go(func() {
		for {
			select {
			case <-stop:
				return
			case <-time.After(20 * time.Millisecond):
			}
			status, err := c.call(c.ctx, neighbour, http.MethodGet, "/health", "", "")
			if err != nil || status != http.StatusNoContent {
				c.Errorf("the neighbour suffers: status %d, %v", status, err)
				return
			}
			asked.Add(1)
		}
	})
	// Deferred, because do may end this goroutine by failing the check.
	defer func() {
		close(stop)
		all.Wait()
		c.Logf("the neighbour answered %d times meanwhile", asked.Load())
	}()
	do()
	c.answers(neighbour)
}

// checkLimitMemory: whoever takes more than the limit is killed, and the reason can be seen.
func checkLimitMemory(c *C) {
	c.besides(func() {
		spec := c.spec()
		spec.Limits.Memory = 160 * mib
		b := c.box(spec)
		res, err := b.run(c.ctx, b.inside("memory", strconv.Itoa(640*mib)))
		if err == nil && (res.exited && res.code == 0 || strings.Contains(res.stdout, "survived")) {
			c.Fatalf("a program took 640 MiB within a limit of 160: %+v", res)
		}
		u, usageErr := b.sb.Usage(c.ctx)
		if usageErr == nil && u.OOMKills > 0 {
			c.Logf("killed at the limit, and counted: %+v", u)
			if u.MemoryPeak > 200*mib {
				c.Errorf("the peak is %d MiB with a limit of 160", u.MemoryPeak/mib)
			}
			b.must(program{cmd: "/bin/true"})
			return
		}
		// The sandbox as a whole may be what the kernel kills.
		ctx, cancel := context.WithTimeout(c.ctx, c.Patience/4)
		defer cancel()
		exit, err := b.sb.Wait(ctx)
		if err != nil || exit.Reason != firebreak.EndOutOfMemory {
			c.Errorf("nothing tells that memory ran out: the program %+v, usage %+v %v, exit %+v %v", res, u, usageErr, exit, err)
		}
	})
}

// checkLimitPIDs: a fork bomb stops at the limit, and the sandbox can be used again.
func checkLimitPIDs(c *C) {
	c.besides(func() {
		spec := c.spec()
		spec.Limits.PIDs = 100
		b := c.box(spec)
		p := b.inside("forks", "400")
		var got count
		b.report(p, &got)
		if got.Made >= 400 || got.Err == "" {
			c.Errorf("a fork bomb made %d processes within a limit of 100: %q", got.Made, got.Err)
		}
		b.must(program{cmd: "/bin/true"})
		u, err := b.sb.Usage(c.ctx)
		if err != nil {
			c.Fatalf("Usage: %v", err)
		}
		if c.info.Boundary == firebreak.BoundarySharedKernel && u.PIDsDenied == 0 {
			c.Errorf("nothing tells that processes ran out: %+v", u)
		}
	})
}

// checkLimitDisk: nowhere in the sandbox can more be written than the limit, and its directory stays within it.
func checkLimitDisk(c *C) {
	const limit, bomb = 48 * mib, 128 * mib
	c.besides(func() {
		spec := c.spec()
		spec.Limits.Disk = limit
		if c.info.Caps.Has(driver.CapLimitMemory) {
			spec.Limits.Memory = 200 * mib // for what is written to memory: /dev/shm and the like
		}
		b := c.box(spec)
		for _, user := range c.accounts() {
			wrote := false
			for _, dir := range []string{c.Work(spec), "/tmp", "/var/tmp", "/home/" + c.User, "/usr/local", "/"} {
				p := b.inside("disk", path.Join(dir, "firebreak-filler"), strconv.Itoa(bomb))
				p.user = user
				var got count
				b.report(p, &got)
				wrote = wrote || got.Made > 0
				if got.Err == "" || got.Made > 2*limit {
					c.Errorf("as %q %d MiB were written to %s within a limit of 48: %q", user, got.Made/mib, dir, got.Err)
				}
			}
			if !wrote {
				c.Errorf("as %q nothing could be written anywhere", user)
			}
		}
		b.must(program{cmd: "/bin/true"})
		if u, err := b.sb.Usage(c.ctx); err != nil || u.OOMKills > 0 {
			c.Errorf("after the disk was full: %+v, %v", u, err)
		}
	})
}

// checkLimitCPU: several busy threads together get no more than their share.
func checkLimitCPU(c *C) {
	c.besides(func() {
		spec := c.spec()
		spec.Limits.CPUs = 0.4
		b := c.box(spec)
		p := b.inside("spin", "3000")
		begin := time.Now()
		before, err := b.sb.Usage(c.ctx)
		if err != nil {
			c.Fatalf("Usage: %v", err)
		}
		var got struct {
			WallMS int64 `json:"wall_ms"`
			CPUMS  int64 `json:"cpu_ms"`
		}
		b.report(p, &got)
		after, err := b.sb.Usage(c.ctx)
		if err != nil {
			c.Fatalf("Usage: %v", err)
		}
		took, wall := after.CPU-before.CPU, time.Since(begin)
		c.Logf("%v of processor time in %v; the program says %d ms in %d ms", took, wall, got.CPUMS, got.WallMS)
		if took <= 0 {
			c.Error("Usage counts no processor time")
		}
		if float64(took) > 0.75*float64(wall) {
			c.Errorf("%v of processor time in %v, with a limit of 0.4", took, wall)
		}
	})
}

// checkDescriptorBomb: the sandbox's descriptors are its own trouble.
func checkDescriptorBomb(c *C) {
	c.besides(func() {
		b := c.box(c.spec())
		var got count
		b.report(b.inside("fds", "150000"), &got)
		if got.Made == 0 {
			c.Errorf("no descriptor could be opened: %s", got.Err)
		}
		c.Logf("%d descriptors: %s", got.Made, got.Err)
		f, err := os.Open("/dev/null")
		if err != nil {
			c.Fatalf("the host has run out of descriptors: %v", err)
		}
		_ = f.Close()
		b.must(program{cmd: "/bin/true"})
	})
}

// checkMuchOutput: every byte of a gigabyte comes through, in the memory of a few.
func checkMuchOutput(c *C) {
	want := int64(1024 * mib)
	if shortRun() {
		want = 64 * mib
	}
	c.besides(func() {
		b := c.box(c.spec())
		p := b.inside("spew", strconv.FormatInt(want, 10))
		p.count = true
		begin := time.Now()
		res := b.must(p)
		if res.bytes != want {
			c.Errorf("%d bytes came through, want %d", res.bytes, want)
		}
		c.Logf("%d MiB in %v", want/mib, time.Since(begin).Round(time.Millisecond))
		b.must(program{cmd: "/bin/true"})
	})
}

// checkStubborn: a program that ignores every signal but SIGKILL goes with that, or with its sandbox.
func checkStubborn(c *C) {
	spec := c.spec()
	b := c.box(spec)
	p := b.inside("stubborn")
	var pid uint32
	p.started = func(got uint32) { pid = got }
	p.output = func([]byte) { // it is ready
		if err := b.signal(pid, process.Signal_SIGNAL_SIGTERM); err != nil {
			c.Errorf("SIGTERM: %v", err)
		}
		if infos := b.running(); len(infos) != 1 {
			c.Errorf("after SIGTERM the programs are %v", infos)
		}
		if err := b.signal(pid, process.Signal_SIGNAL_SIGKILL); err != nil {
			c.Errorf("SIGKILL: %v", err)
		}
	}
	if res, err := b.run(c.ctx, p); err != nil || res.exited || res.status != "signal: killed" {
		c.Errorf("it ended with %+v, %v", res, err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	p.output = func([]byte) { cancel() }
	_, _ = b.run(ctx, p) // left running
	c.destroy(spec)
	c.gone(spec, b.sb)
}

// checkZombies: children that nobody waited for are waited for by the agent.
func checkZombies(c *C) {
	b := c.box(c.spec())
	var got count
	b.report(b.inside("zombies", "30"), &got)
	if got.Made != 30 {
		c.Fatalf("made %d zombies: %s", got.Made, got.Err)
	}
	c.eventually("zombies are left", func() bool {
		var f facts
		b.report(b.inside("facts"), &f)
		return f.Zombies == 0
	})
}

// checkOrphans: programs that left their session, their parent and their environment go with their sandbox. That they
// are gone is told by the search for what the check has left.
func checkOrphans(c *C) {
	spec := c.spec()
	b := c.box(spec)
	if out := b.must(b.inside("orphans", "5")).stdout; strings.Count(out, "\n") != 5 {
		c.Fatalf("the orphans are %q", out)
	}
	c.destroy(spec)
	c.gone(spec, b.sb)
}

// checkForkBombDestroyed: Destroy gets ahead of a program that makes processes as fast as it can.
func checkForkBombDestroyed(c *C) {
	spec := c.spec()
	if c.info.Caps.Has(driver.CapLimitPIDs) {
		spec.Limits.PIDs = 150
	}
	b := c.box(spec)
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	// Each link of the chain starts the next and ends, so there are always few, and never the same. It is bounded.
	p := sh(`echo begun; i=$1; hop() { [ $i -gt 0 ] || exit; i=$((i-1)); (hop) & }; hop; wait`)
	p.args = append(p.args, "hop", "20000")
	p.output = func([]byte) { cancel() }
	_, _ = b.run(ctx, p) // left running
	c.destroy(spec)
	c.gone(spec, b.sb)
}

// checkLockedLeftovers: directories that their owner may not write are cleared as well.
func checkLockedLeftovers(c *C) {
	spec := c.spec()
	b := c.box(spec)
	dir := path.Join(c.Work(spec), "locked")
	b.must(sh("mkdir -p " + dir + "/a/b && echo x >" + dir + "/a/b/f && chmod 0 " + dir + "/a/b " + dir + "/a && chmod 555 " + dir))
	c.destroy(spec)
	c.gone(spec, b.sb)
}
