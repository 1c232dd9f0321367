package metrics

import (
	"context"
	"io"
	"net/http"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/firebreak-dev/firebreak/internal/answer"
)

type routeKey struct{}

// SetRoute names the route of the request whose context this is, for a handler that has more than one behind its pattern.
// Names must be few: never what the client sent.
func SetRoute(ctx context.Context, name string) {
	if r, ok := ctx.Value(routeKey{}).(*atomic.Pointer[string]); ok {
		r.Store(&name)
	}
}

// Door measures the requests to a handler by their routes. A route is what SetRoute says, else the pattern of the
// http.ServeMux that next is or hands the request itself to; what no pattern fits is "other".
func (m *Metrics) Door(door string, next http.Handler) http.Handler {
	if m == nil {
		return next
	}
	inFlight := m.inFlight.WithLabelValues(door)
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		inFlight.Inc()
		defer inFlight.Dec()
		var named atomic.Pointer[string]
		inner := r.WithContext(context.WithValue(r.Context(), routeKey{}, &named))
		began, out, returned := time.Now(), &answer.Writer{ResponseWriter: w}, false
		defer func() {
			if returned {
				out.End()
			}
			r.Pattern = inner.Pattern // for whoever is outside of this
			route := r.Pattern
			if name := named.Load(); name != nil {
				route = *name
			}
			m.requests.WithLabelValues(door, m.route(route), method(r.Method), strconv.Itoa(out.Status())).Observe(time.Since(began).Seconds())
		}()
		next.ServeHTTP(out, inner)
		returned = true
	})
}

func (m *Metrics) route(pattern string) string {
	if pattern == "" || pattern == "/" {
		return "other"
	}
	return m.routes.value(pattern)
}

// method is one of those that HTTP has: clients may send any word.
func method(m string) string {
	switch m {
	case http.MethodGet, http.MethodHead, http.MethodPost, http.MethodPut, http.MethodPatch, http.MethodDelete, http.MethodOptions:
		return m
	}
	return "other"
}

// TimeStart returns a writer for the answer to a request into a sandbox of this driver. If it asks for a process to be
// started, the first event of the answer, which tells that it was, is timed from now.
func (m *Metrics) TimeStart(w http.ResponseWriter, r *http.Request, driver string) http.ResponseWriter {
	if m == nil || r.Method != http.MethodPost || r.URL.Path != "/process.Process/Start" {
		return w
	}
	return &startWriter{Writer: answer.Writer{ResponseWriter: w}, metrics: m, driver: driver, began: time.Now()}
}

type startWriter struct {
	answer.Writer
	metrics *Metrics
	driver  string
	began   time.Time
	seen    bool
}

// Write implements http.ResponseWriter.
func (w *startWriter) Write(b []byte) (int, error) {
	if !w.seen && len(b) > 0 {
		w.seen = true
		// The first byte of a message says what it is; this bit, that the stream is over: then nothing was started. A process
		// that was not started otherwise has a status of its own.
		const last = 0x02
		if (w.Status() == 0 || w.Status() == http.StatusOK) && b[0]&last == 0 && isStream(w.Header().Get("Content-Type")) {
			w.metrics.Exec(w.driver, time.Since(w.began))
		}
	}
	return w.Writer.Write(b)
}

// ReadFrom implements io.ReaderFrom, by Write.
func (w *startWriter) ReadFrom(r io.Reader) (int64, error) {
	return io.Copy(struct{ io.Writer }{w}, r)
}

func isStream(contentType string) bool {
	return strings.HasPrefix(contentType, "application/connect+") || strings.HasPrefix(contentType, "application/grpc")
}
