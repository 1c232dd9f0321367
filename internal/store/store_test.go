package store

import (
	"context"
	"database/sql"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

func TestMain(m *testing.M) {
	if dir := os.Getenv("STORE_TEST_CHILD"); dir != "" {
		os.Exit(child(dir, os.Getenv("STORE_TEST_PREFIX")))
	}
	if dir := os.Getenv("STORE_TEST_TELL"); dir != "" {
		os.Exit(tellForever(dir, os.Getenv("STORE_TEST_PREFIX")))
	}
	os.Exit(m.Run())
}

// child inserts, moves and deletes records for ever, and says on standard output what was done.
func child(dir, prefix string) int {
	ctx := context.Background()
	s, err := Open(ctx, dir, slog.New(slog.DiscardHandler))
	if err != nil {
		fmt.Println("error", err)
		return 1
	}
	for i := 0; ; i++ {
		id := driver.ID(fmt.Sprintf("%s%d", prefix, i))
		if err := s.Insert(ctx, record(id)); err != nil {
			fmt.Println("error", err)
			return 1
		}
		fmt.Println("inserted", id)
		if _, err := s.Update(ctx, id, func(r *Record) error { r.State = firebreak.StateRunning; return nil }); err != nil {
			fmt.Println("error", err)
			return 1
		}
		fmt.Println("running", id)
		if i%3 == 0 {
			if err := s.Delete(ctx, id); err != nil {
				fmt.Println("error", err)
				return 1
			}
			fmt.Println("deleted", id)
		}
	}
}

func record(id driver.ID) Record {
	return Record{ID: id, Owner: "me", State: firebreak.StateCreating, Driver: "fake", Boundary: firebreak.BoundaryUserKernel,
		Template: "host", Token: "secret", Created: time.UnixMilli(1700000000000).UTC(),
		Spec: driver.Spec{ID: id, Dir: "/x/" + string(id), Options: map[string]string{"a": "b"}}}
}

func open(t testing.TB, dir string) *Store {
	t.Helper()
	s, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	})
	return s
}

func TestRecordComesBackAsItWas(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	want := record("abc")
	want.Name, want.Detached, want.Deadline = "web", true, want.Created.Add(time.Hour)
	want.Warnings, want.Command, want.Digest = []string{"careful"}, "python3", "sha256:1"
	want.Spec.Limits = firebreak.Limits{CPUs: 1.5, Memory: 1 << 30}
	if err := s.Insert(t.Context(), want); err != nil {
		t.Fatal(err)
	}
	change := func(r *Record) error {
		r.State, r.Ended = firebreak.StateEnded, want.Created.Add(time.Minute)
		r.Exit = driver.Exit{Reason: firebreak.EndOutOfMemory, Code: -1, Detail: "at its limit"}
		r.Usage = driver.Usage{CPU: time.Second, OOMKills: 2}
		return nil
	}
	if _, err := s.Update(t.Context(), "abc", change); err != nil {
		t.Fatal(err)
	}
	if err := change(&want); err != nil {
		t.Fatal(err)
	}
	got, err := open(t, dir).Find(t.Context(), operator, "abc")
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("got  %+v, %v\nwant %+v", got, err, want)
	}
	for _, f := range []string{File, File + "-wal", File + "-shm"} {
		if fi, err := os.Stat(filepath.Join(dir, f)); err != nil || fi.Mode().Perm() != 0o600 {
			t.Errorf("%s: mode %v, %v, want 0600: it holds tokens", f, fi.Mode(), err)
		}
	}
}

func TestNamesAndIDsAreUniqueAmongTheLiving(t *testing.T) {
	s := open(t, t.TempDir())
	a := record("a1")
	a.Name = "web"
	for i, want := range []error{nil, fs.ErrExist} {
		if err := s.Insert(t.Context(), a); !errors.Is(err, want) {
			t.Errorf("insert %d: %v, want %v", i, err, want)
		}
	}
	b := record("b1")
	b.Name = "web"
	if err := s.Insert(t.Context(), b); firebreak.KindOf(err) != firebreak.KindExists || !strings.Contains(err.Error(), `"web"`) {
		t.Errorf("a second living web: %v", err)
	}
	if _, err := s.Update(t.Context(), "a1", func(r *Record) error { r.State = firebreak.StateEnded; return nil }); err != nil {
		t.Fatal(err)
	}
	if err := s.Insert(t.Context(), b); err != nil {
		t.Errorf("web after the first one ended: %v", err)
	}
	if got, err := s.Find(t.Context(), operator, "web"); err != nil || got.ID != "b1" {
		t.Errorf("web is %s, %v, want the living one", got.ID, err)
	}
}

func TestFind(t *testing.T) {
	s := open(t, t.TempDir())
	for id, name := range map[driver.ID]string{"abc": "", "abd": "x", "b": "abc1", "ab": "", "zz": "ab1"} {
		r := record(id)
		r.Name = name
		if err := s.Insert(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	for _, c := range []struct {
		ref  string
		want driver.ID
		kind firebreak.Kind
	}{
		{"abc", "abc", 0}, {"ab", "ab", 0}, {"abd", "abd", 0}, {"x", "abd", 0}, {"abc1", "b", 0}, {"z", "zz", 0},
		{"a", "", firebreak.KindInvalid}, {"q", "", firebreak.KindNotFound}, {"", "", firebreak.KindInvalid},
		{"%", "", firebreak.KindNotFound}, {"a'--", "", firebreak.KindNotFound}, {"abcd", "", firebreak.KindNotFound},
	} {
		got, err := s.Find(t.Context(), operator, c.ref)
		if got.ID != c.want || (err == nil) != (c.want != "") || (err != nil && firebreak.KindOf(err) != c.kind) {
			t.Errorf("find %q: %q, %v, want %q or kind %s", c.ref, got.ID, err, c.want, c.kind)
		}
	}
	if _, err := s.Find(t.Context(), operator, "a"); err == nil || !strings.Contains(err.Error(), "abc") || !strings.Contains(err.Error(), "abd") {
		t.Errorf("an ambiguous beginning does not name the candidates: %v", err)
	}
}

func TestUpdateLeavesTheRecordWhenRefused(t *testing.T) {
	s := open(t, t.TempDir())
	if err := s.Insert(t.Context(), record("a")); err != nil {
		t.Fatal(err)
	}
	refuse := errors.New("no")
	r, err := s.Update(t.Context(), "a", func(r *Record) error { r.State = firebreak.StateEnded; return refuse })
	if !errors.Is(err, refuse) {
		t.Errorf("%v, want the refusal", err)
	}
	if r, err = s.Find(t.Context(), operator, "a"); err != nil || r.State != firebreak.StateCreating {
		t.Errorf("state %s, %v after a refused update", r.State, err)
	}
	if _, err := s.Update(t.Context(), "b", func(*Record) error { return nil }); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("update of what is not there: %v", err)
	}
	if err := s.Delete(t.Context(), "b"); err != nil {
		t.Errorf("delete of what is not there: %v", err)
	}
}

func TestPrune(t *testing.T) {
	s := open(t, t.TempDir())
	now := time.UnixMilli(1800000000000)
	for i := range 10 {
		r := record(driver.ID("e" + strconv.Itoa(i)))
		r.State, r.Ended = firebreak.StateEnded, now.Add(-time.Duration(i)*time.Hour)
		if err := s.Insert(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Insert(t.Context(), record("alive")); err != nil {
		t.Fatal(err)
	}
	ids := func() (ids string) {
		all, err := s.List(t.Context(), operator)
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range all {
			ids += string(r.ID) + " "
		}
		return ids
	}
	if err := s.Prune(t.Context(), now.Add(-5*time.Hour-time.Minute), 100); err != nil {
		t.Fatal(err)
	}
	if got := ids(); got != "alive e0 e1 e2 e3 e4 e5 " {
		t.Errorf("after a prune by age: %s", got)
	}
	if err := s.Prune(t.Context(), time.Time{}, 2); err != nil {
		t.Fatal(err)
	}
	if got := ids(); got != "alive e0 e1 " {
		t.Errorf("after a prune by number: %s", got)
	}
}

// Several processes write at once; each is killed at a random moment. What they said was done is done, nothing else is.
func TestProcessesAtOnceKilled(t *testing.T) {
	dir := t.TempDir()
	rounds := 6
	if testing.Short() {
		rounds = 2
	}
	for round := range rounds {
		var wg sync.WaitGroup
		for p := range 4 {
			prefix := fmt.Sprintf("r%dp%dx", round, p)
			wg.Go(func() { checkKilledChild(t, dir, prefix, time.Duration(60+17*p+31*round)*time.Millisecond) })
		}
		wg.Wait()
	}
	var ok string
	s := open(t, dir)
	if err := s.db.QueryRow("PRAGMA integrity_check").Scan(&ok); err != nil || ok != "ok" {
		t.Errorf("integrity: %s, %v", ok, err)
	}
}

func checkKilledChild(t *testing.T, dir, prefix string, after time.Duration) {
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), "STORE_TEST_CHILD="+dir, "STORE_TEST_PREFIX="+prefix)
	out := &strings.Builder{}
	cmd.Stdout = out
	if err := cmd.Start(); err != nil {
		t.Error(err)
		return
	}
	time.Sleep(after)
	if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
		t.Error(err)
	}
	_ = cmd.Wait() // it was killed
	said := map[driver.ID]string{}
	for line := range strings.Lines(out.String()) {
		what, id, ok := strings.Cut(strings.TrimSuffix(line, "\n"), " ")
		if what == "error" {
			t.Errorf("%s: %s", prefix, line)
		}
		if ok && strings.HasSuffix(line, "\n") {
			said[driver.ID(id)] = what
		}
	}
	s := open(t, dir)
	all, err := s.List(t.Context(), operator)
	if err != nil {
		t.Error(err)
	}
	state := map[driver.ID]firebreak.State{}
	for _, r := range all {
		state[r.ID] = r.State
	}
	for id, what := range said {
		got, there := state[id]
		// One step may be done that the child did not come to say.
		if (what == "deleted" && there) || (what == "inserted" && !there) || (what == "running" && there && got != firebreak.StateRunning) {
			t.Errorf("%s was said to be %s, is there: %v, in state %s", id, what, there, got)
		}
	}
}

func TestBadDatabasesAreRefusedAndKept(t *testing.T) {
	sqlFile := func(statement string) func(t *testing.T, path string) {
		return func(t *testing.T, path string) {
			db, err := sql.Open("sqlite", path)
			if err != nil {
				t.Fatal(err)
			}
			if _, err := db.Exec(statement); err != nil {
				t.Fatal(err)
			}
			if err := db.Close(); err != nil {
				t.Fatal(err)
			}
		}
	}
	for name, c := range map[string]struct {
		make func(t *testing.T, path string)
		want string
		kind firebreak.Kind
	}{
		"newer": {sqlFile(fmt.Sprintf("CREATE TABLE x (a); PRAGMA application_id=%d; PRAGMA user_version=99", applicationID)),
			"a newer firebreak wrote it (version 99", firebreak.KindHost},
		"foreign": {sqlFile("CREATE TABLE notes (a)"), "another program's database", firebreak.KindHost},
		"no database": {func(t *testing.T, path string) { write(t, path, strings.Repeat("not a database ", 1000)) },
			"damaged", firebreak.KindHost},
		"directory": {func(t *testing.T, path string) {
			if err := os.Mkdir(path, 0o700); err != nil {
				t.Fatal(err)
			}
		}, "is a directory", firebreak.KindInternal},
		"link": {func(t *testing.T, path string) {
			if err := os.Symlink("/etc/passwd", path); err != nil {
				t.Fatal(err)
			}
		}, "symbolic link", firebreak.KindInternal},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			path := filepath.Join(dir, File)
			c.make(t, path)
			before, _ := os.ReadFile(path) // empty for the directory
			_, err := Open(t.Context(), dir, slog.New(slog.DiscardHandler))
			if err == nil || !strings.Contains(err.Error(), c.want) || !strings.Contains(err.Error(), path) || firebreak.KindOf(err) != c.kind {
				t.Errorf("%v (%s), want %q", err, firebreak.KindOf(err), c.want)
			}
			if e := new(firebreak.Error); c.kind == firebreak.KindHost && (!errors.As(err, &e) || e.Mend == "") {
				t.Errorf("%v does not say how to mend it", err)
			}
			if after, _ := os.ReadFile(path); string(after) != string(before) {
				t.Error("the file was changed")
			}
		})
	}
}

func write(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}

func TestDamageInTheMiddleIsReported(t *testing.T) {
	dir := t.TempDir()
	s := open(t, dir)
	for i := range 200 {
		if err := s.Insert(t.Context(), record(driver.ID(fmt.Sprintf("a%03d", i)))); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := s.db.Exec("PRAGMA wal_checkpoint(TRUNCATE)"); err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(dir, File)
	b, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var page int // where the records begin
	if err := s.db.QueryRow("SELECT rootpage FROM sqlite_schema WHERE name = 'sandboxes'").Scan(&page); err != nil {
		t.Fatal(err)
	}
	for i := (page - 1) * 4096; i < page*4096; i++ {
		b[i] = 0x5a
	}
	bad := t.TempDir()
	write(t, filepath.Join(bad, File), string(b))
	s2 := open(t, bad)
	if _, err := s2.List(t.Context(), operator); firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), "damaged") {
		t.Errorf("list of a damaged database: %v", err)
	}
}

func TestUnwritableDirectory(t *testing.T) {
	_, err := Open(t.Context(), filepath.Join(t.TempDir(), "missing"), slog.New(slog.DiscardHandler))
	if !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a missing directory: %v", err)
	}
	_, err = Open(t.Context(), "/proc/self", slog.New(slog.DiscardHandler))
	if err == nil || !strings.Contains(err.Error(), "/proc/self") {
		t.Errorf("a directory that takes no files: %v", err)
	}
}

func TestManyStoresOfOneProcess(t *testing.T) {
	dir := t.TempDir()
	if err := open(t, dir).Insert(t.Context(), record("counter")); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for range 8 {
		wg.Go(func() {
			for range 20 {
				s, err := Open(context.Background(), dir, slog.New(slog.DiscardHandler))
				if err != nil {
					t.Error(err)
					return
				}
				if _, err := s.Update(context.Background(), "counter", func(r *Record) error { r.Usage.PIDs++; return nil }); err != nil {
					t.Error(err)
				}
				if err := s.Close(); err != nil {
					t.Error(err)
				}
			}
		})
	}
	wg.Wait()
	if r, err := open(t, dir).Find(t.Context(), operator, "counter"); err != nil || r.Usage.PIDs != 160 {
		t.Errorf("counted %d, %v, want 160", r.Usage.PIDs, err)
	}
}

// BenchmarkOneShot is what one run of the command pays: open, insert, update, delete, close.
func BenchmarkOneShot(b *testing.B) {
	dir := b.TempDir()
	for i := 0; b.Loop(); i++ {
		s, err := Open(b.Context(), dir, slog.New(slog.DiscardHandler))
		if err != nil {
			b.Fatal(err)
		}
		id := driver.ID(fmt.Sprintf("a%d", i))
		if err := s.Insert(b.Context(), record(id)); err != nil {
			b.Fatal(err)
		}
		if _, err := s.Update(b.Context(), id, func(r *Record) error { r.State = firebreak.StateRunning; return nil }); err != nil {
			b.Fatal(err)
		}
		if err := s.Delete(b.Context(), id); err != nil {
			b.Fatal(err)
		}
		if err := s.Close(); err != nil {
			b.Fatal(err)
		}
	}
}

var operator = auth.Caller{Operator: true}

// A tenant finds nothing of another's by any reference, and names are each tenant's own.
func TestTenantsSeeTheirOwn(t *testing.T) {
	s := open(t, t.TempDir())
	for _, r := range []Record{{ID: "aaa1", Name: "web"}, {ID: "aab1", Tenant: "one", Name: "web"}, {ID: "aac1", Tenant: "two", Name: "web"}, {ID: "aad1", Tenant: "two"}} {
		r.State, r.Boundary = firebreak.StateRunning, firebreak.BoundaryUserKernel
		if err := s.Insert(t.Context(), r); err != nil {
			t.Fatal(err)
		}
	}
	if err := s.Insert(t.Context(), Record{ID: "aae1", Tenant: "two", Name: "web", State: firebreak.StateRunning}); firebreak.KindOf(err) != firebreak.KindExists {
		t.Errorf("a second web of one tenant: %v", err)
	}
	one, two := auth.Caller{Tenant: auth.Tenant{ID: "one"}}, auth.Caller{Tenant: auth.Tenant{ID: "two"}}
	for _, c := range []struct {
		by   auth.Caller
		ref  string
		want driver.ID
	}{
		{one, "web", "aab1"}, {two, "web", "aac1"}, {operator, "web", "aaa1"}, {operator, "aad", "aad1"},
		{one, "aa", "aab1"}, {two, "aad", "aad1"}, {one, "aac1", ""}, {one, "aad1", ""}, {one, "aac", ""}, {one, "aaa1", ""},
		{auth.Caller{}, "aaa1", ""}, {auth.Caller{}, "web", ""}, {auth.Caller{}, "aa", ""},
	} {
		r, err := s.Find(t.Context(), c.by, c.ref)
		if r.ID != c.want || (c.want == "") != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q for %+v: %q, %v, want %q", c.ref, c.by, r.ID, err, c.want)
		}
	}
	for n, by := range map[int]auth.Caller{4: operator, 1: one, 2: two, 0: {}} {
		if all, err := s.List(t.Context(), by); err != nil || len(all) != n {
			t.Errorf("list for %+v: %d, %v, want %d", by, len(all), err, n)
		}
	}
}

// Whoever is told that nothing was written finds nothing, at whatever moment he went away.
func TestCancelledInsert(t *testing.T) {
	s := open(t, t.TempDir())
	for what, kind := range map[string]struct {
		insert func(ctx context.Context, id string) error
		found  func(id string) bool
	}{
		"sandbox": {func(ctx context.Context, id string) error { return s.Insert(ctx, record(driver.ID(id))) }, func(id string) bool {
			_, err := s.Find(t.Context(), operator, id)
			return err == nil
		}},
		"template": {func(ctx context.Context, id string) error { return s.InsertTemplate(ctx, Template{ID: id, Name: id}) }, func(id string) bool {
			_, err := s.Template(t.Context(), id)
			return err == nil
		}},
		"webhook": {func(ctx context.Context, id string) error {
			return s.InsertWebhook(ctx, webhook.Record{Webhook: webhook.Webhook{ID: id}})
		}, func(id string) bool {
			all, err := s.ListWebhooks(t.Context())
			return err == nil && slices.ContainsFunc(all, func(r webhook.Record) bool { return r.ID == id })
		}},
	} {
		refused := 0
		for i := range 300 {
			ctx, cancel := context.WithCancel(t.Context())
			time.AfterFunc(time.Duration(i)*time.Microsecond, cancel)
			id := fmt.Sprintf("r%d", i)
			err := kind.insert(ctx, id)
			cancel()
			if found := kind.found(id); (err == nil) != found {
				t.Fatalf("insert %s %d: %v; found: %v", what, i, err, found)
			}
			if err != nil {
				refused++
			}
		}
		t.Logf("%d of 300 of a %s were cancelled in time", refused, what)
	}
}
