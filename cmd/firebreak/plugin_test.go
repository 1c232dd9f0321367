package main_test

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// plugin builds the example with Go's own compiler.
func plugin(t *testing.T) string {
	t.Helper()
	at := filepath.Join(t.TempDir(), "plugin.wasm")
	build := exec.Command("go", "build", "-buildmode=c-shared", "-o", at, "../../examples/plugin")
	build.Env = append(os.Environ(), "GOOS=wasip1", "GOARCH=wasm", "CGO_ENABLED=0")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	return at
}

// TestCallsFromGo calls the example plugin through package client: bytes in, bytes out, and errors that say which.
func TestCallsFromGo(t *testing.T) {
	dir := t.TempDir()
	socket, policy := filepath.Join(dir, "s"), filepath.Join(dir, "default.yaml")
	if err := os.WriteFile(policy, []byte("name: builtin\nextends: default\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	s := newServed(t, "--socket", socket, "--policy", policy)
	s.must("template", "import", "-q", plugin(t))
	c := client.New("unix://"+socket, nil)
	create := func(req *firebreakv1.CreateSandboxRequest) string {
		t.Helper()
		made, err := c.Sandboxes.CreateSandbox(t.Context(), connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		return made.Msg.GetSandbox().GetId()
	}
	workload := &firebreakv1.Workload{Plugin: true}
	id := create(&firebreakv1.CreateSandboxRequest{Template: "plugin", Workload: workload})
	all := bytes.Repeat([]byte("firebreak"), client.MaxCall/9)
	for name, in := range map[string][]byte{"a word": []byte("world"), "nothing": nil, "zeros": {0, 0}, "nearly all that it may": all[:len(all)-100]} {
		out, err := c.Call(t.Context(), id, "greet", in)
		if want := append([]byte("hello, "), bytes.ToUpper(in)...); err != nil || !bytes.Equal(out, want) {
			t.Errorf("%s: %d bytes, %v", name, len(out), err)
		}
	}
	atOnce(t, 200, 20, func(i int) error {
		out, err := c.Call(t.Context(), id, "greet", fmt.Append(nil, "number ", i))
		if err == nil && string(out) != fmt.Sprint("hello, NUMBER ", i) {
			err = fmt.Errorf("got %q", out)
		}
		return err
	})

	tenants, err := s.create(t.Context(), `{"templateID":"plugin","timeout":600}`)
	if err != nil {
		t.Fatal(err)
	}
	if out, err := s.client().Call(t.Context(), tenants.ID, "greet", []byte("tenant")); err != nil || string(out) != "hello, TENANT" {
		t.Errorf("with a key: %q, %v", out, err)
	}
	_, err = client.New(s.url, nil).Call(t.Context(), tenants.ID, "greet", nil)
	if firebreak.KindOf(err) != firebreak.KindDenied {
		t.Errorf("without a key: %v", err)
	}

	slow := create(&firebreakv1.CreateSandboxRequest{Template: "plugin", Workload: workload, Options: map[string]string{"timeout": "1ms"}})
	few := create(&firebreakv1.CreateSandboxRequest{Template: "plugin", Workload: workload, Options: map[string]string{"fuel": "1000"}})
	linux := create(&firebreakv1.CreateSandboxRequest{})
	asks := create(&firebreakv1.CreateSandboxRequest{Template: "plugin", Workload: workload, Options: map[string]string{"fetch": "127.0.0.1"}})
	for name, call := range map[string]struct {
		id, function string
		in           []byte
		is           error
		kind         firebreak.Kind
		text         string
	}{
		"no such function":     {id, "none", nil, fs.ErrNotExist, firebreak.KindNotFound, "it exports no function none"},
		"not of bytes":         {id, "alloc", nil, fs.ErrInvalid, firebreak.KindInvalid, "does not take an address and a length"},
		"no name":              {id, "", nil, fs.ErrInvalid, firebreak.KindInvalid, "no name of a function"},
		"no such sandbox":      {"nobody", "greet", nil, fs.ErrNotExist, firebreak.KindNotFound, "sandbox"},
		"no plugin":            {linux, "greet", nil, errors.ErrUnsupported, firebreak.KindUnsupported, "holds no plugin"},
		"what it is not given": {id, "fetch", []byte("{}"), client.ErrTrap, firebreak.KindInvalid, "it called fetch, which it is not given"},
		"a private host":       {asks, "fetch", []byte(`{"url":"http://127.0.0.1/"}`), client.ErrTrap, firebreak.KindInvalid, "no address of the public internet"},
		"too much":             {id, "greet", make([]byte, client.MaxCall+1), nil, firebreak.KindExhausted, "more than the 67108864"},
		"too much comes back":  {id, "greet", make([]byte, client.MaxCall), client.ErrTrap, firebreak.KindInvalid, "returned 67108871 bytes"},
		"its time":             {slow, "greet", make([]byte, 16<<20), context.DeadlineExceeded, firebreak.KindDeadline, "ended after 1ms"},
		"its instructions":     {few, "greet", nil, nil, firebreak.KindExhausted, "ended after 1000 instructions"},
	} {
		_, err := c.Call(t.Context(), call.id, call.function, call.in)
		var e *firebreak.Error
		if !errors.As(err, &e) || e.Kind != call.kind || call.is != nil && !errors.Is(err, call.is) || !strings.Contains(err.Error(), call.text) {
			t.Errorf("%s: %v, of kind %v", name, err, firebreak.KindOf(err))
		}
	}
	canceled, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := c.Call(canceled, id, "greet", nil); !errors.Is(err, context.Canceled) || firebreak.KindOf(err) != firebreak.KindCanceled {
		t.Errorf("canceled: %v", err)
	}
}
