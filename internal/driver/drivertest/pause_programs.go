package drivertest

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// background is a program that runs while the check does other things. It is ended with the check.
type background struct {
	b    *box
	pid  uint32
	seen atomic.Int64 // bytes of output so far
	over atomic.Bool

	ended sync.WaitGroup
	res   result // valid after ended
	err   error  // valid after ended
}

func (b *box) begin(p program) *background {
	b.c.Helper()
	bg := &background{b: b}
	ctx, cancel := context.WithCancel(b.c.ctx)
	up := make(chan uint32, 1)
	p.started = func(pid uint32) { up <- pid }
	p.output = func(chunk []byte) { bg.seen.Add(int64(len(chunk))) }
	bg.ended.Go(func() {
		defer close(up)
		bg.res, bg.err = b.run(ctx, p)
		bg.over.Store(true)
	})
	b.c.Cleanup(func() {
		cancel()
		bg.ended.Wait()
	})
	pid, ok := <-up
	if !ok {
		b.c.Fatalf("start a program: %v", bg.err)
	}
	bg.pid = pid
	return bg
}

// grows waits until the program has written more than n bytes.
func (bg *background) grows(what string, n int64) {
	bg.b.c.Helper()
	bg.b.c.eventually(what, func() bool { return bg.seen.Load() > n || bg.over.Load() })
	if bg.seen.Load() <= n {
		bg.ended.Wait()
		bg.b.c.Fatalf("%s: its stream has ended after %d bytes: %v, %s", what, bg.res.bytes, bg.err, bg.res.status)
	}
}

func (c *C) usage(sb driver.Sandbox) (u driver.Usage) {
	c.Helper()
	c.within("Usage", func(ctx context.Context) (err error) {
		u, err = sb.Usage(ctx)
		return err
	})
	return u
}

// checkPauseStopsAll: programs that take all the processor time that they can get take none while they are paused, and
// what they have in memory stays there.
func checkPauseStopsAll(c *C) {
	const window = 300 * time.Millisecond
	b := c.box(c.spec())
	bg := b.begin(sh("for n in 1 2 3 4; do (while :; do :; done) & done; echo up; wait"))
	bg.grows("the loops do not start", 0)
	c.eventually("loops take no processor time that is counted", func() bool { return c.usage(b.sb).CPU > 0 })
	for range 3 {
		running := c.usage(b.sb)
		c.pause(b.sb)
		before := c.usage(b.sb)
		time.Sleep(window)
		after := c.usage(b.sb)
		if took := after.CPU - before.CPU; took > window/100 { // the last slice may only be counted now
			c.Errorf("a paused sandbox took %v of processor time in %v", took, window)
		}
		if running.Memory > 0 && after.Memory < running.Memory/2 {
			c.Errorf("of %d bytes of memory %d are left while it is paused", running.Memory, after.Memory)
		}
		if after.PIDs < running.PIDs {
			c.Errorf("of %d processes %d are left while it is paused", running.PIDs, after.PIDs)
		}
		c.resume(b.sb)
		c.eventually("loops do not go on after the pause", func() bool { return c.usage(b.sb).CPU > after.CPU })
	}
}

// checkPauseKeepsMemory: a program goes on where it was, with what it knew, and its input and output are still there.
func checkPauseKeepsMemory(c *C) {
	b := c.box(c.spec())
	p := sh("n=0; while read w; do n=$((n+w)); echo $$ $n; done")
	p.open = true
	bg := b.begin(p)
	var want strings.Builder
	sum := 0
	for i := range 5 {
		sum += 1 << i
		fmt.Fprintf(&want, "%d %d\n", bg.pid, sum)
		if err := b.send(c.ctx, bg.pid, []byte(strconv.Itoa(1<<i)+"\n")); err != nil {
			c.Fatalf("after %d pauses: %v", i, err)
		}
		bg.grows("the program does not answer", int64(want.Len()-1))
		c.pause(b.sb)
		c.resume(b.sb)
	}
	if err := b.signal(bg.pid, process.Signal_SIGNAL_SIGKILL); err != nil {
		c.Error(err)
	}
	bg.ended.Wait()
	// Where processes have a namespace of their own, the number that the shell sees is the one that the agent knows.
	if bg.err != nil || bg.res.stdout != want.String() {
		c.Errorf("the program said %q, %v; want %q", bg.res.stdout, bg.err, want.String())
	}
}

// checkPauseKeepsOutput: a stream of output that somebody reads goes on over many pauses, and nothing of it is lost.
func checkPauseKeepsOutput(c *C) {
	rounds := 30
	if shortRun() {
		rounds = 8
	}
	b := c.box(c.spec())
	gate := c.Work(b.spec) + "/gate"
	bg := b.begin(sh("i=0; while [ ! -e " + gate + " ]; do i=$((i+1)); echo $i; done; echo end $i"))
	for range rounds {
		bg.grows("the output does not go on after a pause", bg.seen.Load())
		c.pause(b.sb)
		c.resume(b.sb)
	}
	b.put(gate, []byte{})
	bg.ended.Wait()
	if bg.err != nil || bg.res.code != 0 || !bg.res.exited {
		c.Fatalf("the stream of output ended after %d bytes: %v, %s", bg.res.bytes, bg.err, bg.res.status)
	}
	lines := strings.Split(strings.TrimSuffix(bg.res.stdout, "\n"), "\n")
	for i, line := range lines[:len(lines)-1] {
		if line != strconv.Itoa(i+1) {
			c.Fatalf("line %d of the output is %q", i+1, line)
		}
	}
	if last := lines[len(lines)-1]; last != fmt.Sprint("end ", len(lines)-1) {
		c.Errorf("after %d lines the output ends with %q", len(lines)-1, last)
	}
	c.Logf("%d lines over %d pauses", len(lines)-1, rounds)
}

// checkPauseClock: after a pause, programs see what time it is.
func checkPauseClock(c *C) {
	const long, slack = 1500 * time.Millisecond, 500 * time.Millisecond
	b := c.box(c.spec())
	b.must(sh("date"))
	c.pause(b.sb)
	time.Sleep(long)
	c.resume(b.sb)
	before := time.Now()
	text := strings.TrimSpace(b.must(sh("date +%s%N")).stdout)
	after := time.Now()
	ns, err := strconv.ParseInt(text, 10, 64)
	if now := time.Unix(0, ns); err != nil || now.Before(before.Add(-slack)) || now.After(after.Add(slack)) {
		c.Errorf("after a pause of %v a program sees %v, the host %v to %v", long, now, before, after)
	}
}
