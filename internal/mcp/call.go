package mcp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// call is one tool at work.
type call struct {
	ctx     context.Context // ends with the call, with its session, and when the client cancels it
	door    *Door
	session *session
	req     *sdk.CallToolRequest
	note    string // for the model, before the result
}

type limits map[string]func(*jsonschema.Schema)

// tool is what clients are told of a tool.
type tool struct {
	name, title, about string
	limits             limits // of its arguments, by name

	readOnly    bool
	destructive bool
	idempotent  bool
	openWorld   bool // it reaches beyond the sandbox
}

// result is what a tool shows its model.
type result struct {
	content []sdk.Content
	failed  bool                // the model's code or command failed, and what it printed is the result
	ask     *sdk.CallToolResult // a question to the user instead of a result
}

func text(format string, args ...any) result {
	return result{content: []sdk.Content{&sdk.TextContent{Text: fmt.Sprintf(format, args...)}}}
}

// add offers a tool.
func add[In, Out any](d *Door, t tool, do func(*call, In) (result, Out, error)) {
	schema, shown := schemaOf[In](), schemaOf[Out]()
	for name, limit := range t.limits {
		limit(schema.Properties[name])
	}
	no := false
	info := &sdk.Tool{Name: t.name, Title: t.title, Description: t.about, InputSchema: schema, OutputSchema: shown, Annotations: &sdk.ToolAnnotations{
		Title: t.title, ReadOnlyHint: t.readOnly, DestructiveHint: &no, IdempotentHint: t.idempotent, OpenWorldHint: &no,
	}}
	if t.destructive {
		info.Annotations.DestructiveHint = &t.destructive
	}
	if t.openWorld {
		info.Annotations.OpenWorldHint = &t.openWorld
	}
	sdk.AddTool(d.server, info, func(ctx context.Context, req *sdk.CallToolRequest, in In) (*sdk.CallToolResult, Out, error) {
		var none Out
		c, leave, err := d.enter(ctx, req)
		if err != nil {
			return nil, none, explain(err)
		}
		defer leave()
		r, out, err := do(c, in)
		switch {
		case err != nil:
			return nil, none, explain(err)
		case r.ask != nil:
			return r.ask, none, nil
		}
		if c.note != "" {
			r.content = append([]sdk.Content{&sdk.TextContent{Text: c.note}}, r.content...)
		}
		return &sdk.CallToolResult{Content: r.content, IsError: r.failed}, out, nil
	})
}

// schemaOf is a type's schema in words that all models' providers understand: one type for each value. What may be missing
// is left out, and never null.
func schemaOf[T any]() *jsonschema.Schema {
	schema, err := jsonschema.For[T](nil)
	if err != nil {
		panic(fmt.Sprintf("mcp: %T has no schema: %v", *new(T), err)) // a mistake in this package, which all its tests show
	}
	tidy(schema)
	return schema
}

func tidy(s *jsonschema.Schema) {
	if s == nil {
		return
	}
	if i := slices.Index(s.Types, "null"); i >= 0 && len(s.Types) == 2 {
		s.Type, s.Types = s.Types[1-i], nil
	}
	for _, p := range s.Properties {
		tidy(p)
	}
	tidy(s.Items)
}

// enter begins a call.
func (d *Door) enter(ctx context.Context, req *sdk.CallToolRequest) (*call, func(), error) {
	s, err := d.of(ctx, req.Session)
	if err != nil {
		return nil, nil, err
	}
	ctx, leave, err := s.enter(ctx)
	if err != nil {
		return nil, nil, err
	}
	return &call{ctx: ctx, door: d, session: s, req: req}, leave, nil
}

// withCaller has the context tell who sent this very request, where a session has many: his limits may have changed.
func withCaller(ctx context.Context, req sdk.Request) context.Context {
	if extra := req.GetExtra(); extra != nil && extra.TokenInfo != nil {
		if by, ok := extra.TokenInfo.Extra[callerField].(auth.Caller); ok {
			return auth.WithCaller(ctx, by)
		}
	}
	return ctx
}

// explain is the one place where errors become what a model reads: what went wrong, and what to do next.
func explain(err error) error {
	kind := firebreak.KindOf(err)
	switch {
	case kind == firebreak.KindInternal && !isOurs(err): // it may tell of this host, and means nothing to the model
		return errors.New("something went wrong in firebreak itself; its log says what. Try once more; if it happens again, tell the user")
	case kind == firebreak.KindCanceled:
		return errors.New("the call was cancelled, and what it did was stopped")
	}
	said, mend := valid([]byte(err.Error())), ""
	if e := new(firebreak.Error); errors.As(err, &e) && e.Mend != "" {
		mend = e.Mend
		said = strings.Replace(said, "; to mend it: "+mend, "", 1)
	}
	said, _ = cut(said, maxError, "it was a long error")
	next := map[firebreak.Kind]string{
		firebreak.KindHost:        "this is for the user to change on the host, so tell them",
		firebreak.KindDenied:      "do not try to get around it; tell the user",
		firebreak.KindUnavailable: "the sandbox may have ended: try once more, and a new one is made",
		firebreak.KindDeadline:    "split the work, or give it more time",
	}[kind]
	switch {
	case mend != "" && next != "":
		return fmt.Errorf("%s. What to do: %s; %s", said, mend, next)
	case mend != "" || next != "":
		return fmt.Errorf("%s. What to do: %s%s", said, mend, next)
	}
	return errors.New(said)
}

const maxError = 4 << 10 // bytes of an error that is shown

// isOurs reports whether an error was written to be read.
func isOurs(err error) bool {
	var e *firebreak.Error
	return errors.As(err, &e) && e.Kind != firebreak.KindInternal
}

func invalid(mend, format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf(format, args...), Mend: mend}
}

// These limit arguments.

func longest(n int) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) { s.MaxLength = &n }
}

func between(least, most float64) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) { s.Minimum, s.Maximum = &least, &most }
}

func oneOf(words ...string) func(*jsonschema.Schema) {
	return func(s *jsonschema.Schema) {
		for _, w := range words {
			s.Enum = append(s.Enum, w)
		}
	}
}
