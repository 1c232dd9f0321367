package v8_test

import (
	"fmt"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver/v8"
)

// typed runs TypeScript in the sandbox's context for it.
func (s *sandbox) typed(text string) ran {
	s.t.Helper()
	r, err := s.try(s.t.Context(), text, "ts")
	if err != nil {
		s.t.Fatalf("run %.100q: %v", text, err)
	}
	return r
}

// TestTypeScript: types go, what only TypeScript has works, and state is kept.
func TestTypeScript(t *testing.T) {
	walls(t, func(t *testing.T, p *place) {
		s := p.sandbox(nil)
		for _, step := range [][2]string{
			{"interface Point { x: number; y?: number }; let p: Point = { x: 1 }; type Id<T extends object = {}> = T | null", ""},
			{"p.x as number", "1"},
			{"function id<T> (v: T): T { return v! }; id<number>(41) + 1", "42"},
			{"enum Color { Red, Green = 5, Blue }; Color.Blue + Color[0]", "6Red"},
			{"const enum Bit { A = 1 << 2 }; Bit.A", "4"},
			{"class A<T> { constructor (private readonly v: T, protected w = 2) {} get (): T { return this.v } }; new A<string>('v').get()", "v"},
			{"abstract class B { abstract f (): void; declare z: string; static s?: number = 7 }; B.s", "7"},
			{"namespace N { export type Q = 1 }; const q = { a: 1 } satisfies Record<string, number>; q.a", "1"},
			{"import type { Stats } from 'node:fs'; import { join, type ParsedPath } from 'node:path'; join('a', 'b')", "a/b"},
			{"join('c', 'd') as ParsedPath | string", "c/d"},
			{"const f = async <T,>(v: Promise<T>): Promise<T> => await v; await f(Promise.resolve(3))", "3"},
			{"let u: unknown = 5; <number>u + (u as any as number)", "10"},
			{"function over (a: string): string; function over (a: number): number; function over (a: any) { return a }; over(9)", "9"},
			{"declare const nowhere: number; declare module 'm' { export const x: 1 }; Color.Green", "5"},
			{"`${p.x as number}` + /<T>/.source", "1<T>"},
		} {
			if r := s.typed(step[0]); r.text != step[1] || r.failed != "" {
				t.Errorf("%s is %q (%s %s), want %q", step[0], r.text, r.failed, r.value, step[1])
			}
		}
		for _, bad := range []string{"let x: = 5", "interface A { x: ", "let x = ;", "enum { A }", "a <", "function f(: number) {}", "\n\nconst y: string = ('"} {
			if r := s.typed(bad); r.failed != "SyntaxError" || r.value == "" || strings.Contains(r.value, "\n") || len(r.value) > 200 {
				t.Errorf("%q: %+v", bad, r)
			}
		}
		if r := s.typed("throw new RangeError(p.x as any)"); r.failed != "RangeError" || r.value != "1" {
			t.Errorf("%+v", r)
		}
		s.value("typeof p", "undefined") // JavaScript has a context of its own
	})
}

func TestTypeScriptPrograms(t *testing.T) {
	s := newPlace(t, "", func(c *v8.Config) { c.Stall = time.Minute }).sandbox(nil)
	s.write("/home/user/x.ts", "interface A { n: number }\nimport type { Stats } from './nowhere.ts'\nconst a: A = { n: Number(process.argv[2]) }\nenum E { X = 'x' }\nconsole.log(a.n as number, E.X)")
	for _, line := range []string{"node x.ts 7", "tsx x.ts 7", "node --experimental-strip-types /home/user/x.ts 7"} {
		if stdout, stderr, status, err := s.command(line); err != nil || stdout != "7 x\n" || status != 0 {
			t.Errorf("%s: %q %q %d %v", line, stdout, stderr, status, err)
		}
	}
	s.write("/home/user/large.ts", strings.Repeat("let a: number = 1; { type A = 1 }\n", 1<<20/34-2)[10:]+"console.log('ends' as string)")
	if stdout, stderr, status, err := s.command("node large.ts"); err != nil || stdout != "" || !strings.HasPrefix(stderr, "SyntaxError: ") || len(stderr) > 300 || status != 1 {
		t.Errorf("%q %.300q %d %v", stdout, stderr, status, err)
	}
	s.write("/home/user/large.ts", strings.Repeat("{ let a: number = 1; type A = 1 }\n", 1<<20/34-2)+"console.log('ends' as string)")
	if stdout, stderr, status, err := s.command("node large.ts"); err != nil || stdout != "ends\n" || status != 0 {
		t.Errorf("%q %.300q %d %v", stdout, stderr, status, err)
	}
	s.write("/home/user/large.ts", strings.Repeat(" ", 1<<20+1))
	if _, stderr, status, err := s.command("node large.ts"); err != nil || !strings.Contains(stderr, "TypeScript of more than 1 MiB") || status != 1 {
		t.Errorf("%.300q %d %v", stderr, status, err)
	}
	s.write("/home/user/bad.mts", "let x: number = 1\nlet y: = 5")
	if _, stderr, status, err := s.command("node bad.mts"); err != nil || !strings.Contains(stderr, "SyntaxError: Unexpected token (2:8)") || strings.Count(stderr, "\n") != 1 || status != 1 {
		t.Errorf("%q %d %v", stderr, status, err)
	}
}

// TestWithoutTypeScript: where it was not set up, one sentence says so.
func TestWithoutTypeScript(t *testing.T) {
	s := newPlace(t, "", func(c *v8.Config) { c.TypeScript = nil }).sandbox(nil)
	if r := s.typed("1"); !strings.Contains(r.refused, "TypeScript cannot be run in a V8 sandbox until it is set up: firebreak setup v8") {
		t.Errorf("%+v", r)
	}
	s.write("/home/user/x.ts", "1")
	if _, stderr, status, err := s.command("node x.ts"); err != nil || !strings.Contains(stderr, "firebreak setup v8") || status != 1 {
		t.Errorf("%q %d %v", stderr, status, err)
	}
	s.value("6 * 7", "42")
}

// TestHostileTypeScript: what is too much for the parser is an error, or ends the process of its tenant; others live on.
func TestHostileTypeScript(t *testing.T) {
	p := newPlace(t, "", func(c *v8.Config) { c.Stall = 3 * time.Second })
	other := p.sandbox(map[string]string{"tenant": "two"})
	other.value("var x = 1; x", "1")
	many := func(part string, size int) string { return strings.Repeat(part, size/len(part)) }
	for name, text := range map[string]string{
		"type arguments":   "let x: " + many("A<", 100_000),
		"less than":        "x = " + many("A<", 100_000),
		"arrows":           "x = " + many("<T>(x=>", 300),
		"async arrows":     "x = " + many("async <T>(a = ", 1000),
		"parentheses":      "x = " + many("(", 1_000_000),
		"object types":     "type X = " + many("{a:", 1_000_000),
		"conditional":      "type X = " + many("A extends infer B ? ", 1_000_000),
		"templates":        "x = " + many("`${", 1_000_000),
		"blocks":           many("{", 1_000_000),
		"unions":           "type X = 1 " + many("| 1", 1_000_000) + " & }",
		"string in a type": "type X = '" + many("x", 1_000_000),
		"zero bytes":       many("\x00", 100_000),
		"many tokens":      many("a;", 1_000_000),
		"private names":    many("#", 1_000_000),
	} {
		s := p.sandbox(map[string]string{"tenant": "one"})
		start := time.Now()
		r := s.typed(text)
		if r.failed != "SyntaxError" && r.failed != "KernelDied" && r.failed != "ReferenceError" || strings.Contains(r.value, "\n") || len(r.value) > 400 {
			t.Errorf("%s: %.300q %.300q", name, r.failed, r.value)
		}
		t.Logf("%s: %s: %.150s (%v)", name, r.failed, r.value, time.Since(start).Round(time.Millisecond))
		s.typed("1") // may be told of the end of its process
		if r := s.typed("6 * 7 as number"); r.text != "42" {
			t.Errorf("after %s: %+v", name, r)
		}
		other.value("x", "1")
	}
}

// TestTypeScriptInTurn: the isolate that makes JavaScript keeps nothing of what it saw, and serves all of its tenant.
func TestTypeScriptInTurn(t *testing.T) {
	p := newPlace(t, "", nil)
	a, b := p.sandbox(map[string]string{"tenant": "one"}), p.sandbox(map[string]string{"tenant": "one"})
	for _, spoil := range spoils() {
		a.typed(spoil + "; 0")
		if r := b.typed("enum E { A = 3 }; (E.A as number)"); r.text != "3" {
			t.Errorf("after %s: %+v", spoil, r)
		}
	}
	for i := range 20 {
		if r := b.typed(fmt.Sprintf("let v%d: number = %d; v%d", i, i, i)); r.text != fmt.Sprint(i) {
			t.Errorf("%+v", r)
		}
	}
}
