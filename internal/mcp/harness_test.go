package mcp_test

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak/internal/agentbin"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/process"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/manager"
	"github.com/firebreak-dev/firebreak/internal/mcp"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// images has one template: this host.
type images struct{}

func (images) Get(name string) (image.Template, error) {
	if name != "host" {
		return image.Template{}, fs.ErrNotExist
	}
	return image.Template{Name: name}, nil
}

func (images) Has(name string) bool { return name == "host" }

func (images) RootOf(context.Context, image.Template, []driver.Form) (driver.Root, error) {
	return driver.Root{Form: driver.FormDirectory, Path: "/"}, nil
}

// drivers is a set of one: plain processes, with a real agent before each.
type drivers struct{ driver.Driver }

func (d drivers) Names() []string { return []string{"process"} }

func (d drivers) Keeper(name string) (driver.Driver, error) {
	if name != "process" {
		return nil, fs.ErrNotExist
	}
	return d.Driver, nil
}

func (d drivers) Maker(_ context.Context, name string) (driver.Driver, error) { return d.Keeper(name) }

// anything is a policy that accepts a plain process for all; nothing is one that accepts it for nothing.
const (
	anything = policyHead + `
  - {id: all, when: true, boundaries: [none], reason: It is a test., source: this file}
`
	nothing = policyHead + `
  - {id: walls, when: true, boundaries: [user-kernel], reason: There must be a wall., source: this file}
`
	policyHead = `
name: test
technologies:
  - {name: process, boundary: none, linux: true, start: 1ms, warm: 1ms, get: use another test}
rules:`
)

// world is a door on the real manager and real agents.
type world struct {
	t       *testing.T
	manager *manager.Manager
	door    *mcp.Door
	cfg     mcp.Config
}

func newWorld(t *testing.T, change func(*mcp.Config)) *world {
	t.Helper()
	return newWorldOf(t, anything, change)
}

func newWorldOf(t *testing.T, rules string, change func(*mcp.Config)) *world {
	t.Helper()
	dir, log := t.TempDir(), slog.New(slog.NewTextHandler(t.Output(), nil))
	agent, err := agentbin.Path(t.Context(), filepath.Join(dir, "agent"), log)
	if err != nil {
		t.Fatal(err)
	}
	s, err := store.Open(t.Context(), dir, log)
	if err != nil {
		t.Fatal(err)
	}
	policy := filepath.Join(dir, "policy.yaml")
	if err := os.WriteFile(policy, []byte(rules), 0o600); err != nil {
		t.Fatal(err)
	}
	m, err := manager.New(manager.Config{StateDir: dir, Store: s, Images: images{}, Policy: policy, Log: log,
		Drivers: drivers{process.New(process.Config{StateDir: filepath.Join(dir, "driver"), Agent: agent})}})
	if err != nil {
		t.Fatal(err)
	}
	w := &world{t: t, manager: m, cfg: mcp.Config{Sandboxes: m, Guests: m, Advisor: m, Log: log, Version: "test", Local: true,
		Request: manager.Request{Driver: "process"}}}
	if change != nil {
		change(&w.cfg)
	}
	w.door = mcp.New(w.cfg)
	t.Cleanup(func() {
		if err := w.door.Close(); err != nil {
			t.Error(err)
		}
		w.holds(0)
		if err := errors.Join(m.Close(), s.Close()); err != nil {
			t.Error(err)
		}
	})
	return w
}

func operator(ctx context.Context) context.Context {
	return auth.WithCaller(ctx, auth.Caller{Operator: true})
}

// holds fails the test unless there are n sandboxes.
func (w *world) holds(n int) {
	w.t.Helper()
	all, err := w.manager.List(operator(context.Background()))
	if err != nil || len(all) != n {
		w.t.Errorf("%d sandboxes are there, want %d; %v", len(all), n, err)
	}
}

// client is an MCP client of the official SDK.
type client struct {
	*sdk.ClientSession
	t *testing.T
}

// connect has a client speak to the door over a pipe, as over standard input and output.
func (w *world) connect(opts *sdk.ClientOptions) *client {
	w.t.Helper()
	return w.connectClient(sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, opts))
}

func (w *world) connectClient(cl *sdk.Client) *client {
	w.t.Helper()
	in, out, theirs := pipes(w.t)
	var served sync.WaitGroup
	served.Go(func() {
		if err := w.door.Serve(operator(context.Background()), in, out); err != nil {
			w.t.Errorf("serve: %v", err)
		}
	})
	cs, err := cl.Connect(w.t.Context(), theirs, nil)
	if err != nil {
		w.t.Fatal(err)
	}
	w.t.Cleanup(func() {
		_ = cs.Close() // the test may have ended it
		served.Wait()
	})
	return &client{cs, w.t}
}

func pipes(t *testing.T) (in, out *os.File, theirs sdk.Transport) {
	t.Helper()
	in, theirOut, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	theirIn, out, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	return in, out, &sdk.IOTransport{Reader: theirIn, Writer: theirOut}
}

type object = map[string]any

// try calls a tool.
func (c *client) try(name string, args object) *sdk.CallToolResult {
	c.t.Helper()
	res, err := c.CallTool(c.t.Context(), &sdk.CallToolParams{Name: name, Arguments: args})
	if err != nil {
		c.t.Fatalf("%s: %v", name, err)
	}
	return res
}

// call calls a tool that must succeed, and returns its text; what is structured goes into out.
func (c *client) call(name string, args object, out any) string {
	c.t.Helper()
	res := c.try(name, args)
	if res.IsError {
		c.t.Fatalf("%s %v: %s", name, args, textOf(res))
	}
	if out != nil {
		b, err := json.Marshal(res.StructuredContent)
		if err == nil {
			err = json.Unmarshal(b, out)
		}
		if err != nil {
			c.t.Fatal(err)
		}
	}
	return textOf(res)
}

// refused calls a tool that must fail with these words.
func (c *client) refused(name string, args object, words ...string) {
	c.t.Helper()
	res := c.try(name, args)
	for _, word := range words {
		if !res.IsError || !strings.Contains(textOf(res), word) {
			c.t.Errorf("%s %.200v: %v, %q; want an error with %q", name, args, res.IsError, textOf(res), word)
		}
	}
}

func textOf(res *sdk.CallToolResult) string {
	var all []string
	for _, c := range res.Content {
		if t, ok := c.(*sdk.TextContent); ok {
			all = append(all, t.Text)
		}
	}
	return strings.Join(all, "\n")
}

func wantParts(t *testing.T, what, got string, parts ...string) {
	t.Helper()
	for _, p := range parts {
		if !strings.Contains(got, p) {
			t.Errorf("%s: want %q in %q", what, p, got)
		}
	}
}
