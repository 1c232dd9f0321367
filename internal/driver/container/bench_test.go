package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"testing"
	"time"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/firebreak-dev/firebreak/internal/driver/drivertest"
)

// BenchmarkOneShot alternates between create, run true, destroy and the bare runtime running true in the same bundle, so
// that both meet the same noise. The budget is 1.3 times the runtime and 15 ms.
func BenchmarkOneShot(b *testing.B) {
	for name, path := range runtimes() {
		b.Run(name, func(b *testing.B) {
			p := newPlace(b, path)
			var ours []time.Duration
			bare, err := p.bare(b, path, func() {
				begin := time.Now()
				p.oneShot(b)
				ours = append(ours, time.Since(begin))
			})
			if err != nil {
				b.Fatal(err)
			}
			report := func(what string, of time.Duration) { b.ReportMetric(float64(of.Microseconds())/1000, what) }
			report("ms/ours", median(ours))
			report("ms/runtime", median(bare))
			report("ms/budget", median(bare)*13/10+15*time.Millisecond)
		})
	}
}

// BenchmarkPause pauses and resumes a container with each runtime, until its agent takes a connection again.
func BenchmarkPause(b *testing.B) {
	for name, path := range runtimes() {
		b.Run(name, func(b *testing.B) {
			p := newPlace(b, path)
			drivertest.BenchmarkPause(b, p.box(p.spec()).Sandbox)
		})
	}
}

func median(d []time.Duration) time.Duration {
	slices.Sort(d)
	return d[len(d)/2]
}

func (p *place) oneShot(b *testing.B) {
	spec := p.spec()
	if out := p.box(spec).sh("true"); out != "" {
		b.Fatal(out)
	}
	if err := p.Destroy(b.Context(), spec); err != nil {
		b.Fatal(err)
	}
}

// bare runs true in a bundle that is as Create makes it, mounted once, with nothing but the runtime, and other after
// each run.
func (p *place) bare(b *testing.B, path string, other func()) (took []time.Duration, err error) {
	spec := p.spec()
	if path, err = exec.LookPath(path); err != nil {
		return nil, err
	}
	base, err := p.ranges().take(spec.ID)
	if err != nil {
		return nil, err
	}
	defer func() { err = errors.Join(err, p.ranges().free(spec.ID)) }()
	userns, err := userNamespace(base)
	if err != nil {
		return nil, err
	}
	defer userns.Close()
	s, err := config(spec, "/mnt", base)
	if err != nil {
		return nil, err
	}
	s.Process.Args = []string{"/bin/true"}
	if err := errors.Join(os.Mkdir(ownDir(spec), 0o700), writeJSON(filepath.Join(ownDir(spec), "config.json"), s),
		p.makeDisk(b.Context(), filepath.Join(ownDir(spec), diskName), 0)); err != nil {
		return nil, err
	}
	err = inOwnMounts(func() error {
		std, err := p.stage(spec, "/mnt", base, userns)
		if err != nil {
			return err
		}
		defer std.close()
		if err := hideUnified(); err != nil {
			return err
		}
		for b.Loop() {
			cmd := exec.Command(path, "--root", filepath.Join(p.base, "bare"), "run", "--bundle", ownDir(spec), string(spec.ID))
			cmd.Stdin, cmd.Stdout, cmd.Stderr = std.in, std.out, std.out
			begin := time.Now()
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%w: %s", err, tail(std.out))
			}
			took = append(took, time.Since(begin))
			done := make(chan struct{})
			go func() { // on a thread that sees the host as it is
				defer close(done)
				other()
			}()
			<-done
		}
		return nil
	})
	return took, err
}

func writeJSON(name string, s *specs.Spec) error {
	data, err := json.Marshal(s)
	return errors.Join(err, os.WriteFile(name, data, 0o600))
}
