package dataplane

import (
	"context"
	"errors"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httputil"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// passage is a request that may pass.
type passage struct {
	to    address
	rec   store.Record
	guest *guest.Guest
	plane *Plane
}

type passageKey struct{}

func passageOf(ctx context.Context) passage {
	return ctx.Value(passageKey{}).(passage) // all requests of the proxy carry one
}

func (p *Plane) pass(w http.ResponseWriter, r *http.Request, on passage) {
	on.plane = p
	if r.Method == http.MethodConnect {
		p.refuse(w, r, on.to, refusal{http.StatusMethodNotAllowed, "A sandbox is no proxy"})
		return
	}
	r = r.WithContext(context.WithValue(r.Context(), passageKey{}, on))
	r.Header = r.Header.Clone() // what wraps this handler, such as a log, may look at it afterwards
	strip(r.Header)
	if on.to.port == guest.AgentPort {
		// A sandbox's file that a browser opens must not act as a page of this server.
		w.Header().Set("Content-Security-Policy", "sandbox")
		w.Header().Set("X-Content-Type-Options", "nosniff")
		on.guest.Handler().ServeHTTP(w, r)
		return
	}
	guest.FullDuplex(w)
	p.ports.ServeHTTP(w, r)
}

// strip takes out what is for us, and would let whoever answers inside act for the client elsewhere.
func strip(h http.Header) {
	for _, name := range []string{headerSandbox, headerPort, headerToken, headerTraffic} {
		h.Del(name)
	}
	// These may be meant for the sandbox's own server, so only keys of ours are taken out.
	const ours = "e2b_"
	if strings.HasPrefix(h.Get("X-Api-Key"), ours) {
		h.Del("X-Api-Key")
	}
	if scheme, key, ok := strings.Cut(h.Get("Authorization"), " "); ok && strings.EqualFold(scheme, "Bearer") && strings.HasPrefix(strings.TrimSpace(key), ours) {
		h.Del("Authorization")
	}
}

func newPorts() *httputil.ReverseProxy {
	return &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			on := passageOf(r.In.Context())
			port := strconv.Itoa(int(on.to.port))
			r.Out.URL.Scheme, r.Out.URL.Host = "http", net.JoinHostPort("sandbox", port)
			r.Out.URL.RawQuery = r.In.URL.RawQuery // whole, also what Go cannot parse
			r.Out.Host = r.In.Host
			if mask := on.rec.Annotations[AnnotationMaskHost]; mask != "" {
				r.Out.Host = strings.ReplaceAll(mask, "${PORT}", port)
			}
			r.SetXForwarded()
		},
		Transport:      toGuest{},
		BufferPool:     &guest.Buffers{},
		FlushInterval:  -1, // at once: what is streamed is waited for
		ModifyResponse: tame,
		ErrorLog:       log.New(io.Discard, "", 0), // ErrorHandler answers, and clients go away
		ErrorHandler:   portError,
	}
}

// toGuest sends a request by the guest that its context names.
type toGuest struct{}

// RoundTrip implements http.RoundTripper.
func (toGuest) RoundTrip(r *http.Request) (*http.Response, error) {
	return passageOf(r.Context()).guest.Ports().RoundTrip(r)
}

// codeSpeaks are the headers that the code interpreter answers with.
var codeSpeaks = []string{"Cache-Control", "Content-Encoding", "Content-Length", "Content-Type", "Date", "Retry-After", "Trailer", "Vary"}

// tame takes out of an answer what would act on the site that it seems to come from, where that is not the sandbox's
// own: requests that are addressed by their host have a site of their own.
func tame(res *http.Response) error {
	to := passageOf(res.Request.Context()).to
	switch {
	case to.port == CodePort:
		for name := range res.Header {
			if !slices.Contains(codeSpeaks, name) {
				res.Header.Del(name)
			}
		}
	case to.way != wayHost:
		for _, name := range []string{"Strict-Transport-Security", "Clear-Site-Data", "Alt-Svc", "Service-Worker-Allowed"} {
			res.Header.Del(name)
		}
	}
	return nil
}

// portError answers where no server inside did.
func portError(w http.ResponseWriter, r *http.Request, err error) {
	on := passageOf(r.Context())
	message := "The sandbox is running but the server on the port broke off"
	switch {
	case errors.Is(err, fs.ErrNotExist):
		on.plane.refuse(w, r, on.to, err)
		return
	case firebreak.KindOf(err) == firebreak.KindUnavailable:
		message = "The sandbox is running but port is not open"
	case firebreak.KindOf(err) == firebreak.KindUnsupported:
		message = "The sandbox is running but port is not open: it has no ports, since nothing in it can listen; one from a template of Linux programs has"
	}
	on.plane.refuse(w, r, on.to, portRefusal{refusal{http.StatusBadGateway, message}})
}
