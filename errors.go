package firebreak

import (
	"context"
	"errors"
	"io/fs"
	"strings"
)

// Kind classes an error for the edges: each door looks its own code up in the one table below.
type Kind uint8

// The kinds of error.
const (
	KindInternal    Kind = iota // our bug, and the zero value: an unclassed error is ours
	KindInvalid                 // your input is malformed or contradictory
	KindNotFound                // no such thing
	KindExists                  // there is one already
	KindUnsupported             // this driver or version cannot do it
	KindDenied                  // policy or permission forbids it
	KindHost                    // the host lacks something that is needed; Mend says what
	KindExhausted               // a limit or quota is reached, or no space is left
	KindState                   // not in the state that this needs
	KindDeadline                // its time was up
	KindCanceled                // the caller went away
	KindUnavailable             // gone or not reachable at this moment
)

// Edge is what one kind becomes at each door. Connect is the code's name in the Connect protocol.
type Edge struct {
	Name    string
	Blame   string
	HTTP    int
	Connect string
	Exit    int
}

// edges is the one table from kinds to codes. Exit codes follow docker run: 125 is ours, 126 cannot be invoked,
// 127 not found; 124 is timeout(1)'s.
var edges = [...]Edge{
	KindInternal:    {"internal", "a bug in firebreak", 500, "internal", 125},
	KindInvalid:     {"invalid", "your input", 400, "invalid_argument", 125},
	KindNotFound:    {"not found", "your input", 404, "not_found", 125},
	KindExists:      {"exists", "your input", 409, "already_exists", 125},
	KindUnsupported: {"unsupported", "your input", 501, "unimplemented", 125},
	KindDenied:      {"denied", "your input", 403, "permission_denied", 125},
	KindHost:        {"host", "your host", 503, "failed_precondition", 125},
	KindExhausted:   {"exhausted", "a limit", 507, "resource_exhausted", 125},
	KindState:       {"state", "your input", 409, "aborted", 125},
	KindDeadline:    {"deadline", "a limit", 504, "deadline_exceeded", 124},
	KindCanceled:    {"canceled", "your input", 499, "canceled", 130},
	KindUnavailable: {"unavailable", "the sandbox", 502, "unavailable", 125},
}

// Edge returns the row of the table for k.
func (k Kind) Edge() Edge {
	if int(k) < len(edges) {
		return edges[k]
	}
	return edges[KindInternal]
}

func (k Kind) String() string { return k.Edge().Name }

// KindOfConnect returns the kind whose Connect code has this name; KindInternal for an unknown one.
func KindOfConnect(code string) Kind {
	for k, e := range edges {
		if e.Connect == code {
			return Kind(k)
		}
	}
	return KindInternal
}

// Error says what was being done, what went wrong, whose fault it is (by its Kind) and how to mend it.
type Error struct {
	Kind Kind
	Op   string // what was being done: "pull image"; may be empty
	Err  error  // what went wrong; never nil
	Mend string // one sentence or command that mends it; may be empty
}

func (e *Error) Error() string {
	var b strings.Builder
	if e.Op != "" {
		b.WriteString(e.Op + ": ")
	}
	b.WriteString(e.Err.Error())
	if e.Mend != "" {
		b.WriteString("; to mend it: " + e.Mend)
	}
	return b.String()
}

func (e *Error) Unwrap() error { return e.Err }

// KindOf classes any error: the outermost *Error in its chain decides, then the standard library's sentinels.
func KindOf(err error) Kind {
	var e *Error
	switch {
	case errors.As(err, &e):
		return e.Kind
	case errors.Is(err, fs.ErrNotExist):
		return KindNotFound
	case errors.Is(err, fs.ErrExist):
		return KindExists
	case errors.Is(err, fs.ErrPermission):
		return KindDenied
	case errors.Is(err, fs.ErrInvalid):
		return KindInvalid
	case errors.Is(err, errors.ErrUnsupported):
		return KindUnsupported
	case errors.Is(err, context.DeadlineExceeded):
		return KindDeadline
	case errors.Is(err, context.Canceled):
		return KindCanceled
	}
	return KindInternal
}
