package script

import (
	"fmt"
	"strings"
	"testing"
)

func TestPrepare(t *testing.T) {
	async := func(outer, body string) string {
		return outer + "(async () => {\n" + body + "\nreturn [undefined]\n})()"
	}
	for code, want := range map[string]string{
		"1+1":                           "(1 + 1);\n",
		"let x = 1; x":                  "var x;\nvoid (x = 1);\n(x);\n",
		"let x":                         "var x;\nvoid (x = undefined);\n",
		"var x":                         "var x;\n",
		"const {a, b: [c], ...d} = y":   "var a;\nvar c;\nvar d;\nvoid ({a, b: [c], ...d} = y);\n",
		"class A { #x = 1 }":            "var A;\nvoid (A = class A {\n#x = 1;\n});\n",
		"function f() {}":               "function f() {}\n",
		"({a: 1})":                      "(({a: 1}));\n",
		"async () => { await 1 }":       "(async () => {\nawait 1;\n});\n",
		"() => { 'a\\\n  b' }":          "(() => {\n'a\\\n  b';\n});\n",
		"1 +":                           "1 +",
		"import('x')":                   "($import('x'));\n",
		"await f()":                     async("", "return [(await f())];\n"),
		"const z = await f()":           async("var z;\n", "void (z = await f());\n"),
		"import * as p from 'node:p'":   async("var p;\n", "p = await $import('node:p');\n"),
		"import d, {a as b} from 'm'":   async("var d;\nvar b;\n", "d = (await $import('m')).default;\nb = (await $import('m')).a;\n"),
		"import 'm'":                    async("", "await $import('m');\n"),
		"export const q = 1":            async("var q;\n", "void (q = 1);\n"),
		"export default function g(){}": async("function g() {}\n", ""),
		"export {a}":                    async("", ""),
		"for await (const x of y) z(x)": async("", "for await (const x of y) {\nz(x);\n}\n"),
	} {
		got := Prepare(code)
		if got.Code != want || got.Boxed != strings.Contains(want, "return [undefined]") {
			t.Errorf("%s:\n%s\nwant\n%s", code, got.Code, want)
		}
	}
}

// TestPrepareDeep: what is nested without end is left to V8, which has a limit of its own, and does not overflow here.
func TestPrepareDeep(t *testing.T) {
	for _, part := range []string{"!", "a=>", "x=", "if(a)", "a?", "new ", "await ", "a,", "a**", "-", "a:", "a+", ".b", "`${", "for(;;)", "else ", "async ", "a||", "({", "[", "function f(){", "class A{x="} {
		code := "a" + strings.Repeat(part, 1_000_000/len(part))
		if got := Prepare(code); got.Code != code {
			t.Errorf("%q was made %.100q", part, got.Code)
		}
	}
}

// TestPrepareIsNotLonger: lines in many blocks stay as long as they are.
func TestPrepareIsNotLonger(t *testing.T) {
	code := strings.Repeat("{", 900) + strings.Repeat("a\n", 500_000) + strings.Repeat("}", 900)
	if got := Prepare(code); len(got.Code) > 2*len(code) || got.Code == code {
		t.Errorf("%d bytes were made %d", len(code), len(got.Code))
	}
}

func TestNewModule(t *testing.T) {
	for code, want := range map[string]string{
		"1":                                     "cjs [] []",
		"import a, { b as c } from './x'; a(c)": "esm [./x] [{0 default} {0 b}]",
		"export * from './x'; export * as y from 'z'": "esm [./x z] [{1 }]",
		"await 1":                       "esm [] []",
		"import.meta.url":               "esm [] []",
		"require('./x'); import('./y')": "cjs [./x ./y] []",
		"import j from './x.json' with { type: 'json' }": "esm [./x.json] [{0 default}]",
		"import x from":              "error [] []",
		"let x = ;":                  "cjs [] []",
		"#!/usr/bin/node\nexport {}": "esm [] []",
	} {
		m := NewModule("/x.js", code)
		if got := fmt.Sprintf("%s %v %v", m.Kind, m.Named, m.Imports); got != want {
			t.Errorf("%s: %s, want %s", code, got, want)
		}
	}
	shadow := "import { a, b } from 'm'; export const o = { a, b: 1 }; function f (a) { return a + b }"
	if got := NewModule("/x.js", shadow).Code; !strings.Contains(got, "{a: (0,$of[0]), b: 1}") || !strings.Contains(got, "return a + (0,$of[1])") {
		t.Error(got)
	}
}

// TestNewModuleIsBounded: however long names are and however many, what becomes of a module is not much longer.
func TestNewModuleIsBounded(t *testing.T) {
	long := "import { " + strings.Repeat("n", 1<<20) + " as a } from 'm';" + strings.Repeat("a;", 1<<20)
	if got := NewModule("/x.js", long); got.Kind != "esm" || len(got.Code) > 16<<20 {
		t.Errorf("%s of %d bytes", got.Kind, len(got.Code))
	}
	var many strings.Builder
	for i := range 200_000 {
		fmt.Fprintf(&many, "import 'm%d';", i)
	}
	if got := NewModule("/x.js", many.String()); got.Kind != "error" || !strings.Contains(got.Text, "more than 2000 modules") {
		t.Errorf("%+v", got.Kind)
	}
}

func FuzzNewModule(f *testing.F) {
	for _, code := range []string{"import a, * as b from 'm'; export { a as 'x y', b }", "export default class {}", "export * as 'a b' from \"m\"", "import {'a b' as c} from 'm'; c`${import.meta}`", "import('x'); require('y')"} {
		f.Add(code)
	}
	f.Fuzz(func(t *testing.T, code string) {
		if m := NewModule("/x.js", code); len(m.Code) > 100*len(code)+1000 {
			t.Errorf("%d bytes became %d", len(code), len(m.Code))
		}
	})
}

func FuzzPrepare(f *testing.F) {
	for _, code := range []string{"let {a = 1, ...b} = c", "class A extends B {}", "import x, * as y from 'z'", "label: for await (const [a] of b) {}", "export default class {}", "`${a}`"} {
		f.Add(code)
	}
	f.Fuzz(func(_ *testing.T, code string) { Prepare(code) })
}

func FuzzParseFrame(f *testing.F) {
	f.Add([]byte(`{"type":"print","stream":"stdout","text":"x"}`))
	f.Add([]byte(`{"type":"result","main":true,"forms":{"text":"x"}}`))
	f.Add([]byte(`{"type":"file","kind":"file","path":"/x","at":1,"data":"eA=="}`))
	f.Fuzz(func(t *testing.T, line []byte) {
		if frame, err := ParseFrame(line); err == nil && frame.Type == "print" && frame.Stream != "stdout" && frame.Stream != "stderr" {
			t.Errorf("%q was taken", line)
		}
	})
}
