package image

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/image/erofs"
	"github.com/firebreak-dev/firebreak/internal/image/rootfs"
)

// hostVersion changes when the synthetic tree does.
const hostVersion = "3"

// hostConfig are the parts of the host's /etc that programs in /usr need and that are public by their nature. They are
// copied, not mounted: every mount costs each sandbox time, and a copy takes only what everybody may read.
var hostConfig = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^(alternatives|ssl|pki|ld\.so\.cache|ld\.so\.conf|ld\.so\.conf\.d|localtime|timezone` +
		`|mime\.types|matplotlibrc|os-release|[a-z]+[-_](version|release)|services|protocols|rpc|gai\.conf|host\.conf|inputrc` +
		`|bash\.bashrc|terminfo|fonts|locale\.alias|locale\.conf|magic|magic\.mime|python3(\.[0-9]+)?|perl|java-.*)$`)
})

// hostPublic says which directories of hostConfig are taken only in part.
func hostPublic() map[string][]string {
	return map[string][]string{
		"ssl": {"certs", "openssl.cnf", "cert.pem"},
		"pki": {"tls/certs", "ca-trust/extracted", "tls/cert.pem", "tls/openssl.cnf"},
	}
}

// hostPlan is what the host template consists of, found without reading more than names and times.
type hostPlan struct {
	links  map[string]string // /bin -> usr/bin
	binds  []driver.Mount
	config []string // paths under /etc
	key    string   // the digest of all this, and of the state of those files
}

// planHost looks at the host. It runs for every sandbox, so it does little: the tree itself is made once per key. That
// a file was edited within a copied directory shows at the next boot, or once the directory itself changes.
func (s *Store) planHost() (hostPlan, error) {
	sum := sha256.New()
	fmt.Fprintln(sum, hostVersion)
	p, err := s.planTop(sum)
	if err != nil {
		return p, err
	}
	if p.config, err = s.publicConfig(); err != nil {
		return p, err
	}
	for _, path := range p.config {
		var st unix.Stat_t
		if unix.Lstat(filepath.Join(s.host, path), &st) == nil {
			fmt.Fprintf(sum, "etc %s %d %d %d %d\n", path, st.Ino, st.Size, st.Mode, st.Ctim.Nano())
		}
	}
	p.key = hex.EncodeToString(sum.Sum(nil))
	return p, nil
}

// planTop finds where the host's programs lie, and tells sum.
func (s *Store) planTop(sum io.Writer) (hostPlan, error) {
	p := hostPlan{links: map[string]string{}}
	for _, name := range []string{"bin", "lib", "lib32", "lib64", "libx32", "sbin", "usr"} {
		info, err := os.Lstat(filepath.Join(s.host, name))
		switch {
		case errors.Is(err, fs.ErrNotExist):
		case err != nil:
			return p, err
		case info.IsDir():
			p.binds = append(p.binds, driver.Mount{Source: filepath.Join(s.host, name), Target: "/" + name, ReadOnly: true})
			fmt.Fprintf(sum, "bind %s\n", name)
		case info.Mode()&fs.ModeSymlink != 0:
			target, err := os.Readlink(filepath.Join(s.host, name))
			if err != nil {
				return p, err
			}
			if inUsr("/", target) {
				p.links[name] = target
				fmt.Fprintf(sum, "link %s %s\n", name, target)
			}
		}
	}
	return p, nil
}

// inUsr reports whether a symbolic link in dir leads into /usr.
func inUsr(dir, target string) bool {
	if !filepath.IsAbs(target) {
		target = filepath.Join(dir, target)
	}
	target = filepath.Clean(target)
	return target == "/usr" || strings.HasPrefix(target, "/usr/")
}

// etcPaths is what was found in a directory /etc, which has not changed since if its inode says so.
type etcPaths struct {
	mu    sync.Mutex
	ino   uint64        // guarded by mu
	ctime unix.Timespec // guarded by mu
	paths []string      // guarded by mu
}

// settled is after which another change of an inode shows in its time, which is as coarse as the kernel's clock tick.
const settled = time.Second

// publicConfig returns the paths of /etc to copy that this host has.
func (s *Store) publicConfig() ([]string, error) {
	var st unix.Stat_t
	err := unix.Stat(filepath.Join(s.host, "etc"), &st)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	c := &s.etc
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.paths != nil && c.ino == st.Ino && c.ctime == st.Ctim {
		return c.paths, nil
	}
	c.paths = nil
	paths, err := s.findPublicConfig()
	if err == nil && s.now().Sub(time.Unix(st.Ctim.Unix())) > settled {
		c.ino, c.ctime, c.paths = st.Ino, st.Ctim, paths
	}
	return paths, err
}

func (s *Store) findPublicConfig() ([]string, error) {
	etc, err := os.Open(filepath.Join(s.host, "etc"))
	if err != nil {
		return nil, err
	}
	names, err := etc.Readdirnames(-1)
	if err = errors.Join(err, etc.Close()); err != nil {
		return nil, err
	}
	slices.Sort(names)
	parts := hostPublic()
	var paths []string
	for _, name := range names {
		if !hostConfig().MatchString(name) {
			continue
		}
		if parts[name] == nil {
			paths = append(paths, filepath.Join("etc", name))
		}
		for _, part := range parts[name] {
			paths = append(paths, filepath.Join("etc", name, part))
		}
	}
	return paths, nil
}

func (s *Store) hostTemplate() (Template, error) {
	p, err := s.planHost()
	if err != nil {
		return Template{}, s.blameSource("look at the host", err)
	}
	return Template{Name: HostName, Digest: "sha256:" + p.key, Source: "the programs of this host"}, nil
}

// hostRoot gives the template host: a tiny tree with the host's programs bound into it.
func (s *Store) hostRoot(ctx context.Context, t Template, forms []driver.Form) (driver.Root, error) {
	if !slices.Contains(forms, driver.FormDirectory) {
		return driver.Root{}, noForm(HostName, forms)
	}
	if final, err := s.treePath(hexOf(t.Digest)); err == nil && s.touch(final) == nil {
		p, err := s.planTop(io.Discard)
		return driver.Root{Form: driver.FormDirectory, Path: filepath.Join(final, "root"), Binds: p.binds}, s.blameSource("look at the host", err)
	}
	p, err := s.planHost() // the host may have changed since t was got
	if err != nil {
		return driver.Root{}, s.blameSource("look at the host", err)
	}
	path, err := s.tree(ctx, p.key, func() (*erofs.Node, func() error, error) {
		root, err := s.hostTree(ctx, p)
		return root, func() error { return nil }, err
	})
	if err != nil {
		return driver.Root{}, s.blame("serve template host", err)
	}
	return driver.Root{Form: driver.FormDirectory, Path: path, Binds: p.binds}, nil
}

func (s *Store) hostTree(ctx context.Context, p hostPlan) (*erofs.Node, error) {
	t := rootfs.New(nil, rootfs.Limits{Entries: 50_000}) // all its files lie in memory, so no spool
	for name, target := range p.links {
		if err := t.Symlink(target, name); err != nil {
			return nil, err
		}
	}
	for _, b := range p.binds {
		if err := t.MkdirAll(b.Target, 0o755, 0); err != nil {
			return nil, err
		}
	}
	for _, dir := range []string{"/var/lib", "/var/cache", "/var/log", "/opt", "/srv", "/mnt", "/media"} {
		if err := t.MkdirAll(dir, 0o755, 0); err != nil {
			return nil, err
		}
	}
	c := &configCopy{store: s, tree: t}
	for _, path := range p.config {
		if err := c.add(path, 0); err != nil {
			return nil, fmt.Errorf("copy /%s: %w", path, err)
		}
	}
	for _, f := range s.hostFiles() {
		if err := t.WriteFile(f.path, []byte(f.text), 0o644); err != nil {
			return nil, err
		}
	}
	if err := errors.Join(t.Symlink("/proc/self/mounts", "/etc/mtab"), t.Symlink("../run", "/var/run"),
		t.Symlink("../run/lock", "/var/lock")); err != nil {
		return nil, err
	}
	return t.Root(), t.Complete(ctx)
}

type textFile struct{ path, text string }

func (s *Store) hostFiles() []textFile {
	shell := "/bin/sh"
	if _, err := os.Stat(filepath.Join(s.host, "bin/bash")); err == nil {
		shell = "/bin/bash"
	}
	return []textFile{
		{"/etc/passwd", "root:x:0:0:root:/root:" + shell + "\n" +
			"daemon:x:1:1:daemon:/usr/sbin:/usr/sbin/nologin\n" +
			"user:x:1000:1000::/home/user:" + shell + "\n" +
			"nobody:x:65534:65534:nobody:/nonexistent:/usr/sbin/nologin\n"},
		{"/etc/group", "root:x:0:\ndaemon:x:1:\nsys:x:3:\nadm:x:4:\ntty:x:5:\ndisk:x:6:\nmail:x:8:\nutmp:x:43:\n" +
			"staff:x:50:\nusers:x:100:\nuser:x:1000:\nnogroup:x:65534:\n"},
		{"/etc/nsswitch.conf", "passwd: files\ngroup: files\nshadow: files\nhosts: files dns\nnetworks: files\n" +
			"protocols: files\nservices: files\nethers: files\nrpc: files\n"},
		{"/etc/shells", "/bin/sh\n/bin/bash\n/usr/bin/bash\n"},
		{"/etc/profile", "export PATH=\"${PATH:-/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin}\"\n"},
	}
}

// configCopy copies public configuration of the host: what everybody on the host may read, and no more of it than a
// sane host has.
type configCopy struct {
	store *Store
	tree  *rootfs.Tree
	bytes int64
}

const (
	maxConfigFile  = 4 << 20
	maxConfigBytes = 64 << 20
	maxConfigDepth = 8
)

func (c *configCopy) add(path string, depth int) error {
	full := filepath.Join(c.store.host, path)
	info, err := os.Lstat(full)
	if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode()&fs.ModeSymlink != 0 {
		return c.addLink(path, full)
	}
	switch {
	case info.Mode().IsRegular():
		return c.addFile(path, full, info)
	case info.IsDir() && info.Mode().Perm()&0o005 == 0o005 && depth < maxConfigDepth:
		return c.addDir(path, full, depth)
	}
	return nil
}

// addLink keeps links into /usr and to neighbours; the sandbox does not see what others lead to.
func (c *configCopy) addLink(path, full string) error {
	target, err := os.Readlink(full)
	if err != nil {
		return err
	}
	if inUsr(filepath.Dir("/"+path), target) || !filepath.IsAbs(target) && !strings.Contains(target, "/") {
		return c.tree.Symlink(target, "/"+path)
	}
	return nil
}

func (c *configCopy) addDir(path, full string, depth int) error {
	entries, err := os.ReadDir(full)
	if err != nil {
		return err
	}
	if err := c.tree.MkdirAll("/"+path, 0o755, 0); err != nil {
		return err
	}
	for _, e := range entries {
		if strings.HasSuffix(e.Name(), ".gz") {
			continue // alternatives of manual pages, by the hundred
		}
		if err := c.add(filepath.Join(path, e.Name()), depth+1); err != nil {
			return err
		}
	}
	return nil
}

func (c *configCopy) addFile(path, full string, info fs.FileInfo) error {
	c.bytes += info.Size()
	if info.Mode().Perm()&0o004 == 0 || info.Size() > maxConfigFile || c.bytes > maxConfigBytes {
		return nil
	}
	data, err := os.ReadFile(full)
	if err != nil {
		return err
	}
	return c.tree.WriteFile("/"+path, data, uint16(info.Mode().Perm()&0o755))
}
