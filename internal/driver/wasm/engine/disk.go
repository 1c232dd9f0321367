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
	"strings"
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
const format = "firebreak-wasm-2/" + meter.Version

const macName = "mac"

// meteredName is of the module as it is compiled, which takes longer to make than to read.
const meteredName = "metered.wasm"

// stored is what the disk keeps of one module.
type stored struct {
	disk    *disk
	key     []byte
	digest  string
	genuine bool   // as it was found
	state   string // of the files, if they are genuine
	cache   wazero.CompilationCache
}

// open returns what is stored of the module: nothing unless what lies on disk is genuine.
func (d *disk) open(digest string) (*stored, error) {
	key, err := d.readKey()
	if err != nil {
		return nil, fmt.Errorf("read the key of the compiled modules: %w", err)
	}
	s := &stored{disk: d, key: key, digest: digest}
	dir := d.path(digest)
	sum, state, err := d.sum(key, digest)
	if err != nil {
		return nil, err
	}
	saved, err := os.ReadFile(filepath.Join(dir, macName))
	if s.genuine = err == nil && hmac.Equal(saved, sum); s.genuine {
		s.state = state
	} else if err := os.RemoveAll(dir); err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return nil, err
	}
	s.cache, err = wazero.NewCompilationCacheWithDir(dir)
	return s, err
}

// metered is the module with its instructions counted.
func (s *stored) metered(wasm []byte) ([]byte, error) {
	at := s.disk.path(s.digest, meteredName)
	if s.genuine {
		return os.ReadFile(at)
	}
	metered, err := meter.Rewrite(wasm, slice)
	if err != nil {
		return nil, invalid("%w", err)
	}
	temp := at + "." + rand.Text()
	if err := os.WriteFile(temp, metered, 0o600); err != nil {
		return nil, err
	}
	return metered, os.Rename(temp, at)
}

// save writes the code when all is compiled, unless all is as it was.
func (s *stored) save() error {
	d := s.disk
	if state, err := d.state(s.digest); err != nil || s.genuine && state == s.state {
		return err
	}
	sum, _, err := d.sum(s.key, s.digest)
	if err != nil {
		return err
	}
	d.prune()
	at := d.path(s.digest, macName)
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

// files calls each for the files of a module that are authenticated, by their path in the cache.
func (d *disk) files(digest string, each func(f *os.File, rel string, info fs.FileInfo) error) error {
	return filepath.WalkDir(d.path(digest), func(path string, entry fs.DirEntry, err error) error {
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
		return each(f, rel, info)
	})
}

// state changes when wazero writes a file anew.
func (d *disk) state(digest string) (string, error) {
	var b strings.Builder
	err := d.files(digest, func(_ *os.File, rel string, info fs.FileInfo) error {
		fmt.Fprintln(&b, rel, info.Size(), info.ModTime().UnixNano())
		return nil
	})
	return b.String(), err
}

// sum authenticates all files of a module, and returns their state of before, too.
func (d *disk) sum(key []byte, digest string) (sum []byte, state string, err error) {
	if state, err = d.state(digest); err != nil {
		return nil, "", err
	}
	mac := hmac.New(sha256.New, key)
	fmt.Fprintf(mac, "%s\x00%s\x00", format, digest)
	err = d.files(digest, func(f *os.File, rel string, info fs.FileInfo) error {
		fmt.Fprintf(mac, "%s\x00%d\x00", rel, info.Size())
		_, err := io.Copy(mac, f)
		return err
	})
	return mac.Sum(nil), state, err
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
