package image

import (
	"archive/tar"
	"bytes"
	"errors"
	"io"
	"io/fs"
	"os"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// exportOf is what a sandbox would send: files with data, and those that are said to be the template's, with their size.
func exportOf(t testing.TB, data, same map[string]string) io.Reader {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for name, text := range data {
		must(t, w.WriteHeader(&tar.Header{Name: name, Size: int64(len(text)), Mode: 0o600, ModTime: time.Unix(2e9, 0)}))
		_, err := io.WriteString(w, text)
		must(t, err)
	}
	for name, size := range same {
		must(t, w.WriteHeader(&tar.Header{Name: name, Mode: 0o640, Uid: 7, ModTime: time.Unix(1e9, 0),
			PAXRecords: map[string]string{"FIREBREAK.same": size}}))
	}
	must(t, w.Close())
	return &b
}

func readIn(t testing.TB, s *Store, name, path string) string {
	t.Helper()
	root, err := s.Root(t.Context(), name, []driver.Form{driver.FormDirectory})
	must(t, err)
	data, err := os.ReadFile(root.Path + path)
	must(t, err)
	return string(data)
}

func TestExport(t *testing.T) {
	s := openStore(t, t.TempDir())
	make1(t, s, Source{Path: smallTree(t, "one")}, MakeOptions{Name: "base"})
	layer := LayerName()
	made := make1(t, s, Source{Export: Export{exportOf(t, map[string]string{"new": "text"}, map[string]string{"etc/motd": "3"}), "base"}},
		MakeOptions{Name: layer, Edit: func(tpl *Template) { tpl.Start, tpl.Envs = "serve", map[string]string{"A": "b"} }})
	if made.Name != layer || made.Start != "serve" {
		t.Errorf("made %+v", made)
	}
	if got := readIn(t, s, layer, "/etc/motd") + readIn(t, s, layer, "/new"); got != "onetext" {
		t.Errorf("it holds %q", got)
	}
	root, err := s.Root(t.Context(), layer, []driver.Form{driver.FormDirectory})
	must(t, err)
	if info, err := os.Stat(root.Path + "/etc/motd"); err != nil || info.Mode().Perm() != 0o640 {
		t.Errorf("the mode is the template's: %v, %v", info.Mode(), err)
	}
	make1(t, s, Source{Export: Export{Archive: exportOf(t, map[string]string{"only": "this"}, nil)}}, MakeOptions{Name: "whole"})
	if got := readIn(t, s, "whole", "/only"); got != "this" {
		t.Errorf("without a base: %q", got)
	}
}

func TestLyingExports(t *testing.T) {
	s := openStore(t, t.TempDir())
	make1(t, s, Source{Path: smallTree(t, "one")}, MakeOptions{Name: "base"})
	for about, same := range map[string]map[string]string{
		"a file that is not there": {"etc/other": "3"}, "a size that it has not": {"etc/motd": "4"}, "no size": {"etc/motd": ""},
		"a directory": {"etc": "0"}, "a link": {"motd": "8"}, "something below a file": {"etc/motd/x": "3"}, "the root": {"x/..": "3"},
	} {
		_, err := s.Make(t.Context(), Source{Export: Export{exportOf(t, map[string]string{"new": "text"}, same), "base"}}, MakeOptions{Name: "lie"})
		if kind := firebreak.KindOf(err); err == nil || kind != firebreak.KindState && kind != firebreak.KindInvalid {
			t.Errorf("%s: %v", about, err)
		}
	}
	half := io.LimitReader(exportOf(t, map[string]string{"new": "text"}, nil), 514)
	if _, err := s.Make(t.Context(), Source{Export: Export{Archive: half}}, MakeOptions{Name: "lie"}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("half an export: %v", err)
	}
	if _, err := s.Make(t.Context(), Source{Export: Export{exportOf(t, nil, nil), "ghost"}}, MakeOptions{Name: "lie"}); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of a template that is not there: %v", err)
	}
	noWorkLeft(t, s)
	if _, err := s.Get("lie"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("something came of it: %v", err)
	}
}

func TestLayersAreTheirMakers(t *testing.T) {
	s := openStore(t, t.TempDir())
	layer := LayerName()
	if !IsLayerName(layer) || layer == LayerName() || CheckName(layer) == nil {
		t.Errorf("%q is a bad name", layer)
	}
	for _, name := range []string{"~", "~base", layer + "x", layer[1:], "~" + "A234567abcdefghijklmnopqrs"} {
		if IsLayerName(name) {
			t.Errorf("%q passes for a layer's name", name)
		}
	}
	make1(t, s, Source{Path: smallTree(t, "one")}, MakeOptions{Name: layer})
	if list, err := s.List(); err != nil || len(list) != 1 {
		t.Errorf("the list is %v, %v", list, err)
	}
	if got, err := s.Get(layer); err != nil || got.Name != layer {
		t.Errorf("%+v, %v", got, err)
	}
	s.now = func() time.Time { return time.Now().Add(time.Hour) }
	nobody := func(string) bool { return false }
	if _, removed, err := s.Collect(t.Context(), nobody); err != nil || removed != 0 {
		t.Errorf("%d collected, %v", removed, err)
	}
	must(t, s.Delete(layer))
	if _, removed, err := s.Collect(t.Context(), nobody); err != nil || removed != 1 {
		t.Errorf("%d collected of what has no name any more, %v", removed, err)
	}
}

func TestLink(t *testing.T) {
	s := openStore(t, t.TempDir())
	layer := LayerName()
	made := make1(t, s, Source{Path: smallTree(t, "one")}, MakeOptions{Name: layer})
	got, err := s.Link(t.Context(), layer, "acme/app:v1", func(tpl *Template) { tpl.Ready = "true" })
	must(t, err)
	if got.Digest != made.Digest || got.Name != "acme/app:v1" || got.Ready != "true" {
		t.Errorf("%+v", got)
	}
	if again, err := s.Get("acme/app:v1"); err != nil || again.Ready != "true" {
		t.Errorf("%+v, %v", again, err)
	}
	if old, err := s.Get(layer); err != nil || old.Ready != "" {
		t.Errorf("the first has changed: %+v, %v", old, err)
	}
	must(t, s.Delete(layer))
	if _, _, err := s.Collect(t.Context(), func(string) bool { return false }); err != nil {
		t.Fatal(err)
	}
	if got := readIn(t, s, "acme/app:v1", "/etc/motd"); got != "one" {
		t.Errorf("it holds %q", got)
	}
	if _, err := s.Link(t.Context(), "ghost", "x", nil); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("of nothing: %v", err)
	}
	for _, name := range []string{HostName, "not a name", "~short"} {
		if _, err := s.Link(t.Context(), "acme/app:v1", name, nil); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("called %q: %v", name, err)
		}
	}
	if _, err := s.Link(t.Context(), HostName, "x", nil); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Errorf("of the host: %v", err)
	}
	noWorkLeft(t, s)
}

func noWorkLeft(t testing.TB, s *Store) {
	t.Helper()
	if left, err := os.ReadDir(s.dir + "/" + workDir); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
