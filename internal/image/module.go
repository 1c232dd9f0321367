package image

import (
	"cmp"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// What lies where in the tree of a module.
const (
	ModuleFile = "module.wasm"
	LibraryDir = "lib"
)

// maxModule bounds a module, in bytes: interpreters have 30 MiB, and a compiler needs many times what it compiles.
const maxModule = 256 << 20

// Forms returns the forms in which drivers can have t.
func (t Template) Forms() []driver.Form {
	switch {
	case t.Form == FormModule:
		return []driver.Form{driver.FormModule}
	case t.Form == FormScript:
		return []driver.Form{driver.FormScript}
	case t.Name == HostName:
		return []driver.Form{driver.FormDirectory}
	}
	return []driver.Form{driver.FormDisk, driver.FormDirectory}
}

var notInNames = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`[^A-Za-z0-9._-]+`) })

// contentName makes a template's name of the file's and of its digest.
func (m Module) contentName() (string, error) {
	name := strings.TrimLeft(notInNames().ReplaceAllString(m.program(), "-"), "._-")
	name = cmp.Or(name[:min(len(name), 80)], "module")
	f, err := os.Open(m.Path)
	if err != nil {
		return "", noSource(err, "give the path of a WebAssembly module")
	}
	defer f.Close()
	if _, err := checkModule(f); err != nil {
		return "", fmt.Errorf("%s: %w", m.Path, err)
	}
	sum := sha256.New()
	if _, err := io.Copy(sum, f); err != nil {
		return "", err
	}
	return name + digestMark + hex.EncodeToString(sum.Sum(nil)), nil
}

const digestMark = "@sha256:"

// program is what a module is called by its file.
func (m Module) program() string {
	return cmp.Or(strings.TrimSuffix(filepath.Base(m.Path), ".wasm"), "module")
}

var languagePattern = sync.OnceValue(func() *regexp.Regexp { return regexp.MustCompile(`^[a-z0-9][a-z0-9._-]{0,31}$`) })

// CheckLanguage returns an error of firebreak.KindInvalid for what can name no language. The empty word names none.
func CheckLanguage(language string) error {
	if language != "" && !languagePattern().MatchString(language) {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read language", Err: fmt.Errorf("%.40q is no name of a language", language),
			Mend: "use small letters and digits, as in python or javascript"}
	}
	return nil
}

// maxPrograms bounds the names of a module's program.
const maxPrograms = 16

// checkProgram refuses a language and names of a program that no command line could mean.
func (t Template) checkProgram() error {
	if t.Form == FormRoot {
		return nil
	}
	for _, name := range t.Command {
		if name == "" || len(name) > 255 || len(t.Command) > maxPrograms || strings.ContainsAny(name, "/\x00\n") {
			return badImage("%.40q is no name by which a program could be run, or they are too many", name)
		}
	}
	return CheckLanguage(t.Language)
}

// fromModule fills the tree of the template called name with a module and its library.
func (j *job) fromModule(ctx context.Context, m Module, name string) (Template, error) {
	abs, err := filepath.Abs(m.Path)
	if err != nil {
		return Template{}, err
	}
	t := Template{Source: abs, Form: FormModule, Command: []string{m.program()}}
	f, err := os.Open(abs)
	if err != nil {
		return t, noSource(err, "give the path of a WebAssembly module")
	}
	defer f.Close()
	size, err := checkModule(f)
	if err != nil {
		return t, fmt.Errorf("%s: %w", abs, err)
	}
	j.report("read module", 0, size)
	sum := sha256.New()
	if err := j.tree.AddFile(ctx, ModuleFile, io.TeeReader(f, sum), size, 0o444); err != nil {
		return t, err
	}
	if _, digest, found := strings.Cut(name, digestMark); found && digest != hex.EncodeToString(sum.Sum(nil)) {
		return t, badImage("%s has not the digest %s", abs, digest)
	}
	if m.Library == "" {
		return t, nil
	}
	if t.Source += " with " + m.Library; !filepath.IsAbs(m.Library) {
		return t, badImage("the library %s is no absolute path", m.Library)
	}
	return t, j.addScripts(ctx, LibraryDir, m.Library)
}

// checkModule refuses what no engine could run, and leaves f at its beginning.
func checkModule(f *os.File) (size int64, err error) {
	info, err := f.Stat()
	switch {
	case err != nil:
		return 0, err
	case !info.Mode().IsRegular():
		return 0, badImage("it is no file")
	case info.Size() > maxModule:
		return 0, &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("it has %d bytes, and a module may have %d", info.Size(), maxModule),
			Mend: "have it linked without debug information (wasm-opt --strip-debug, or -s for the linker)"}
	}
	var head [8]byte
	if _, err := io.ReadFull(f, head[:]); err != nil && !errors.Is(err, io.EOF) && !errors.Is(err, io.ErrUnexpectedEOF) {
		return 0, err
	}
	switch string(head[:]) {
	case "\x00asm\x01\x00\x00\x00":
	case "\x00asm\x0d\x00\x01\x00":
		return 0, &firebreak.Error{Kind: firebreak.KindUnsupported, Err: errors.New("it is a component, and only core modules run here"),
			Mend: "compile it for WASI preview 1 (target wasm32-wasip1)"}
	default:
		return 0, &firebreak.Error{Kind: firebreak.KindInvalid, Err: errors.New("it is no WebAssembly module: it does not begin as one"),
			Mend: "compile it for WASI preview 1 (target wasm32-wasip1)"}
	}
	_, err = f.Seek(0, io.SeekStart)
	return info.Size(), err
}

// fromScripts fills the tree with a directory of JavaScript modules.
func (j *job) fromScripts(ctx context.Context, dir string) (Template, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return Template{}, err
	}
	return Template{Source: abs, Form: FormScript, Language: "javascript"}, j.addScripts(ctx, "", abs)
}

// addScripts puts a directory of the host at a path of the tree.
func (j *job) addScripts(ctx context.Context, at, dir string) error {
	info, err := os.Stat(dir)
	switch {
	case err != nil:
		return noSource(err, "give the path of a directory")
	case !info.IsDir():
		return badImage("%s is no directory", dir)
	}
	store, err := os.Stat(j.store.dir)
	if err != nil {
		return err
	}
	j.report("read directory", 0, 0)
	return j.tree.AddDirectoryAt(ctx, at, dir, store)
}
