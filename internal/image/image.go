// Package image keeps templates: the root file systems that sandboxes start from. They are made from directories,
// archives, registries or Debian packages, flattened into one EROFS image each and kept under the digest of its
// content. The template host is always there: a view of the host's own programs with nothing private in it.
//
// A store is a directory that any number of processes use at once and that survives a kill at any instant: whatever
// is being made lies in a work directory of its own under a lock that dies with its maker, and appears by one rename.
package image

import (
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

// HostName is the template that every store has.
const HostName = "host"

// The forms of templates.
const (
	FormRoot   = ""       // a root file system
	FormModule = "module" // a WebAssembly module and the library of its language
	FormScript = "script" // JavaScript modules
)

// Template is what a sandbox starts from.
type Template struct {
	Name       string            `json:"name"`
	Form       string            `json:"form,omitempty"`
	Language   string            `json:"language,omitempty"` // modules and scripts: what they run or are written in; empty: nothing in particular
	Digest     string            `json:"digest"`             // sha256: of the image; of what host is made from
	Source     string            `json:"source"`             // what it was made from, for people
	Size       int64             `json:"size"`
	Created    time.Time         `json:"created"`
	Envs       map[string]string `json:"envs,omitempty"`
	Workdir    string            `json:"workdir,omitempty"`
	User       string            `json:"user,omitempty"`
	Entrypoint []string          `json:"entrypoint,omitempty"`
	Command    []string          `json:"command,omitempty"` // of a module: the names by which its sandboxes run it
	Start      string            `json:"start,omitempty"`   // for bash: what runs in the background of every sandbox
	Ready      string            `json:"ready,omitempty"`   // for bash: it succeeds once Start is at work
	Limits     firebreak.Limits  `json:"limits,omitzero"`   // of sandboxes, where a request names none
}

// Source says what to make a template from; exactly one field is set.
type Source struct {
	Path      string // a directory, tar archive, OCI layout (directory or archive) or archive of docker save
	Reference string // an image in a registry: python:3.13, ghcr.io/o/i@sha256:…
	Recipe    string // a recipe of ours; see Recipes
	Export    Export // of a sandbox
	Module    Module // WebAssembly
	Scripts   string // a directory of JavaScript modules
}

// Module is a program for WASI.
type Module struct {
	Path    string // a file .wasm
	Library string // a directory that the program sees as /lib; empty: none

	// ByContent has a template that is given no name be called by the program's name and the file's digest: the same
	// bytes are then one template, whatever else is called so.
	ByContent bool
}

// Export is the root file system of a sandbox, as an uncompressed tar archive.
type Export struct {
	Archive io.Reader
	Base    string // the template that the sandbox began with, if Archive leaves out what is the same there
}

// Progress is how far one step is. Total is 0 while nobody knows it.
type Progress struct {
	Step        string
	Done, Total int64 // bytes, or the steps of a recipe
}

// MakeOptions are what Make may be told beside the source. The zero value is good.
type MakeOptions struct {
	Name      string          // default: the reference, the recipe's name, or the last part of the path
	IfMissing bool            // return the template if one of this name exists
	Progress  func(Progress)  // called by one goroutine at a time
	Limits    rootfs.Limits   // what a hostile image may cost
	Pull      Pull            // how an image is got from a registry
	Edit      func(*Template) // changes what is kept with the image, before it appears
}

// Store is a directory of templates. Use it from any number of goroutines and processes.
type Store struct {
	dir    string
	log    *slog.Logger
	host   string // root of the host's file system
	now    func() time.Time
	etc    etcPaths
	suffix func() (string, error) // treeSuffix, once
}

// The parts of a store.
const (
	blobsDir     = "blobs"     // <hex digest>.erofs
	templatesDir = "templates" // <escaped name>.json
	treesDir     = "trees"     // <hex digest>[-owners]/root: unpacked images, and the host template
	locksDir     = "locks"     // <escaped name>: held while a template of that name is made
	workDir      = "work"      // what is being made, each with its own lock file
	lockFile     = "lock"      // shared to publish, exclusive to remove
)

// Open opens the store in dir and makes it if need be. Only its owner may look into it: images hold programs that are
// setuid inside sandboxes.
func Open(dir string, log *slog.Logger) (*Store, error) {
	abs, err := filepath.Abs(dir)
	if err != nil {
		return nil, fmt.Errorf("open image store: %w", err)
	}
	s := &Store{dir: abs, log: log, host: "/", now: time.Now}
	s.suffix = sync.OnceValues(s.treeSuffix)
	if err := s.prepare(); err != nil {
		return nil, s.blame("open image store", err)
	}
	return s, nil
}

func (s *Store) prepare() error {
	if err := os.MkdirAll(s.dir, 0o700); err != nil {
		return err
	}
	info, err := os.Stat(s.dir)
	if err != nil {
		return err
	}
	if info.Mode().Perm()&0o077 != 0 {
		if err := os.Chmod(s.dir, 0o700); err != nil {
			return err
		}
	}
	for _, name := range []string{blobsDir, templatesDir, treesDir, locksDir, workDir} {
		if err := os.Mkdir(filepath.Join(s.dir, name), 0o700); err != nil && !errors.Is(err, fs.ErrExist) {
			return err
		}
	}
	return nil
}

func (s *Store) blobPath(hex string) string { return filepath.Join(s.dir, blobsDir, hex+".erofs") }

// blame says whose fault an error of the file system is and how to mend it.
func (s *Store) blame(op string, err error) error {
	var known *firebreak.Error
	switch {
	case err == nil:
		return nil
	case errors.As(err, &known):
		return fmt.Errorf("%s: %w", op, err)
	case errors.Is(err, unix.ENOSPC), errors.Is(err, unix.EDQUOT):
		return &firebreak.Error{Kind: firebreak.KindExhausted, Op: op, Err: err,
			Mend: "free space on the file system of " + s.dir + ", or choose another state directory"}
	case errors.Is(err, fs.ErrPermission), errors.Is(err, unix.EROFS):
		return &firebreak.Error{Kind: firebreak.KindDenied, Op: op, Err: err,
			Mend: "make " + s.dir + " writable for this user, or choose another state directory"}
	}
	return fmt.Errorf("%s: %w", op, err)
}

// blameSource is blame for what Make reads.
func (s *Store) blameSource(op string, err error) error {
	var known *firebreak.Error
	switch {
	case errors.Is(err, fs.ErrPermission):
		return &firebreak.Error{Kind: firebreak.KindDenied, Op: op, Err: err,
			Mend: "run firebreak as a user who may read all of it"}
	case errors.As(err, &known) && known.Kind == firebreak.KindInvalid && known.Mend == "":
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: op, Err: err,
			Mend: "get or export it once more; a directory, a tar, an OCI layout, a docker save archive or an image of a registry will do"}
	}
	return s.blame(op, err)
}

// reporter hands progress to its caller, one call at a time.
type reporter struct {
	mu   sync.Mutex
	call func(Progress) // guarded by mu
}

func (r *reporter) report(step string, done, total int64) {
	if r.call == nil {
		return
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.call(Progress{Step: step, Done: done, Total: total})
}
