package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/container"
	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
	"github.com/firebreak-dev/firebreak/internal/driver/v8"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

// isolates is what was measured of V8.
type isolates struct {
	raw   pair // workerd alone: an isolate made, and 1 + 1 in it
	walls []isolated
}

// isolated is the driver, with its processes behind one wall.
type isolated struct {
	wall    string
	program pair  // js -e in a sandbox that is there: a fresh isolate, and its run
	whole   pair  // a sandbox made, the same in it, the sandbox destroyed
	idle    int64 // bytes of workerd for each of many sandboxes with a context; 0: not measured
	created time.Duration
	many    int
}

func (b *bench) v8(ctx context.Context) (*isolates, error) {
	fmt.Fprintln(os.Stderr, "v8")
	log := slog.New(slog.DiscardHandler)
	agent, err := agentbin.Path(ctx, filepath.Join(b.dir, "agent"), log)
	if err != nil {
		return nil, err
	}
	m := &isolates{}
	for _, wall := range []string{"gvisor", "container"} {
		state := filepath.Join(b.dir, "v8", wall)
		var inner driver.Driver = gvisor.New(gvisor.Config{StateDir: filepath.Join(state, wall), Agent: agent, Exe: b.exe, Log: log})
		if wall == "container" {
			inner = container.New(container.Config{StateDir: filepath.Join(state, wall), Agent: agent, Log: log})
		}
		d := v8.New(v8.Config{StateDir: state, Log: log, Workerd: b.workerd, Isolates: 1000,
			Inner: func(context.Context) ([]driver.Driver, error) { return []driver.Driver{inner}, nil }})
		one, err := b.isolated(ctx, d, wall)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", wall, err)
		}
		m.walls = append(m.walls, one)
	}
	m.raw, err = b.rawWorkerd(ctx)
	return m, err
}

// workerd is where scripts/install-test-tools.sh puts it, or on PATH.
func (b *bench) workerd() string {
	if at := filepath.Join(filepath.Dir(b.sdk), "..", "bin", "workerd"); exec.Command(at, "--version").Run() == nil {
		return at
	}
	at, err := exec.LookPath("workerd")
	if err != nil {
		return ""
	}
	return at
}

const (
	isolateRounds = 100
	isolateRest   = 150 * time.Millisecond // two isolates are made ahead meanwhile
)

func (b *bench) isolated(ctx context.Context, d *v8.Driver, wall string) (isolated, error) {
	one := isolated{wall: wall, many: 100}
	keeper, err := b.startFor(ctx, d, "keeper"+wall)
	if err != nil {
		return one, err
	}
	defer b.stop(context.WithoutCancel(ctx), d, keeper)
	run := func(x *box) error {
		_, err := command(ctx, x.guest, "js", "-e", "console.log(1 + 1)")
		return err
	}
	if one.program, err = pairs(isolateRounds, isolateRest, func() error { return run(keeper) }); err != nil {
		return one, err
	}
	made := 0
	one.whole, err = pairs(isolateRounds, isolateRest, func() error {
		made++
		x, err := b.startFor(ctx, d, fmt.Sprintf("whole%s%d", wall, made))
		if err == nil {
			err = run(x)
		}
		if err == nil {
			err = b.stop(ctx, d, x)
		}
		return err
	})
	if err != nil {
		return one, err
	}
	return one, b.isolateCrowd(ctx, d, &one)
}

// isolateCrowd makes many sandboxes with a code context each, one after another, and weighs workerd.
func (b *bench) isolateCrowd(ctx context.Context, d *v8.Driver, one *isolated) error {
	before, begin := workerdMemory(), time.Now()
	var all []*box
	for i := range one.many {
		x, err := b.startFor(ctx, d, fmt.Sprintf("crowd%s%d", one.wall, i))
		if err == nil {
			err = x.guest.Warm(ctx, "javascript")
		}
		if err != nil {
			return err
		}
		all = append(all, x)
	}
	one.created = time.Since(begin)
	if before > 0 { // in gVisor nobody sees it
		one.idle = (workerdMemory() - before) / int64(one.many)
	}
	for _, x := range all {
		if err := b.stop(ctx, d, x); err != nil {
			return err
		}
	}
	return nil
}

// startFor makes a sandbox of the one tenant of this benchmark.
func (b *bench) startFor(ctx context.Context, d driver.Driver, id string) (*box, error) {
	spec := driver.Spec{ID: driver.ID(id), Dir: filepath.Join(b.dir, "sandboxes", id), Tenant: "bench"}
	if err := os.MkdirAll(spec.Dir, 0o700); err != nil {
		return nil, err
	}
	sb, err := d.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	x := &box{spec: spec, guest: guest.To(sb, "0123456789abcdef")}
	return x, x.guest.Init(ctx, guest.Config{})
}

// workerdMemory is what the processes of workerd, which are called after their loader, hold in memory.
func workerdMemory() (sum int64) {
	names, err := filepath.Glob("/proc/[0-9]*/comm")
	if err != nil {
		return 0
	}
	for _, name := range names {
		comm, err := os.ReadFile(name)
		if err != nil || strings.TrimSpace(string(comm)) != "ld.so" {
			continue
		}
		text, err := os.ReadFile(filepath.Join(filepath.Dir(name), "statm"))
		if fields := strings.Fields(string(text)); err == nil && len(fields) > 1 {
			pages, _ := strconv.ParseInt(fields[1], 10, 64)
			sum += pages * int64(os.Getpagesize())
		}
	}
	return sum
}

// rawWorkerd measures the same program with the same scripts on the host, without a wall and without us.
func (b *bench) rawWorkerd(ctx context.Context) (took pair, err error) {
	found, err := filepath.Glob(filepath.Join(b.dir, "v8", "container", ".engine-*", "engine"))
	if err != nil || len(found) == 0 {
		return took, fmt.Errorf("the driver has made no engine: %w", err)
	}
	at := func(name string) string { return filepath.Join(found[0], name) }
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	cmd := exec.CommandContext(ctx, at("ld.so"), "--library-path", at("lib"), at("workerd"), "serve", "--experimental", at("config.capnp"), "config")
	if err := cmd.Start(); err != nil {
		return took, err
	}
	defer cmd.Wait() //nolint:errcheck // it is killed
	defer cancel()
	for begin := time.Now(); askWorkerd(ctx, fmt.Sprintf("raw%d", time.Now().UnixNano())) != nil; time.Sleep(50 * time.Millisecond) {
		if time.Since(begin) > 10*time.Second {
			return took, errors.New("workerd does not start")
		}
	}
	return pairs(isolateRounds, isolateRest, func() error { return askWorkerd(ctx, fmt.Sprintf("raw%d", time.Now().UnixNano())) })
}

func askWorkerd(ctx context.Context, name string) error {
	for _, step := range [][2]string{{"new", ""}, {"run", `{"code":"1 + 1","env":{}}`}} {
		req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://127.0.0.1:8787/"+name+"/"+step[0], bytes.NewReader([]byte(step[1])))
		if err != nil {
			return err
		}
		res, err := http.DefaultClient.Do(req)
		if err != nil {
			return err
		}
		text, err := io.ReadAll(res.Body)
		_ = res.Body.Close()
		if err != nil || res.StatusCode > 299 || step[0] == "run" && !bytes.Contains(text, []byte(`"2"`)) {
			return fmt.Errorf("workerd answered %d: %q, %v", res.StatusCode, text, err)
		}
	}
	return nil
}

func isolatesTable(w io.Writer, m *isolates) {
	fmt.Fprintf(w, "\n## V8\n\n| what | after %d ms of rest: p50 ms (p99), beside workerd | at once after another: p50 ms (p99), beside workerd | budget | kept |\n"+
		"|---|---|---|---|---|\n", isolateRest.Milliseconds())
	cell := func(s, raw sample) string {
		return fmt.Sprintf("%s (%s), %.2f ×", milliseconds(s.median()), milliseconds(s.quantile(0.99)), float64(s.median())/float64(raw.median()))
	}
	row := func(what string, p pair, budget, kept string) {
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", what, cell(p.rested, m.raw.rested), cell(p.busy, m.raw.busy), budget, kept)
	}
	row("workerd alone, without a wall: an isolate made, and 1 + 1 in it", m.raw, "", "")
	const limit = 5 * time.Millisecond
	for _, one := range m.walls {
		row("`js -e` in a sandbox that is there, behind "+one.wall+": a fresh isolate (made ahead) and its run", one.program, "≤ 5 ms p50",
			verdict(one.program.rested.median() <= limit)+", "+verdict(one.program.busy.median() <= limit))
		row("a sandbox made, the same in it, the sandbox destroyed, behind "+one.wall, one.whole, "", "")
	}
	fmt.Fprintln(w)
	for _, one := range m.walls {
		fmt.Fprintf(w, "Behind %s, %d sandboxes of one tenant with a code context each are made at %.0f per second, one after another", one.wall, one.many, float64(one.many)/one.created.Seconds())
		if one.idle > 0 {
			fmt.Fprintf(w, "; each takes %.1f MiB of workerd", float64(one.idle)/(1<<20))
		}
		fmt.Fprintln(w, ".")
	}
}
