package guest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/http"
	"net/http/httptest"
	"os"
	"strings"
	"testing"
	"time"
)

// acts are what an agent may do with a request.
func acts() map[string]http.HandlerFunc {
	return map[string]http.HandlerFunc{
		"nothing": func(http.ResponseWriter, *http.Request) {},
		"short":   func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "a word") },
		"long": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = w.Write(bytes.Repeat([]byte("0123456789"), 50_000))
		},
		"no body":   func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(http.StatusNoContent) },
		"page":      func(w http.ResponseWriter, _ *http.Request) { _, _ = io.WriteString(w, "<html>") },
		"twice":     func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(404); w.WriteHeader(200) },
		"too late":  func(w http.ResponseWriter, _ *http.Request) { w.WriteHeader(201); w.Header().Set("X-Late", "1") },
		"panic":     func(http.ResponseWriter, *http.Request) { panic(http.ErrAbortHandler) },
		"forbidden": func(w http.ResponseWriter, _ *http.Request) { http.Error(w, "no", http.StatusForbidden) },
		"echo": func(w http.ResponseWriter, r *http.Request) {
			w.Header().Set("X-Length", fmt.Sprint(r.ContentLength))
			w.Header().Set("X-Query", r.Method+r.URL.Path+r.URL.RawQuery+r.Header.Get("X-Asked"))
			_, _ = io.Copy(w, r.Body)
		},
		"flushed": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "one")
			_ = http.NewResponseController(w).Flush()
			_, _ = io.WriteString(w, "two")
		},
		"breaks": func(w http.ResponseWriter, _ *http.Request) {
			_, _ = io.WriteString(w, "begun")
			_ = http.NewResponseController(w).Flush()
			panic(http.ErrAbortHandler)
		},
		"less": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "10")
			_, _ = io.WriteString(w, "less")
		},
		"more": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Content-Length", "2")
			_, _ = io.WriteString(w, "ok")
			if _, err := io.WriteString(w, "more"); !errors.Is(err, http.ErrContentLength) {
				panic(err)
			}
		},
		"trailers": func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("Trailer", "X-Announced")
			_, _ = io.WriteString(w, "body")
			_ = http.NewResponseController(w).Flush()
			w.Header().Set("X-Announced", "1")
			w.Header().Set(http.TrailerPrefix+"X-Named", "2")
		},
	}
}

// TestLocalIsHTTP: whatever an agent does, its client gets the same as over a connection.
func TestLocalIsHTTP(t *testing.T) {
	for name, act := range acts() {
		for _, method := range []string{http.MethodGet, http.MethodHead, http.MethodPost, "streamed"} {
			t.Run(name+" "+method, func(t *testing.T) {
				srv := httptest.NewServer(act)
				defer srv.Close()
				want := told(t, http.DefaultTransport, srv.URL, method)
				if got := told(t, local{t.Context(), act}, "http://agent", method); got != want {
					t.Errorf("got  %s\nwant %s", got, want)
				}
			})
		}
	}
}

// told sends a request and puts all that came into words.
func told(t *testing.T, by http.RoundTripper, url, method string) string {
	t.Helper()
	var body io.Reader
	switch method {
	case http.MethodPost:
		body = strings.NewReader("what is sent")
	case "streamed":
		method, body = http.MethodPost, io.MultiReader(strings.NewReader("in two "), strings.NewReader("pieces"))
	}
	req, err := http.NewRequestWithContext(t.Context(), method, url+"/some/path?query=1", body)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("X-Asked", "so")
	req.Header.Set("Accept-Encoding", "identity")
	res, err := by.RoundTrip(req)
	if err != nil {
		return "refused"
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	res.Header.Del("Date")
	res.Header.Del("Trailer")
	return fmt.Sprintf("%s %d %v %.80q %d %v %v", res.Status, res.ContentLength, res.Header, text, len(text), err, res.Trailer)
}

func post(t *testing.T, ctx context.Context, l local, body io.Reader) (*http.Response, error) {
	t.Helper()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://agent/", body)
	if err != nil {
		t.Fatal(err)
	}
	return l.RoundTrip(req)
}

// TestLocalStreams: both ways go at once, each piece as it is sent.
func TestLocalStreams(t *testing.T) {
	echo := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_ = http.NewResponseController(w).EnableFullDuplex()
		_ = http.NewResponseController(w).Flush()
		_, _ = io.Copy(w, r.Body)
	})
	from, to := io.Pipe()
	res, err := post(t, t.Context(), local{t.Context(), echo}, from)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	got := make([]byte, 5)
	for _, piece := range []string{"first", "other"} {
		_, _ = io.WriteString(to, piece)
		if _, err := io.ReadFull(res.Body, got); err != nil || string(got) != piece {
			t.Fatalf("%q, %v", got, err)
		}
	}
	_ = to.Close()
	if n, err := res.Body.Read(got); n != 0 || err != io.EOF {
		t.Error(n, err)
	}
}

// TestLocalHeadersAreTheClients: it may change them while the answer goes on.
func TestLocalHeadersAreTheClients(t *testing.T) {
	had := make(chan struct{})
	res, err := post(t, t.Context(), local{t.Context(), http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		_ = http.NewResponseController(w).Flush()
		<-had
		_, _ = io.WriteString(w, "the rest")
	})}, nil)
	if err != nil {
		t.Fatal(err)
	}
	close(had)
	for range 1000 {
		res.Header.Set("Trailer", "X-Mine")
		res.Header.Del("Content-Type")
	}
	if text, err := io.ReadAll(res.Body); string(text) != "the rest" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}

// TestLocalIsCut: neither end waits for the other when the client, or the sandbox, goes away, whatever the agent does.
func TestLocalIsCut(t *testing.T) {
	for name, act := range map[string]func(w http.ResponseWriter, r *http.Request){
		"reads": func(_ http.ResponseWriter, r *http.Request) { _, _ = io.Copy(io.Discard, r.Body) },
		"writes": func(w http.ResponseWriter, _ *http.Request) {
			for {
				if _, err := w.Write(make([]byte, 1000)); err != nil {
					return
				}
			}
		},
		"waits": func(_ http.ResponseWriter, r *http.Request) { <-r.Context().Done() },
	} {
		for _, who := range []string{"client", "body", "sandbox"} {
			t.Run(name+" "+who, func(t *testing.T) {
				ctx, leave := context.WithCancel(t.Context())
				live, end := context.WithCancel(t.Context())
				defer end()
				defer leave()
				gone := make(chan struct{})
				l := local{live, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					defer close(gone)
					_ = http.NewResponseController(w).Flush()
					act(w, r)
				})}
				from, _ := io.Pipe() // on which nothing comes
				res, err := post(t, ctx, l, from)
				if err != nil {
					t.Fatal(err)
				}
				want := io.ErrUnexpectedEOF
				switch who {
				case "client":
					leave()
					want = context.Canceled
				case "body":
					_ = res.Body.Close()
					want = http.ErrBodyReadAfterClose
				default:
					end()
				}
				<-gone
				if _, err := io.ReadAll(res.Body); !errors.Is(err, want) {
					t.Errorf("read after that: %v", err)
				}
				_ = res.Body.Close()
			})
		}
	}
}

// TestLocalEnds: there is no agent any more, or no client.
func TestLocalEnds(t *testing.T) {
	live, end := context.WithCancel(t.Context())
	end()
	never := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("asked") })
	if _, err := post(t, t.Context(), local{live, never}, nil); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	if _, err := post(t, live, local{t.Context(), never}, nil); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	wrong := http.HandlerFunc(func(http.ResponseWriter, *http.Request) { panic("a mistake of ours") })
	if _, err := post(t, t.Context(), local{t.Context(), wrong}, nil); err == nil || !strings.Contains(err.Error(), "a mistake of ours") {
		t.Error(err)
	}
}

// TestLocalDeadline: an upload that stalls is given up by the agent.
func TestLocalDeadline(t *testing.T) {
	impatient := http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		control := http.NewResponseController(w)
		_ = control.SetReadDeadline(time.Now().Add(time.Hour))
		_ = control.SetReadDeadline(time.Now().Add(time.Millisecond))
		_, err := io.ReadAll(r.Body)
		fmt.Fprint(w, errors.Is(err, os.ErrDeadlineExceeded))
	})
	from, _ := io.Pipe()
	res, err := post(t, t.Context(), local{t.Context(), impatient}, from)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if text, err := io.ReadAll(res.Body); string(text) != "true" || err != nil {
		t.Errorf("%q, %v", text, err)
	}
}
