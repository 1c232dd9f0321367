package cli

import (
	"maps"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

func TestRunModule(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "echo.wasm 0644 x", "filter.wasm 0644 x")
	for _, args := range [][]string{{"echo.wasm", "-n", "a.py"}, {"./echo.wasm", "-n", "a.py"}, {filepath.Join(dir, "echo.wasm"), "-n", "a.py"}} {
		s := newServer(t)
		run{s: s}.do(t, append([]string{"run", "-q"}, args...)...).want(t, 0, "a.py", "")
		m := s.makes[0].GetModule()
		if m.GetPath() != filepath.Join(dir, "echo.wasm") || !m.ByContent || !s.makes[0].IfMissing || s.makes[0].Name != "" {
			t.Errorf("%v: made by %v", args, s.makes[0])
		}
		if c := s.created[0]; c.Template != "made" || c.Driver != "" || c.Language != "" {
			t.Errorf("%v: created by %v", args, c)
		}
	}
	s := newServer(t)
	run{s: s}.do(t, "run", "-q", "--", "echo", "x.wasm").want(t, 0, "x.wasm\n", "")
	if len(s.makes) != 0 {
		t.Errorf("a module's name after a command made %v", s.makes)
	}
	for _, c := range []struct {
		args []string
		text string
	}{
		{[]string{"fliter.wasm"}, "there is no file fliter.wasm here; did you mean filter.wasm?"},
		{[]string{"--template", "base", "echo.wasm"}, "takes no --template"},
		{[]string{"--lang", "python", "echo.wasm"}, "--lang is for scripts"},
		{[]string{"--option", "fuel", "echo.wasm"}, `--option "fuel"; write each as KEY=VALUE`},
		{[]string{"--option", "fuel=1", "--option", "fuel=2", "echo.wasm"}, "and once"},
	} {
		run{s: newServer(t)}.do(t, append([]string{"run"}, c.args...)...).wantError(t, 125, c.text)
	}
}

// TestRunTellsTheLanguage: by its extension, its first line or --lang; not where a template is named, and not of a command.
func TestRunTellsTheLanguage(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "a.py 0644 0", "b 0644 #!/usr/bin/env -S python3 -u\n0", "c.py 0644 #!/bin/sh\n0", "d 0644 #!/opt/own\n0", "e.py 0644 #!/usr/bin/python3 -I\n0")
	for _, c := range []struct {
		args     []string
		language string
	}{
		{[]string{"a.py"}, "python"}, {[]string{"./b"}, "python"}, {[]string{"c.py"}, "python"}, {[]string{"./d"}, ""}, {[]string{"e.py"}, "python"},
		{[]string{"--lang", "js", "a.py"}, "javascript"}, {[]string{"--template", "base", "a.py"}, ""}, {[]string{"--", "python3", "a.py"}, ""},
	} {
		s := newServer(t)
		run{s: s}.do(t, append([]string{"run", "-q", "--needs", "compute", "--option", "fuel=9", "--option", "a=b=c"}, c.args...)...)
		if len(s.created) != 1 || s.created[0].Language != c.language || !slices.Equal(s.created[0].Workload.Needs, []string{"compute"}) ||
			!maps.Equal(s.created[0].Options, map[string]string{"fuel": "9", "a": "b=c"}) {
			t.Errorf("%v: created by %v, want language %q", c.args, s.created, c.language)
		}
	}
}

func TestImportModule(t *testing.T) {
	dir := t.TempDir()
	t.Chdir(dir)
	tree(t, dir, "lua.wasm 0644 x", "share/a.lua 0644 x", "hooks/index.js 0644 x")
	s := newServer(t)
	run{s: s}.do(t, "template", "import", "-q", "--name", "wasm-lua", "--language", "lua", "--lib", "share", "--command", "lua,lua5.4", "lua.wasm").
		want(t, 0, "wasm-lua\n", "")
	m := s.makes[0]
	if m.GetModule().GetPath() != filepath.Join(dir, "lua.wasm") || m.GetModule().GetLibrary() != filepath.Join(dir, "share") || m.GetModule().GetByContent() ||
		m.Language != "lua" || !slices.Equal(m.Command, []string{"lua", "lua5.4"}) || m.IfMissing {
		t.Errorf("made by %v", m)
	}
	run{s: s}.do(t, "template", "import", "-q", "--scripts", "--name", "hooks", "./hooks").want(t, 0, "hooks\n", "")
	if got := s.makes[1].GetScripts(); got != filepath.Join(dir, "hooks") {
		t.Errorf("made by %v", s.makes[1])
	}
	run{s: s}.do(t, "run", "-q", "--template", "./lua.wasm", "--", "true").want(t, 0, "", "")
	if got := s.makes[2].GetModule().GetPath(); got != filepath.Join(dir, "lua.wasm") {
		t.Errorf("made by %v", s.makes[2])
	}
	for _, c := range []struct {
		args []string
		text string
	}{
		{[]string{"--lib", "share", "./hooks"}, "--lib is for a WebAssembly module"},
		{[]string{"--language", "lua", "./hooks"}, "--language is for"},
		{[]string{"--command", "x", "--scripts", "./hooks"}, "--command is for"},
		{[]string{"--scripts", "lua.wasm"}, "--scripts is for directories"},
		{[]string{"--scripts", "docker.io/library/lua"}, "--scripts is for"},
		{[]string{"--lib", "none", "lua.wasm"}, "none: no such file"},
		{[]string{"none.wasm"}, "none.wasm: no such file"},
	} {
		run{s: newServer(t)}.do(t, append([]string{"template", "import"}, c.args...)...).wantError(t, 125, c.text)
	}
	s.templates = []*firebreakv1.Template{{Name: "wasm-lua", Form: "module", Language: "lua"}, {Name: "filter", Form: "module"}}
	if got := (run{s: s}).do(t, "template", "ls"); !strings.Contains(got.stdout, "wasm-lua  module lua") || !strings.Contains(got.stdout, "filter    module ") {
		t.Errorf("got %+v", got)
	}
}

func TestRunSaysWhatSetupWouldGive(t *testing.T) {
	s := newServer(t)
	d := decided()
	d.Drivers = append([]string{"wasm", "v8"}, d.Drivers...)
	d.Others = append(d.Others,
		&firebreakv1.Decision_Other{Driver: "wasm", Problem: &firebreakv1.Problem{Text: "there is no template wasm-python", Mend: "firebreak setup wasm"}},
		&firebreakv1.Decision_Other{Driver: "v8", Problem: &firebreakv1.Problem{Text: "it runs JavaScript"}})
	if got := toSetUp(d); len(got) != 1 || got[0] != "wasm would come first, but there is no template wasm-python; to have it: firebreak setup wasm" {
		t.Errorf("got %q", got)
	}
	d.Drivers = []string{"gvisor", "wasm"}
	if got := toSetUp(d); len(got) != 0 {
		t.Errorf("what comes after the chosen one is told: %q", got)
	}
	s.decision = decided()
	run{s: s}.do(t, "advise", "-q", "--lang", "py", "--template", "base")
	if q := s.asked[0]; q.Language != "python" || q.Template != "base" {
		t.Errorf("asked %v", q)
	}
}
