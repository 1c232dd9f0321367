package api

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"unicode/utf8"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
)

// An error crosses the wire as a Connect error whose message is the whole text for clients that know only Connect, and
// whose metadata carries the parts for ours. The values are texts of any language, hence the binary headers.
const (
	headerKind  = "Firebreak-Kind"
	headerBlame = "Firebreak-Blame"
	headerOp    = "Firebreak-Op-Bin"
	headerCause = "Firebreak-Cause-Bin"
	headerMend  = "Firebreak-Mend-Bin"
)

// maxErrorText keeps what an error quotes, perhaps from inside a sandbox, below the limits on HTTP headers.
const maxErrorText = 4 << 10

// ErrorToWire makes the Connect error for any error of ours; nil for nil.
func ErrorToWire(err error) error {
	if err == nil {
		return nil
	}
	if ce := new(connect.Error); errors.As(err, &ce) {
		return err
	}
	e := parts(err)
	edge := e.Kind.Edge()
	var code connect.Code
	if code.UnmarshalText([]byte(edge.Connect)) != nil {
		code = connect.CodeInternal
	}
	ce := connect.NewError(code, errors.New(clip(err.Error())))
	h := ce.Meta()
	h.Set(headerKind, edge.Name)
	h.Set(headerBlame, edge.Blame)
	for name, text := range map[string]string{headerOp: e.Op, headerCause: e.Err.Error(), headerMend: e.Mend} {
		if text != "" {
			h.Set(name, connect.EncodeBinaryHeader([]byte(clip(text))))
		}
	}
	return ce
}

// parts splits err into what is sent: the kind and mend of the outermost *firebreak.Error, and a text that says the
// mend once only.
func parts(err error) *firebreak.Error {
	var e *firebreak.Error
	if !errors.As(err, &e) {
		return &firebreak.Error{Kind: firebreak.KindOf(err), Err: err}
	}
	if err == error(e) {
		return e
	}
	text := err.Error()
	if tail := "; to mend it: " + e.Mend; e.Mend != "" && len(text) > len(tail) && text[len(text)-len(tail):] == tail {
		text = text[:len(text)-len(tail)]
	}
	return &firebreak.Error{Kind: e.Kind, Err: errors.New(text), Mend: e.Mend}
}

func clip(s string) string {
	if len(s) <= maxErrorText {
		return s
	}
	cut := maxErrorText
	for cut > 0 && !utf8.RuneStart(s[cut]) {
		cut--
	}
	return s[:cut] + "…"
}

// ErrorFromWire rebuilds the *firebreak.Error of an error that came over the wire. errors.Is finds the standard
// library's sentinel of its kind, errors.As the Connect error. Errors of other origin are returned as they are.
func ErrorFromWire(err error) error {
	var ce *connect.Error
	var e *firebreak.Error
	if err == nil || errors.As(err, &e) || !errors.As(err, &ce) {
		return err
	}
	h := ce.Meta()
	cause := &wireError{text: text(h.Get(headerCause)), err: ce}
	e = &firebreak.Error{Op: text(h.Get(headerOp)), Err: cause, Mend: text(h.Get(headerMend))}
	if cause.text == "" {
		cause.text = ce.Message()
	}
	e.Kind = wireKind(ce, h.Get(headerKind))
	cause.kind = e.Kind
	return e
}

func text(header string) string {
	b, err := connect.DecodeBinaryHeader(header)
	if err != nil {
		return ""
	}
	return string(b)
}

// wireKind knows our own errors by name. Codes without a name come from an agent or another server, where some of them
// mean something else than in our table.
func wireKind(ce *connect.Error, name string) firebreak.Kind {
	for k := firebreak.KindInternal; k <= firebreak.KindUnavailable; k++ {
		if name != "" && k.String() == name {
			return k
		}
	}
	switch code := ce.Code(); {
	case errors.Is(ce, io.ErrUnexpectedEOF):
		return firebreak.KindUnavailable // the stream broke off
	case code == connect.CodeFailedPrecondition:
		return firebreak.KindState
	case code == connect.CodeUnauthenticated:
		return firebreak.KindDenied
	case code == connect.CodeOutOfRange:
		return firebreak.KindInvalid
	default:
		return firebreak.KindOfConnect(code.String())
	}
}

// wireError is the cause of an error that came over the wire.
type wireError struct {
	text string
	kind firebreak.Kind
	err  *connect.Error
}

func (e *wireError) Error() string { return e.text }

func (e *wireError) Unwrap() error { return e.err }

func (e *wireError) Is(target error) bool {
	switch e.kind {
	case firebreak.KindNotFound:
		return target == fs.ErrNotExist
	case firebreak.KindExists:
		return target == fs.ErrExist
	case firebreak.KindDenied:
		return target == fs.ErrPermission
	case firebreak.KindInvalid:
		return target == fs.ErrInvalid
	case firebreak.KindUnsupported:
		return target == errors.ErrUnsupported
	case firebreak.KindDeadline:
		return target == context.DeadlineExceeded
	case firebreak.KindCanceled:
		return target == context.Canceled
	}
	return false
}
