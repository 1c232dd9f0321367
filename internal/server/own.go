package server

import (
	"io"
	"net/http"
)

// own returns what answers a path of the server itself; nil if it is none.
func (s *Server) own(path string) http.HandlerFunc {
	switch {
	case path == "/healthz":
		return answerText(http.StatusOK, "ok\n")
	case path == "/readyz":
		return s.ready
	case path == "/metrics" && s.cfg.Metrics != nil:
		return s.metrics
	case path == "/ca.pem" && s.cfg.CA != nil:
		return s.ca
	}
	return nil
}

func answerText(status int, text string) http.HandlerFunc {
	return func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("Content-Type", "text/plain; charset=utf-8")
		w.Header().Set("Cache-Control", "no-store")
		w.WriteHeader(status)
		_, _ = io.WriteString(w, text) // the client may have gone
	}
}

func (s *Server) ready(w http.ResponseWriter, r *http.Request) {
	err := error(nil)
	if s.ending.Load() {
		err = ErrClosing
	} else if s.cfg.Ready != nil {
		err = s.cfg.Ready(r.Context())
	}
	if err != nil {
		answerText(http.StatusServiceUnavailable, err.Error()+"\n")(w, r)
		return
	}
	answerText(http.StatusOK, "ok\n")(w, r)
}

// metrics tell of all tenants, so they are for this host only. A proxy on it speaks for others, and says so.
func (s *Server) metrics(w http.ResponseWriter, r *http.Request) {
	if !peerOfContext(r.Context()).local || r.Header.Get("X-Forwarded-For") != "" || r.Header.Get("Forwarded") != "" {
		writeError(w, http.StatusForbidden, "metrics are for clients on the server's own host")
		return
	}
	s.cfg.Metrics.ServeHTTP(w, r)
}

func (s *Server) ca(w http.ResponseWriter, _ *http.Request) {
	w.Header().Set("Content-Type", "application/x-pem-file")
	_, _ = w.Write(s.cfg.CA) // the client may have gone
}
