// Package answer notes what a handler answers, and keeps from it nothing that it could do with net/http's own writer.
package answer

import (
	"bufio"
	"io"
	"net"
	"net/http"
)

// Writer is an http.ResponseWriter that notes the status. It is for one request.
type Writer struct {
	http.ResponseWriter
	status int
}

// Status is what was answered: 101 where the connection was taken over, 0 if nothing was yet.
func (w *Writer) Status() int { return w.status }

// End notes that the handler has returned. One that said nothing has net/http answer 200.
func (w *Writer) End() {
	if w.status == 0 {
		w.status = http.StatusOK
	}
}

// WriteHeader implements http.ResponseWriter.
func (w *Writer) WriteHeader(status int) {
	if w.status == 0 && (status >= 200 || status == http.StatusSwitchingProtocols) {
		w.status = status
	}
	w.ResponseWriter.WriteHeader(status)
}

// Write implements http.ResponseWriter.
func (w *Writer) Write(b []byte) (int, error) {
	w.End()
	return w.ResponseWriter.Write(b)
}

// ReadFrom implements io.ReaderFrom: a file may be sent by the kernel.
func (w *Writer) ReadFrom(r io.Reader) (int64, error) {
	w.End()
	return io.Copy(w.ResponseWriter, r)
}

// Flush implements http.Flusher, which some handlers ask for by its name.
func (w *Writer) Flush() {
	w.End()
	_ = http.NewResponseController(w.ResponseWriter).Flush() // one that cannot flush has nothing to
}

// Hijack implements http.Hijacker.
func (w *Writer) Hijack() (net.Conn, *bufio.ReadWriter, error) {
	conn, rw, err := http.NewResponseController(w.ResponseWriter).Hijack()
	if err == nil && w.status == 0 {
		w.status = http.StatusSwitchingProtocols
	}
	return conn, rw, err
}

// Unwrap is for http.ResponseController.
func (w *Writer) Unwrap() http.ResponseWriter { return w.ResponseWriter }
