package container

import (
	"bufio"
	"errors"
	"fmt"
	"hash/fnv"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// The ids of the host that sandboxes live under. systemd's plan of all ids leaves exactly this part to nobody: above
// those of people, services, /etc/subuid and systemd-nspawn, below those that do not fit a signed number.
const (
	rangeFirst = 0x70000000
	rangeSize  = 65536
	rangeCount = 4094
)

// ranges hands each sandbox ids of its own: a symbolic link named after the range, to the sandbox's ID. The kernel makes
// a link for one taker only, so that no lock is needed, and a taker that is killed leaves a link that Destroy finds.
type ranges struct{ dir string }

func (d *Driver) ranges() ranges { return ranges{filepath.Join(d.cfg.StateDir, ".ids")} }

// take gives id a range; it returns the range's first id of the host.
func (r ranges) take(id driver.ID) (uint32, error) {
	if err := os.MkdirAll(r.dir, 0o700); err != nil {
		return 0, fmt.Errorf("take ids: %w", err)
	}
	entries, err := os.ReadDir(r.dir)
	if err != nil {
		return 0, fmt.Errorf("take ids: %w", err)
	}
	taken := foreign()
	for _, e := range entries {
		if n, err := strconv.Atoi(e.Name()); err == nil {
			taken[n] = true
		}
	}
	// Each state directory begins elsewhere, so that two of them do not even race for the same range.
	start := fnv.New32a()
	_, _ = start.Write([]byte(r.dir)) // never fails
	for i := range rangeCount {
		n := (int(start.Sum32()%rangeCount) + i) % rangeCount
		if taken[n] {
			continue
		}
		err := os.Symlink(string(id), filepath.Join(r.dir, strconv.Itoa(n)))
		if err == nil {
			return rangeFirst + uint32(n)*rangeSize, nil
		}
		if !errors.Is(err, fs.ErrExist) {
			return 0, fmt.Errorf("take ids: %w", err)
		}
	}
	return 0, &firebreak.Error{Kind: firebreak.KindExhausted, Op: "take ids",
		Err: fmt.Errorf("all %d ranges of ids are in use", rangeCount), Mend: "destroy sandboxes that are not needed"}
}

// of returns the first ids of the ranges that id has: one, or none.
func (r ranges) of(id driver.ID) ([]uint32, error) {
	var bases []uint32
	err := r.each(id, func(n int, _ string) error {
		bases = append(bases, rangeFirst+uint32(n)*rangeSize)
		return nil
	})
	return bases, err
}

// free gives back what id has.
func (r ranges) free(id driver.ID) error {
	return r.each(id, func(_ int, link string) error {
		if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("free ids: %w", err)
		}
		return nil
	})
}

func (r ranges) each(id driver.ID, do func(n int, link string) error) error {
	entries, err := os.ReadDir(r.dir)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("read ids: %w", err)
	}
	for _, e := range entries {
		link := filepath.Join(r.dir, e.Name())
		target, err := os.Readlink(link)
		n, bad := strconv.Atoi(e.Name())
		if err != nil || bad != nil || target != string(id) {
			continue
		}
		if err := do(n, link); err != nil {
			return err
		}
	}
	return nil
}

// foreign returns the ranges that others have: processes of whatever origin, and what /etc/subuid and /etc/subgid promise.
func foreign() map[int]bool {
	taken := map[int]bool{}
	for _, uid := range processOwners() {
		markRange(taken, uint64(uid), 1)
	}
	for _, name := range []string{"/etc/subuid", "/etc/subgid"} {
		for _, p := range subordinate(name) {
			markRange(taken, p[0], p[1])
		}
	}
	return taken
}

// markRange marks the ranges that some of count ids from first on lie in.
func markRange(taken map[int]bool, first, count uint64) {
	begin, end := max(first, rangeFirst), min(first+count, rangeFirst+rangeCount*rangeSize)
	if begin >= end {
		return
	}
	for n := (begin - rangeFirst) / rangeSize; n <= (end-1-rangeFirst)/rangeSize; n++ {
		taken[int(n)] = true
	}
}

// processOwners returns who owns processes now, as far as they are in our part of the ids.
func processOwners() []uint32 {
	var owners []uint32
	entries, err := os.ReadDir("/proc")
	if err != nil {
		return nil
	}
	for _, e := range entries {
		if name := e.Name(); name[0] < '0' || name[0] > '9' {
			continue
		}
		var st syscall.Stat_t
		if syscall.Stat("/proc/"+e.Name(), &st) == nil && st.Uid >= rangeFirst && !slices.Contains(owners, st.Uid) {
			owners = append(owners, st.Uid)
		}
	}
	return owners
}

// subordinate reads first and count of the ranges in a file such as /etc/subuid.
func subordinate(name string) [][2]uint64 {
	f, err := os.Open(name)
	if err != nil {
		return nil
	}
	defer f.Close()
	var found [][2]uint64
	for lines := bufio.NewScanner(f); lines.Scan(); {
		fields := strings.Split(lines.Text(), ":")
		if len(fields) != 3 {
			continue
		}
		first, err1 := strconv.ParseUint(fields[1], 10, 32)
		count, err2 := strconv.ParseUint(fields[2], 10, 32)
		if err1 == nil && err2 == nil {
			found = append(found, [2]uint64{first, count})
		}
	}
	return found
}
