package store

import (
	"errors"
	"io/fs"
	"reflect"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
)

func check(t testing.TB, errs ...error) {
	t.Helper()
	if err := errors.Join(errs...); err != nil {
		t.Fatal(err)
	}
}

func TestTemplates(t *testing.T) {
	dir, ctx := t.TempDir(), t.Context()
	s, other := open(t, dir), open(t, dir)
	now := time.UnixMilli(1700000000000).UTC()
	want := Template{ID: "tpl1", Tenant: "acme", Name: "app", Public: true, Limits: firebreak.Limits{CPUs: 2},
		Tags: map[string]Tag{"v1": {Build: "b1", Created: now}}, Builds: 1, Created: now, Updated: now}
	check(t, s.InsertTemplate(ctx, want), s.InsertTemplate(ctx, Template{ID: "tpl2", Tenant: "acme", Name: "aaa"}),
		s.InsertTemplate(ctx, Template{ID: "tpl3", Tenant: "other", Name: "app"}))
	if got, err := other.Template(ctx, "tpl1"); err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got %+v, %v", got, err)
	}
	if got, err := other.TemplateNamed(ctx, "other", "app"); err != nil || got.ID != "tpl3" {
		t.Errorf("got %+v, %v", got, err)
	}
	if err := other.InsertTemplate(ctx, Template{ID: "tpl4", Tenant: "acme", Name: "app"}); !errors.Is(err, fs.ErrExist) || firebreak.KindOf(err) != firebreak.KindExists {
		t.Errorf("a name twice: %v", err)
	}
	if list, err := other.Templates(ctx, "acme"); err != nil || len(list) != 2 || list[0].Name != "aaa" {
		t.Errorf("list %+v, %v", list, err)
	}
	got, err := other.UpdateTemplate(ctx, "tpl1", func(tpl *Template) error { tpl.Builds++; return nil })
	if again, readErr := s.Template(ctx, "tpl1"); err != nil || readErr != nil || got.Builds != 2 || again.Builds != 2 {
		t.Errorf("changed to %+v, %+v, %v", got, again, err)
	}
	no := errors.New("no")
	if _, err := s.UpdateTemplate(ctx, "tpl1", func(tpl *Template) error { tpl.Builds = 9; return no }); !errors.Is(err, no) {
		t.Errorf("a change that fails: %v", err)
	}
	if again, err := s.Template(ctx, "tpl1"); err != nil || again.Builds != 2 {
		t.Errorf("it changed all the same: %+v, %v", again, err)
	}
	check(t, s.InsertBuild(ctx, Build{ID: "b1", Template: "tpl1"}), s.InsertBuild(ctx, Build{ID: "b2", Template: "tpl2"}), s.DeleteTemplate(ctx, "tpl1"),
		s.DeleteTemplate(ctx, "tpl1"))
	for what, err := range map[string]error{
		"template":  func() error { _, err := s.Template(ctx, "tpl1"); return err }(),
		"name":      func() error { _, err := s.TemplateNamed(ctx, "acme", "app"); return err }(),
		"its build": func() error { _, err := s.Build(ctx, "b1"); return err }(),
		"change": func() error {
			_, err := s.UpdateTemplate(ctx, "tpl1", func(*Template) error { return nil })
			return err
		}(),
	} {
		if !errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) != firebreak.KindNotFound {
			t.Errorf("%s of what was deleted: %v", what, err)
		}
	}
	if _, err := s.Build(ctx, "b2"); err != nil {
		t.Errorf("another template's build: %v", err)
	}
}

func TestBuilds(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	at := func(n int64) time.Time { return time.UnixMilli(1700000000000 + n).UTC() }
	check(t, s.InsertBuild(ctx, Build{ID: "b1", Template: "t", State: BuildRequested, Created: at(1)}),
		s.InsertBuild(ctx, Build{ID: "b2", Template: "t", State: BuildRequested, Created: at(2), Tags: []string{"v1"}}))
	ids := func(list []Build, err error) (all string) {
		t.Helper()
		check(t, err)
		for _, b := range list {
			all += b.ID + " "
		}
		return all
	}
	if got := ids(s.Builds(ctx, "t")) + ids(s.UnfinishedBuilds(ctx)); got != "b2 b1 b1 b2 " {
		t.Errorf("lists %s", got)
	}
	done, err := s.UpdateBuild(ctx, "b1", func(b *Build) error { b.State, b.Finished, b.Reason = BuildFailed, at(3), "why"; return nil })
	if got, readErr := s.Build(ctx, "b1"); err != nil || readErr != nil || !reflect.DeepEqual(got, done) || got.Reason != "why" {
		t.Errorf("got %+v, %v, %v", got, err, readErr)
	}
	if got := ids(s.UnfinishedBuilds(ctx)); got != "b2 " {
		t.Errorf("unfinished %s", got)
	}
	check(t, s.DeleteBuild(ctx, "b2"), s.DeleteBuild(ctx, "b2"))
	if got := ids(s.Builds(ctx, "t")); got != "b1 " {
		t.Errorf("left %s", got)
	}
}

func TestLayers(t *testing.T) {
	s, ctx := open(t, t.TempDir()), t.Context()
	at := func(n int64) time.Time { return time.UnixMilli(1700000000000 + n).UTC() }
	old := Layer{Image: "~a", Tenant: "acme", Key: "k", Used: at(1)}
	check(t, s.PutLayer(ctx, old), s.PutLayer(ctx, Layer{Image: "~b", Tenant: "acme", Key: "k", Ready: true, Used: at(2)}),
		s.PutLayer(ctx, Layer{Image: "~c", Tenant: "other", Key: "k", Used: at(0)}))
	if list, err := s.LayersOf(ctx, "acme", "k"); err != nil || len(list) != 2 || list[0].Image != "~b" || !list[0].Ready {
		t.Errorf("of a key: %+v, %v", list, err)
	}
	old.Used, old.Size, old.Digest = at(9), 7, "sha256:1"
	check(t, s.PutLayer(ctx, old))
	list, err := s.Layers(ctx)
	if err != nil || len(list) != 3 || list[0].Image != "~c" || list[2] != old {
		t.Errorf("all: %+v, %v", list, err)
	}
	check(t, s.DeleteLayer(ctx, "~c"), s.DeleteLayer(ctx, "~c"))
	if list, err := s.Layers(ctx); err != nil || len(list) != 2 {
		t.Errorf("left: %+v, %v", list, err)
	}
}
