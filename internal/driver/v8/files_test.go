package v8_test

import (
	"context"
	"io"
	"strings"
	"testing"
	"time"
)

// read returns a file of the sandbox, as its other users see it, or its error.
func (s *sandbox) read(name string) string {
	s.t.Helper()
	if !strings.HasPrefix(name, "/") {
		name = "/home/user/" + name
	}
	r, _, err := s.ReadFile(s.t.Context(), name, "", 0, -1)
	if err != nil {
		return err.Error()
	}
	defer r.Close()
	text, err := io.ReadAll(r)
	if err != nil {
		return err.Error()
	}
	return string(text)
}

// TestFiles: code in an isolate works with the sandbox's files, as others do.
func TestFiles(t *testing.T) {
	p := newPlace(t, "", nil)
	begin := func(t *testing.T) *sandbox {
		s := p.sandbox(nil)
		s.t = t
		s.write("/home/user/data.csv", "a,b\n1,2\n")
		return s
	}
	t.Run("context", func(t *testing.T) {
		s := begin(t)
		s.value("const fs = require('fs'); fs.readFileSync('data.csv', 'utf8').length", "8")
		s.value("const { readFile } = await import('node:fs/promises'); (await readFile('/home/user/data.csv')).length", "8")
		s.value("import { writeFileSync, existsSync as is } from 'fs'; writeFileSync('out.txt', 'one'); is('/home/user/out.txt')", "true")
		if got := s.read("out.txt"); got != "one" {
			t.Errorf("%q", got)
		}
		s.write("/home/user/out.txt", "two")
		s.value("readFile('out.txt', 'utf8')", "two") // though it does not say where it has that from
		s.value("process.getBuiltinModule('fs').readdirSync('.').sort().join()", "data.csv,out.txt")
		s.value("fs.mkdirSync('d/e', { recursive: true }); fs.renameSync('out.txt', 'd/e/moved'); fs.readdirSync('d', { recursive: true }).sort().join()", "e,e/moved")
		s.value("fs.appendFileSync('d/e/moved', '!'); fs.rmSync('data.csv'); process.cwd() + require('path').resolve('x')", "/home/user/home/user/x")
		for name, want := range map[string]string{"d/e/moved": "two!", "out.txt": "no such file or directory", "data.csv": "no such file or directory"} {
			if got := s.read(name); !strings.HasSuffix(got, want) {
				t.Errorf("%s: %q", name, got)
			}
		}
		s.value("fs.rmSync('d', { recursive: true }); const failed = f => { try { f() } catch (e) { return e.message } }; failed(() => fs.mkdirSync('/tmp'))", "EEXIST: file already exists, mkdir '/tmp'")
		s.value("failed(() => fs.readdirSync('/home/user/d'))", "ENOENT: no such file or directory, scandir '/home/user/d'")
		s.value("await new Promise(r => fs.readFile('nowhere', e => r(e.code + e.path)))", "ENOENTnowhere")
		s.value("fs.writeFileSync('throws.txt', 'kept'); failed(() => { throw new Error('x') })", "x")
		if r := s.run("fs.writeFileSync('throws.txt', 'kept, too'); throw new Error('after')"); r.failed != "Error" || s.read("throws.txt") != "kept, too" {
			t.Errorf("%+v", r)
		}
	})
	t.Run("program", func(t *testing.T) {
		s := begin(t)
		s.write("/home/user/lib/save.mjs", "import { promises as fs } from 'node:fs'\nexport const save = (name, text) => fs.writeFile(new URL(name, import.meta.url), text)\n")
		s.write("/home/user/main.mjs", `import fs, { createWriteStream } from 'fs'
import { save } from './lib/save.mjs'
await save('./made.txt', 'made')
fs.symlinkSync('lib/made.txt', 'link'); fs.symlinkSync('/nowhere', 'dangling')
console.log(fs.readFileSync('link', 'utf8'), fs.readlinkSync('link'), fs.realpathSync('link'), fs.readdirSync('lib', { withFileTypes: true }).map(e => e.parentPath + '/' + e.name).sort().join())
const w = createWriteStream('/tmp/stream'); w.write('a'); w.end('b', () => {
  const fd = fs.openSync('large', 'w'); for (let i = 0; i < 3; i++) fs.writeSync(fd, Buffer.alloc(1 << 20, 48 + i)); fs.closeSync(fd)
  fs.writeSync(1, 'to the output\n')
})
`)
		out, stderr, status, err := s.command("node main.mjs")
		if want := "made lib/made.txt /home/user/lib/made.txt /home/user/lib/made.txt,/home/user/lib/save.mjs\nto the output\n"; out != want || stderr != "" || status != 0 || err != nil {
			t.Fatalf("%q %q %d %v", out, stderr, status, err)
		}
		if got := s.read("/tmp/stream"); got != "ab" {
			t.Errorf("%q", got)
		}
		if got := s.read("link"); got != "made" {
			t.Errorf("%q", got)
		}
		if got := s.read("large"); len(got) != 3<<20 || got[:1] != "0" || got[1<<20:1<<20+1] != "1" || got[3<<20-1:] != "2" {
			t.Errorf("%d bytes", len(got))
		}
		// What was a link and is a file now, is not written where the link led.
		s.value("const fs = require('fs'); fs.unlinkSync('link'); fs.writeFileSync('link', 'own'); 1", "1")
		if link, target := s.read("link"), s.read("lib/made.txt"); link != "own" || target != "made" {
			t.Errorf("%q %q", link, target)
		}
		if out, stderr, _, _ := s.command(`node -e "const fs = require('fs'); fs.writeFileSync('exit.txt', 'x'); fs.unlinkSync('link'); process.exit(3)"`); out+stderr != "" || s.read("exit.txt") != "x" {
			t.Errorf("%q %q %q", out, stderr, s.read("exit.txt"))
		}
		if out, _, _, _ := s.command(`node -e "console.log(require('fs').existsSync('link'), require('fs').readlinkSync('dangling'))"`); out != "false /nowhere\n" {
			t.Errorf("%q", out)
		}
	})
	t.Run("limits", func(t *testing.T) {
		s := begin(t)
		if r := s.run("require('fs').writeFileSync('x', Buffer.alloc(33 << 20)); require('fs').existsSync('x')"); r.text != "true" || !strings.Contains(r.stderr, "more than 32 MiB of files") {
			t.Errorf("%+v", r)
		}
		s.write("/home/user/big", strings.Repeat("x", 16<<20))
		if r := s.run("require('fs').readFileSync('data.csv')"); r.failed != "Error" || !strings.Contains(r.value, "has a copy of them all") {
			t.Errorf("%+v", r)
		}
		s.value("1 + 1", "2")
		s.write("/home/user/big", strings.Repeat("x", 15<<20))
		s.value("require('fs').appendFileSync('big', 'y'); require('fs').statSync('big').size", "15728641")
		if got := s.read("big"); len(got) != 15<<20+1 {
			t.Errorf("%d bytes", len(got))
		}
	})
}

// TestInterruptedFiles: what a run wrote before it was ended is kept, if it has paused since.
func TestInterruptedFiles(t *testing.T) {
	s := newPlace(t, "", nil).sandbox(nil)
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	if _, err := s.try(ctx, "require('fs').writeFileSync('x', 'kept'); await new Promise(r => setTimeout(r, 600000))", ""); err == nil {
		t.Error("it did not wait")
	}
	if got := s.read("x"); got != "kept" {
		t.Errorf("%q", got)
	}
	// The next run does not find what has nothing to do with it.
	s.value("require('fs').readdirSync('.').join()", "x")
}
