package mcp

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"strings"
	"time"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

const (
	maxCode    = 512 << 10 // bytes of code
	maxLine    = 9 << 20   // bytes of one event of the interpreter: its results have 8 MiB at most
	maxImages  = 8         // of one run
	maxImage   = 2 << 20   // bytes of one, in base64
	maxData    = 32 << 10  // bytes of a table or a chart's numbers
	maxResults = 50        // of one run
	maxValue   = 8 << 10   // bytes of one result's text

	// codePort is where the code interpreter answers inside.
	codeURL = "http://sandbox:49999"
)

type runCodeIn struct {
	Code     string `json:"code" jsonschema:"the code; the value of its last expression is a result"`
	Language string `json:"language,omitempty" jsonschema:"default: python"`
	Context  string `json:"context,omitempty" jsonschema:"name of an interpreter of its own, made when it is first named; default: one for each language"`
	Timeout  int    `json:"timeout_seconds,omitempty" jsonschema:"interrupt it after so many seconds; default 120"`
	Sandbox  string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type codeOut struct {
	Sandbox   string     `json:"sandbox"`
	OutputID  string     `json:"output_id" jsonschema:"for read_output"`
	Stdout    string     `json:"stdout,omitempty"`
	Stderr    string     `json:"stderr,omitempty"`
	Results   []codeItem `json:"results,omitempty"`
	Error     *codeError `json:"error,omitempty"`
	Truncated bool       `json:"truncated,omitempty" jsonschema:"parts were left out; read_output with the output_id has them"`
	TimedOut  bool       `json:"timed_out,omitempty"`
}

// codeItem is one value that was shown.
type codeItem struct {
	Text  string         `json:"text,omitempty"`
	Data  map[string]any `json:"data,omitempty" jsonschema:"a table: its columns by name"`
	Chart map[string]any `json:"chart,omitempty" jsonschema:"what a chart shows, as numbers"`
	JSON  string         `json:"json,omitempty" jsonschema:"the value as JSON"`
	Image string         `json:"image,omitempty" jsonschema:"media type of a picture, which is in the content"`
}

type codeError struct {
	Name      string `json:"name"`
	Value     string `json:"value"`
	Traceback string `json:"traceback,omitempty"`
}

func (d *Door) addCodeTools() {
	add(d, tool{name: "run_code", title: "Run code",
		about: "Run code in an interpreter that keeps its variables and imports between calls, as a notebook does. Returns what it printed, its last expression, " +
			"tables as text and data, and pictures (matplotlib figures show by themselves). Packages: %pip install needs a network, so use what is there. " +
			"Each language has an interpreter of its own; an exception is returned with its traceback, and the state stays.",
		limits: limits{"code": longest(maxCode), "language": oneOf("python", "javascript", "typescript", "bash"), "context": longest(maxID),
			"timeout_seconds": between(1, maxSeconds), "sandbox": longest(maxID)}},
		(*call).runCode)
}

func (c *call) runCode(in runCodeIn) (result, codeOut, error) {
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, codeOut{}, err
	}
	language := in.Language
	if language == "" {
		language = "python"
	}
	limit := time.Duration(in.Timeout) * time.Second
	if limit == 0 {
		limit = 2 * time.Minute
	}
	cmd, err := c.session.newCommand(b, "run_code")
	if err != nil {
		return result{}, codeOut{}, err
	}
	defer close(cmd.done)
	defer b.keep(c.ctx, c.door)()
	ctx, cancel := context.WithTimeoutCause(c.ctx, limit, errTimeLimit)
	defer cancel()
	body := map[string]string{"code": in.Code}
	if in.Context == "" {
		body["language"] = language
	} else if body["context_id"], err = b.context(ctx, g, language, in.Context); err != nil {
		return result{}, codeOut{}, err
	}
	run := &codeRun{cmd: cmd, tell: c.progress(), out: codeOut{Sandbox: b.id, OutputID: cmd.id}}
	err = run.follow(ctx, g, body)
	switch {
	case c.ctx.Err() != nil:
		return result{}, codeOut{}, c.ctx.Err()
	case errors.Is(context.Cause(ctx), errTimeLimit):
		run.out.TimedOut = true
	case err != nil:
		return result{}, codeOut{}, err
	}
	b.log.add("%s: %s", language, run.state())
	r, out := run.result(limit)
	return r, out, nil
}

// context returns the interpreter of a name, and makes it if there is none.
func (b *box) context(ctx context.Context, g *guest.Guest, language, name string) (string, error) {
	key := language + "/" + name
	b.mu.Lock()
	id := b.contexts[key]
	b.mu.Unlock()
	if id != "" {
		return id, nil
	}
	res, err := postCode(ctx, g, "/contexts", map[string]string{"language": language})
	if err != nil {
		return "", err
	}
	defer res.Body.Close() //nolint:errcheck // read as far as we want it
	var made struct{ ID string }
	if err := json.NewDecoder(io.LimitReader(res.Body, maxError)).Decode(&made); err != nil || made.ID == "" {
		return "", &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "make an interpreter", Err: errors.Join(errors.New("the sandbox names none"), err)}
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.contexts == nil {
		b.contexts = map[string]string{}
	}
	b.contexts[key] = made.ID
	return made.ID, nil
}

// postCode asks the code interpreter. A refusal is an error with its words.
func postCode(ctx context.Context, g *guest.Guest, path string, body map[string]string) (*http.Response, error) {
	text, err := json.Marshal(body)
	if err != nil {
		return nil, err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, codeURL+path, bytes.NewReader(text))
	if err != nil {
		return nil, err
	}
	req.Header.Set("Content-Type", "application/json")
	res, err := g.Ports().RoundTrip(req)
	if err != nil {
		return nil, err
	}
	if res.StatusCode == http.StatusOK {
		return res, nil
	}
	defer res.Body.Close()                                    //nolint:errcheck // read as far as we want it
	said, _ := io.ReadAll(io.LimitReader(res.Body, maxError)) // what could be read says enough
	return nil, &firebreak.Error{Kind: codeKind(res.StatusCode), Op: "run code", Err: errors.New(strings.TrimSpace(string(said)))}
}

func codeKind(status int) firebreak.Kind {
	switch status {
	case http.StatusBadRequest, http.StatusRequestEntityTooLarge:
		return firebreak.KindInvalid
	case http.StatusNotFound:
		return firebreak.KindNotFound
	case http.StatusTooManyRequests:
		return firebreak.KindExhausted
	case http.StatusNotImplemented:
		return firebreak.KindUnsupported
	}
	return firebreak.KindUnavailable
}

// codeRun collects what one run shows.
type codeRun struct {
	cmd    *command
	tell   func(int64, []byte)
	out    codeOut
	images []sdk.Content
	left   int // results that were too many
}

// codeEvent is one line of the interpreter's answer. All of it comes from the sandbox.
type codeEvent struct {
	Type      string
	Text      string
	Name      string
	Value     string
	Traceback string
	Markdown  string
	HTML      string
	Latex     string
	SVG       string
	PNG       string
	JPEG      string
	PDF       string
	JSON      json.RawMessage
	Data      json.RawMessage
	Chart     json.RawMessage
}

func (r *codeRun) follow(ctx context.Context, g *guest.Guest, body map[string]string) error {
	res, err := postCode(ctx, g, "/execute", body)
	if err != nil {
		return err
	}
	defer res.Body.Close() //nolint:errcheck // read as far as we want it
	lines := bufio.NewScanner(res.Body)
	lines.Buffer(nil, maxLine)
	for lines.Scan() {
		var e codeEvent
		if err := json.Unmarshal(lines.Bytes(), &e); err != nil {
			return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "run code", Err: errors.New("the interpreter's answer is not of its protocol")}
		}
		if e.Type == "end_of_execution" {
			return nil
		}
		r.take(e)
	}
	if err := lines.Err(); err != nil {
		return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "run code", Err: err}
	}
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "run code", Err: errors.New("the interpreter's answer ended before it was whole")}
}

func (r *codeRun) take(e codeEvent) {
	switch e.Type {
	case "stdout", "stderr":
		stream := r.cmd.stdout
		if e.Type == "stderr" {
			stream = r.cmd.stderr
		}
		_, _ = stream.Write([]byte(e.Text))
		_, _ = r.cmd.output.Write([]byte(e.Text))
		r.tell(int64(len(e.Text)), []byte(e.Text))
	case "error":
		trace, _ := cut(e.Traceback, maxValue, "it was a long traceback")
		value, _ := cut(e.Value, maxError, "it was a long message")
		name, _ := cut(e.Name, 200, "it was a long name")
		r.out.Error = &codeError{name, value, trace}
	case "result":
		r.show(e)
	}
}

// show takes one value: its text and data for the model, its picture for whoever sees pictures.
func (r *codeRun) show(e codeEvent) {
	if len(r.out.Results) >= maxResults {
		r.left++
		return
	}
	words := e.Text
	for _, other := range []string{e.Markdown, e.Latex, e.HTML, e.SVG} {
		if words == "" {
			words = other
		}
	}
	if words != "" {
		_, _ = r.cmd.output.Write([]byte(words + "\n"))
	}
	var item codeItem
	var short bool
	item.Text, short = cut(words, maxValue, fmt.Sprintf("read_output with command_id %q has them", r.cmd.id))
	item.Data, item.Chart = small(e.Data), small(e.Chart)
	if len(e.JSON) <= maxData && string(e.JSON) != "null" {
		item.JSON = valid(e.JSON)
	}
	r.out.Truncated = r.out.Truncated || short
	for kind, data := range map[string]string{"image/png": e.PNG, "image/jpeg": e.JPEG} {
		if data != "" && (item.Image == "" || kind == "image/png") {
			item.Image = r.picture(kind, data)
		}
	}
	if e.PDF != "" && item.Text == "" {
		item.Text = "a PDF: write it to a file to have it"
	}
	r.out.Results = append(r.out.Results, item)
}

// picture adds a picture to the content, and says what became of it.
func (r *codeRun) picture(kind, data string) string {
	raw, err := decodeBase64(data)
	switch {
	case err != nil:
		return kind + ", left out because it is damaged"
	case len(data) > maxImage:
		return fmt.Sprintf("%s, left out because it has more than %d bytes; save it to a file with less resolution", kind, maxImage)
	case len(r.images) >= maxImages:
		return fmt.Sprintf("%s, left out because there are more than %d", kind, maxImages)
	}
	r.images = append(r.images, &sdk.ImageContent{Data: raw, MIMEType: kind})
	return kind
}

// small drops what would flood the model: the text of the same value tells of it.
func small(data json.RawMessage) map[string]any {
	var fields map[string]any
	if len(data) > maxData || len(data) == 0 || json.Unmarshal(data, &fields) != nil {
		return nil
	}
	return fields
}

func (r *codeRun) state() string {
	switch {
	case r.out.TimedOut:
		return "interrupted at its time limit"
	case r.out.Error != nil:
		return r.out.Error.Name + ": " + r.out.Error.Value
	}
	return "done"
}

// result is the text of the run, then its pictures.
func (r *codeRun) result(limit time.Duration) (result, codeOut) {
	out := &r.out
	rest := fmt.Sprintf("read_output with command_id %q has them", r.cmd.id)
	var cutOut, cutErr bool
	out.Stdout, cutOut = r.cmd.stdout.shown(maxShown, rest)
	out.Stderr, cutErr = r.cmd.stderr.shown(maxShown, rest)
	out.Truncated = out.Truncated || cutOut || cutErr
	var b strings.Builder
	b.WriteString(out.Stdout)
	if out.Stderr != "" {
		fmt.Fprintf(&b, "%sstderr:\n%s", newline(b.String()), out.Stderr)
	}
	for _, item := range out.Results {
		if item.Text != "" {
			b.WriteString(newline(b.String()) + item.Text)
		}
		if item.Image != "" {
			fmt.Fprintf(&b, "%s[%s]", newline(b.String()), item.Image)
		}
	}
	if r.left > 0 {
		fmt.Fprintf(&b, "%s[%d more results were left out]", newline(b.String()), r.left)
	}
	if e := out.Error; e != nil {
		shown := e.Traceback
		if shown == "" {
			shown = e.Name + ": " + e.Value
		}
		b.WriteString(newline(b.String()) + shown)
	}
	if out.TimedOut {
		fmt.Fprintf(&b, "%s[interrupted after %s; give it more with timeout_seconds]", newline(b.String()), limit)
	}
	if b.Len() == 0 {
		b.WriteString("[done, and it printed nothing]")
	}
	content := append([]sdk.Content{&sdk.TextContent{Text: b.String()}}, r.images...)
	return result{content: content, failed: out.Error != nil || out.TimedOut}, r.out
}
