package build

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/image"
)

// BenchmarkBuild is a build of five steps on top of the image in FIREBREAK_BENCH_IMAGE, or of a few programs of this host:
// with nothing kept, with all but the last step, and with all.
func BenchmarkBuild(b *testing.B) {
	l := newLab(b, "gvisor", nil)
	l.small()
	if path := os.Getenv("FIREBREAK_BENCH_IMAGE"); path != "" {
		must(b, l.images.Delete("small"), os.RemoveAll(filepath.Join(l.dir, "small")))
		_, err := l.images.Make(b.Context(), image.Source{Path: path}, image.MakeOptions{Name: "small"})
		must(b, err)
	}
	ctx := as(b, "acme")
	tpl, _, err := l.Request(ctx, Request{Name: "app"})
	must(b, err)
	hash := l.upload(ctx, tpl.ID, "src/", "", "src/main.sh", "echo main\n")
	spec := Spec{FromTemplate: "small", Steps: []Step{
		{Type: "ENV", Args: []string{"A", "b"}}, {Type: "WORKDIR", Args: []string{"/app"}},
		{Type: "COPY", Args: []string{"src", "."}, FilesHash: hash}, {Type: "RUN", Args: []string{"echo 1 >one"}}, {Type: "RUN", Args: []string{"echo 2 >two"}},
	}}
	cold := spec
	cold.Force = true
	for _, c := range []struct {
		name string
		spec Spec
	}{{"cold", cold}, {"warm", spec}} {
		b.Run(c.name, func(b *testing.B) {
			for b.Loop() {
				l.mustBuild(ctx, "app", c.spec)
			}
		})
	}
}
