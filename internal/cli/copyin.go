package cli

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

// The permissions that a file and a directory have in the sandbox unless they are changed.
const (
	newFileMode = 0o644
	newDirMode  = 0o755
)

// uploader copies one tree into a sandbox.
type uploader struct {
	app   *app
	to    remotePath
	meter *meter
	modes map[os.FileMode][]string // permissions to set at the end, as the paths that get them
}

// copyTo copies the caller's src into the sandbox.
func (a *app) copyTo(ctx context.Context, src string, to remotePath) error {
	u, err := a.upload(ctx, src, to)
	if err != nil {
		return err
	}
	return u.setModes(ctx)
}

// upload is copyTo but for permissions.
func (a *app) upload(ctx context.Context, src string, to remotePath) (*uploader, error) {
	info, err := os.Stat(src)
	if err != nil {
		return nil, invalid("", err, "")
	}
	u := &uploader{app: a, to: to, meter: a.newMeter("copied"), modes: map[os.FileMode][]string{}}
	defer u.meter.close()
	target := to.path
	entry, err := to.stat(ctx)
	switch kind := firebreak.KindOf(err); {
	case err != nil && kind != firebreak.KindNotFound:
		return nil, err
	case err == nil && entry.GetType() == filesystem.FileType_FILE_TYPE_DIRECTORY:
		target = entry.GetPath()
		if !strings.HasSuffix(src, "/.") && src != "." {
			abs, err := filepath.Abs(src)
			if err != nil {
				return nil, err
			}
			target = path.Join(target, filepath.Base(abs))
		}
	case err == nil && info.IsDir():
		return nil, invalid("", fmt.Errorf("%s is a directory, and %s in the sandbox is none", src, to.path), "")
	case strings.HasSuffix(to.path, "/") && !info.IsDir():
		target = path.Join(to.path, filepath.Base(src))
	}
	if info.IsDir() {
		err = u.tree(ctx, src, target)
	} else {
		err = u.single(ctx, src, target, info)
	}
	return u, err
}

func (u *uploader) single(ctx context.Context, src, target string, info fs.FileInfo) error {
	f, err := os.Open(src)
	if err != nil {
		return err
	}
	defer f.Close()
	if err := u.send(ctx, f, target); err != nil {
		return err
	}
	got, err := u.to.at(target).stat(ctx)
	if err != nil {
		return err
	}
	u.wantMode(got.GetPath(), info.Mode(), newFileMode)
	return nil
}

func (p remotePath) at(name string) remotePath {
	p.path = name
	return p
}

func (u *uploader) send(ctx context.Context, r io.Reader, target string) error {
	return u.to.client.WriteFile(ctx, u.to.id, target, u.to.user, u.meter.reader(r))
}

// tree copies a directory. Links that lead out of it are left out.
func (u *uploader) tree(ctx context.Context, src, target string) error {
	root, err := os.OpenRoot(src)
	if err != nil {
		return err
	}
	defer root.Close()
	base, err := u.makeDir(ctx, target)
	if err != nil {
		return err
	}
	return fs.WalkDir(root.FS(), ".", func(name string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		info, err := root.Stat(name) // follows links, but only below src
		if err != nil {
			u.app.warn("%q is left out: %s", name, err)
			return nil
		}
		remote := path.Join(base, name)
		switch {
		case d.IsDir():
			if name != "." {
				if _, err := u.makeDir(ctx, remote); err != nil {
					return err
				}
			}
			u.wantMode(remote, info.Mode()|0o700, newDirMode) // so that chmod reaches what is in it
		case info.Mode().IsRegular():
			return u.treeFile(ctx, root, name, remote, info)
		default:
			u.app.warn("%q is left out: it is neither a file nor a directory", name)
		}
		return nil
	})
}

func (u *uploader) treeFile(ctx context.Context, root *os.Root, name, remote string, info fs.FileInfo) error {
	f, err := root.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	u.wantMode(remote, info.Mode(), newFileMode)
	return u.send(ctx, f, remote)
}

// makeDir makes a directory, which may be there, and returns its absolute path.
func (u *uploader) makeDir(ctx context.Context, name string) (string, error) {
	_, err := u.to.client.Filesystem(u.to.id).MakeDir(ctx, request(u.to.user, &filesystem.MakeDirRequest{Path: name}))
	if err != nil && firebreak.KindOf(err) != firebreak.KindExists {
		return "", err
	}
	entry, err := u.to.at(name).stat(ctx)
	return entry.GetPath(), err
}

func (u *uploader) wantMode(name string, m, unless os.FileMode) {
	if m = m.Perm(); m != unless {
		u.modes[m] = append(u.modes[m], name)
	}
}

// maxChmod bounds the arguments of one chmod.
const maxChmod = 64 << 10

// setModes has the sandbox's own chmod do it: the protocol has no call for it.
func (u *uploader) setModes(ctx context.Context) error {
	for m, names := range u.modes {
		for len(names) > 0 {
			n, length := 0, 0
			for n < len(names) && (n == 0 || length+len(names[n]) < maxChmod) {
				length += len(names[n]) + 1
				n++
			}
			if err := u.chmod(ctx, m, names[:n]); err != nil {
				return err
			}
			names = names[n:]
		}
	}
	return nil
}

func (u *uploader) chmod(ctx context.Context, m os.FileMode, names []string) error {
	var said bytes.Buffer
	res, err := u.app.attach(ctx, u.to.client, u.to.id, program{
		command: append([]string{"chmod", fmt.Sprintf("%04o", m)}, names...), user: u.to.user, stdout: &said, stderr: &said,
	})
	var failed *startFailure
	switch {
	case errors.As(err, &failed):
		u.app.warn("permissions are not kept: the sandbox has no chmod")
		return nil
	case err != nil:
		return fmt.Errorf("keep permissions: %w", err)
	case res.code != 0:
		u.app.warn("permissions are not kept: %.200s", said.String())
	}
	return nil
}
