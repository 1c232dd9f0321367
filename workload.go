package firebreak

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"slices"
	"strings"
	"time"
)

// Workload is what a caller says about the code that is to run. Each field is a fact of its own: none is folded into a
// grade of risk, because rules ask for facts. The zero value says nothing; package policy completes what is unset with
// the careful word. Workloads are comparable.
type Workload struct {
	Origin       Origin       `json:"origin,omitempty"`
	Tenancy      Tenancy      `json:"tenancy,omitempty"`
	Data         Data         `json:"data,omitempty"`
	GPU          bool         `json:"gpu,omitempty"`
	Plugin       bool         `json:"plugin,omitempty"` // a module that can do only what it is handed
	Needs        Needs        `json:"needs,omitempty"`
	StartWithin  Duration     `json:"start_within,omitempty"` // from the request to its first instruction; 0 is no bound
	Audit        bool         `json:"audit,omitempty"`        // an auditor must be shown how the code is isolated
	Orchestrator Orchestrator `json:"orchestrator,omitempty"`
	Place        Place        `json:"place,omitempty"`
}

// Origin says who wrote the code.
type Origin uint8

// The origins, the least risky first.
const (
	OriginUnset     Origin = iota
	OriginNone             // no code is executed: text only
	OriginTrusted          // people of yours wrote and reviewed it
	OriginModel            // a language model wrote it
	OriginUntrusted        // strangers wrote it, perhaps to attack
)

// Tenancy says who shares the host.
type Tenancy uint8

// The tenancies.
const (
	TenancyUnset  Tenancy = iota
	TenancySingle         // all sandboxes of this host belong to one tenant
	TenancyMulti          // tenants who do not trust each other share it
)

// Data says what the code may see.
type Data uint8

// The classes of data, the least risky first. The last three are kinds of regulated data: rules treat them alike, and
// the word is kept for who reads the decision.
const (
	DataUnset Data = iota
	DataPublic
	DataInternal
	DataRegulated
	DataFinance
	DataHealth
	DataPersonal
)

// Class returns DataRegulated for all kinds of regulated data, and d itself otherwise.
func (d Data) Class() Data {
	if d > DataRegulated {
		return DataRegulated
	}
	return d
}

// Orchestrator says who places sandboxes on machines.
type Orchestrator uint8

// The orchestrators.
const (
	OrchestratorUnset Orchestrator = iota
	OrchestratorNone
	OrchestratorKubernetes
)

// Place says where the code runs.
type Place uint8

// The places.
const (
	PlaceUnset Place = iota
	PlaceServer
	PlaceBrowser
)

// Needs is a set of what the code cannot do without, or does much of.
type Needs uint8

// The needs.
const (
	NeedLinux    Needs = 1 << iota // a shell, programs, packages
	NeedNetwork                    // connections to the outside
	NeedFileIO                     // reads and writes files heavily
	NeedSyscalls                   // makes many system calls
	NeedCompute                    // computes for most of its time
)

// AtLeast returns what w says, completed by what floor says: of who wrote the code, who shares the host and what it may
// see, the riskier of both holds, so that nobody talks his own code harmless who was told what it is.
func (w Workload) AtLeast(floor Workload) Workload {
	w.Origin, w.Tenancy, w.Data = max(w.Origin, floor.Origin), max(w.Tenancy, floor.Tenancy), max(w.Data, floor.Data)
	w.GPU, w.Plugin, w.Audit = w.GPU || floor.GPU, w.Plugin || floor.Plugin, w.Audit || floor.Audit
	w.Needs |= floor.Needs
	w.StartWithin = cmp.Or(w.StartWithin, floor.StartWithin)
	w.Orchestrator, w.Place = cmp.Or(w.Orchestrator, floor.Orchestrator), cmp.Or(w.Place, floor.Place)
	return w
}

// words is the text of an enumeration, by number; the first stands for unset and is the empty text.
type words []string

func originWords() words  { return words{"", "none", "trusted", "model", "untrusted"} }
func tenancyWords() words { return words{"", "single", "multi"} }
func dataWords() words {
	return words{"", "public", "internal", "regulated", "finance", "health", "personal"}
}
func orchestratorWords() words { return words{"", "none", "kubernetes"} }
func placeWords() words        { return words{"", "server", "browser"} }
func needWords() words         { return words{"linux", "network", "file-io", "syscalls", "compute"} }

// OriginWords returns the words of Origin, in the order of their declaration.
func OriginWords() []string { return originWords()[1:] }

// TenancyWords returns the words of Tenancy, in the order of their declaration.
func TenancyWords() []string { return tenancyWords()[1:] }

// DataWords returns the words of Data, in the order of their declaration.
func DataWords() []string { return dataWords()[1:] }

// OrchestratorWords returns the words of Orchestrator, in the order of their declaration.
func OrchestratorWords() []string { return orchestratorWords()[1:] }

// PlaceWords returns the words of Place, in the order of their declaration.
func PlaceWords() []string { return placeWords()[1:] }

// NeedWords returns the words of Needs, in the order of their declaration.
func NeedWords() []string { return needWords() }

func (w words) text(fact string, n uint8) string {
	switch {
	case n == 0:
		return "unset"
	case int(n) < len(w):
		return w[n]
	}
	return fmt.Sprintf("%s(%d)", fact, n)
}

func (w words) marshal(fact string, n uint8) ([]byte, error) {
	if int(n) >= len(w) {
		return nil, &Error{Kind: KindInvalid, Op: "write " + fact, Err: fmt.Errorf("%d is no %s", n, fact)}
	}
	return []byte(w[n]), nil
}

// number finds text; the empty text is unset.
func (w words) number(fact string, text []byte) (uint8, error) {
	if i := slices.Index(w, string(text)); i >= 0 {
		return uint8(i), nil
	}
	return 0, &Error{Kind: KindInvalid, Op: "read " + fact, Err: fmt.Errorf("%q is none of %s", text, strings.Join(w[1:], ", "))}
}

func (o Origin) String() string       { return originWords().text("origin", uint8(o)) }
func (t Tenancy) String() string      { return tenancyWords().text("tenancy", uint8(t)) }
func (d Data) String() string         { return dataWords().text("data", uint8(d)) }
func (o Orchestrator) String() string { return orchestratorWords().text("orchestrator", uint8(o)) }
func (p Place) String() string        { return placeWords().text("place", uint8(p)) }

// MarshalText implements encoding.TextMarshaler; unset is the empty text.
func (o Origin) MarshalText() ([]byte, error) { return originWords().marshal("origin", uint8(o)) }

// MarshalText implements encoding.TextMarshaler; unset is the empty text.
func (t Tenancy) MarshalText() ([]byte, error) { return tenancyWords().marshal("tenancy", uint8(t)) }

// MarshalText implements encoding.TextMarshaler; unset is the empty text.
func (d Data) MarshalText() ([]byte, error) { return dataWords().marshal("data", uint8(d)) }

// MarshalText implements encoding.TextMarshaler; unset is the empty text.
func (o Orchestrator) MarshalText() ([]byte, error) {
	return orchestratorWords().marshal("orchestrator", uint8(o))
}

// MarshalText implements encoding.TextMarshaler; unset is the empty text.
func (p Place) MarshalText() ([]byte, error) { return placeWords().marshal("place", uint8(p)) }

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error of KindInvalid.
func (o *Origin) UnmarshalText(text []byte) error {
	n, err := originWords().number("origin", text)
	*o = Origin(n)
	return err
}

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error of KindInvalid.
func (t *Tenancy) UnmarshalText(text []byte) error {
	n, err := tenancyWords().number("tenancy", text)
	*t = Tenancy(n)
	return err
}

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error of KindInvalid.
func (d *Data) UnmarshalText(text []byte) error {
	n, err := dataWords().number("data", text)
	*d = Data(n)
	return err
}

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error of KindInvalid.
func (o *Orchestrator) UnmarshalText(text []byte) error {
	n, err := orchestratorWords().number("orchestrator", text)
	*o = Orchestrator(n)
	return err
}

// UnmarshalText implements encoding.TextUnmarshaler; an unknown word is an error of KindInvalid.
func (p *Place) UnmarshalText(text []byte) error {
	n, err := placeWords().number("place", text)
	*p = Place(n)
	return err
}

// Words returns the words of the set, in the order of their declaration.
func (n Needs) Words() []string {
	set := []string{}
	for i, word := range needWords() {
		if n&(1<<i) != 0 {
			set = append(set, word)
		}
	}
	return set
}

func (n Needs) String() string { return strings.Join(n.Words(), ", ") }

// Has reports whether all of want are in n.
func (n Needs) Has(want Needs) bool { return n&want == want }

// ReadNeeds makes a set of words; an unknown one is an error of KindInvalid.
func ReadNeeds(list ...string) (Needs, error) {
	var n Needs
	for _, word := range list {
		i := slices.Index(needWords(), word)
		if i < 0 {
			return 0, &Error{Kind: KindInvalid, Op: "read needs", Err: fmt.Errorf("%q is none of %s", word, strings.Join(needWords(), ", "))}
		}
		n |= 1 << i
	}
	return n, nil
}

// MarshalJSON writes the set as a list of words.
func (n Needs) MarshalJSON() ([]byte, error) { return json.Marshal(n.Words()) }

// UnmarshalJSON reads a list of words.
func (n *Needs) UnmarshalJSON(data []byte) error {
	var list []string
	if err := json.Unmarshal(data, &list); err != nil {
		return &Error{Kind: KindInvalid, Op: "read needs", Err: fmt.Errorf("%s is no list of words", data)}
	}
	set, err := ReadNeeds(list...)
	*n = set
	return err
}

// Duration is a time.Duration whose text is Go's: 10ms, 1m30s.
type Duration time.Duration

func (d Duration) String() string { return time.Duration(d).String() }

// MarshalText implements encoding.TextMarshaler.
func (d Duration) MarshalText() ([]byte, error) { return []byte(d.String()), nil }

// UnmarshalText implements encoding.TextUnmarshaler.
func (d *Duration) UnmarshalText(text []byte) error {
	parsed, err := time.ParseDuration(string(text))
	if err != nil {
		return &Error{Kind: KindInvalid, Op: "read duration", Err: fmt.Errorf("%q is no duration", text), Mend: "write it like 10ms"}
	}
	*d = Duration(parsed)
	return nil
}

// ReadWorkload reads JSON. Unknown keys and words, and contradictions, are errors of KindInvalid.
func ReadWorkload(data []byte) (Workload, error) {
	var w Workload
	dec := json.NewDecoder(bytes.NewReader(data))
	dec.DisallowUnknownFields()
	err := dec.Decode(&w)
	if err == nil {
		if _, more := dec.Token(); !errors.Is(more, io.EOF) {
			err = errors.New("something follows the workload")
		}
	}
	if err == nil {
		err = w.Check()
	}
	if err != nil {
		return Workload{}, &Error{Kind: KindInvalid, Op: "read workload", Err: err}
	}
	return w, nil
}

// Check returns an error of KindInvalid unless each fact is unset or one of its words.
func (w Workload) Check() error {
	for _, fact := range []struct {
		name string
		n    uint8
		of   words
	}{
		{"origin", uint8(w.Origin), originWords()}, {"tenancy", uint8(w.Tenancy), tenancyWords()}, {"data", uint8(w.Data), dataWords()},
		{"orchestrator", uint8(w.Orchestrator), orchestratorWords()}, {"place", uint8(w.Place), placeWords()},
	} {
		if int(fact.n) >= len(fact.of) {
			return &Error{Kind: KindInvalid, Op: "check workload", Err: fmt.Errorf("%d is no %s", fact.n, fact.name)}
		}
	}
	if w.Needs >= 1<<len(needWords()) {
		return &Error{Kind: KindInvalid, Op: "check workload", Err: fmt.Errorf("%#x is no set of needs", uint8(w.Needs))}
	}
	if w.StartWithin < 0 {
		return &Error{Kind: KindInvalid, Op: "check workload", Err: fmt.Errorf("start_within is %s", w.StartWithin), Mend: "leave it away for no bound"}
	}
	return nil
}
