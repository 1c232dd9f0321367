package container

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/hostproc"
)

// record is what is written down of a running sandbox, so that another process finds it.
type record struct {
	PID   int    `json:"pid"`   // of the agent, on the host
	Start uint64 `json:"start"` // when it began, in ticks since boot: the same number and start is the same process
	Boot  string `json:"boot"`
}

func newRecord(spec driver.Spec) (record, error) {
	text, err := os.ReadFile(filepath.Join(ownDir(spec), pidName))
	if err != nil {
		return record{}, fmt.Errorf("read pid: %w", err)
	}
	pid, err := strconv.Atoi(strings.TrimSpace(string(text)))
	if err != nil || pid <= 0 {
		return record{}, fmt.Errorf("read pid: %.20q is none", text)
	}
	st, err := hostproc.ReadStat(pid)
	if err != nil {
		return record{}, err
	}
	boot, err := hostproc.BootID()
	return record{PID: pid, Start: st.Start, Boot: boot}, err
}

func (r record) write(spec driver.Spec) error {
	data, err := json.Marshal(r)
	if err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	if err := writeAtomic(filepath.Join(ownDir(spec), recordName), data); err != nil {
		return fmt.Errorf("write record: %w", err)
	}
	return nil
}

func readRecord(spec driver.Spec) (record, error) {
	data, err := os.ReadFile(filepath.Join(ownDir(spec), recordName))
	if errors.Is(err, unix.ENOTDIR) {
		err = fs.ErrNotExist
	}
	if err != nil {
		return record{}, fmt.Errorf("read record: %w", err)
	}
	var r record
	if err := json.Unmarshal(data, &r); err != nil || r.PID <= 0 {
		return record{}, fmt.Errorf("read record: it is damaged: %w", fs.ErrNotExist)
	}
	return r, nil
}

// open returns a pidfd of the process that the record means; fs.ErrNotExist if that is gone, whoever has its number now.
func (r record) open() (*os.File, error) {
	gone := fmt.Errorf("the agent has ended: %w", fs.ErrNotExist)
	if boot, err := hostproc.BootID(); err != nil || boot != r.Boot {
		return nil, errors.Join(err, gone)
	}
	f, err := hostproc.Open(r.PID, r.Start)
	if errors.Is(err, unix.ESRCH) {
		return nil, gone
	}
	if err != nil {
		return nil, fmt.Errorf("open process: %w", err)
	}
	return f, nil
}

// destroying reports whether Destroy has begun.
func destroying(spec driver.Spec) bool {
	_, err := os.Lstat(filepath.Join(ownDir(spec), endedName))
	return err == nil
}

// writeAtomic writes a file so that readers see all of it or nothing.
func writeAtomic(name string, data []byte) error {
	f, err := os.CreateTemp(filepath.Dir(name), "."+filepath.Base(name)+".*")
	if err != nil {
		return err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Close()); err == nil {
		err = os.Rename(f.Name(), name)
	}
	if err != nil {
		return errors.Join(err, os.Remove(f.Name()))
	}
	return nil
}
