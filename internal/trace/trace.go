// Package trace tells an OpenTelemetry collector where the time of requests goes. There is no global tracer: who makes
// spans is given one. A nil Tracer, and the nil Span that it makes, do nothing and cost next to nothing.
package trace

import (
	"context"
	"fmt"
	"log/slog"
	"net/http"
	"os"
	"strings"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	"go.opentelemetry.io/otel/propagation"
	"go.opentelemetry.io/otel/sdk/resource"
	sdk "go.opentelemetry.io/otel/sdk/trace"
	otel "go.opentelemetry.io/otel/trace"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/answer"
)

// Config says where spans go.
type Config struct {
	Endpoint string                   // URL of a collector that takes OTLP over HTTP, without /v1/traces; empty: what the environment says
	Version  string                   // of this program
	Log      *slog.Logger             // of spans that cannot be sent
	Getenv   func(name string) string // nil: os.Getenv. The SDK itself reads the process's environment
}

// Tracer makes spans. It may be used concurrently.
type Tracer struct {
	tracer     otel.Tracer
	propagator propagation.TraceContext
}

// Setup returns the tracer that cfg, or else OpenTelemetry's variables of the environment, ask for, and what sends the
// last spans and ends it. Neither asks for one: the tracer is nil. firebreak.KindInvalid for settings that mean nothing.
func Setup(ctx context.Context, cfg Config) (*Tracer, func(context.Context) error, error) {
	off := func(context.Context) error { return nil }
	if cfg.Getenv == nil {
		cfg.Getenv = os.Getenv
	}
	s, on, err := settingsOf(cfg)
	if err != nil {
		return nil, off, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "set up traces", Err: err}
	}
	if !on {
		return nil, off, nil
	}
	exporter, err := otlptrace.New(ctx, newClient(s, cfg.Log))
	if err != nil {
		return nil, off, fmt.Errorf("set up traces: %w", err)
	}
	// What the environment says of the resource wins, and a part of it that means nothing is left out.
	res, err := resource.New(ctx, resource.WithAttributes(attribute.String("service.name", "firebreak"), attribute.String("service.version", cfg.Version)),
		resource.WithTelemetrySDK(), resource.WithFromEnv())
	if err != nil {
		cfg.Log.Warn("traces: read what the environment says of this service", "err", err)
	}
	provider := sdk.NewTracerProvider(sdk.WithBatcher(exporter), sdk.WithResource(res), sdk.WithRawSpanLimits(limits()))
	return &Tracer{tracer: provider.Tracer("github.com/firebreak-dev/firebreak")}, provider.Shutdown, nil
}

// limits bounds what one span may take of memory: clients have a say in some of it.
func limits() sdk.SpanLimits {
	l := sdk.NewSpanLimits()
	if l.AttributeValueLengthLimit < 0 {
		l.AttributeValueLengthLimit = 1000
	}
	return l
}

// Span is some work under way.
type Span struct{ span otel.Span }

// Start begins a span, below that of ctx. The attributes are pairs of a name, to which "firebreak." is put, and a value.
func (t *Tracer) Start(ctx context.Context, name string, attributes ...string) (context.Context, *Span) {
	if t == nil {
		return ctx, nil
	}
	ctx, span := t.tracer.Start(ctx, name)
	s := &Span{span}
	s.Set(attributes...)
	return ctx, s
}

// Set gives the span attributes, as Start does. What is empty is left out.
func (s *Span) Set(attributes ...string) {
	if s == nil || !s.span.IsRecording() {
		return
	}
	for i := 0; i+1 < len(attributes); i += 2 {
		if attributes[i+1] == "" {
			continue
		}
		s.span.SetAttributes(attribute.String("firebreak."+attributes[i], attributes[i+1]))
	}
}

// End ends the span with an error, or nil. Of the error only the kind is told: its text may say more than a collector
// should know.
func (s *Span) End(err error) {
	if s == nil {
		return
	}
	if err != nil {
		kind := firebreak.KindOf(err).String()
		s.span.SetStatus(codes.Error, kind)
		s.span.SetAttributes(attribute.String("error.type", kind))
	}
	s.span.End()
}

// Door makes a span of each request to a handler, below the one that the client tells of in W3C's traceparent.
func (t *Tracer) Door(door string, next http.Handler) http.Handler {
	if t == nil {
		return next
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := t.propagator.Extract(r.Context(), propagation.HeaderCarrier(r.Header))
		ctx, span := t.tracer.Start(ctx, door, otel.WithSpanKind(otel.SpanKindServer),
			otel.WithAttributes(attribute.String("http.request.method", method(r.Method)), attribute.String("firebreak.door", door)))
		inner, out := r.WithContext(ctx), &answer.Writer{ResponseWriter: w}
		returned := false
		defer func() {
			if returned {
				out.End()
			}
			r.Pattern = inner.Pattern // for whoever is outside of this
			finish(span, inner, out.Status())
		}()
		next.ServeHTTP(out, inner)
		returned = true
	})
}

// finish names a request's span by its route: a path would be another one for each sandbox.
func finish(span otel.Span, r *http.Request, status int) {
	if r.Pattern != "" {
		_, route, ok := strings.Cut(r.Pattern, " ")
		if !ok {
			route = r.Pattern
		}
		span.SetName(method(r.Method) + " " + route)
		span.SetAttributes(attribute.String("http.route", route))
	}
	span.SetAttributes(attribute.Int("http.response.status_code", status))
	if status == 0 || status >= 500 {
		span.SetStatus(codes.Error, "")
	}
	span.End()
}

// method is one of those that HTTP has: clients may send any word.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "_OTHER"
}
