package store

import (
	"database/sql"
	"errors"
	"io/fs"
	"path/filepath"
	"reflect"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

func TestDecisionComesBackAsItWas(t *testing.T) {
	p, err := policy.Default()
	if err != nil {
		t.Fatal(err)
	}
	host := []driver.Info{{Name: "gvisor", Boundary: firebreak.BoundaryUserKernel}, {Name: "container", Boundary: firebreak.BoundarySharedKernel}}
	want := policy.DecideFor(p, firebreak.Workload{}, host, policy.Options{Driver: "container", AcceptWeaker: "a test"})
	dir := t.TempDir()
	s := open(t, dir)
	r := record("abc")
	r.Decision = &want
	if err := s.Insert(t.Context(), r); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(t.Context(), "abc", func(r *Record) error { r.State = firebreak.StateRunning; return nil }); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, dir).Decision(t.Context(), "abc")
	if err != nil || !reflect.DeepEqual(*got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	if _, err := s.Decision(t.Context(), "none"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the decision of no sandbox: %v", err)
	}
	if _, err := s.db.Exec("UPDATE sandboxes SET decision = '{'"); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Decision(t.Context(), "abc"); firebreak.KindOf(err) != firebreak.KindHost {
		t.Errorf("a damaged decision: %v", err)
	}
}

// TestRecordsOfTheFirstVersion have no decision.
func TestRecordsOfTheFirstVersion(t *testing.T) {
	dir := t.TempDir()
	db, err := sql.Open("sqlite", filepath.Join(dir, File))
	if err != nil {
		t.Fatal(err)
	}
	text, _, err := record("old").encode()
	if err != nil {
		t.Fatal(err)
	}
	_, err = db.Exec(migrations()[0] + "; PRAGMA user_version = 1")
	if err == nil {
		_, err = db.Exec("INSERT INTO sandboxes VALUES ('old', '', 'running', 1, 0, ?)", text)
	}
	if err = errors.Join(err, db.Close()); err != nil {
		t.Fatal(err)
	}
	s := open(t, dir)
	if r, err := s.Find(t.Context(), operator, "old"); err != nil || !reflect.DeepEqual(r, record("old")) {
		t.Errorf("found %+v, %v", r, err)
	}
	if d, err := s.Decision(t.Context(), "old"); err != nil || d != nil {
		t.Errorf("its decision is %+v, %v", d, err)
	}
	if err := s.Insert(t.Context(), record("new")); err != nil {
		t.Error(err)
	}
}
