package v8_test

import (
	"fmt"
	"strings"
	"testing"
)

// fails checks that code fails with a text.
func (s *sandbox) fails(text, want string) {
	s.t.Helper()
	if r := s.run(text); r.failed == "" || r.failed == "KernelDied" || !strings.Contains(r.failed+r.traceback+r.value, want) {
		s.t.Errorf("%s: %+v, want %q", text, r, want)
	}
}

// TestImports: code in contexts imports the sandbox's files as Node does it, and keeps what it has imported.
func TestImports(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	for name, text := range map[string]string{
		"count.js": "import { step } from './deep/step.mjs'\nexport let n = 0\nexport default function up () { return n += step }", "deep/step.mjs": "export const step = 2",
		"two.js": "exports.two = 2; exports.name = __filename", "types.ts": "export enum E { A, B }\nexport const e: E = E.B", "data.json": `{"one": 1}`, "late.mjs": "export const x = await new Promise(r => setTimeout(() => r(3), 5))",
	} {
		s.write("/home/user/"+name, text)
	}
	s.value("import up, { n } from './count.js'\nup()", "2")
	s.value("up()", "4")
	s.value("const again = await import('./count.js'); [again.n, again.default === up, n]", "[ 4, true, 0 ]")
	s.value("import * as all from '/home/user/count.js'; all.n", "4")
	s.value("(async () => (await import('file:///home/user/deep/step.mjs')).step)()", "2")
	s.value("const { two, name } = require('./two'); [two, name, require('./two.js').two]", "[ 2, '/home/user/two.js', 2 ]")
	s.value("require('./count.js').n", "4")
	s.value("import { E, e } from './types.ts'; [e, E[1]]", "[ 1, 'B' ]")
	s.value("import data from './data.json' with { type: 'json' }; data.one", "1")
	s.value("import { x } from './late.mjs'; x", "3")
	s.value("import { join } from 'node:path'; import fs from 'fs'; [join('a', 'b'), typeof fs.readFileSync, typeof require('util').inspect]", "[ 'a/b', 'function', 'function' ]")
	s.value("function later () { return import('./late.mjs') }; 1", "1")
	s.value("(await later()).x", "3")
	if r := s.typed("import { E } from './types'\nimport { step } from './deep/step.mjs'\nconst e: E = E.A\ne + step"); r.text != "2" {
		t.Errorf("TypeScript: %+v", r)
	}
	other := s.newContext("/home/user/deep")
	if r := s.runIn(other, "import { step } from './step.mjs'; [step, (await import('../count.js')).n]"); r.text != "[ 2, 0 ]" {
		t.Errorf("in another directory and context: %+v", r)
	}
}

// TestImportsThatFail are told as Node tells them. When the file is mended, it is imported.
func TestImportsThatFail(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	for _, c := range []struct{ name, bad, wrong, good string }{
		{"a.mjs", "", "Cannot find module '/home/user/a.mjs' imported from /home/user/cell.js", "export const v = 7"},
		{"b.mjs", "export const v = ;", "SyntaxError", "export const v = 7"},
		{"c.mjs", "throw new RangeError('on purpose')", "RangeError: on purpose", "export const v = 7"},
		{"d.cjs", "throw new RangeError('on purpose')", "/home/user/d.cjs:1", "exports.v = 7"},
		{"e.mjs", "import { nope } from './lib.mjs'; export const v = nope", "does not provide an export named 'nope'", "import { yes } from './lib.mjs'; export const v = yes"},
		{"f.mjs", "import './g.mjs'; export const v = 1", "Cannot find module '/home/user/g.mjs' imported from /home/user/f.mjs", "export const v = 7"},
		{"h.ts", "export const v: = 1", "in /home/user/h.ts", "export const v: number = 7"},
	} {
		s.write("/home/user/lib.mjs", "export const yes = 7")
		if c.bad != "" {
			s.write("/home/user/"+c.name, c.bad)
		}
		load := fmt.Sprintf("(await import('./%s')).v", c.name)
		s.fails(load, c.wrong)
		s.fails(load, c.wrong)
		s.write("/home/user/"+c.name, c.good)
		s.value(load, "7")
	}
	// What was to run with one that fails is loaded anew, too, and stands in nobody's way.
	s.write("/home/user/both.mjs", "import './fails.mjs'; import { v } from './beside.mjs'; export { v }")
	s.write("/home/user/beside.mjs", "import './both.mjs'; export const v = 1")
	s.write("/home/user/other.mjs", "export const v = 3")
	s.fails("await import('./both.mjs')", "Cannot find module '/home/user/fails.mjs'")
	s.value("(await import('./other.mjs')).v", "3")
	s.write("/home/user/fails.mjs", "throw new RangeError('still')")
	s.fails("await import('./both.mjs')", "RangeError: still")
	s.write("/home/user/beside.mjs", "export const v = 2, w = 5")
	s.write("/home/user/both.mjs", "import './fails.mjs'; import { v, w } from './beside.mjs'; export const all = v + w")
	s.write("/home/user/fails.mjs", "")
	s.value("(await import('./both.mjs')).all", "7")
	// So is one that never came to its end.
	s.write("/home/user/waits.mjs", "export const v = await new Promise(() => {})")
	s.fails("(await import('./waits.mjs')).v", "Unfinished")
	s.write("/home/user/waits.mjs", "export const v = 8")
	s.value("(await import('./waits.mjs')).v", "8")
	var many strings.Builder
	for i := range 2001 {
		fmt.Fprintf(&many, "require('m%d');", i)
	}
	s.fails(many.String(), "the code names more than 2000 modules")
	s.fails("import x from 'lodash'", "Cannot find package 'lodash' imported from /home/user/cell.js")
	s.fails("require('lodash')", "Cannot find package 'lodash' required by /home/user/cell.js")
	s.fails("await import('../../../etc/passwd')", "Cannot find module '/etc/passwd'")
	s.fails("await import('/engine/kernel.js')", "Cannot find module '/engine/kernel.js'")
	s.fails("await import('./li' + 'b2.mjs')", "Cannot find module '/home/user/lib2.mjs'")
	s.write("/home/user/large.js", "//"+strings.Repeat("x", 9<<20))
	s.fails("require('./large.js')", "more than 8 MiB")
	s.value("6 * 7", "42")
}
