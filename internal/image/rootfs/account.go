package rootfs

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"path"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

// The account that every template has.
const (
	UserName = "user"
	UserID   = 1000
	UserHome = "/home/user"
)

const maxEdited = 4 << 20

// MkdirAll makes a directory with its parents. One that exists stays as it is.
func (t *Tree) MkdirAll(p string, mode uint16, owner uint32) error {
	if _, err := t.Lookup(p); err == nil || !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	dir, name, err := t.parent(p)
	if err != nil {
		return err
	}
	n := newDir(mode)
	n.UID, n.GID = owner, owner
	t.put(dir, name, n)
	return nil
}

// WriteFile makes or replaces a file that belongs to root.
func (t *Tree) WriteFile(p string, data []byte, mode uint16) error {
	dir, name, err := t.parent(p)
	if err != nil {
		return err
	}
	t.put(dir, name, memoryFile(data, mode))
	return nil
}

// AddFile makes or replaces a file that belongs to root with the size bytes that data gives. io.ErrUnexpectedEOF if it gives
// fewer.
func (t *Tree) AddFile(ctx context.Context, p string, data io.Reader, size int64, mode uint16) error {
	dir, name, err := t.parent(p)
	if err != nil {
		return err
	}
	n := &erofs.Node{Mode: erofs.TypeRegular | mode, ModTime: fixedTime}
	if err := t.store(ctx, n, data, size); err != nil {
		return err
	}
	t.put(dir, name, n)
	return nil
}

// Symlink makes or replaces a symbolic link.
func (t *Tree) Symlink(target, p string) error {
	dir, name, err := t.parent(p)
	if err != nil {
		return err
	}
	t.put(dir, name, &erofs.Node{Mode: erofs.TypeSymlink | 0o777, Target: target, ModTime: fixedTime})
	return nil
}

func (t *Tree) parent(p string) (*erofs.Node, string, error) {
	parts, err := t.components(p)
	if err != nil || len(parts) == 0 {
		return nil, "", errors.Join(err, fs.ErrInvalid)
	}
	last := len(parts) - 1
	if err := t.charge(parts[last], ""); err != nil {
		return nil, "", err
	}
	dir, err := t.directory(parts[:last], true)
	return dir, parts[last], err
}

func memoryFile(data []byte, mode uint16) *erofs.Node {
	return &erofs.Node{Mode: erofs.TypeRegular | mode, ModTime: fixedTime, Size: int64(len(data)),
		Open: func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil }}
}

// ReadFile returns a small file of the tree. fs.ErrNotExist if there is none.
func (t *Tree) ReadFile(p string) ([]byte, error) {
	n, err := t.Lookup(p)
	if err != nil {
		return nil, err
	}
	if !n.IsRegular() || n.Size > maxEdited {
		return nil, invalid("%s of the image is no file of at most %d bytes", p, maxEdited)
	}
	if n.Size == 0 {
		return nil, nil
	}
	r, err := n.Open()
	if err != nil {
		return nil, err
	}
	defer r.Close()
	return io.ReadAll(io.LimitReader(r, n.Size))
}

// Complete gives the tree what every sandbox needs and images often lack: the directories that things are mounted on,
// the files of /etc that tell of the machine and not of the image, and the account user.
func (t *Tree) Complete(ctx context.Context) error {
	for _, name := range []string{"proc", "sys", "dev"} { // a link here could send a driver's mount elsewhere
		if n, ok := t.root.Entries[name]; ok && !n.IsDir() {
			delete(t.root.Entries, name)
		}
	}
	for _, d := range []struct {
		path  string
		mode  uint16
		owner uint32
	}{
		{"/proc", 0o555, 0}, {"/sys", 0o555, 0}, {"/dev", 0o755, 0}, {"/run", 0o755, 0}, {"/etc", 0o755, 0},
		{"/root", 0o700, 0}, {"/tmp", 0o1777, 0}, {"/var/tmp", 0o1777, 0}, {"/home", 0o755, 0},
		{UserHome, 0o755, UserID},
	} {
		if err := t.MkdirAll(d.path, d.mode, d.owner); err != nil {
			return fmt.Errorf("add %s: %w", d.path, err)
		}
	}
	if err := t.addMachine(); err != nil {
		return err
	}
	return t.addUser(ctx)
}

// addMachine replaces what an image says of the machine that it was made on; of its hosts it keeps those that it knows.
func (t *Tree) addMachine() error {
	hosts := "127.0.0.1 localhost " + driver.Hostname + "\n::1 localhost ip6-localhost ip6-loopback\n"
	if n, err := t.Lookup("/etc/hosts"); err == nil && n.IsRegular() && n.Size <= maxEdited {
		old, err := t.ReadFile("/etc/hosts")
		if err != nil {
			return fmt.Errorf("read /etc/hosts: %w", err)
		}
		if hosts = string(old); !namesHost(hosts, driver.Hostname) {
			hosts = strings.TrimSuffix(hosts, "\n") + "\n127.0.0.1 " + driver.Hostname + "\n"
		}
	}
	for _, f := range []struct{ path, text string }{
		{"/etc/hosts", hosts}, {"/etc/hostname", driver.Hostname + "\n"}, {"/etc/resolv.conf", ""},
	} {
		if err := t.WriteFile(f.path, []byte(f.text), 0o644); err != nil {
			return fmt.Errorf("add %s: %w", f.path, err)
		}
	}
	return nil
}

// namesHost reports whether a line of a hosts file gives an address for name.
func namesHost(hosts, name string) bool {
	for line := range strings.Lines(hosts) {
		line, _, _ = strings.Cut(line, "#")
		if fields := strings.Fields(line); len(fields) > 1 && slices.Contains(fields[1:], name) {
			return true
		}
	}
	return false
}

func (t *Tree) addUser(ctx context.Context) error {
	shell := "/bin/sh"
	if _, err := t.Lookup("/bin/bash"); err == nil {
		shell = "/bin/bash"
	}
	shadowed := false
	if n, err := t.Lookup("/etc/shadow"); err == nil && n.IsRegular() {
		shadowed = true
	}
	password := map[bool]string{true: "x", false: "*"}[shadowed]
	root := "root:" + password + ":0:0:root:/root:" + shell
	user := fmt.Sprintf("%s:%s:%d:%d::%s:%s", UserName, password, UserID, UserID, UserHome, shell)
	files := []struct{ path, root, user string }{
		{"/etc/passwd", root, user}, {"/etc/group", "root:x:0:", fmt.Sprintf("%s:x:%d:", UserName, UserID)},
	}
	if shadowed { // else sudo finds the account expired
		files = append(files, struct{ path, root, user string }{"/etc/shadow", "root:*:19000:0:99999:7:::", UserName + ":*:19000:0:99999:7:::"})
	}
	for _, f := range files {
		if err := ctx.Err(); err != nil {
			return err
		}
		if err := t.addLines(f.path, f.root, f.user); err != nil {
			return fmt.Errorf("add the account %s to %s: %w", UserName, f.path, err)
		}
	}
	return nil
}

// addLines appends those of lines whose first field no line of the file has.
func (t *Tree) addLines(p string, lines ...string) error {
	old, err := t.ReadFile(p)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	text := string(old)
	for _, line := range lines {
		key := line[:strings.IndexByte(line, ':')+1]
		if strings.HasPrefix(text, key) || strings.Contains(text, "\n"+key) {
			continue
		}
		if text != "" && !strings.HasSuffix(text, "\n") {
			text += "\n"
		}
		text += line + "\n"
	}
	if text == string(old) {
		return nil
	}
	n, err := t.Lookup(p)
	if err != nil {
		return t.WriteFile(path.Clean(p), []byte(text), 0o644)
	}
	edited := memoryFile([]byte(text), n.Mode&0o7777)
	edited.UID, edited.GID = n.UID, n.GID
	*n = *edited
	return nil
}
