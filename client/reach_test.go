package client_test

import (
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// TestKeyAndSocket reaches a server over a unix socket and a network, and shows the key with all kinds of requests.
func TestKeyAndSocket(t *testing.T) {
	path := filepath.Join(t.TempDir(), "s")
	socket, err := net.Listen("unix", path)
	if err != nil {
		t.Fatal(err)
	}
	server := httptest.NewUnstartedServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		http.Error(w, fmt.Sprintf(`{"message":"key %s"}`, r.Header.Get("X-API-KEY")), http.StatusTeapot)
	}))
	server.Listener.Close()
	server.Listener = socket
	server.Start()
	defer server.Close()
	network := httptest.NewServer(server.Config.Handler)
	defer network.Close()
	for _, url := range []string{"unix://" + path, network.URL, network.URL + "/"} {
		for _, key := range []string{"e2b_00", ""} {
			c := client.New(url, nil, client.WithAPIKey(key))
			_, list := c.Sandboxes.ListSandboxes(t.Context(), connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
			_, keys := c.Keys.ListKeys(t.Context(), connect.NewRequest(&firebreakv1.ListKeysRequest{}))
			_, processes := c.Process("x").List(t.Context(), connect.NewRequest(&process.ListRequest{}))
			_, file := c.ReadFile(t.Context(), "x", "/x", "")
			for name, err := range map[string]error{"list": list, "keys": keys, "processes": processes, "file": file, "write": c.WriteFile(t.Context(), "x", "/x", "", strings.NewReader("x"))} {
				if err == nil || name != "list" && name != "keys" && name != "processes" && !strings.HasSuffix(err.Error(), "key "+key) {
					t.Errorf("%s of %s with key %q: %v", name, url, key, err)
				}
			}
		}
	}
}

// TestKeyDoesNotFollowRedirects keeps the key from whoever a server sends its clients to.
func TestKeyDoesNotFollowRedirects(t *testing.T) {
	thief := httptest.NewServer(http.HandlerFunc(func(http.ResponseWriter, *http.Request) { t.Error("the thief was asked") }))
	defer thief.Close()
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		_, _ = io.Copy(io.Discard, r.Body)
		http.Redirect(w, r, thief.URL, http.StatusTemporaryRedirect)
	}))
	defer server.Close()
	c := client.New(server.URL, nil, client.WithAPIKey("e2b_00"))
	if _, err := c.Sandboxes.ListSandboxes(t.Context(), connect.NewRequest(&firebreakv1.ListSandboxesRequest{})); err == nil {
		t.Error("a redirect is an answer")
	}
	if _, err := c.ReadFile(t.Context(), "x", "/x", ""); err == nil {
		t.Error("a redirect is a file")
	}
}
