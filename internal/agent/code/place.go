package code

import (
	"context"
	"encoding/json"
	"errors"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// Place is where code runs: processes of the sandbox (Processes), or interpreters within the agent's own process. All
// methods may be called concurrently.
type Place interface {
	// Language finds a language by its name, in lower case, or by an alias; "" is the one of clients that name none. The
	// error (Fail) says which there are.
	Language(name string) (Language, error)
	// Offers reports whether the language's interpreter is here.
	Offers(l Language) bool
	// Start starts a kernel and need not wait until it is ready.
	Start(o Options) (Kernel, error)
	// Close returns when nothing is left of the kernels, which have all been killed. No more are started.
	Close()
}

// Language is one in which code can be written.
type Language struct {
	Name  string
	Shell bool // what it runs are commands, without zero bytes, and variables have the names of a shell's
}

// Options are how a kernel is started.
type Options struct {
	Language Language
	User     account.User
	Dir      string            // absolute
	Env      map[string]string // the sandbox's own, beside what every program gets; it must not be changed
}

// Kernel is an interpreter that keeps its state from one run to the next.
type Kernel interface {
	// Run runs code and tells out what comes of it until it is done, or ctx ends and the code was interrupted. It reports
	// whether the kernel lives on; if not, it is gone. Env is of this run alone. There is one run at a time, and out is
	// not used after it.
	Run(ctx context.Context, code string, env map[string]string, out Sink) bool
	// Ready waits until the kernel would run code at once, or is gone, which is an error.
	Ready(ctx context.Context) error
	// Kill ends the kernel, and what runs in it. It does not wait; the first reason is the one that End tells.
	Kill(reason string)
	// Gone is closed when the kernel has ended and all it said was told.
	Gone() <-chan struct{}
	// End says in half a sentence how a kernel that is gone ended: "python3 ended with exit status 3".
	End() string
}

// Sink takes what comes of a run, in its order. It may be called concurrently.
type Sink interface {
	// Print takes whole characters that were written to "stdout" or "stderr".
	Print(stream, text string)
	// Result takes a value in its forms ("text", "png", "json" and so on), and whether it is the last expression's.
	Result(main bool, forms map[string]json.RawMessage)
	// Failed takes an error of the code.
	Failed(name, value, traceback string)
	// Flush has all that was taken so far sent on.
	Flush()
}

// Writer passes what code writes to a stream on to a Sink, whole characters at a time. It is for one goroutine.
type Writer struct {
	out    Sink
	stream string
	rest   []byte // the beginning of a character
}

// NewWriter returns a writer for "stdout" or "stderr".
func NewWriter(out Sink, stream string) *Writer { return &Writer{out: out, stream: stream} }

// Write implements io.Writer; it never fails.
func (w *Writer) Write(p []byte) (int, error) {
	data := p
	if len(w.rest) > 0 {
		data = append(w.rest, p...)
	}
	whole := wholeRunes(data)
	w.out.Print(w.stream, string(data[:whole]))
	w.rest = append([]byte(nil), data[whole:]...)
	w.out.Flush()
	return len(p), nil
}

// Close passes on what is left of a character.
func (w *Writer) Close() error {
	if len(w.rest) > 0 {
		w.out.Print(w.stream, string(w.rest))
		w.rest = nil
	}
	return nil
}

// failure is an error with the HTTP status that it gets.
type failure struct {
	status int
	error
}

// Fail returns an error that clients get with an HTTP status; any other is 500.
func Fail(status int, err error) error { return failure{status, err} }

func (f failure) Unwrap() error { return errors.Unwrap(f.error) }
