package cli

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"text/tabwriter"
	"time"
	"unicode/utf8"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// The reasons in the JSON of firebreak run, beside those of firebreak.EndReason.
const (
	reasonExited  = "exited"
	reasonSignal  = "signal"
	reasonTimeout = "timeout"
	reasonMemory  = "out-of-memory"
	reasonError   = "error"
)

// outcome is how a run ended, seen from the program, the sandbox and the stream between them.
type outcome struct {
	result
	err     error
	sandbox *firebreakv1.Sandbox // as last seen
	usage   *firebreakv1.Usage
	timeout time.Duration

	reason string // judge sets it, and text: one line for a person, "" if there is nothing to say
	text   string
}

// judge finds the reason. What it explains is no error any more: the exit status says it.
func (o *outcome) judge() {
	end := firebreak.EndReason(o.sandbox.GetEndReason())
	limits := o.sandbox.GetLimits()
	lost := o.err != nil && (firebreak.KindOf(o.err) == firebreak.KindUnavailable || firebreak.KindOf(o.err) == firebreak.KindNotFound)
	if (errors.Is(o.err, errCopy) || errors.Is(o.err, errCopyIn)) && end == firebreak.EndDestroyed {
		lost = false // what is not found is the result; the sandbox was removed by ourselves, after that
	}
	var failed *startFailure
	switch {
	case errors.Is(o.err, errCopyIn) && lost && end == firebreak.EndDeadline:
		o.explain(reasonTimeout, 125, "the sandbox's time was up while files were copied in; raise it with --timeout")
	case errors.Is(o.err, errTimeLimit), lost && end == firebreak.EndDeadline, firebreak.KindOf(o.err) == firebreak.KindDeadline:
		o.explain(reasonTimeout, 124, "the program was stopped at its time limit%s; raise it with --timeout", limitText(o.timeout.String(), o.timeout > 0))
	case errors.Is(o.err, errPipeClosed):
		o.explain(reasonSignal, 141, "")
	case errors.As(o.err, &failed):
		o.reason, o.code = reasonError, failed.code
	case lost && end == firebreak.EndOutOfMemory, o.err == nil && o.usage.GetOomKills() > 0 && o.code != 0:
		code := o.code
		if o.err != nil {
			code = 137
		}
		o.explain(reasonMemory, code, "the program was killed at its memory limit%s; raise it with --memory", sizeText(limits.GetMemoryBytes()))
	case lost && end == firebreak.EndDestroyed:
		o.explain(reasonSignal, 137, "the sandbox was removed while the program ran")
	case lost && end != "":
		text := "the sandbox ended before the program did"
		if detail := o.sandbox.GetEndDetail(); detail != "" {
			text += ": " + detail
		}
		o.explain(string(end), 125, "%s", text)
	case o.err != nil:
		o.reason, o.code = reasonError, exitCode(o.err)
	default:
		o.exited(limits)
	}
}

// exited judges a program that ended by itself.
func (o *outcome) exited(limits *firebreakv1.Limits) {
	o.reason = reasonExited
	if o.signal != 0 {
		o.reason = reasonSignal
	}
	if denied := o.usage.GetPidsDenied(); denied > 0 && o.code != 0 {
		o.text = fmt.Sprintf("the program was refused new processes at its limit%s; raise it with --pids",
			limitText(fmt.Sprint(limits.GetPids()), limits.GetPids() > 0))
	}
}

func (o *outcome) explain(reason string, code int, format string, args ...any) {
	o.reason, o.code, o.text, o.err = reason, code, fmt.Sprintf(format, args...), nil
}

func limitText(limit string, known bool) string {
	if !known {
		return ""
	}
	return " of " + limit
}

func sizeText(n int64) string { return limitText(formatSize(n), n > 0) }

// runReport collects what --json and --verbose tell.
type runReport struct {
	start                                       time.Time
	image, create, agent, upload, exec, destroy time.Duration
	sandbox                                     *firebreakv1.Sandbox
	outcome                                     outcome
	stdout, stderr                              capture
}

func (r *runReport) begin() { r.start = time.Now() }

// lap measures until the returned function is called.
func (r *runReport) lap(into *time.Duration) func() {
	start := time.Now()
	return func() { *into += time.Since(start) }
}

func (r *runReport) created(made *firebreakv1.CreateSandboxResponse) {
	r.sandbox = made.GetSandbox()
	r.image += made.GetTimings().GetImage().AsDuration()
	r.create = made.GetTimings().GetCreate().AsDuration()
	r.agent = made.GetTimings().GetAgent().AsDuration()
}

type lapTime struct {
	name string
	time time.Duration
}

func (r *runReport) laps() []lapTime {
	return []lapTime{{"image", r.image}, {"create", r.create}, {"agent", r.agent}, {"upload", r.upload},
		{"exec", r.exec}, {"destroy", r.destroy}, {"total", time.Since(r.start)}}
}

func (r *runReport) printTimings(w io.Writer) {
	t := tabwriter.NewWriter(w, 0, 0, 2, ' ', tabwriter.AlignRight)
	for _, l := range r.laps() {
		if l.time > 0 {
			fmt.Fprintf(t, "%s\t%.1f ms\t\n", l.name, milliseconds(l.time))
		}
	}
	_ = t.Flush() // standard error: nobody is left to tell
}

func milliseconds(d time.Duration) float64 { return float64(d.Microseconds()) / 1000 }

// runJSON is what --json prints. A stream that is not UTF-8 comes in base64 under its other name.
type runJSON struct {
	ID              string             `json:"id,omitempty"`
	Name            string             `json:"name,omitempty"`
	Driver          string             `json:"driver,omitempty"`
	Boundary        string             `json:"boundary,omitempty"`
	Template        string             `json:"template,omitempty"`
	ExitCode        *int               `json:"exit_code,omitempty"`
	Reason          string             `json:"reason,omitempty"`
	Signal          string             `json:"signal,omitempty"`
	Message         string             `json:"message,omitempty"`
	Error           *errorJSON         `json:"error,omitempty"`
	Timings         map[string]float64 `json:"timings_ms"`
	Usage           *usageJSON         `json:"usage,omitempty"`
	Stdout          *string            `json:"stdout,omitempty"`
	StdoutBase64    []byte             `json:"stdout_base64,omitempty"`
	StdoutTruncated bool               `json:"stdout_truncated,omitempty"`
	Stderr          *string            `json:"stderr,omitempty"`
	StderrBase64    []byte             `json:"stderr_base64,omitempty"`
	StderrTruncated bool               `json:"stderr_truncated,omitempty"`
	Warnings        []string           `json:"warnings,omitempty"`
}

type errorJSON struct {
	Kind    string `json:"kind"`
	Message string `json:"message"`
}

type usageJSON struct {
	CPU        float64 `json:"cpu_ms"`
	MemoryPeak int64   `json:"memory_peak_bytes"`
	OOMKills   int64   `json:"oom_kills"`
	PIDsDenied int64   `json:"pids_denied"`
}

// printJSON prints the one object of --json, whatever became of the run, and returns what remains of err: the exit
// status.
func (l *launch) printJSON(err error) error {
	r := &l.report
	sb, out := r.sandbox, r.outcome
	object := runJSON{ID: sb.GetId(), Name: sb.GetName(), Driver: sb.GetDriver(), Boundary: sb.GetBoundary(),
		Template: sb.GetTemplate(), Reason: out.reason, Message: out.text, Timings: map[string]float64{}, Warnings: sb.GetWarnings()}
	for _, lap := range r.laps() {
		object.Timings[lap.name] = milliseconds(lap.time)
	}
	if out.signal != 0 {
		object.Signal = out.signal.String()
	}
	if u := out.usage; u != nil {
		object.Usage = &usageJSON{milliseconds(u.GetCpu().AsDuration()), u.GetMemoryPeakBytes(), u.GetOomKills(), u.GetPidsDenied()}
	}
	code := 0
	var done *exitError
	if errors.As(err, &done) {
		code = done.code
	} else if err != nil {
		code = exitCode(err)
		object.Reason = reasonError
		object.Error = &errorJSON{Kind: firebreak.KindOf(err).String(), Message: errorLine(nil, err)}
	}
	if !l.flags.detach || err != nil {
		object.ExitCode = &code
		object.Stdout, object.StdoutBase64, object.StdoutTruncated = r.stdout.text()
		object.Stderr, object.StderrBase64, object.StderrTruncated = r.stderr.text()
	}
	encoder := json.NewEncoder(l.app.out)
	encoder.SetEscapeHTML(false)
	if printErr := encoder.Encode(object); printErr != nil {
		return fmt.Errorf("print result: %w", printErr)
	}
	return exit(code)
}

// maxCapture bounds what --json keeps of each stream; the rest is read and dropped.
const maxCapture = 1 << 20

// capture is an io.Writer that keeps the beginning.
type capture struct {
	kept      []byte
	truncated bool
}

func (c *capture) Write(p []byte) (int, error) {
	room := min(len(p), maxCapture-len(c.kept))
	c.kept = append(c.kept, p[:room]...)
	c.truncated = c.truncated || room < len(p)
	return len(p), nil
}

// text returns the stream as text, or else its bytes, and whether something is missing. A character cut in two by the
// limit does not make it binary.
func (c *capture) text() (*string, []byte, bool) {
	kept := c.kept
	for cut := 0; c.truncated && cut < utf8.UTFMax && len(kept) > 0 && !utf8.Valid(kept); cut++ {
		kept = kept[:len(kept)-1]
	}
	if utf8.Valid(kept) {
		s := string(kept)
		return &s, nil, c.truncated
	}
	return nil, c.kept, c.truncated
}
