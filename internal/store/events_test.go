package store

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"reflect"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
)

func happened(tenant, sandbox string, t event.Type) event.Event {
	return event.Event{Type: t, Tenant: tenant, Sandbox: sandbox, Time: time.Now().UTC().Truncate(time.Millisecond)}
}

func keep(t testing.TB, s *Store, events ...event.Event) []event.Event {
	t.Helper()
	if err := s.AppendEvents(t.Context(), events); err != nil {
		t.Fatal(err)
	}
	return events
}

func list(t testing.TB, s *Store, f event.Filter) []event.Event {
	t.Helper()
	all, err := s.ListEvents(t.Context(), f)
	if err != nil {
		t.Fatal(err)
	}
	return all
}

func TestEventComesBackAsItWas(t *testing.T) {
	dir := t.TempDir()
	want := happened("acme", "abc", event.TypeKilled)
	want.Template, want.Digest, want.Driver = "python", "sha256:1", "gvisor"
	want.Data = event.Data{Metadata: map[string]string{"a": "b"}, Deadline: want.Time.Add(time.Hour), Reason: "deadline", Detail: "x",
		Rules: []string{"r"}, Started: want.Time.Add(-time.Hour), CPUs: 1.5, Memory: 1 << 30, CPU: time.Second, Cut: true}
	kept := keep(t, open(t, dir), want)
	if kept[0].Seq != 1 || kept[0].Number != 1 || kept[0].ID == "" {
		t.Errorf("it got the places %d and %d, and the ID %q", kept[0].Seq, kept[0].Number, kept[0].ID)
	}
	if got := list(t, open(t, dir), event.Filter{}); len(got) != 1 || !reflect.DeepEqual(got[0], kept[0]) {
		t.Errorf("got  %+v\nwant %+v", got, kept)
	}
}

func TestEventFilters(t *testing.T) {
	s := open(t, t.TempDir())
	all := keep(t, s,
		happened("acme", "a1", event.TypeCreated), happened("umbra", "u1", event.TypeCreated), happened("acme", "a2", event.TypeCreated),
		happened("acme", "", event.TypeRefused), happened("", "o1", event.TypeCreated), happened("acme", "a1", event.TypeKilled))
	for _, c := range []struct {
		f    event.Filter
		want string // places among all
	}{
		{event.Filter{}, "6 5 4 3 2 1"}, {event.Filter{Asc: true}, "1 2 3 4 5 6"},
		{event.Filter{Tenant: "acme"}, "6 4 3 1"}, {event.Filter{Tenant: "acme", Asc: true, Offset: 1, Limit: 2}, "3 4"},
		{event.Filter{Tenant: "umbra"}, "2"}, {event.Filter{Tenant: "nobody"}, ""},
		{event.Filter{Sandbox: "a1"}, "6 1"}, {event.Filter{Sandbox: "a1", Tenant: "umbra"}, ""}, {event.Filter{Sandbox: "a1", Tenant: "acme"}, "6 1"},
		{event.Filter{Types: []event.Type{event.TypeKilled, event.TypeRefused}}, "6 4"}, {event.Filter{Seq: 4, Asc: true}, "5 6"},
		{event.Filter{Tenant: "acme", Seq: 3}, "6 4"}, {event.Filter{Since: time.Now().Add(time.Hour)}, ""}, {event.Filter{Since: all[0].Time}, "6 5 4 3 2 1"},
		{event.Filter{Sandbox: "' OR 1=1 --"}, ""}, {event.Filter{Limit: 1, Offset: 100}, ""},
	} {
		var got []string
		for _, e := range list(t, s, c.f) {
			got = append(got, fmt.Sprint(e.Seq))
		}
		if strings.Join(got, " ") != c.want {
			t.Errorf("%+v: %v, want %s", c.f, got, c.want)
		}
	}
	if last := all[5]; last.Number != 4 || last.Seq != 6 {
		t.Errorf("acme's fourth is its %d.", last.Number)
	}
}

func TestFindEvent(t *testing.T) {
	s := open(t, t.TempDir())
	all := keep(t, s, happened("acme", "a1", event.TypeCreated), happened("umbra", "u1", event.TypeCreated))
	for _, c := range []struct {
		tenant, id string
		want       int64 // 0: not found
	}{
		{"", all[0].ID, 1}, {"", all[1].ID, 2}, {"umbra", all[1].ID, 2}, {"acme", all[1].ID, 0},
		{"acme", all[1].ID[:24] + all[0].ID[24:], 0}, {"", "", 0}, {"", event.NewID(), 0}, {"", strings.ToUpper(all[0].ID) + "x", 0},
	} {
		e, err := s.FindEvent(t.Context(), c.tenant, c.id)
		if e.Seq != c.want || (c.want == 0) != errors.Is(err, fs.ErrNotExist) {
			t.Errorf("%q of %q: %d, %v, want %d", c.id, c.tenant, e.Seq, err, c.want)
		}
	}
}

// What is told with a change is kept with it, and not otherwise.
func TestTold(t *testing.T) {
	s := open(t, t.TempDir())
	rec := record("abc")
	rec.Tenant, rec.TrafficToken, rec.Agent.Envs = "acme", "traffic-secret", map[string]string{"KEY": "env-secret"}
	rec.Command, rec.Metadata = "curl -H secret-in-command", map[string]string{"app": "x"}
	if err := s.Insert(t.Context(), rec); err != nil {
		t.Fatal(err)
	}
	refuse := errors.New("no")
	if _, err := s.Update(t.Context(), "abc", func(*Record) error { return refuse }, Telling(event.TypeCreated)); !errors.Is(err, refuse) {
		t.Error(err)
	}
	change := func(state firebreak.State) {
		t.Helper()
		tell := map[firebreak.State]event.Type{firebreak.StateRunning: event.TypeCreated, firebreak.StatePaused: event.TypePaused, firebreak.StateEnded: event.TypeKilled}
		if _, err := s.Update(t.Context(), "abc", func(r *Record) error { r.State = state; return nil }, Telling(tell[state])); err != nil {
			t.Fatal(err)
		}
	}
	change(firebreak.StateRunning)
	change(firebreak.StatePaused)
	change(firebreak.StateEnded)
	if err := s.Delete(t.Context(), "abc", Telling(event.TypeKilled)); err != nil { // its end was told
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "abc", Telling(event.TypeKilled)); err != nil {
		t.Fatal(err)
	}
	all := list(t, s, event.Filter{Asc: true})
	if len(all) != 3 || all[0].Type != event.TypeCreated || all[1].Type != event.TypePaused || all[2].Type != event.TypeKilled {
		t.Fatalf("told: %+v", all)
	}
	if e := all[2]; e.Tenant != "acme" || e.Sandbox != "abc" || e.Driver != "fake" || e.Template != "host" || e.Data.Metadata["app"] != "x" ||
		!e.Data.Started.Equal(rec.Created) || e.ID == all[1].ID {
		t.Errorf("%+v", e)
	}
	var kept string
	if err := s.db.QueryRow("SELECT group_concat(record) FROM events").Scan(&kept); err != nil || strings.Contains(kept, "secret") {
		t.Errorf("a secret is kept: %v, %s", err, kept)
	}
}

func TestNobodyIsToldOfWhatIsNobodysOrNeverWas(t *testing.T) {
	s := open(t, t.TempDir())
	pooled, failed := record("pooled"), record("failed")
	pooled.Pool = "base"
	for _, rec := range []Record{pooled, failed} {
		if err := s.Insert(t.Context(), rec); err != nil {
			t.Fatal(err)
		}
	}
	run := func(r *Record) error { r.State = firebreak.StateRunning; return nil }
	if _, err := s.Update(t.Context(), "pooled", run, Telling(event.TypeCreated)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(t.Context(), "failed", func(r *Record) error { r.State = firebreak.StateStopping; return nil }); err != nil {
		t.Fatal(err)
	}
	for _, id := range []driver.ID{"pooled", "failed"} {
		if err := s.Delete(t.Context(), id, Telling(event.TypeKilled)); err != nil {
			t.Fatal(err)
		}
	}
	if all := list(t, s, event.Filter{}); len(all) != 0 {
		t.Errorf("told: %+v", all)
	}
	// One that is claimed is told of from then on.
	if err := s.Insert(t.Context(), pooled); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Update(t.Context(), "pooled", func(r *Record) error { r.Pool, r.Tenant = "", "acme"; return nil }, Telling(event.TypeCreated)); err != nil {
		t.Fatal(err)
	}
	if err := s.Delete(t.Context(), "pooled", Telling(event.TypeKilled)); err != nil {
		t.Fatal(err)
	}
	if all := list(t, s, event.Filter{Tenant: "acme"}); len(all) != 2 {
		t.Errorf("told: %+v", all)
	}
}

// A tenant that makes many events loses its own oldest, and nobody else's.
func TestOldEventsAreRemoved(t *testing.T) {
	s := open(t, t.TempDir())
	mine := keep(t, s, happened("acme", "a1", event.TypeCreated))[0]
	batch := make([]event.Event, 1000)
	for range event.KeepTenant/len(batch) + 1 {
		for i := range batch {
			batch[i] = happened("loud", "l1", event.TypeUpdated)
		}
		keep(t, s, batch...)
	}
	count := func(tenant string) (n int, lowest, highest int64) {
		t.Helper()
		if err := s.db.QueryRow("SELECT count(*), min(number), max(number) FROM events WHERE tenant = ?", tenant).Scan(&n, &lowest, &highest); err != nil {
			t.Fatal(err)
		}
		return n, lowest, highest
	}
	if n, lowest, highest := count("loud"); n < event.KeepTenant || n > event.KeepTenant+pruneEvery || highest-lowest != int64(n)-1 {
		t.Errorf("%d are kept, from %d to %d", n, lowest, highest)
	}
	if got := list(t, s, event.Filter{Tenant: "acme"}); len(got) != 1 || got[0].ID != mine.ID {
		t.Errorf("acme has %+v", got)
	}
	// All together: as if many tenants had made half a million since.
	if _, err := s.db.Exec("UPDATE events SET seq = seq + ? WHERE tenant = 'loud'", event.KeepAll); err != nil {
		t.Fatal(err)
	}
	keep(t, s, happened("acme", "a1", event.TypeUpdated)) // so that the first is not acme's last
	for range 2 * pruneEvery {
		keep(t, s, happened("loud", "l1", event.TypeUpdated))
	}
	if got := list(t, s, event.Filter{Tenant: "acme"}); len(got) != 1 || got[0].Number != 2 {
		t.Errorf("acme has %+v", got)
	}
}

func TestEventsOfLongAgoAreNotThere(t *testing.T) {
	s := open(t, t.TempDir())
	old := happened("acme", "a1", event.TypeCreated)
	old.Time = old.Time.Add(-event.KeepFor - time.Minute)
	keep(t, s, old, old)
	if got := list(t, s, event.Filter{}); len(got) != 0 {
		t.Errorf("%+v", got)
	}
	for range pruneEvery {
		keep(t, s, happened("umbra", "u1", event.TypeCreated))
	}
	var n int
	if err := s.db.QueryRow("SELECT count(*) FROM events WHERE tenant = 'acme'").Scan(&n); err != nil || n != 1 {
		t.Errorf("%d of them are kept, %v; want the last one alone", n, err)
	}
	if next := keep(t, s, happened("acme", "a1", event.TypeKilled)); next[0].Number != 3 {
		t.Errorf("the third is the %d.", next[0].Number)
	}
}

// tellForever makes and ends sandboxes for ever, telling so, and says on standard output what was done.
func tellForever(dir, prefix string) int {
	ctx := context.Background()
	s, err := Open(ctx, dir, slog.New(slog.DiscardHandler))
	for i := 0; err == nil; i++ {
		r := record(driver.ID(fmt.Sprintf("%s%d", prefix, i)))
		r.Tenant = prefix
		if err = s.Insert(ctx, r); err != nil {
			break
		}
		if _, err = s.Update(ctx, r.ID, func(r *Record) error { r.State = firebreak.StateRunning; return nil }, Telling(event.TypeCreated)); err != nil {
			break
		}
		fmt.Println("created", r.ID)
		if err = s.Delete(ctx, r.ID, Telling(event.TypeKilled)); err == nil {
			fmt.Println("killed", r.ID)
		}
	}
	fmt.Println("error", err)
	return 1
}

// spoken is what a process has said so far.
type spoken struct {
	mu   sync.Mutex
	text strings.Builder // guarded by mu
}

func (s *spoken) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.Write(p)
}

func (s *spoken) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.text.String()
}

// Several processes make and end sandboxes, and are killed at random moments. The events tell what became of each: no
// sandbox runs that none tells of, none is gone without one, and what was said to be done was told.
func TestEventsAgreeWithTheRecordsOfKilledProcesses(t *testing.T) {
	dir := t.TempDir()
	open(t, dir) // so that none is killed while it makes the database
	var mu sync.Mutex
	said := map[string]bool{}
	var wg sync.WaitGroup
	for p := range 6 {
		prefix := fmt.Sprintf("p%dx", p)
		wg.Go(func() {
			cmd := exec.CommandContext(t.Context(), os.Args[0])
			cmd.Env = append(os.Environ(), "STORE_TEST_TELL="+dir, "STORE_TEST_PREFIX="+prefix)
			out := &spoken{}
			cmd.Stdout = out
			if err := cmd.Start(); err != nil {
				t.Error(err)
				return
			}
			for end := time.Now().Add(time.Minute); strings.Count(out.String(), "\n") < 8 && time.Now().Before(end); {
				time.Sleep(5 * time.Millisecond) // it is at work
			}
			time.Sleep(time.Duration(70*p) * time.Millisecond)
			if err := cmd.Process.Signal(syscall.SIGKILL); err != nil {
				t.Error(err)
			}
			_ = cmd.Wait() // it was killed
			mu.Lock()
			defer mu.Unlock()
			for line := range strings.Lines(out.String()) {
				if strings.HasPrefix(line, "error") {
					t.Error(line)
				}
				said[strings.TrimSpace(line)] = strings.HasSuffix(line, "\n")
			}
		})
	}
	wg.Wait()
	s := open(t, dir)
	told, last := map[string]bool{}, map[string]int64{}
	for seq, more := int64(0), true; more; {
		page := list(t, s, event.Filter{Seq: seq, Asc: true})
		for _, e := range page {
			if seq = e.Seq; e.Number != last[e.Tenant]+1 {
				t.Errorf("event %d of %s comes after %d", e.Number, e.Tenant, last[e.Tenant])
			}
			last[e.Tenant] = e.Number
			told[string(e.Type)+" "+e.Sandbox] = true
		}
		more = len(page) > 0
	}
	for what, whole := range said {
		if whole && !told[what] {
			t.Errorf("%s: no event tells it", what)
		}
	}
	checkTold(t, s, told)
}

func checkTold(t *testing.T, s *Store, told map[string]bool) {
	t.Helper()
	all, err := s.List(t.Context(), operator)
	if err != nil {
		t.Fatal(err)
	}
	there := map[string]bool{}
	for _, r := range all {
		there[string(r.ID)] = true
		if (r.State == firebreak.StateRunning) != told["created "+string(r.ID)] || told["killed "+string(r.ID)] {
			t.Errorf("%s is %s, told: created %v, killed %v", r.ID, r.State, told["created "+string(r.ID)], told["killed "+string(r.ID)])
		}
	}
	if len(told) < 20 {
		t.Errorf("only %d events: this tests nothing", len(told))
	}
	for what := range told {
		if id, ok := strings.CutPrefix(what, "created "); ok && !there[id] && !told["killed "+id] {
			t.Errorf("%s is gone, and no event tells it", id)
		}
	}
}
