package manager

import (
	"context"
	"crypto/sha256"
	"debug/elf"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// cachedInfo is what is kept of a good probe. A bad one is never kept: its mend may have been followed meanwhile.
type cachedInfo struct {
	Key   string        `json:"key"`
	Info  driver.Info   `json:"info"`
	Forms []driver.Form `json:"forms"`
	Caps  driver.Caps   `json:"caps"`
}

// info returns what the driver can do here: what a probe of this boot found, or a probe now. An error is the reason why
// it cannot serve.
func (m *Manager) info(ctx context.Context, name string, d driver.Driver) (driver.Info, error) {
	m.probing.Lock()
	defer m.probing.Unlock()
	if info, ok := m.infos[name]; ok {
		return info, nil
	}
	key, err := probeKey()
	if err != nil {
		m.log.Debug("probes cannot be kept", "err", err)
	}
	if info, ok := m.readProbe(name, key); ok && key != "" {
		m.infos[name] = info
		return info, nil
	}
	return m.probe(ctx, name, d, key)
}

// diagnose looks anew whether the driver can serve at all, after it failed although an earlier probe was good.
func (m *Manager) diagnose(ctx context.Context, name string, d driver.Driver, cause error) error {
	switch firebreak.KindOf(cause) {
	case firebreak.KindInvalid, firebreak.KindExists, firebreak.KindCanceled:
		return cause
	}
	m.probing.Lock()
	defer m.probing.Unlock()
	key, _ := probeKey() // without a key the probe is not kept
	if _, err := m.probe(ctx, name, d, key); err != nil && ctx.Err() == nil {
		m.log.Debug("create", "driver", name, "err", cause)
		return err
	}
	return cause
}

// probe must be called with m.probing held.
func (m *Manager) probe(ctx context.Context, name string, d driver.Driver, key string) (driver.Info, error) {
	delete(m.infos, name)
	info, err := d.Probe(ctx)
	if err != nil {
		return info, fmt.Errorf("probe driver %s: %w", name, err)
	}
	if err := info.Err(); err != nil {
		return info, errors.Join(err, ignoreNotExist(os.Remove(m.probePath(name))))
	}
	m.infos[name] = info
	if key != "" {
		if err := writeFile(m.probePath(name), cachedInfo{Key: key, Info: info, Forms: info.Forms, Caps: info.Caps}); err != nil {
			m.log.Debug("keep probe", "driver", name, "err", err)
		}
	}
	return info, nil
}

func (m *Manager) probePath(name string) string {
	return filepath.Join(m.cfg.StateDir, "probes", name+".json")
}

func (m *Manager) readProbe(name, key string) (driver.Info, bool) {
	text, err := os.ReadFile(m.probePath(name))
	var c cachedInfo
	if err != nil || json.Unmarshal(text, &c) != nil || c.Key != key {
		return driver.Info{}, false
	}
	c.Info.Forms, c.Info.Caps = c.Forms, c.Caps
	return c.Info, true
}

// probeKey changes with all that a probe's result depends on and that changes without our doing: the boot of the host,
// the build of this program, who runs it, and where its cgroup is.
func probeKey() (string, error) {
	boot, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	build, err := buildID()
	if err != nil {
		return "", err
	}
	cgroup, err := os.ReadFile("/proc/self/cgroup")
	if err != nil {
		return "", err
	}
	uids, err := os.ReadFile("/proc/self/uid_map")
	if err != nil {
		return "", err
	}
	sum := sha256.Sum256(fmt.Appendf(nil, "%s\n%s\n%s\n%s\n%d\n%s", boot, build, cgroup, uids, os.Geteuid(), os.Getenv("PATH")))
	return hex.EncodeToString(sum[:]), nil
}

// buildID reads the note in which the Go linker put what this executable was built from.
func buildID() ([]byte, error) {
	f, err := elf.Open("/proc/self/exe")
	if err != nil {
		return nil, fmt.Errorf("read build id: %w", err)
	}
	defer f.Close()
	s := f.Section(".note.go.buildid")
	if s == nil {
		return nil, errors.New("read build id: this program has none")
	}
	return s.Data()
}

// writeFile puts a file there as a whole or not at all.
func writeFile(path string, v any) error {
	text, err := json.Marshal(v)
	if err != nil {
		return err
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+strings.TrimSuffix(filepath.Base(path), ".json")+"-*")
	if err != nil {
		return err
	}
	_, err = f.Write(text)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}

func ignoreNotExist(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return err
}
