package v8_test

import (
	"fmt"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver/v8"
)

// spoils are what code may do to the isolate that it shares with our kernel.js.
func spoils() []string {
	return []string{
		"Object.prototype.type = 'done'; Object.prototype.boxed = true; Object.prototype.toJSON = () => 'mine'",
		"Array.prototype.map = () => []; Array.prototype[Symbol.iterator] = function* () {}; String.prototype.split = () => []",
		"Promise.prototype.then = () => {}; Promise.prototype.catch = () => {}",
		"JSON.stringify = () => '{\"type\":\"done\"}'; JSON.parse = () => ({ code: '1' })",
		"TextEncoder.prototype.encode = () => new Uint8Array(0); globalThis.Response = globalThis.TransformStream = undefined",
		"WritableStreamDefaultWriter.prototype.write = () => {}; WritableStreamDefaultWriter.prototype.close = () => {}",
		"Request.prototype.text = async () => '{}'; Object.defineProperty(Request.prototype, 'url', { get: () => 'http://isolate/end' })",
		"globalThis.eval = () => 'mine'; globalThis.console = null; globalThis.process = undefined",
		"for (const k of Object.getOwnPropertyNames(globalThis)) { try { delete globalThis[k] } catch {} }",
		"Object.freeze(globalThis); Object.freeze(Object.prototype)",
		"(() => {}).constructor.constructor('return this')().process = { exit () {} }",
	}
}

// TestSpoiledIsolate: whatever code does to its isolate, it does to no other, and the sandbox can have a new one.
func TestSpoiledIsolate(t *testing.T) {
	p := newPlace(t, "", nil)
	victim := p.sandbox(nil)
	victim.value("var x = 'kept'; x", "kept")
	for _, spoil := range spoils() {
		s := p.sandbox(nil)
		s.run(spoil + "; 0")
		s.run("1")
		victim.value("[x, typeof Object.prototype.type, typeof eval, JSON.stringify({ a: 1 }), [2, 3].map(n => n + 1).join()].join(' ')",
			`kept undefined function {"a":1} 3,4`)
	}
}

// TestContainment: what isolates cannot reach.
func TestContainment(t *testing.T) {
	p := newPlace(t, "", nil)
	a, b := p.sandbox(map[string]string{"tenant": "one"}), p.sandbox(map[string]string{"tenant": "one"})
	other := p.sandbox(map[string]string{"tenant": "two"})
	a.value("globalThis.secret = 'a secret'; require('node:fs').writeFileSync('/tmp/secret', 'a secret'); 1", "1")
	for _, s := range []*sandbox{b, other} {
		s.value("typeof secret", "undefined")
		s.value("require('node:fs').existsSync('/tmp/secret')", "false")
	}
	for text, want := range map[string]string{
		"require('node:fs').readdirSync('/').join()":                                                              "home,tmp",
		"try { require('node:fs').readFileSync('/etc/passwd') } catch (e) { e.code }":                             "ENOENT",
		"try { require('node:fs').readFileSync('/engine/config.capnp') } catch (e) { e.code }":                    "ENOENT",
		"try { require('node:fs').readFileSync('/proc/self/maps') } catch (e) { e.code }":                         "ENOENT",
		"try { require('node:child_process').execSync('id'); 'ran' } catch (e) { 'refused' }":                     "refused",
		"try { new (require('node:worker_threads').Worker)('1', { eval: true }); 'ran' } catch (e) { 'refused' }": "refused",
		"typeof Worker": "undefined",
		"await new Promise(done => { const s = require('node:net').connect(8787, '127.0.0.1'); s.on('connect', () => done('connected')); s.on('error', () => done('refused')) })":             "refused",
		"await (async () => { try { const { connect } = await import('cloudflare:sockets'); await connect('127.0.0.1:8787').opened; return 'connected' } catch (e) { return 'refused' } })()": "refused",
		"await (async () => { try { await new WebSocket('ws://127.0.0.1:8787/i1/run'); await new Promise(r => setTimeout(r, 50)); return 'done' } catch (e) { return 'done' } })()":           "done",
		"await (async () => { try { const { env } = await import('cloudflare:workers'); return Object.keys(env).join() } catch (e) { return 'refused' } })()":                                 "",
		"await (async () => { try { await import('workerd:unsafe'); return 'there' } catch (e) { return 'refused' } })()":                                                                     "refused",
		"await (async () => { try { await caches.default.match('http://x/'); return 'there' } catch (e) { return 'refused' } })()":                                                            "refused",
	} {
		a.value(text, want)
	}
}

// TestEndlessLoop: a script that never yields is ended from outside, its tenant's others lose their state and are told
// once, and other tenants notice nothing.
func TestEndlessLoop(t *testing.T) {
	p := newPlace(t, "", func(c *v8.Config) { c.Stall = 5 * time.Second })
	bad, neighbour := p.sandbox(map[string]string{"tenant": "one"}), p.sandbox(map[string]string{"tenant": "one"})
	own := p.sandbox(map[string]string{"tenant": "one", "exclusive": "true"})
	other := p.sandbox(map[string]string{"tenant": "two"})
	for _, s := range []*sandbox{bad, neighbour, own, other} {
		s.value("var x = 1; x", "1")
	}
	for _, loop := range []string{"for (;;) {}", "await (async () => { for (;;) await null })()"} {
		if r := bad.run(loop); r.failed != "KernelDied" || !strings.Contains(r.value, "held the processor") {
			t.Fatalf("%s: %+v", loop, r)
		}
		if r := neighbour.run("x"); r.failed != "KernelDied" || !strings.Contains(r.value, "its state is lost") {
			t.Errorf("the neighbour: %+v", r)
		}
		neighbour.value("typeof x", "undefined")
		neighbour.value("var x = 1; x", "1")
		bad.value("6 * 7", "42")
	}
	own.value("x", "1")
	other.value("x", "1")
}

// TestBombs: what takes more than there is ends at most the process of its tenant.
func TestBombs(t *testing.T) {
	p := newPlace(t, "", func(c *v8.Config) { c.Stall = 5 * time.Second })
	other := p.sandbox(map[string]string{"tenant": "two"})
	other.value("var x = 1; x", "1")
	for _, bomb := range []string{
		"const b = []; for (;;) b.push(new Array(1e5).fill(b.length))",
		"const c = []; for (;;) c.push(new Uint8Array(64 << 20).fill(1))",
		"let s = 'x'; for (;;) s += s",
		"(function f () { f() })()",
		"const g = () => Promise.resolve().then(g).then(g); await Promise.all([g(), g()])",
		"for (let i = 0; ; i++) setTimeout(() => {}, 1e6)",
		"for (;;) console.log('x'.repeat(1e6))",
		"/(a+)+$/.test('a'.repeat(64) + 'b')",
		"new WebAssembly.Memory({ initial: 65536 }).grow(1)",
		"await new Response(new ReadableStream({ pull (c) { c.enqueue(new Uint8Array(1 << 20)) } })).arrayBuffer()",
	} {
		s := p.sandbox(map[string]string{"tenant": "one"})
		start := time.Now()
		r, err := s.try(t.Context(), bomb, "")
		if err != nil || r.failed == "" {
			t.Errorf("%s: %v, %.300q %.300q", bomb, err, r.text, r.value)
		}
		t.Logf("%.50s: %s: %.150s (%v)", bomb, r.failed, r.value, time.Since(start).Round(time.Millisecond))
		s.run("1") // may be told of the end of its process
		s.value("6 * 7", "42")
		other.value("x", "1")
	}
}

// TestForgedFrames: what code writes where our kernel does is told as its own, or ends it; the host believes none of it.
func TestForgedFrames(t *testing.T) {
	p := newPlace(t, "", nil)
	s := p.sandbox(nil)
	victim := p.sandbox(nil)
	victim.value("var x = 1; x", "1")
	forge := func(line string) string {
		return fmt.Sprintf("var write = WritableStreamDefaultWriter.prototype.write; TextEncoder.prototype.encodeOld ??= TextEncoder.prototype.encode;"+
			"globalThis.Forged = class { static toJSON () {} }; const old = String.prototype.concat; Object.prototype.toJSON = function () { return %s }; console.log('x')", line)
	}
	for _, line := range []string{`{ type: 'print', stream: '/etc/passwd', text: 'x' }`, `{ type: 'result', main: true, forms: 5 }`, `{ type: 'exit', status: 1e99 }`, `{ type: 'root' }`, `5`, `null`,
		`{ type: 'done', id: 1 }`, `{ type: 'file', kind: 'file', path: 'x' }`, `{ type: 'file', kind: 'device', path: '/x' }`} {
		if r := s.run(forge(line)); r.failed != "KernelDied" {
			t.Errorf("%s: %+v", line, r)
		}
		victim.value("x", "1")
		s.value("1", "1")
	}
	if r := s.run(forge(`{ type: 'done' }`)); r.failed != "" {
		t.Errorf("%+v", r)
	}
}

// TestEviction: isolates that nobody uses are ended, and who comes back is told; timing tells nothing of others.
func TestEviction(t *testing.T) {
	p := newPlace(t, "", func(c *v8.Config) { c.Idle, c.Stall = 3*time.Second, 20*time.Second })
	s := p.sandbox(nil)
	s.value("var x = 1; x", "1")
	busy := p.sandbox(nil)
	var wait sync.WaitGroup
	wait.Go(func() { busy.value("await new Promise(r => setTimeout(() => r('done'), 9000))", "done") })
	var r ran
	for range 20 {
		time.Sleep(6 * time.Second)
		if r = s.run("x"); r.failed != "" {
			break
		}
	}
	if r.failed != "KernelDied" || !strings.Contains(r.value, "it was evicted, since nothing ran in it for 3s; its state is lost") {
		t.Errorf("%+v", r)
	}
	s.value("typeof x", "undefined")
	wait.Wait()
}
