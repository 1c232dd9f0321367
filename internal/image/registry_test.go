package image

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log"
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	"github.com/google/go-containerregistry/pkg/registry"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/firebreak-dev/firebreak"
)

// serve runs a registry behind wrap and returns its address.
func serve(t *testing.T, wrap func(http.Handler) http.Handler) string {
	t.Helper()
	t.Setenv("DOCKER_CONFIG", t.TempDir()) // not the tester's own
	server := httptest.NewServer(wrap(registry.New(registry.Logger(log.New(io.Discard, "", 0)))))
	t.Cleanup(server.Close)
	return strings.TrimPrefix(server.URL, "http://")
}

func plain(h http.Handler) http.Handler { return h }

func push(t *testing.T, reference string, img v1.Image, opts ...remote.Option) v1.Hash {
	t.Helper()
	ref, err := name.ParseReference(reference)
	must(t, err, remote.Write(ref, img, opts...))
	digest, err := img.Digest()
	must(t, err)
	return digest
}

func TestPull(t *testing.T) {
	host, s := serve(t, plain), openStore(t, t.TempDir())
	digest := push(t, host+"/o/i:1", twoLayers(t))
	var mu sync.Mutex
	last := map[string]Progress{}
	made := make1(t, s, Source{Reference: host + "/o/i:1"}, MakeOptions{Progress: func(p Progress) {
		if !mu.TryLock() {
			t.Error("two calls at once")
			return
		}
		defer mu.Unlock()
		if p.Done < last[p.Step].Done {
			t.Errorf("%s goes back from %d to %d", p.Step, last[p.Step].Done, p.Done)
		}
		last[p.Step] = p
	}})
	checkTwoLayers(t, s, made)
	if made.Name != host+"/o/i:1" || made.Source != host+"/o/i@"+digest.String() {
		t.Errorf("made %+v", made)
	}
	pulled := 0
	for step, p := range last {
		if strings.HasPrefix(step, "pull ") {
			if pulled++; p.Done != p.Total || p.Total == 0 {
				t.Errorf("%s ended at %d of %d", step, p.Done, p.Total)
			}
		}
	}
	if pulled != 2 {
		t.Errorf("progress of %d layers in %v", pulled, last)
	}
	pinned := make1(t, s, Source{Reference: host + "/o/i@" + digest.String()}, MakeOptions{Name: "pinned"})
	if pinned.Digest != made.Digest {
		t.Error("pinned: other content")
	}
	push(t, host+"/o/i:1", imageOf(t, files(t, "x", "moved")))
	if moved := make1(t, s, Source{Reference: host + "/o/i:1"}, MakeOptions{}); moved.Digest == made.Digest {
		t.Error("the tag moved and the template did not")
	}
	if still := make1(t, s, Source{Reference: host + "/o/i@" + digest.String()}, MakeOptions{Name: "pinned"}); still.Digest != made.Digest {
		t.Error("the tag moved and the pinned template with it")
	}
}

func TestPullChoosesThePlatform(t *testing.T) {
	host, s := serve(t, plain), openStore(t, t.TempDir())
	other := imageOf(t, files(t, "other", "x"))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "none"}}},
		mutate.IndexAddendum{Add: twoLayers(t), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	ref, err := name.ParseReference(host + "/multi")
	must(t, err, remote.WriteIndex(ref, index))
	checkTwoLayers(t, s, make1(t, s, Source{Reference: host + "/multi"}, MakeOptions{Name: "multi"}))
	must(t, remote.WriteIndex(ref, mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "none"}}})))
	if _, err := s.Make(t.Context(), Source{Reference: host + "/multi"}, MakeOptions{}); err == nil || !strings.Contains(err.Error(), "linux/"+runtime.GOARCH) {
		t.Errorf("no image for this machine: %v", err)
	}
}

func TestPullWithDockersLogin(t *testing.T) {
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != "me" || password != "secret" {
				w.Header().Set("WWW-Authenticate", `Basic realm="test"`)
				http.Error(w, `{"errors":[{"code":"UNAUTHORIZED"}]}`, http.StatusUnauthorized)
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/private", twoLayers(t), remote.WithAuth(&authn.Basic{Username: "me", Password: "secret"}))
	s := openStore(t, t.TempDir())
	_, err := s.Make(t.Context(), Source{Reference: host + "/private"}, MakeOptions{Name: "x"})
	if firebreak.KindOf(err) != firebreak.KindDenied || !strings.Contains(err.Error(), "docker login "+host) {
		t.Errorf("not logged in: %v", err)
	}
	login := fmt.Sprintf(`{"auths":{%q:{"auth":%q}}}`, host, base64.StdEncoding.EncodeToString([]byte("me:secret")))
	must(t, os.WriteFile(filepath.Join(os.Getenv("DOCKER_CONFIG"), "config.json"), []byte(login), 0o600))
	checkTwoLayers(t, s, make1(t, s, Source{Reference: host + "/private"}, MakeOptions{Name: "x"}))
}

// TestBadRegistries pulls from registries that lie, break off or lack the thing.
func TestBadRegistries(t *testing.T) {
	body := func(path string, change func([]byte) []byte) func(http.Handler) http.Handler {
		return func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method != http.MethodGet || !strings.Contains(r.URL.Path, path) {
					h.ServeHTTP(w, r)
					return
				}
				rec := httptest.NewRecorder()
				h.ServeHTTP(rec, r)
				data := change(rec.Body.Bytes())
				w.Header().Set("Content-Type", rec.Header().Get("Content-Type"))
				w.WriteHeader(rec.Code)
				_, _ = w.Write(data)
			})
		}
	}
	flip := func(b []byte) []byte { b[len(b)/2] ^= 1; return b }
	wrong := "sha256:" + strings.Repeat("0", 64)
	for what, c := range map[string]struct {
		wrap  func(http.Handler) http.Handler
		ref   string
		kind  firebreak.Kind
		cause error
	}{
		"no such image":           {plain, "/other", firebreak.KindNotFound, fs.ErrNotExist},
		"no such tag":             {plain, "/i:other", firebreak.KindNotFound, fs.ErrNotExist},
		"no such digest":          {plain, "/i@" + wrong, firebreak.KindNotFound, fs.ErrNotExist},
		"manifest of other bytes": {body("/manifests/", func(b []byte) []byte { return append(b, ' ') }), "/i@DIGEST", firebreak.KindInvalid, nil},
		"layers of other bytes":   {body("/blobs/", flip), "/i", firebreak.KindInvalid, nil},
		"manifest is noise":       {body("/manifests/", func([]byte) []byte { return []byte("noise") }), "/i", firebreak.KindInvalid, nil},
		"out of order": {func(h http.Handler) http.Handler {
			return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/manifests/") {
					http.Error(w, "{}", http.StatusTooManyRequests)
					return
				}
				h.ServeHTTP(w, r)
			})
		}, "/i", firebreak.KindExhausted, nil},
	} {
		t.Run(what, func(t *testing.T) {
			host, s := serve(t, c.wrap), openStore(t, t.TempDir())
			digest := push(t, host+"/i", twoLayers(t))
			_, err := s.Make(t.Context(), Source{Reference: host + strings.ReplaceAll(c.ref, "DIGEST", digest.String())}, MakeOptions{Name: "x"})
			if firebreak.KindOf(err) != c.kind || c.cause != nil && !errors.Is(err, c.cause) {
				t.Errorf("%v (kind %v), want kind %v", err, firebreak.KindOf(err), c.kind)
			}
			nothingLeft(t, s)
		})
	}
}

// TestBrokenConnections has every layer break off in its middle, a few times or always.
func TestBrokenConnections(t *testing.T) {
	for what, breaks := range map[string]int64{"twice": 2, "always": 1 << 30} {
		t.Run(what, func(t *testing.T) {
			var left atomic.Int64
			host := serve(t, func(h http.Handler) http.Handler {
				return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
					rec := httptest.NewRecorder()
					h.ServeHTTP(rec, r)
					data := rec.Body.Bytes()
					for k, v := range rec.Header() {
						w.Header()[k] = v
					}
					w.WriteHeader(rec.Code)
					if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") && len(data) > 1000 && left.Add(-1) >= 0 {
						_, _ = w.Write(data[:len(data)/2])
						panic(http.ErrAbortHandler)
					}
					_, _ = w.Write(data)
				})
			})
			random := make([]byte, 5000)
			for i := range random {
				random[i] = byte(i * i >> 3)
			}
			push(t, host+"/i", imageOf(t, files(t, "f", digestOf(random)+strings.Repeat(digestOf(random[1:]), 3)+string(random))))
			left.Store(breaks)
			s := openStore(t, t.TempDir())
			_, err := s.Make(t.Context(), Source{Reference: host + "/i"}, MakeOptions{Name: "x"})
			if what == "twice" && (err != nil || left.Load() >= 0) {
				t.Errorf("after %d breaks: %v", breaks-left.Load(), err)
			}
			if what == "always" {
				if firebreak.KindOf(err) != firebreak.KindUnavailable {
					t.Errorf("%v (kind %v)", err, firebreak.KindOf(err))
				}
				nothingLeft(t, s)
			}
		})
	}
}

func TestNobodyListens(t *testing.T) {
	t.Setenv("DOCKER_CONFIG", t.TempDir())
	l, err := net.Listen("tcp", "127.0.0.1:0")
	must(t, err)
	host := l.Addr().String()
	must(t, l.Close())
	s := openStore(t, t.TempDir())
	_, err = s.Make(t.Context(), Source{Reference: host + "/i"}, MakeOptions{Name: "x"})
	if firebreak.KindOf(err) != firebreak.KindUnavailable || !strings.Contains(err.Error(), host) {
		t.Errorf("%v (kind %v)", err, firebreak.KindOf(err))
	}
}

func TestCancelledPull(t *testing.T) {
	ctx, cancel := context.WithCancel(t.Context())
	host := serve(t, func(h http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
				cancel()
				<-r.Context().Done()
				return
			}
			h.ServeHTTP(w, r)
		})
	})
	push(t, host+"/i", twoLayers(t))
	s := openStore(t, t.TempDir())
	if _, err := s.Make(ctx, Source{Reference: host + "/i"}, MakeOptions{Name: "x"}); !errors.Is(err, context.Canceled) {
		t.Error(err)
	}
	nothingLeft(t, s)
}
