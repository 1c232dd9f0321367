// Package event is the record of what happened to sandboxes, in order: kept in a Storage that several processes use at
// once, listed, and watched as it grows. It holds no secrets: no tokens, no environment, no commands.
package event

import (
	"crypto/rand"
	"fmt"
	"strconv"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak"
)

// Type says what happened.
type Type string

// The types of events.
const (
	TypeCreated      Type = "created"      // a sandbox was made, or taken from a pool, and answers
	TypeUpdated      Type = "updated"      // its deadline or its metadata changed
	TypePaused       Type = "paused"       // it is frozen
	TypeResumed      Type = "resumed"      // it runs again
	TypeCheckpointed Type = "checkpointed" // a snapshot of it was taken
	TypeKilled       Type = "killed"       // it is gone, for whatever reason
	TypeRefused      Type = "refused"      // the policy refused one; there is no sandbox
	TypeRecovered    Type = "recovered"    // a later process found it and looks after it now
)

// typeRow is one type, and what E2B calls it, now and in short before; empty: it has no such thing.
type typeRow struct {
	name  Type
	e2b   string
	label string
}

func table() []typeRow {
	const e2b = "sandbox.lifecycle."
	return []typeRow{
		{TypeCreated, e2b + "created", "create"},
		{TypeUpdated, e2b + "updated", "update"},
		{TypePaused, e2b + "paused", "pause"},
		{TypeResumed, e2b + "resumed", "resume"},
		{TypeCheckpointed, e2b + "checkpointed", "checkpoint"},
		{TypeKilled, e2b + "killed", "kill"},
		{TypeRefused, "", ""},
		{TypeRecovered, "", ""},
	}
}

// Types lists all types.
func Types() []Type {
	var all []Type
	for _, row := range table() {
		all = append(all, row.name)
	}
	return all
}

// E2BTypes lists the types that E2B has too.
func E2BTypes() []Type {
	var all []Type
	for _, row := range table() {
		if row.e2b != "" {
			all = append(all, row.name)
		}
	}
	return all
}

func (t Type) row() typeRow {
	for _, row := range table() {
		if row.name == t {
			return row
		}
	}
	return typeRow{}
}

// E2B returns what E2B calls t; empty if it has no such thing.
func (t Type) E2B() string { return t.row().e2b }

// TypeOfE2B returns the type that E2B calls name, and false if there is none.
func TypeOfE2B(name string) (Type, bool) {
	for _, row := range table() {
		if row.e2b == name && name != "" {
			return row.name, true
		}
	}
	return "", false
}

// Event is one thing that happened. What was kept never changes.
type Event struct {
	Seq      int64     `json:"-"`      // its place among all events of this state directory, growing; given when it is kept
	Number   int64     `json:"-"`      // its place among those of its tenant, from 1, without gaps; given when it is kept
	ID       string    `json:"-"`      // a UUID of which the last digits are Number; given when it is kept
	Time     time.Time `json:"time"`   // to the millisecond
	Type     Type      `json:"type"`   //
	Tenant   string    `json:"tenant"` // empty: the operator's own
	Sandbox  string    `json:"sandbox,omitempty"`
	Template string    `json:"template,omitempty"`
	Digest   string    `json:"digest,omitempty"` // of the template's image
	Driver   string    `json:"driver,omitempty"`
	Data     Data      `json:"data,omitzero"`
}

// Data is what a type of event says besides. Only what is named here may be kept: none of it is a secret of ours.
type Data struct {
	Metadata map[string]string `json:"metadata,omitempty"` // the caller's, as of then
	Deadline time.Time         `json:"deadline,omitzero"`  // of the sandbox, as of then
	Reason   string            `json:"reason,omitempty"`   // killed: a firebreak.EndReason; refused: the sentence
	Detail   string            `json:"detail,omitempty"`   // of the reason
	Rules    []string          `json:"rules,omitempty"`    // of the policy: refused
	Started  time.Time         `json:"started,omitzero"`   // killed, paused: since when it ran
	CPUs     float64           `json:"cpus,omitempty"`     // killed, paused: its limit
	Memory   int64             `json:"memory,omitempty"`   // killed, paused: its limit, bytes
	CPU      time.Duration     `json:"cpu,omitempty"`      // killed: what it used
	Cut      bool              `json:"cut,omitempty"`      // something was too long to be kept
}

// The bounds of what is kept of one event. What is longer is left out, for that must not keep a sandbox from being made.
const (
	maxMetadata = 16 << 10 // bytes, keys and values together
	maxText     = 1000     // bytes of a reason or a detail
	maxRules    = 64
)

// Prepare gives an event the time if it has none, and cuts what is too long. An error means that it is none.
func (e *Event) Prepare(now time.Time) error {
	if e.Type == "" || e.Type.row().name != e.Type {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "keep event", Err: fmt.Errorf("there is no type %.100q", e.Type)}
	}
	if e.Time.IsZero() {
		e.Time = now
	}
	e.Time = e.Time.UTC().Truncate(time.Millisecond)
	e.Data.bound()
	return nil
}

func (d *Data) bound() {
	size := 0
	for k, v := range d.Metadata {
		size += len(k) + len(v)
	}
	if size > maxMetadata {
		d.Metadata, d.Cut = nil, true
	}
	if len(d.Rules) > maxRules {
		d.Rules, d.Cut = d.Rules[:maxRules:maxRules], true
	}
	for _, text := range []*string{&d.Reason, &d.Detail} {
		if len(*text) > maxText {
			*text, d.Cut = cut(*text), true
		}
	}
}

// cut shortens text to maxText bytes at most, between characters.
func cut(text string) string {
	n := maxText
	for n > 0 && !utf8.RuneStart(text[n]) {
		n--
	}
	return text[:n]
}

// NewID returns a fresh random UUID.
func NewID() string {
	var b [16]byte
	rand.Read(b[:]) // never fails
	b[6], b[8] = b[6]&0x0f|0x40, b[8]&0x3f|0x80
	return fmt.Sprintf("%x-%x-%x-%x-%x", b[:4], b[4:6], b[6:8], b[8:10], b[10:])
}

// prefixLen is the length of the random part of an event's ID.
const prefixLen = len("00000000-0000-8000-8000-")

// NewPrefix returns the random part of an event's ID. It is a UUID of version 8, whose digits are for us to choose.
func NewPrefix() string {
	id := []byte(NewID()[:prefixLen])
	id[len("00000000-0000-")] = '8'
	return string(id)
}

// IDOf returns the ID of the event with a random part and a Number: so it can be found by the Number, without an index of
// its own, and a tenant sees by the IDs that none is missing.
func IDOf(prefix string, number int64) string { return fmt.Sprintf("%s%012x", prefix, number) }

// ParseID takes the ID of an event apart.
func ParseID(id string) (prefix string, number int64, ok bool) {
	if len(id) != prefixLen+12 {
		return "", 0, false
	}
	n, err := strconv.ParseUint(id[prefixLen:], 16, 48)
	if err != nil || IDOf(id[:prefixLen], int64(n)) != id { // capital digits are another text
		return "", 0, false
	}
	return id[:prefixLen], int64(n), true
}
