package lifecycle

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

var update = flag.Bool("update", false, "write docs/lifecycle.md anew")

func TestNextTakesEveryStateAndEvent(t *testing.T) {
	want := map[string]firebreak.State{
		"creating answered": "running", "creating failed": "stopping", "creating lost": "stopping", "creating deleted": "stopping",
		"running exited": "stopping", "running expired": "stopping", "running lost": "stopping", "running deleted": "stopping",
		"running frozen": "paused", "paused thawed": "running",
		"paused exited": "stopping", "paused lost": "stopping", "paused deleted": "stopping",
		"stopping lost": "stopping", "stopping deleted": "stopping", "stopping cleared": "ended",
		"ended deleted": "ended",
	}
	for _, s := range States() {
		for _, e := range Events() {
			name := fmt.Sprintf("%s %s", s, e)
			got, err := Next(s, e)
			to, allowed := want[name]
			if allowed && (err != nil || got != to) {
				t.Errorf("%s: %s, %v, want %s", name, got, err, to)
			}
			if !allowed && (firebreak.KindOf(err) != firebreak.KindState || got != s) {
				t.Errorf("%s: %s, %v, want an error of kind state and the same state", name, got, err)
			}
		}
	}
	if len(want) != len(table()) {
		t.Errorf("%d moves in the table, %d expected", len(table()), len(want))
	}
	for _, e := range []Event{EventInvalid, 200} {
		if _, err := Next(firebreak.StateRunning, e); err == nil {
			t.Errorf("%s is accepted", e)
		}
	}
}

// From every state the end can be reached by deleting, and time never runs backwards, but for what is resumed.
func TestEveryWayEnds(t *testing.T) {
	order := States()
	for _, m := range table() {
		if slices.Index(order, m.to) < slices.Index(order, m.from) && m.event != EventThawed {
			t.Errorf("%s --%s--> %s goes back", m.from, m.event, m.to)
		}
	}
	for _, s := range order {
		to, err := Next(s, EventDeleted)
		if err != nil {
			t.Errorf("%s cannot be deleted: %v", s, err)
		}
		if to == firebreak.StateStopping {
			to, err = Next(to, EventCleared)
		}
		if to != firebreak.StateEnded || err != nil {
			t.Errorf("%s ends as %s, %v", s, to, err)
		}
	}
}

func TestRecoverTakesEveryCase(t *testing.T) {
	bools := []bool{false, true}
	seen := 0
	for _, s := range States() {
		for _, owned := range bools {
			for _, detached := range bools {
				for i := range 4 {
					f := Found{s, owned, detached, i&1 != 0, i&2 != 0}
					goal, event := Recover(f)
					if want, wantEvent := recoverByRules(f); goal != want || event != wantEvent {
						t.Errorf("%+v: %s by %s, want %s by %s", f, goal, event, want, wantEvent)
					}
					if goal == GoalRemove {
						if _, err := Next(s, event); err != nil {
							t.Errorf("%+v: %v", f, err)
						}
					}
					seen++
				}
			}
		}
	}
	if seen != 80 {
		t.Fatalf("%d cases, want 80", seen)
	}
}

// recoverByRules states the rules one by one, in another way than Recover does.
func recoverByRules(f Found) (Goal, Event) {
	running := f.State == firebreak.StateRunning
	alive := running || f.State == firebreak.StatePaused
	late := running && f.Overdue && !f.Pauses // what is paused has no deadline
	if f.Owned || (f.State == firebreak.StateEnded && f.Detached) {
		return GoalLeave, EventInvalid
	}
	if f.State == firebreak.StateEnded {
		return GoalForget, EventInvalid
	}
	if alive && f.Detached && !late {
		return GoalKeep, EventInvalid
	}
	if late {
		return GoalRemove, EventExpired
	}
	return GoalRemove, EventLost
}

func TestWordsDiffer(t *testing.T) {
	words := map[string]bool{}
	for _, s := range States() {
		words[string(s)] = true
	}
	for _, e := range Events() {
		words[e.String()] = true
	}
	for g := GoalLeave; g <= GoalForget; g++ {
		words[g.String()] = true
	}
	if want := len(States()) + len(Events()) + 4; len(words) != want {
		t.Errorf("%d different words, want %d", len(words), want)
	}
	if Goal(99).String() != "goal(99)" || Event(99).String() != "event(99)" {
		t.Error("unknown words have no text")
	}
}

func TestDrawingIsOfThisTable(t *testing.T) {
	path := filepath.Join("..", "..", "docs", "lifecycle.md")
	want := page()
	if *update {
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(want), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	got, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if string(got) != want {
		t.Errorf("%s is not what the table says; write it anew with: go test ./internal/lifecycle -update", path)
	}
}

func page() string {
	var b strings.Builder
	b.WriteString("# The life of a sandbox\n\nGenerated from the table in `internal/lifecycle`; " +
		"write it anew with `go test ./internal/lifecycle -update`.\n\n```mermaid\n" + Mermaid() + "```\n\n" +
		"What a process does with a sandbox whose record it finds when it starts:\n\n" +
		"| state | owner alive | detached | past its deadline | goal | by |\n|---|---|---|---|---|---|\n")
	yes := map[bool]string{true: "yes", false: "no"}
	for _, s := range States() {
		b.WriteString(fmt.Sprintf("| %s | yes | any | any | %s | |\n", s, GoalLeave))
		for _, f := range []Found{{State: s}, {State: s, Overdue: true}, {State: s, Detached: true}, {State: s, Detached: true, Overdue: true}} {
			goal, event := Recover(f)
			by := ""
			if goal == GoalRemove {
				by = event.String()
			}
			b.WriteString(fmt.Sprintf("| %s | no | %s | %s | %s | %s |\n", s, yes[f.Detached], yes[f.Overdue], goal, by))
		}
	}
	return b.String()
}
