package guest

import (
	"encoding/json"
	"errors"
	"io"
	"log"
	"net/http"
	"net/http/httputil"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/api/filesystem/filesystemconnect"
	"github.com/firebreak-dev/firebreak/internal/api/process/processconnect"
)

// Handler serves data traffic by passing it to the agent with the token; who may come is for the caller to decide. What
// the agent keeps for its host, such as /init and /export, is hidden: only the paths of the protocol are passed.
func (g *Guest) Handler() http.Handler { return g.proxy }

// public reports whether clients may ask for path. It must be exact, because the agent's router would clean it.
func public(path string) bool {
	switch path {
	case "/health", "/metrics", "/envs", "/files", "/files/compose":
		return true
	}
	for _, service := range []string{processconnect.ProcessName, filesystemconnect.FilesystemName} {
		method, ok := strings.CutPrefix(path, "/"+service+"/")
		letter := func(c rune) bool { return c >= 'A' && c <= 'Z' || c >= 'a' && c <= 'z' }
		if ok && method != "" && strings.TrimFunc(method, letter) == "" {
			return true
		}
	}
	return false
}

func (g *Guest) newProxy() http.Handler {
	proxy := &httputil.ReverseProxy{
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "http", "agent", "agent"
			for _, private := range []string{tokenHeader, "Cookie", "X-Api-Key",
				"X-Forwarded-For", "X-Forwarded-Host", "X-Forwarded-Proto", "Forwarded"} {
				r.Out.Header.Del(private)
			}
			if g.token != "" {
				r.Out.Header.Set(tokenHeader, g.token)
			}
		},
		Transport:      g.transport,
		BufferPool:     &Buffers{},
		FlushInterval:  -1, // every event at once
		ModifyResponse: tame,
		ErrorLog:       log.New(io.Discard, "", 0), // ErrorHandler answers, and the client may have gone away
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if errors.Is(err, errHostile) {
				refuse(w, http.StatusBadGateway, r.URL.Path, err.Error())
				return
			}
			refuse(w, http.StatusBadGateway, r.URL.Path, "The sandbox was not found")
		},
	}
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch {
		case !public(r.URL.Path) || r.URL.RawPath != "":
			refuse(w, http.StatusNotFound, r.URL.Path, "no such path")
		case r.Header.Get("Upgrade") != "":
			refuse(w, http.StatusBadRequest, r.URL.Path, "the sandbox's agent switches to no other protocol")
		default:
			FullDuplex(w)
			proxy.ServeHTTP(w, r)
		}
	})
}

// FullDuplex lets a proxy pass a request on while its answer is under way already. Without it the server of HTTP/1 takes
// what is left of the request before it writes the answer, and the proxy, which was about to read that, gives up.
func FullDuplex(w http.ResponseWriter) {
	_ = http.NewResponseController(w).EnableFullDuplex() // later versions of HTTP are so by themselves
}

var errHostile = errors.New("the sandbox gave an answer that is not of the protocol")

// spoken are the headers that the protocol answers with. A sandbox's code that replaced its agent must not set cookies,
// redirect, or loosen the rules of the site that the browser thinks it talks to.
var spoken = []string{"Accept-Encoding", "Accept-Post", "Accept-Ranges", "Allow", "Cache-Control", "Content-Disposition",
	"Content-Encoding", "Content-Length", "Content-Range", "Content-Type", "Date", "Etag", "Last-Modified",
	"Retry-After", "Trailer", "Vary"}

func tame(res *http.Response) error {
	redirect := res.StatusCode >= 300 && res.StatusCode < 400 && res.StatusCode != http.StatusNotModified
	if res.StatusCode < 200 || res.StatusCode > 599 || redirect {
		return errHostile
	}
	for name := range res.Header {
		lower := strings.ToLower(name)
		if !slices.Contains(spoken, name) && !strings.HasPrefix(lower, "connect-") && !strings.HasPrefix(lower, "grpc-") {
			res.Header.Del(name)
		}
	}
	return nil
}

func refuse(w http.ResponseWriter, code int, path, message string) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(map[string]any{"code": code, "message": message, "path": path}) // the client went away
}
