package image

import (
	"net/http"
	"strings"
	"sync/atomic"
	"testing"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/v1/remote"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

func TestStrangersReachNothingOfThisHost(t *testing.T) {
	var asked atomic.Int32
	host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			asked.Add(1)
			next.ServeHTTP(w, r)
		})
	})
	push(t, host+"/o/i:1", twoLayers(t))
	port := host[strings.LastIndex(host, ":"):]
	s := openStore(t, t.TempDir())
	asked.Store(0)
	for _, registry := range []string{host, "localhost" + port, "[::1]" + port} {
		_, err := s.Make(t.Context(), Source{Reference: registry + "/o/i:1"}, MakeOptions{Name: "x", Pull: Pull{Stranger: true}})
		if err == nil || asked.Load() != 0 {
			t.Errorf("%s was asked %d times: %v", registry, asked.Load(), err)
		}
	}
	if _, err := s.Make(t.Context(), Source{Reference: host + "/o/i:1"}, MakeOptions{Name: "x", Pull: Pull{Stranger: true}}); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("refused with %v", err)
	}
	made := make1(t, s, Source{Reference: host + "/o/i:1"}, MakeOptions{Name: "x", Pull: Pull{Stranger: true, Trusted: []string{host}}})
	checkTwoLayers(t, s, made)
	noWorkLeft(t, s)
}

func TestPullWithGivenLogin(t *testing.T) {
	login := &authn.Basic{Username: "u", Password: "p"}
	host := serve(t, func(next http.Handler) http.Handler {
		return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
			if user, password, _ := r.BasicAuth(); user != login.Username || password != login.Password {
				w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			next.ServeHTTP(w, r)
		})
	})
	push(t, host+"/o/i:1", twoLayers(t), remote.WithAuth(login))
	s := openStore(t, t.TempDir())
	trusted := Pull{Stranger: true, Trusted: []string{host}}
	if _, err := s.Make(t.Context(), Source{Reference: host + "/o/i:1"}, MakeOptions{Name: "x", Pull: trusted}); firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("without a login: %v", err)
	}
	trusted.Username, trusted.Password = login.Username, login.Password
	make1(t, s, Source{Reference: host + "/o/i:1"}, MakeOptions{Name: "x", Pull: trusted})
	_, err := s.Make(t.Context(), Source{Reference: host + "/o/i:1"}, MakeOptions{Name: "x", Pull: trusted, Limits: rootfs.Limits{Bytes: 10}})
	if firebreak.KindOf(err) != firebreak.KindExhausted || !strings.Contains(err.Error(), "its layers of") {
		t.Errorf("layers above the limit: %v", err)
	}
}
