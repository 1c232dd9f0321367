package engine

import (
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/tetratelabs/wazero"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/meter"
)

// disk keeps compiled modules, each in a directory of its own: wazero's files, and a code of authentication over their
// names and contents with a key that only this user can read. What runs in this process must be what it compiled: a
// file that was changed, or comes from another version of wazero or another kind of CPU, is compiled anew.
type disk struct {
	dir string

	mu  sync.Mutex
	key []byte
}

// format is in each code, so that what an earlier way of compiling left is not taken.
const format = "firebreak-wasm-1/" + meter.Version

const macName = "mac"

// open returns a cache for the module, empty unless what lies on disk is genuine. Save is called when it was compiled.
func (d *disk) open(digest string) (cache wazero.CompilationCache, save func() error, err error) {
	key, err := d.readKey()
	if err != nil {
		return nil, nil, fmt.Errorf("read the key of the compiled modules: %w", err)
	}
	dir := d.path(digest)
	sum, err := d.sum(key, digest)
	if err != nil {
		return nil, nil, err
	}
	saved, err := os.ReadFile(filepath.Join(dir, macName))
	genuine := err == nil && hmac.Equal(saved, sum)
	if !genuine {
		if err := os.RemoveAll(dir); err != nil {
			return nil, nil, err
		}
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, nil, err
	}
	cache, err = wazero.NewCompilationCacheWithDir(dir)
	return cache, func() error { return d.save(key, digest, saved, genuine) }, err
}

// save writes the code, unless all is as it was.
func (d *disk) save(key []byte, digest string, saved []byte, genuine bool) error {
	sum, err := d.sum(key, digest)
	if err != nil || genuine && hmac.Equal(saved, sum) {
		return err
	}
	d.prune()
	at := d.path(digest, macName)
	temp := at + "." + rand.Text()
	if err := os.WriteFile(temp, sum, 0o600); err != nil {
		return err
	}
	return os.Rename(temp, at)
}

// maxKept is how many compiled modules stay on the disk: strangers may bring any number.
const maxKept = 256

// prune removes the modules that were compiled longest ago, if there are more than are kept. Who has one loaded does
// not need its files any more.
func (d *disk) prune() {
	entries, err := os.ReadDir(d.dir)
	if err != nil || len(entries) <= maxKept {
		return
	}
	made := map[string]time.Time{}
	var dirs []string
	for _, e := range entries {
		if info, err := e.Info(); err == nil && e.IsDir() {
			dirs, made[e.Name()] = append(dirs, e.Name()), info.ModTime()
		}
	}
	slices.SortFunc(dirs, func(a, b string) int { return made[a].Compare(made[b]) })
	for _, dir := range dirs[:max(0, len(dirs)-maxKept)] {
		_ = os.RemoveAll(d.path(dir)) // tried again by the next
	}
}

// sum authenticates all files of a module.
func (d *disk) sum(key []byte, digest string) ([]byte, error) {
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\x00%s\x00", format, digest)
	err := filepath.WalkDir(d.path(digest), func(path string, entry fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil
		}
		if err != nil || entry.IsDir() || entry.Name() == macName {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close() //nolint:errcheck // opened for reading
		info, err := f.Stat()
		if err != nil {
			return err
		}
		rel, err := filepath.Rel(d.dir, path)
		if err != nil {
			return err
		}
		fmt.Fprintf(mac, "%s\x00%d\x00", rel, info.Size())
		_, err = io.Copy(mac, f)
		return err
	})
	return mac.Sum(nil), err
}

// readKey reads the key, or makes it.
func (d *disk) readKey() ([]byte, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.key != nil {
		return d.key, nil
	}
	if err := os.MkdirAll(d.dir, 0o700); err != nil {
		return nil, err
	}
	at := d.path("key")
	key, err := os.ReadFile(at)
	if errors.Is(err, fs.ErrNotExist) {
		if err := d.makeKey(at); err != nil {
			return nil, err
		}
		key, err = os.ReadFile(at)
	}
	if err == nil && len(key) != sha256.Size {
		err = fmt.Errorf("%s has %d bytes, not %d; remove it", at, len(key), sha256.Size)
	}
	if err != nil {
		return nil, err
	}
	d.key = key
	return key, nil
}

// makeKey writes a key whole or not at all; of several processes, one wins.
func (d *disk) makeKey(at string) error {
	key := make([]byte, sha256.Size)
	_, _ = rand.Read(key) // never fails
	temp := at + "." + rand.Text()
	if err := os.WriteFile(temp, key, 0o600); err != nil {
		return err
	}
	err := os.Link(temp, at)
	if errors.Is(err, fs.ErrExist) {
		err = nil
	}
	return errors.Join(err, os.Remove(temp))
}
