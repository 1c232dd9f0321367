package container

import (
	"bytes"
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
	st, err := statOf(pid)
	if err != nil {
		return record{}, err
	}
	boot, err := bootID()
	return record{PID: pid, Start: st.start, Boot: boot}, err
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
	if boot, err := bootID(); err != nil || boot != r.Boot {
		return nil, errors.Join(err, gone)
	}
	fd, err := unix.PidfdOpen(r.PID, unix.PIDFD_NONBLOCK)
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.EINVAL) {
		return nil, gone
	}
	if err != nil {
		return nil, fmt.Errorf("open process: %w", err)
	}
	f := os.NewFile(uintptr(fd), "pidfd")
	// Read after the pidfd was opened: if it still is the process that began then, so is what the pidfd holds.
	if st, err := statOf(r.PID); err != nil || st.start != r.Start {
		f.Close()
		return nil, gone
	}
	return f, nil
}

// stat is what /proc/<pid>/stat says of a process.
type stat struct {
	state  byte
	start  uint64 // clock ticks since boot
	status int    // of a process that has ended, as of wait(2)
}

func statOf(pid int) (stat, error) {
	data, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return stat{}, fmt.Errorf("look at process %d: %w", pid, err)
	}
	// The second field is a name that may hold anything, so fields are counted from its last parenthesis.
	fields := bytes.Fields(data[bytes.LastIndexByte(data, ')')+1:])
	if len(fields) < 50 {
		return stat{}, fmt.Errorf("look at process %d: %w", pid, fs.ErrInvalid)
	}
	start, err1 := strconv.ParseUint(string(fields[19]), 10, 64)
	status, err2 := strconv.Atoi(string(fields[49]))
	return stat{fields[0][0], start, status}, errors.Join(err1, err2)
}

func bootID() (string, error) {
	id, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", fmt.Errorf("read boot id: %w", err)
	}
	return strings.TrimSpace(string(id)), nil
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
