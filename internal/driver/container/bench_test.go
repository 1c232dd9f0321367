package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// BenchmarkOneShot is create, run true, destroy; BenchmarkRuntime is the bare runtime running true in the same bundle.
func BenchmarkOneShot(b *testing.B) {
	for name, path := range runtimes() {
		b.Run(name, func(b *testing.B) {
			p := newPlace(b, path)
			for b.Loop() {
				spec := p.spec()
				if out := p.box(spec).sh("true"); out != "" {
					b.Fatal(out)
				}
				if err := p.Destroy(b.Context(), spec); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}

func BenchmarkRuntime(b *testing.B) {
	for name, path := range runtimes() {
		b.Run(name, func(b *testing.B) {
			if err := newPlace(b, path).bare(b, path); err != nil {
				b.Fatal(err)
			}
		})
	}
}

// bare runs true in a bundle that is as Create makes it, mounted once, with nothing but the runtime.
func (p *place) bare(b *testing.B, path string) (err error) {
	spec := p.spec()
	if path, err = exec.LookPath(path); err != nil {
		return err
	}
	base, err := p.ranges().take(spec.ID)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, p.ranges().free(spec.ID)) }()
	userns, err := userNamespace(base)
	if err != nil {
		return err
	}
	defer userns.Close()
	s, err := config(spec, "/mnt", base)
	if err != nil {
		return err
	}
	s.Process.Args = []string{"/bin/true"}
	if err := errors.Join(os.Mkdir(ownDir(spec), 0o700), writeJSON(filepath.Join(ownDir(spec), "config.json"), s),
		p.makeDisk(b.Context(), filepath.Join(ownDir(spec), diskName), 0)); err != nil {
		return err
	}
	return inOwnMounts(func() error {
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
			if err := cmd.Run(); err != nil {
				return fmt.Errorf("%w: %s", err, tail(std.out))
			}
		}
		return nil
	})
}

func writeJSON(name string, s *specs.Spec) error {
	data, err := json.Marshal(s)
	return errors.Join(err, os.WriteFile(name, data, 0o600))
}
