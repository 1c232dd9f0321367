package main

import (
	"bufio"
	"bytes"
	"context"
	_ "embed"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

//go:embed sdk.mjs
var sdkProgram []byte

const (
	serverRounds = 100
	poolSize     = 4
	poolRest     = 500 * time.Millisecond
	sustained    = 10 * time.Second
)

// server is a firebreak serve under measurement.
type server struct {
	cmd  *exec.Cmd
	url  string
	key  string
	errs bytes.Buffer
}

// serving is what was measured of a server.
type serving struct {
	cold, get          sample            // creates and a request that does next to nothing, over HTTP
	claimed            pair              // creates from the pool
	coldRate, poolRate float64           // creates per second, with their kills, for some seconds
	sdk                map[string]sample // through E2B's client
	sdkProblem         string
}

func (b *bench) serve(ctx context.Context, name, config string) (*server, error) {
	path := filepath.Join(b.dir, name+".yaml")
	if err := os.WriteFile(path, []byte(config), 0o600); err != nil {
		return nil, err
	}
	s := &server{cmd: exec.CommandContext(ctx, b.exe, "serve", "--listen", "127.0.0.1:0", "--kill-on-exit", "--config", path,
		"--state-dir", filepath.Join(b.dir, name))}
	s.cmd.Cancel = func() error { return s.cmd.Process.Signal(syscall.SIGTERM) }
	s.cmd.Stderr = &s.errs
	out, err := s.cmd.StdoutPipe()
	if err != nil {
		return nil, err
	}
	if err := s.cmd.Start(); err != nil {
		return nil, err
	}
	for lines := bufio.NewScanner(out); lines.Scan(); {
		name, value, _ := strings.Cut(strings.TrimPrefix(lines.Text(), "export "), "=")
		switch name {
		case "E2B_API_KEY":
			s.key = value
		case "E2B_API_URL":
			s.url = value
		case "E2B_SANDBOX_URL":
			return s, nil
		}
	}
	return nil, fmt.Errorf("the server said no address: %s", s.errs.String())
}

func (s *server) stop() error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := s.cmd.Wait(); err != nil {
		return fmt.Errorf("serve: %w: %s", err, s.errs.String())
	}
	return nil
}

func (s *server) call(ctx context.Context, method, path, body string, into any) error {
	req, err := http.NewRequestWithContext(ctx, method, s.url+path, strings.NewReader(body))
	if err != nil {
		return err
	}
	req.Header.Set("X-API-Key", s.key)
	req.Header.Set("Content-Type", "application/json")
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(res.Body)
	switch {
	case err != nil:
		return err
	case res.StatusCode >= 300:
		return fmt.Errorf("%s %s: %d %s", method, path, res.StatusCode, text)
	case into == nil:
		return nil
	}
	return json.Unmarshal(text, into)
}

// create makes a sandbox, and returns how long the answer took.
func (s *server) create(ctx context.Context) (id string, took time.Duration, err error) {
	var made struct {
		ID string `json:"sandboxID"`
	}
	start := time.Now()
	err = s.call(ctx, http.MethodPost, "/v2/sandboxes", `{"templateID":"base","timeout":600}`, &made)
	return made.ID, time.Since(start), err
}

func (s *server) kill(ctx context.Context, id string) error {
	return s.call(ctx, http.MethodDelete, "/sandboxes/"+id, "", nil)
}

// creates measures single creates.
func (s *server) creates(ctx context.Context, n int) (sample, error) {
	var took sample
	for range n {
		id, d, err := s.create(ctx)
		if err != nil {
			return nil, err
		}
		took = append(took, d)
		if err := s.kill(ctx, id); err != nil {
			return nil, err
		}
	}
	return took, nil
}

// claims measures creates from the pool, which fills again while all rests.
func (s *server) claims(ctx context.Context) (p pair, err error) {
	var made []string
	for range serverRounds / 2 {
		for _, id := range made {
			if err := s.kill(ctx, id); err != nil {
				return p, err
			}
		}
		made = made[:0]
		one, err := pairs(1, poolRest, func() error {
			id, _, err := s.create(ctx)
			made = append(made, id)
			return err
		})
		if err != nil {
			return p, err
		}
		p.rested, p.busy = append(p.rested, one.rested...), append(p.busy, one.busy...)
	}
	for _, id := range made {
		err = errors.Join(err, s.kill(ctx, id))
	}
	return p, err
}

// rate makes and kills sandboxes, some at a time, and returns how many there were per second.
func (s *server) rate(ctx context.Context) (float64, error) {
	const wide = 4
	start, counts, errs := time.Now(), make([]int, wide), make([]error, wide)
	var wg sync.WaitGroup
	for i := range wide {
		wg.Go(func() {
			for time.Since(start) < sustained && errs[i] == nil {
				id, _, err := s.create(ctx)
				if err == nil {
					err = s.kill(ctx, id)
				}
				errs[i] = err
				counts[i]++
			}
		})
	}
	wg.Wait()
	all := 0
	for _, n := range counts {
		all += n
	}
	return float64(all) / time.Since(start).Seconds(), errors.Join(errs...)
}

// servers measures a server that makes each sandbox when it is asked for, and one with a pool.
func (b *bench) servers(ctx context.Context) (*serving, error) {
	fmt.Fprintln(os.Stderr, "server")
	m := &serving{}
	cold, err := b.serve(ctx, "cold", "{}")
	if err != nil {
		return nil, err
	}
	if _, err = cold.creates(ctx, 3); err == nil { // the first ones fill caches
		m.cold, err = cold.creates(ctx, 40)
	}
	if err == nil {
		m.coldRate, err = cold.rate(ctx)
	}
	if err = errors.Join(err, cold.stop()); err != nil {
		return nil, err
	}
	pooled, err := b.serve(ctx, "pooled", fmt.Sprintf("pools: [{template: host, min: %d, max: %d, warm: [python]}]", poolSize, 2*poolSize))
	if err != nil {
		return nil, err
	}
	return m, errors.Join(b.pooled(ctx, pooled, m), pooled.stop())
}

func (b *bench) pooled(ctx context.Context, s *server, m *serving) (err error) {
	time.Sleep(3 * time.Second) // the pool fills
	if m.claimed, err = s.claims(ctx); err != nil {
		return err
	}
	for range serverRounds {
		start := time.Now()
		if err := s.call(ctx, http.MethodGet, "/v2/sandboxes", "", nil); err != nil {
			return err
		}
		m.get = append(m.get, time.Since(start))
	}
	if err := b.throughSDK(ctx, s, m); err != nil {
		return err
	}
	if m.poolRate, err = s.rate(ctx); err != nil {
		return err
	}
	return nil
}

// throughSDK runs a program with E2B's client, which the tests' tools have installed.
func (b *bench) throughSDK(ctx context.Context, s *server, m *serving) error {
	if _, err := os.Stat(filepath.Join(b.sdk, "node_modules", "@e2b", "code-interpreter")); err != nil {
		m.sdkProblem = "E2B's packages are not installed: make tools"
		return nil
	}
	program := filepath.Join(b.sdk, "bench.mjs") // node looks for packages beside the program
	if err := os.WriteFile(program, sdkProgram, 0o600); err != nil {
		return err
	}
	defer os.Remove(program)
	cmd := exec.CommandContext(ctx, "node", program, fmt.Sprint(serverRounds))
	cmd.Env = append(os.Environ(), "E2B_API_KEY="+s.key, "E2B_API_URL="+s.url, "E2B_SANDBOX_URL="+s.url)
	cmd.Stderr = os.Stderr
	out, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("through the SDK: %w", err)
	}
	var took map[string][]float64 // milliseconds
	if err := json.Unmarshal(out, &took); err != nil {
		return fmt.Errorf("through the SDK: %w", err)
	}
	m.sdk = map[string]sample{}
	for name, all := range took {
		for _, ms := range all {
			m.sdk[name] = append(m.sdk[name], time.Duration(ms*float64(time.Millisecond)))
		}
	}
	return nil
}

func serverTable(w io.Writer, m *serving) {
	fmt.Fprintf(w, "\n## A server, gVisor\n\nOne client at a time on loopback, but for the rates (four). The pool keeps %d ready, with their Python started.\n\n"+
		"| what | p50 ms | p99 ms | budget | kept |\n|---|---|---|---|---|\n", poolSize)
	row := func(what string, s sample, budget time.Duration) {
		limit, kept := "", ""
		if budget > 0 {
			limit, kept = fmt.Sprintf("≤ %d ms p50", budget.Milliseconds()), verdict(s.median() <= budget)
		}
		fmt.Fprintf(w, "| %s | %s | %s | %s | %s |\n", what, milliseconds(s.median()), milliseconds(s.quantile(0.99)), limit, kept)
	}
	row("create over HTTP, made when asked for", m.cold, 0)
	row(fmt.Sprintf("create over HTTP, from the pool, after %d ms of rest", poolRest.Milliseconds()), m.claimed.rested, 2*time.Millisecond)
	row("the same, at once after another", m.claimed.busy, 2*time.Millisecond)
	row("list over HTTP", m.get, 0)
	if m.sdkProblem != "" {
		fmt.Fprintf(w, "| through E2B's SDK: %s | | | | |\n", m.sdkProblem)
	} else {
		row("`Sandbox.create()` of E2B's SDK, from the pool", m.sdk["create"], 0)
		row("`commands.run('true')` of E2B's SDK", m.sdk["command"], 0)
		row("`runCode('1 + 1')` of E2B's SDK, in a warm context", m.sdk["code"], 5*time.Millisecond)
		row("`kill()` of E2B's SDK", m.sdk["kill"], 0)
	}
	fmt.Fprintf(w, "| creates and kills per second for %d s, made when asked for | %.1f/s | | | |\n", int(sustained.Seconds()), m.coldRate)
	fmt.Fprintf(w, "| the same with the pool | %.1f/s | | | |\n", m.poolRate)
}
