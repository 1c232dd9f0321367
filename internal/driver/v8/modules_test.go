package v8_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver/v8"
)

// program writes files below the home directory, runs the first one, and checks what it prints: on the error output if
// want begins with "!".
func (s *sandbox) program(want string, files ...string) {
	s.t.Helper()
	for i := 0; i < len(files); i += 2 {
		s.write("/home/user/"+files[i], files[i+1])
	}
	stdout, stderr, status, err := s.command("node " + files[0])
	if wrong, ok := strings.CutPrefix(want, "!"); ok {
		if err != nil || !strings.Contains(stderr, wrong) || status != 1 {
			s.t.Errorf("%s: %q %.1000q %d %v, want %q", files[1], stdout, stderr, status, err, wrong)
		}
		return
	}
	if err != nil || stdout != want || stderr != "" || status != 0 {
		s.t.Errorf("%s: %q %.1000q %d %v, want %q", files[1], stdout, stderr, status, err, want)
	}
}

func TestModules(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	s.program("5 7 1 x.ts a/b\n",
		"a/main.js", "import five, { seven as n, seven } from './lib.js'\nimport * as all from './lib.js'\nimport data from '../data.json' with { type: 'json' }\nimport { name } from './x.ts'\nimport { join } from 'node:path'\nif (n !== seven || all.seven !== 7) throw 1\nconsole.log(five, n, data.one, name, join('a', 'b'))",
		"a/lib.js", "export default 5; export const seven = 7", "data.json", `{"one": 1}`, "a/x.ts", "export const name: string = 'x.ts'; export type T = string")
	// What is imported is read when it is used, and functions are there before their modules have run.
	s.program("0 1 2 undefined\n", "live.mjs", "import { n, up, late } from './count.mjs'; console.log(n, (up(), n), up(), typeof late.x)",
		"count.mjs", "import './back.mjs'; export let n = 0; export function up () { return ++n }; export const late = {}", "back.mjs", "import { up } from './count.mjs'; export const f = () => up; if (typeof up !== 'function') throw new Error('not there')")
	s.program("!ReferenceError: Cannot access 'v' before initialization", "dead.mjs", "import './dead2.mjs'; export const v = 1", "dead2.mjs", "import { v } from './dead.mjs'; v")
	s.program("start\nlate 3\n{ x: 3 }\n", "await.mjs", "import { x } from './slow.mjs'\nconsole.log('late', x)\nconst ns = await import('./slow.mjs')\nconsole.log({ ...ns })", "slow.mjs", "console.log('start'); export const x = await new Promise(r => setTimeout(() => r(3), 5))")
	s.program("a b c D d\n", "star.mjs", "import D, { a, b as B, c, d } from './star2.mjs'; console.log(a, B, c, D, d.d)", "star2.mjs", "export * from './star3.mjs'; export { x as b, 'c d' as c } from './star4.mjs'; export * as d from './star5.mjs'; class A {}; export default 'D'",
		"star3.mjs", "export const a = 'a'; export default 'no'", "star4.mjs", "const x = 'b', y = 'c'; export { x, y as 'c d' }", "star5.mjs", "export const d = 'd'")
	s.program("undefined undefined 3 9 [ 3 ]\n", "this.mjs", "import { who, sum } from './who.cjs'; import who2 from './who.mjs'; const o = { sum }; console.log(typeof this, who2(), sum(1, 2), o.sum(4, 5), [sum].map(sum => sum(1, 2)))", "who.cjs", "exports.who = function () { 'use strict'; return this }; exports.sum = (a, b) => a + b", "who.mjs", "export default function () { return this }")
	s.program("/home/user/meta.mjs file:///home/user/meta.mjs file:///home/user/x /home/user\n", "meta.mjs", "console.log(import.meta.filename, import.meta.url, import.meta.resolve('./x'), import.meta.dirname)")
	s.program("class fn arrow\n", "exports.mjs", "import { A } from './e1.mjs'; import fn from './e2.mjs'; import arrow from './e3.mjs'; console.log(new A().v, fn(), arrow())",
		"e1.mjs", "export class A { v = 'class' }; export const { x, y: [z] } = { x: 1, y: [2] }; if (x + z !== 3) throw 1", "e2.mjs", "console.assert(f() === 'fn'); export default function f () { return 'fn' }", "e3.mjs", "export default () => 'arrow'")
}

func TestCommonJS(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	s.program("1 2 3 /home/user/c/main.js /home/user/c true a/b false\n", "c/main.js", "const { one } = require('./one'); const two = require('./dir'); const { three } = require('./three.json')\nconsole.log(one, two, three, __filename, __dirname, require.main === module, require('path').join('a', 'b'), 'main' in globalThis)\nvar main = 1",
		"c/one.js", "exports.one = 1", "c/dir/index.js", "module.exports = 2", "c/three.json", `{"three": 3}`)
	s.program("{ done: true } partial\n", "cycle.cjs", "exports.part = 'partial'; const b = require('./cycle2.cjs'); console.log(b.a, b.seen)", "cycle2.cjs", "const a = require('./cycle.cjs'); exports.seen = a.part; exports.a = { done: true }")
	s.program("esm 4 cjs\n", "mixed.cjs", "const m = require('./mixed.mjs'); import('./mixed2.cjs').then(c => console.log(m.default, m.four, c.default.v))", "mixed.mjs", "export default 'esm'; export const four = 4", "mixed2.cjs", "exports.v = 'cjs'")
	s.program("!require() cannot be used on an ES module with await at its top", "needs.cjs", "require('./top.mjs')", "top.mjs", "await 1; export default 1")
	s.program("boo caught\n", "throws.cjs", "try { require('./thrower.cjs') } catch (e) { console.log(e.message, 'caught') }", "thrower.cjs", "throw new Error('boo')")
	s.program("!/home/user/first.cjs:1:7)", "first.cjs", "throw new Error('here')")
	s.program("!/home/user/line.cjs:3:7", "line.cjs", "\n\nthrow new Error('here')")
}

// TestNoSuchModule: what is missing is told as Node tells it.
func TestNoSuchModule(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	s.program("!Error [ERR_MODULE_NOT_FOUND]: Cannot find module '/home/user/nowhere.js' imported from /home/user/m.mjs", "m.mjs", "import './nowhere.js'")
	s.program("!Cannot find module '/home/user/lib' imported from", "m.mjs", "import './lib'", "lib.js", "")
	s.program("!Cannot find package 'lodash' imported from /home/user/m.mjs", "m.mjs", "import 'lodash'")
	s.program("!Cannot find module '/etc/passwd' imported from", "m.mjs", "import '../../../../../etc/passwd'")
	s.program("!Cannot find module '/engine/kernel.js'", "m.mjs", "import '/engine/kernel.js'")
	s.program("!Cannot find module '/proc/self/environ'", "m.mjs", "import 'file:///proc/self/environ'")
	s.program("!Cannot find module '/home/user/nowhere' required by /home/user/m.cjs", "m.cjs", "require('./nowhere')")
	s.program("!Cannot find module '/home/user/calculated.js'", "m.mjs", "await import('./calc' + 'ulated.js')", "calculated.js", "")
	s.program("!SyntaxError: The requested module './lib.js' does not provide an export named 'nope'", "m.mjs", "import { nope } from './lib.js'", "lib.js", "export const yes = 1")
	s.program("!SyntaxError: Unexpected token", "m.mjs", "import './bad.cjs'", "bad.cjs", "let x = ;")
	s.program("!SyntaxError", "m.mjs", "import './bad.mjs'", "bad.mjs", "let x = ;")
	s.program("!in /home/user/bad.ts", "m.mjs", "import './bad.ts'", "bad.ts", "let x: = 1")
	s.program("!in /home/user/bad.json", "m.mjs", "import x from './bad.json'", "bad.json", "{")
	s.program("!Error [ERR_UNKNOWN_FILE_EXTENSION]: Unknown file extension \".txt\" in /home/user/bad.txt", "m.mjs", "import x from './bad.txt'", "bad.txt", "")
	s.program("!SyntaxError", "m.mjs", "import { x } from './one.mjs'; x = 2", "one.mjs", "export const x = 1")
	s.program("caught\n", "m.mjs", "try { await import('./bad.ts') } catch { console.log('caught') }")
}

func TestTypeScriptModules(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	s.program("1 2 3 4 B\n", "t/main.ts", "import { one } from './one.ts'\nimport { two } from './two.js'\nimport { three, type Three } from './three'\nimport four = require('./four.cts')\nimport type { Nothing } from './nothing.ts'\nimport { Shape, E } from './types.ts'\nconst s: Shape = { three }\nconsole.log(one, two as number, s.three, four.four, E[1])",
		"t/one.ts", "export const one: number = 1", "t/two.ts", "export const two = 2", "t/three/index.ts", "export type Three = 3; export const three: Three = 3", "t/four.cts", "const four: number = 4; module.exports = { four }", "t/types.ts", "export interface Shape { three: number }\nexport enum E { A, B }")
}

// TestModuleLimits: a program that is too much is refused, and links lead nowhere but in the sandbox's own files.
func TestModuleLimits(t *testing.T) {
	p := newPlace(t, "", func(c *v8.Config) { c.Stall = 5 * time.Second })
	s := p.sandbox(nil)
	for i := range 501 {
		s.write(fmt.Sprintf("/home/user/many/m%d.mjs", i), fmt.Sprintf("import './m%d.mjs'; export const v = %d", i+1, i))
	}
	s.program("!the program has more than 500 modules", "many/m0.mjs", "import './m1.mjs'")
	s.program("2\n", "many/m499.mjs", "import { v } from './m500.mjs'; console.log(v)", "many/m500.mjs", "export const v = 2")
	s.write("/home/user/large.js", "//"+strings.Repeat("x", 5<<20))
	s.program("!more than 8 MiB", "m.mjs", "import './large.js'; import './large2.cjs'", "large2.cjs", "//"+strings.Repeat("x", 4<<20))
	deep := strings.Repeat("a/", 200)
	s.program("deep\n", "m.mjs", "import '"+"./"+deep+strings.Repeat("../", 200)+"deep.cjs'", "deep.cjs", "console.log('deep')")
	s.program("!__proto__", "m.mjs", "import './__proto__'; import 'constructor'")
	s.program("!Cannot find package 'constructor'", "m.mjs", "import 'constructor'")
}

// TestProgramEnds: a program ends when nothing is left that could go on, as in Node, or when nobody catches an error.
func TestProgramEnds(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	s.program("1 2 3\n", "m.js", "async function main () { await sleep(20); console.log(1, 2, 3) }\nconst sleep = ms => new Promise(r => setTimeout(r, ms)); main()")
	s.program("late\n", "m.js", "const { setTimeout: sleep } = require('node:timers/promises'); (async () => { await sleep(20); console.log('late') })()")
	s.program("", "m.js", "")
	s.program("", "m.js", "clearInterval(setInterval(() => {}, 1)); new Promise(() => {})")
	s.program("0\n1\n2\n", "m.js", "let n = 0; const t = setInterval(() => { console.log(n); if (++n === 3) clearInterval(t) }, 5)")
	s.program("!Error: nobody", "m.js", "(async () => { throw new Error('nobody') })()")
	s.program("!RangeError: in a timer", "m.js", "setTimeout(() => { throw new RangeError('in a timer') }, 5)")
	s.program("caught\n", "m.js", "Promise.reject(new Error('x')).catch(() => console.log('caught'))")
	s.write("/home/user/m.js", "setTimeout(() => { console.log('x'); process.exit(5) }, 5); setInterval(() => {}, 1)")
	if stdout, stderr, status, err := s.command("node m.js"); err != nil || stdout != "x\n" || stderr != "" || status != 5 {
		t.Errorf("%q %q %d %v", stdout, stderr, status, err)
	}
	s.program("!Unfinished", "m.mjs", "await new Promise(() => {})")
}

// TestWaiting: a program's end is told at once only if nothing in it could still go on.
func TestWaiting(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	for _, text := range []string{
		"crypto.subtle.digest('SHA-256', new Uint8Array(9)).then(d => console.log(d.byteLength === 32))",
		"globalThis['cry' + 'pto'].subtle.digest('SHA-1', new Uint8Array(9)).then(() => console.log(true))",
		"(function () { return this })().scheduler.wait(5).then(() => console.log(true))",
		"new Function('return scheduler')().wait(5).then(() => console.log(true))",
		"new Function('return import(\"node:timers/promises\")')().then(t => t.setTimeout(5)).then(() => console.log(true))",
		"(async () => {}).constructor('return import(\"node:timers/promises\")')().then(t => t.setTimeout(5)).then(() => console.log(true))",
		"eval('set' + 'Timeout')(() => console.log(true), 5)",
		"setImmediate(() => setImmediate(() => console.log(true)))",
		"new Response('true').text().then(console.log)",
		"new Response(new Blob(['x']).stream().pipeThrough(new CompressionStream('gzip')).pipeThrough(new DecompressionStream('gzip'))).text().then(x => console.log(x === 'x'))",
		"require('node:util').promisify(setTimeout)(5, true).then(console.log)",
		"require('zlib').gzip('x', () => console.log(true))",
		"import('node:timers/promises').then(t => t.setTimeout(5)).then(() => console.log(true))",
		"process.getBuiltinModule('node:timers/promises').setTimeout(5).then(() => console.log(true))",
		"AbortSignal.timeout(5).addEventListener('abort', () => console.log(true))",
		"(async () => { for (let i = 0; i < 5000; i++) await i; process.nextTick(() => queueMicrotask(() => console.log(true))) })()",
		"let n = 0; const later = () => ++n < 5000 ? Promise.resolve().then(later) : console.log(true); later()",
		"globalThis.fetch = 1; globalThis.crypto = 2; var caches = 3; console.log(fetch + crypto + caches === 6)",
		"fetch('http://x').catch(e => setTimeout(() => console.log(e instanceof TypeError), 5))",
		"const { setTimeout } = globalThis; setTimeout(console.log, 5, true)",
	} {
		s.program("true\n", "m.js", text)
	}
	s.program("a\nb\n", "m.mjs", "console.log('a'); await new Promise(r => setTimeout(r, 5)); console.log('b')")
	s.program(strings.Repeat("x", 200_000)+"\n", "m.js", "console.log('x'.repeat(200000))")
}

// TestInput: the standard input is read to its end before a program starts that may look at it.
func TestInput(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	for text, want := range map[string]string{
		"console.log(require('fs').readFileSync(0, 'utf8').length, require('fs').readFileSync(0).length)":                                 "8 0\n",
		"import fs from 'node:fs'; console.log(JSON.stringify(fs.readFileSync('/dev/stdin', { encoding: 'utf8' })))":                      `"one\ntwö\n"` + "\n",
		"let all = ''; for await (const part of process.stdin) all += part; console.log(all.split('\\n'))":                                "[ 'one', 'twö', '' ]\n",
		"process.stdin.setEncoding('utf8'); process.stdin.on('data', d => console.log(d.length)).on('end', () => console.log('the end'))": "8\nthe end\n",
	} {
		s.write("/home/user/in.js", text)
		if stdout, stderr, status, err := s.fed("node in.js", "one\ntwö\n"); err != nil || stdout != want || status != 0 {
			t.Errorf("%s: %q %q %d %v, want %q", text, stdout, stderr, status, err, want)
		}
	}
	s.write("/home/user/in.js", "console.log('nobody waits')")
	if stdout, _, status, err := s.fed("node in.js", ""); err != nil || stdout != "nobody waits\n" || status != 0 {
		t.Errorf("%q %d %v", stdout, status, err)
	}
}

// fed runs a command with a standard input, which stays open if there is nothing for it.
func (s *sandbox) fed(line, input string) (stdout, stderr string, status int32, err error) {
	yes := true
	stream, err := s.Process().Start(s.t.Context(), connect.NewRequest(&process.StartRequest{Stdin: &yes,
		Process: &process.ProcessConfig{Cmd: "/bin/bash", Args: []string{"-l", "-c", line}}}))
	if err != nil {
		return "", "", 0, err
	}
	defer stream.Close()
	for stream.Receive() {
		if pid := stream.Msg().GetEvent().GetStart().GetPid(); pid != 0 && input != "" {
			at := &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}
			_, err := s.Process().SendInput(s.t.Context(), connect.NewRequest(&process.SendInputRequest{Process: at, Input: &process.ProcessInput{Input: &process.ProcessInput_Stdin{Stdin: []byte(input)}}}))
			if err == nil {
				_, err = s.Process().CloseStdin(s.t.Context(), connect.NewRequest(&process.CloseStdinRequest{Process: at}))
			}
			if err != nil {
				return "", "", 0, err
			}
		}
		data := stream.Msg().GetEvent().GetData()
		stdout, stderr = stdout+string(data.GetStdout()), stderr+string(data.GetStderr())
		if end := stream.Msg().GetEvent().GetEnd(); end != nil {
			status = end.GetExitCode()
		}
	}
	return stdout, stderr, status, stream.Err()
}
