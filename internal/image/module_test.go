package image

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

const coreModule = "\x00asm\x01\x00\x00\x00"

// fileOf writes a file of its own directory.
func fileOf(t testing.TB, name, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), name)
	must(t, os.WriteFile(path, []byte(text), 0o600))
	return path
}

func TestModuleAndItsLibrary(t *testing.T) {
	s, library := openStore(t, t.TempDir()), t.TempDir()
	must(t, os.MkdirAll(library+"/python3.13/json", 0o755), os.WriteFile(library+"/python3.13/json/__init__.py", []byte("x = 1\n"), 0o644))
	path := fileOf(t, "python.wasm", coreModule)
	made := make1(t, s, Source{Module: Module{Path: path, Library: library}}, MakeOptions{Edit: func(t *Template) {
		t.Language, t.Command = "python", []string{"python", "python3"}
	}})
	got, err := s.Get("python")
	must(t, err)
	if got.Form != FormModule || got.Language != "python" || !slices.Equal(got.Command, []string{"python", "python3"}) || got.Digest != made.Digest ||
		!strings.Contains(got.Source, path) || !strings.Contains(got.Source, library) {
		t.Errorf("got %+v", got)
	}
	root, err := s.Root(t.Context(), "python", []driver.Form{driver.FormDisk, driver.FormDirectory, driver.FormScript, driver.FormModule})
	must(t, err)
	if root.Form != driver.FormModule || root.Language != "python" || !slices.Equal(root.Command, got.Command) {
		t.Errorf("root %+v", root)
	}
	for file, want := range map[string]string{ModuleFile: coreModule, LibraryDir + "/python3.13/json/__init__.py": "x = 1\n"} {
		if text, err := os.ReadFile(filepath.Join(root.Path, file)); err != nil || string(text) != want {
			t.Errorf("%s is %q, %v", file, text, err)
		}
	}
	if entries, err := os.ReadDir(root.Path); err != nil || len(entries) != 2 {
		t.Errorf("the tree holds %v, %v: only the module and its library belong there", entries, err)
	}
}

// TestModuleIsItsContent: the image of a module depends on nothing but its bytes, so that the same module is kept once.
func TestModuleIsItsContent(t *testing.T) {
	s := openStore(t, t.TempDir())
	one := make1(t, s, Source{Module: Module{Path: fileOf(t, "one.wasm", coreModule)}}, MakeOptions{})
	two := make1(t, s, Source{Module: Module{Path: fileOf(t, "two.wasm", coreModule)}}, MakeOptions{})
	other := make1(t, s, Source{Module: Module{Path: fileOf(t, "one.wasm", coreModule+"\x00\x01\x00")}}, MakeOptions{Name: "other"})
	if one.Name != "one" || two.Name != "two" || one.Digest != two.Digest || other.Digest == one.Digest {
		t.Errorf("%+v, %+v and %+v", one, two, other)
	}
	if !slices.Equal(two.Command, []string{"two"}) {
		t.Errorf("it is run as %v", two.Command)
	}
}

func TestWhatIsNoModule(t *testing.T) {
	s, big := openStore(t, t.TempDir()), fileOf(t, "big.wasm", coreModule)
	must(t, os.Truncate(big, maxModule+1))
	for name, tc := range map[string]struct {
		module Module
		kind   firebreak.Kind
		text   string
	}{
		"empty":          {Module{Path: fileOf(t, "a.wasm", "")}, firebreak.KindInvalid, "no WebAssembly module"},
		"short":          {Module{Path: fileOf(t, "a.wasm", "\x00asm")}, firebreak.KindInvalid, "no WebAssembly module"},
		"a program":      {Module{Path: fileOf(t, "a.wasm", "\x7fELF\x02\x01\x01\x00")}, firebreak.KindInvalid, "no WebAssembly module"},
		"text format":    {Module{Path: fileOf(t, "a.wat", "(module)")}, firebreak.KindInvalid, "no WebAssembly module"},
		"a component":    {Module{Path: fileOf(t, "a.wasm", "\x00asm\x0d\x00\x01\x00")}, firebreak.KindUnsupported, "component"},
		"too large":      {Module{Path: big}, firebreak.KindExhausted, "a module may have"},
		"a directory":    {Module{Path: t.TempDir()}, firebreak.KindInvalid, "no file"},
		"not there":      {Module{Path: "/nowhere/a.wasm"}, firebreak.KindNotFound, "no such file"},
		"no library":     {Module{Path: fileOf(t, "a.wasm", coreModule), Library: "/nowhere/lib"}, firebreak.KindNotFound, "no such file"},
		"a file as such": {Module{Path: fileOf(t, "a.wasm", coreModule), Library: big}, firebreak.KindInvalid, "no directory"},
		"relative":       {Module{Path: fileOf(t, "a.wasm", coreModule), Library: "lib"}, firebreak.KindInvalid, "no absolute path"},
	} {
		_, err := s.Make(t.Context(), Source{Module: tc.module}, MakeOptions{Name: "a"})
		if firebreak.KindOf(err) != tc.kind || !strings.Contains(err.Error(), tc.text) {
			t.Errorf("%s: %v, want %q of kind %v", name, err, tc.text, tc.kind)
		}
	}
	if _, err := s.Get("a"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("a refused module has left a template: %v", err)
	}
}

func TestScripts(t *testing.T) {
	s, dir := openStore(t, t.TempDir()), t.TempDir()
	must(t, os.Mkdir(dir+"/lib", 0o755), os.WriteFile(dir+"/index.js", []byte("export default 1\n"), 0o644))
	made := make1(t, s, Source{Scripts: dir}, MakeOptions{Name: "hooks"})
	if made.Form != FormScript || made.Language != "javascript" {
		t.Errorf("made %+v", made)
	}
	root, err := s.Root(t.Context(), "hooks", []driver.Form{driver.FormScript})
	must(t, err)
	if text, err := os.ReadFile(root.Path + "/index.js"); err != nil || string(text) != "export default 1\n" || root.Form != driver.FormScript {
		t.Errorf("root %+v holds %q, %v", root, text, err)
	}
	if _, err := os.Stat(root.Path + "/etc"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("scripts were made a root file system: %v", err)
	}
}

// TestEachFormForItself: nobody is given a root file system as a module, or a module as a root file system.
func TestEachFormForItself(t *testing.T) {
	s := openStore(t, t.TempDir())
	make1(t, s, Source{Path: smallTree(t, "one")}, MakeOptions{Name: "root"})
	make1(t, s, Source{Module: Module{Path: fileOf(t, "a.wasm", coreModule)}}, MakeOptions{Name: "module"})
	make1(t, s, Source{Scripts: smallTree(t, "two")}, MakeOptions{Name: "script"})
	all := []driver.Form{driver.FormDirectory, driver.FormDisk, driver.FormModule, driver.FormScript}
	for name, want := range map[string][]driver.Form{
		HostName: {driver.FormDirectory}, "root": {driver.FormDirectory, driver.FormDisk}, "module": {driver.FormModule}, "script": {driver.FormScript},
	} {
		tpl, err := s.Get(name)
		must(t, err)
		for _, form := range all {
			root, err := s.RootOf(t.Context(), tpl, []driver.Form{form})
			has := slices.Contains(want, form)
			if has && (err != nil || root.Form != form) || !has && !errors.Is(err, errors.ErrUnsupported) {
				t.Errorf("%s as %v: %+v, %v", name, form, root, err)
			}
			if slices.Contains(tpl.Forms(), form) != has {
				t.Errorf("%s says that it can be had as %v", name, tpl.Forms())
			}
		}
	}
}

// TestModuleByContent: what is run from a file is found again by its bytes, and is nothing else's template.
func TestModuleByContent(t *testing.T) {
	s := openStore(t, t.TempDir())
	make1(t, s, Source{Module: Module{Path: fileOf(t, "filter.wasm", coreModule)}}, MakeOptions{Name: "filter"})
	path := fileOf(t, "filter.wasm", coreModule)
	src := Source{Module: Module{Path: path, ByContent: true}}
	first := make1(t, s, src, MakeOptions{IfMissing: true})
	again := make1(t, s, src, MakeOptions{IfMissing: true})
	sum := sha256.Sum256([]byte(coreModule))
	if want := "filter@sha256:" + hex.EncodeToString(sum[:]); first.Name != want || again.Name != want || again.Created != first.Created {
		t.Errorf("first %+v, then %+v, want %s", first, again, want)
	}
	must(t, os.WriteFile(path, []byte(coreModule+"\x00\x01\x00"), 0o600))
	if other := make1(t, s, src, MakeOptions{IfMissing: true}); other.Name == first.Name || other.Digest == first.Digest {
		t.Errorf("another module is %+v too", other)
	}
	_, err := s.Make(t.Context(), Source{Module: Module{Path: path}}, MakeOptions{Name: first.Name})
	if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), "has not the digest") {
		t.Errorf("a name with another's digest: %v", err)
	}
	for file, want := range map[string]string{"größe 1.wasm": "gr-e-1@", "-.wasm": "module@", ".wasm": "module@", strings.Repeat("x", 100) + ".wasm": strings.Repeat("x", 80) + "@"} {
		if made := make1(t, s, Source{Module: Module{Path: fileOf(t, file, coreModule), ByContent: true}}, MakeOptions{}); !strings.HasPrefix(made.Name, want) {
			t.Errorf("%s is called %s, want %s…", file, made.Name, want)
		}
	}
}

func TestProgramNames(t *testing.T) {
	s := openStore(t, t.TempDir())
	for name, edit := range map[string]func(*Template){
		"a path":        func(t *Template) { t.Command = []string{"a", "b/c"} },
		"nothing":       func(t *Template) { t.Command = []string{""} },
		"too many":      func(t *Template) { t.Command = slices.Repeat([]string{"a"}, maxPrograms+1) },
		"a language":    func(t *Template) { t.Language = "../x" },
		"a second line": func(t *Template) { t.Command = []string{"a\nb"} },
	} {
		if _, err := s.Make(t.Context(), Source{Module: Module{Path: fileOf(t, "a.wasm", coreModule)}}, MakeOptions{Edit: edit}); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
}
