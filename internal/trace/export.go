package trace

import (
	"bytes"
	"compress/gzip"
	"context"
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"strconv"
	"sync"
	"time"

	"go.opentelemetry.io/otel/exporters/otlp/otlptrace"
	tracepb "go.opentelemetry.io/proto/otlp/trace/v1"
	"google.golang.org/protobuf/encoding/protowire"
	"google.golang.org/protobuf/proto"
)

var _ otlptrace.Client = (*client)(nil)

// client sends spans as OTLP over HTTP. OpenTelemetry's own one would link a whole gRPC, for its messages alone.
type client struct {
	settings settings
	http     *http.Client
	log      *slog.Logger
	first    time.Duration // pause after the first attempt that failed; doubled by each more

	mu      sync.Mutex
	failing bool // guarded by mu; the last spans could not be sent
}

const (
	maxAnswer = 64 << 10 // bytes of an answer
	maxPause  = 10 * time.Second
)

func newClient(s settings, log *slog.Logger) *client {
	transport := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSClientConfig: s.tls, ForceAttemptHTTP2: true, MaxIdleConns: 2, IdleConnTimeout: time.Minute}
	noRedirect := func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse } // it would take the headers along
	return &client{settings: s, log: log, first: time.Second,
		http: &http.Client{Transport: transport, Timeout: s.timeout, CheckRedirect: noRedirect}}
}

// Start implements otlptrace.Client.
func (c *client) Start(context.Context) error { return nil }

// Stop implements otlptrace.Client.
func (c *client) Stop(context.Context) error {
	c.http.CloseIdleConnections()
	return nil
}

// UploadTraces implements otlptrace.Client. Spans that cannot be sent are dropped, and the log says so once until some
// can: the SDK would tell a global handler each time.
func (c *client) UploadTraces(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	err := c.upload(ctx, spans)
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil && !c.failing {
		c.log.Warn("traces cannot be sent", "to", c.settings.url, "err", err)
	}
	if err == nil && c.failing {
		c.log.Info("traces are sent again", "to", c.settings.url)
	}
	c.failing = err != nil
	return nil
}

// upload tries until ctx, to which the SDK gives half a minute, is done.
func (c *client) upload(ctx context.Context, spans []*tracepb.ResourceSpans) error {
	// An ExportTraceServiceRequest is, on the wire, the same as TracesData: that is what makes one a file format.
	body, err := proto.Marshal(&tracepb.TracesData{ResourceSpans: spans})
	if err != nil {
		return err
	}
	if c.settings.gzip {
		var packed bytes.Buffer
		z := gzip.NewWriter(&packed)
		_, _ = z.Write(body) // into memory
		_ = z.Close()
		body = packed.Bytes()
	}
	for pause := c.first; ; pause = min(2*pause, maxPause) {
		again, after, err := c.post(ctx, body)
		if err == nil || !again {
			return err
		}
		timer := time.NewTimer(max(pause, min(after, maxPause)))
		select {
		case <-ctx.Done():
			timer.Stop()
			return err
		case <-timer.C:
		}
	}
}

// post makes one attempt, and reports whether another one is worth it, and after what time.
func (c *client) post(ctx context.Context, body []byte) (again bool, after time.Duration, _ error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, c.settings.url, bytes.NewReader(body))
	if err != nil {
		return false, 0, err
	}
	for name, value := range c.settings.headers {
		req.Header.Set(name, value)
	}
	req.Header.Set("Content-Type", "application/x-protobuf")
	if c.settings.gzip {
		req.Header.Set("Content-Encoding", "gzip")
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return ctx.Err() == nil, 0, err
	}
	defer resp.Body.Close()
	reply, err := io.ReadAll(io.LimitReader(resp.Body, maxAnswer))
	switch resp.StatusCode {
	case http.StatusOK, http.StatusAccepted, http.StatusNoContent:
		if rejected, why := partial(reply); err == nil && (rejected > 0 || why != "") {
			c.log.Warn("a collector has not taken all spans", "rejected", rejected, "why", why)
		}
		return false, 0, nil
	case http.StatusTooManyRequests, http.StatusBadGateway, http.StatusServiceUnavailable, http.StatusGatewayTimeout:
		again = true
		if seconds, err := strconv.Atoi(resp.Header.Get("Retry-After")); err == nil && seconds > 0 {
			after = min(time.Duration(seconds)*time.Second, maxPause)
		}
	}
	return again, after, fmt.Errorf("the collector answered %d", resp.StatusCode)
}

// partial reads of an ExportTraceServiceResponse how many spans were not taken, and why. What is no such message has none.
func partial(reply []byte) (rejected uint64, why string) {
	inner := field(reply, 1, protowire.BytesType)
	if n := field(inner, 1, protowire.VarintType); n != nil {
		rejected, _ = protowire.ConsumeVarint(n)
	}
	text := field(inner, 2, protowire.BytesType)
	return rejected, string(text[:min(len(text), 500)])
}

// field returns the last value of a field: of bytes the content, of a number its encoding.
func field(message []byte, want protowire.Number, kind protowire.Type) (value []byte) {
	for len(message) > 0 {
		number, typ, n := protowire.ConsumeTag(message)
		if n < 0 {
			return nil
		}
		message = message[n:]
		size := protowire.ConsumeFieldValue(number, typ, message)
		if size < 0 {
			return nil
		}
		if number == want && typ == kind {
			value = message[:size]
			if typ == protowire.BytesType {
				value, _ = protowire.ConsumeBytes(value)
			}
		}
		message = message[size:]
	}
	return value
}
