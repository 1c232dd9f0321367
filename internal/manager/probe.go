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
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// cachedInfo is what is kept of a probe.
type cachedInfo struct {
	Key   string           `json:"key"`
	At    time.Time        `json:"at"`
	Took  time.Duration    `json:"took"`
	Info  driver.Info      `json:"info"`
	Forms []driver.Form    `json:"forms"`
	Caps  driver.Caps      `json:"caps"`
	Usual firebreak.Limits `json:"usual"`
}

// diagnose looks anew whether the driver can serve at all, after it failed although an earlier probe was good.
func (m *Manager) diagnose(ctx context.Context, name string, cause error) error {
	switch firebreak.KindOf(cause) {
	case firebreak.KindInvalid, firebreak.KindExists, firebreak.KindCanceled:
		return cause
	}
	p, err := m.probe(ctx, name)
	if err == nil {
		err = p.info.Err()
	}
	if err != nil && ctx.Err() == nil {
		m.log.Debug("create", "driver", name, "err", cause)
		return err
	}
	return cause
}

// keepProbe is for the next process. Without a key, or room on the disk, it has to try for itself.
func (m *Manager) keepProbe(name string, p probed) {
	key, err := m.key()
	if err == nil {
		err = writeFile(m.probePath(name), cachedInfo{Key: key, At: p.at.UTC(), Took: p.took, Info: p.info, Forms: p.info.Forms, Caps: p.info.Caps, Usual: p.info.Usual})
	}
	if err != nil {
		m.log.Debug("keep probe", "driver", name, "err", err)
	}
}

func (m *Manager) probePath(name string) string {
	return filepath.Join(m.cfg.StateDir, "probes", name+".json")
}

func (m *Manager) readProbe(name string) (probed, bool) {
	var c cachedInfo
	if !m.readKept(m.probePath(name), &c) || c.Info.Name != name {
		return probed{}, false
	}
	if key, _ := m.key(); c.Key != key { // readKept has seen to a missing one
		return probed{}, false
	}
	c.Info.Forms, c.Info.Caps, c.Info.Usual = c.Forms, c.Caps, c.Usual
	return probed{info: c.Info, at: c.At, took: c.Took}, true
}

// readKept reads what an earlier process wrote; false if there is no use in it.
func (m *Manager) readKept(path string, into any) bool {
	if _, err := m.key(); err != nil {
		return false
	}
	text, err := os.ReadFile(path)
	return err == nil && json.Unmarshal(text, into) == nil
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
