// Package lifecycle holds the one table of moves between the states of a sandbox. It is pure: it neither knows the time
// nor touches the host, so all of it can be enumerated by a test. The observed words are firebreak.State: where a
// sandbox stands. The desired words are Goal: what is to become of one that a process finds.
package lifecycle

import (
	"fmt"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// Event is something that happens to a sandbox. The zero value is invalid.
type Event uint8

// The events.
const (
	EventInvalid  Event = iota
	EventAnswered       // its agent answers and knows its token
	EventFailed         // it could not be made
	EventExited         // its agent ended by itself, or the kernel ended it
	EventExpired        // its deadline passed
	EventLost           // it is not where its record says
	EventDeleted        // somebody wants it gone
	EventFrozen         // it is frozen, with its memory kept
	EventThawed         // it goes on
	EventCleared        // its driver holds nothing of it any more
)

var eventNames = [...]string{"invalid", "answered", "failed", "exited", "expired", "lost", "deleted", "frozen", "thawed", "cleared"}

func (e Event) String() string {
	if int(e) < len(eventNames) {
		return eventNames[e]
	}
	return fmt.Sprintf("event(%d)", uint8(e))
}

// States lists all states, in the order of a sandbox's life.
func States() []firebreak.State {
	return []firebreak.State{firebreak.StateCreating, firebreak.StateRunning, firebreak.StatePaused, firebreak.StateStopping, firebreak.StateEnded}
}

// Events lists all events.
func Events() []Event {
	return []Event{EventAnswered, EventFailed, EventExited, EventExpired, EventLost, EventDeleted, EventFrozen, EventThawed, EventCleared}
}

type move struct {
	from  firebreak.State
	event Event
	to    firebreak.State
}

// table returns all moves. What is not here cannot happen. A sandbox that stops stays so whatever else is heard of it:
// the first reason is the true one, the later ones are its effects.
func table() []move {
	const (
		creating = firebreak.StateCreating
		running  = firebreak.StateRunning
		paused   = firebreak.StatePaused
		stopping = firebreak.StateStopping
		ended    = firebreak.StateEnded
	)
	return []move{
		{creating, EventAnswered, running},
		{creating, EventFailed, stopping},
		{creating, EventLost, stopping},
		{creating, EventDeleted, stopping},
		{running, EventExited, stopping},
		{running, EventExpired, stopping},
		{running, EventLost, stopping},
		{running, EventDeleted, stopping},
		{running, EventFrozen, paused},
		{paused, EventThawed, running},
		{paused, EventExited, stopping},
		{paused, EventLost, stopping},
		{paused, EventDeleted, stopping},
		{stopping, EventLost, stopping},
		{stopping, EventDeleted, stopping},
		{stopping, EventCleared, ended},
		{ended, EventDeleted, ended},
	}
}

// Next returns the state in which event leaves a sandbox, or an error of firebreak.KindState if it cannot happen there.
func Next(state firebreak.State, event Event) (firebreak.State, error) {
	for _, m := range table() {
		if m.from == state && m.event == event {
			return m.to, nil
		}
	}
	return state, &firebreak.Error{Kind: firebreak.KindState, Err: fmt.Errorf("a sandbox that is %s cannot be %s", state, event)}
}

// Goal is what a process wants to become of a sandbox whose record it found. The zero value is invalid.
type Goal uint8

// The goals.
const (
	GoalInvalid Goal = iota
	GoalLeave        // somebody else sees to it, or nothing is to be done
	GoalKeep         // it shall live on: look whether it does
	GoalRemove       // it shall be no more, on the host and, unless its end is worth telling, in the records
	GoalForget       // nothing is left of it but a record that nobody needs
)

var goalNames = [...]string{"invalid", "leave", "keep", "remove", "forget"}

func (g Goal) String() string {
	if int(g) < len(goalNames) {
		return goalNames[g]
	}
	return fmt.Sprintf("goal(%d)", uint8(g))
}

// Found is what a process knows of a sandbox that it did not make.
type Found struct {
	State    firebreak.State
	Owned    bool // the process that made or is ending it is alive
	Detached bool // it was made to outlive that process
	Overdue  bool // its deadline is past
	Pauses   bool // it is to be paused, not ended, at its deadline
}

// Recover says what is to become of a found sandbox, and by which event if it is to be removed.
func Recover(f Found) (Goal, Event) {
	switch {
	case f.Owned:
		return GoalLeave, EventInvalid
	case f.State == firebreak.StateEnded && f.Detached:
		return GoalLeave, EventInvalid
	case f.State == firebreak.StateEnded:
		return GoalForget, EventInvalid
	case f.State == firebreak.StateRunning && f.Overdue && !f.Pauses:
		return GoalRemove, EventExpired
	case (f.State == firebreak.StateRunning || f.State == firebreak.StatePaused) && f.Detached:
		return GoalKeep, EventInvalid
	}
	return GoalRemove, EventLost
}

// Mermaid draws the table as text for Mermaid's state diagrams, events between the same states on one arrow.
func Mermaid() string {
	type arrow struct{ from, to firebreak.State }
	var order []arrow
	labels := map[arrow][]string{}
	for _, m := range table() {
		a := arrow{m.from, m.to}
		if labels[a] == nil {
			order = append(order, a)
		}
		labels[a] = append(labels[a], m.event.String())
	}
	var b strings.Builder
	fmt.Fprintf(&b, "stateDiagram-v2\n    [*] --> %s\n", firebreak.StateCreating)
	for _, a := range order {
		fmt.Fprintf(&b, "    %s --> %s: %s\n", a.from, a.to, strings.Join(labels[a], ", "))
	}
	fmt.Fprintf(&b, "    %s --> [*]\n", firebreak.StateEnded)
	return b.String()
}
