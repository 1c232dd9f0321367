package main

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/container"
	"github.com/firebreak-dev/firebreak/internal/driver/gvisor"
	"github.com/firebreak-dev/firebreak/internal/image"
)

type bench struct {
	exe    string
	runsc  string
	dir    string
	rounds int
	sdk    string // where E2B's packages for Node are installed
}

func (b *bench) cleanup() {
	unix.Unmount(filepath.Join(b.dir, "oci"), unix.MNT_DETACH)
}

// parts are what can be measured, in the order of the report.
func (b *bench) parts() []part {
	return []part{{"oneshot", section(b.oneShot, oneShotTable)}, {"live", section(b.lives, liveTable)}, {"server", section(b.servers, serverTable)},
		{"wasm", section(b.wasm, modulesTable)}, {"v8", section(b.v8, isolatesTable)}}
}

type part struct {
	name    string
	measure func(ctx context.Context) (write func(io.Writer), err error)
}

func section[T any](measure func(context.Context) (T, error), table func(io.Writer, T)) func(context.Context) (func(io.Writer), error) {
	return func(ctx context.Context) (func(io.Writer), error) {
		measured, err := measure(ctx)
		return func(w io.Writer) { table(w, measured) }, err
	}
}

// report measures all, or only the part of one name.
func (b *bench) report(ctx context.Context, only string) (string, error) {
	var report strings.Builder
	if err := b.head(&report); err != nil {
		return "", err
	}
	done := 0
	for _, p := range b.parts() {
		if only != "" && only != p.name {
			continue
		}
		write, err := p.measure(ctx)
		if err != nil {
			return "", err
		}
		write(&report)
		done++
	}
	if done == 0 {
		return "", fmt.Errorf("there is no part %q", only)
	}
	return report.String(), nil
}

// lives measures each driver that works here. 200 creates are the budget's number.
func (b *bench) lives(ctx context.Context) ([]*live, error) {
	log := slog.New(slog.DiscardHandler)
	agent, err := agentbin.Path(ctx, filepath.Join(b.dir, "agent"), log)
	if err != nil {
		return nil, err
	}
	for _, program := range []string{b.exe, agent} {
		if err := readFromDisk(program); err != nil {
			return nil, err
		}
	}
	images, err := image.Open(filepath.Join(b.dir, "images"), log)
	if err != nil {
		return nil, err
	}
	root, err := images.Root(ctx, "host", []driver.Form{driver.FormDirectory})
	if err != nil {
		return nil, err
	}
	drivers := map[string]driver.Driver{
		"gvisor":    gvisor.New(gvisor.Config{StateDir: filepath.Join(b.dir, "gvisor"), Agent: agent, Exe: b.exe, Log: log}),
		"container": container.New(container.Config{StateDir: filepath.Join(b.dir, "container"), Agent: agent, Log: log}),
	}
	var all []*live
	for _, name := range []string{"gvisor", "container"} {
		d := drivers[name]
		info, err := d.Probe(ctx)
		if err != nil {
			return nil, err
		}
		if err := info.Err(); err != nil {
			all = append(all, &live{driver: name, problem: err.Error()})
			continue
		}
		fmt.Fprintf(os.Stderr, "live %s\n", name)
		l, err := b.measure(ctx, name, d, root)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", name, err)
		}
		if err := b.flood(ctx, l, d, root, 200, 20); err != nil {
			return nil, fmt.Errorf("%s: 200 creates: %w", name, err)
		}
		all = append(all, l)
	}
	return all, nil
}

func (b *bench) head(w io.Writer) error {
	var uts unix.Utsname
	_ = unix.Uname(&uts)
	fmt.Fprintf(w, "# Benchmarks\n\n`make bench` wrote this on %s: Linux %s, %d processors, %s. The machine is shared, so read the ratios\n"+
		"rather than the milliseconds: contenders ran in turn, and a ratio and its verdict are the median over rounds of one pair. The state of all of them lies in memory.\n",
		time.Now().UTC().Format(time.DateOnly), unix.ByteSliceToString(uts.Release[:]), runtime.NumCPU(), runtime.Version())
	const pages, rest = 2000, 100 * time.Millisecond
	took, err := touches(pages, rest)
	if err != nil {
		return err
	}
	fmt.Fprintf(w, "To touch %d pages of memory took %s ms here when they had been touched just before, and %s ms when they had not been for %d ms: what is\n"+
		"measured after a rest pays for that, too.\n\n", pages, milliseconds(took.busy.median()), milliseconds(took.rested.median()), rest.Milliseconds())
	return nil
}

// held names the peer that each of ours is held to, and the budget: factor times the peer plus extra.
var held = map[string]struct {
	peer   string
	factor float64
	extra  time.Duration
}{
	"firebreak gvisor":    {"runsc do", 1.0, 0},
	"firebreak container": {"crun run", 1.3, 15 * time.Millisecond},
}

func oneShotTable(w io.Writer, shots []*contender) {
	fmt.Fprintf(w, "## One shot: a fresh sandbox, `true`, and everything gone again, as a whole process\n\n"+
		"| what | p50 ms | p90 ms | beside its peer | budget | kept |\n|---|---|---|---|---|---|\n")
	byName := map[string]*contender{}
	for _, c := range shots {
		byName[c.name] = c
	}
	for _, c := range shots {
		if c.skip != "" {
			fmt.Fprintf(w, "| %s | %s | | | | |\n", c.name, c.skip)
			continue
		}
		beside, budget, kept := "", "", ""
		if h, ok := held[c.name]; ok && byName[h.peer].skip == "" {
			peer := byName[h.peer].took
			limit := time.Duration(h.factor*float64(peer.median())) + h.extra
			beside = fmt.Sprintf("%.2f × %s", ratio(c.took, peer), h.peer)
			budget = fmt.Sprintf("≤ %.1f × + %d ms = %s ms", h.factor, h.extra.Milliseconds(), milliseconds(limit))
			kept = verdict(excess(c.took, peer, h.factor) <= h.extra)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s | %s |\n", c.name, milliseconds(c.took.median()),
			milliseconds(c.took.quantile(0.9)), beside, budget, kept)
	}
}

func verdict(kept bool) string {
	if kept {
		return "yes"
	}
	return "**no**"
}

func liveTable(w io.Writer, lives []*live) {
	idleBudget := map[string]int64{"gvisor": 25 << 20, "container": 6 << 20}
	fmt.Fprintf(w, "\n## Live sandboxes\n\n| what | driver | measured | budget | kept |\n|---|---|---|---|---|\n")
	for _, l := range lives {
		if l.problem != "" {
			fmt.Fprintf(w, "| not measured | %s | %s | | |\n", l.driver, l.problem)
			continue
		}
		over := l.trip.median() - l.bare
		fmt.Fprintf(w, "| `true` through the API until its end, p50 (p99) | %s | %s (%s) ms | | |\n",
			l.driver, milliseconds(l.trip.median()), milliseconds(l.trip.quantile(0.99)))
		fmt.Fprintf(w, "| fork, exec and wait of `true` by a program inside, p50 | %s | %s ms | | |\n", l.driver, milliseconds(l.bare))
		fmt.Fprintf(w, "| the difference: what the API adds | %s | %s ms | ≤ 1 ms | %s |\n", l.driver, milliseconds(over),
			verdict(over <= time.Millisecond))
		fmt.Fprintf(w, "| PSS of an idle sandbox, all its processes | %s | %.1f MiB | ≤ %d MiB | %s |\n", l.driver,
			float64(l.idle)/(1<<20), idleBudget[l.driver]>>20, verdict(l.idle <= idleBudget[l.driver]))
		left := "nothing left behind"
		if len(l.left) > 0 {
			left = strings.Join(l.left, "; ")
		}
		fmt.Fprintf(w, "| 200 creates, 20 at a time: p50 (p99), all in all | %s | %s (%s) ms, %.1f s, %s | all succeed, nothing left | %s |\n",
			l.driver, milliseconds(l.creates.median()), milliseconds(l.creates.quantile(0.99)), l.total.Seconds(), left, verdict(len(l.left) == 0))
	}
}
