package build

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"path"
	"regexp"
	"strings"
	"sync"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/build/step"
)

// defaultPath is the PATH of an image that sets none.
const defaultPath = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"

// do runs one step.
func (b *box) do(ctx context.Context, s step.Step) error {
	switch s.Kind {
	case step.KindEnv:
		return b.setEnv(s)
	case step.KindRun:
		return b.runCommand(ctx, s)
	case step.KindCopy:
		return b.copyFiles(ctx, s)
	case step.KindWorkdir:
		return b.setWorkdir(ctx, s)
	default:
		return b.setUser(ctx, s)
	}
}

func (b *box) lookUp(name string) string {
	if value, ok := b.place.envs[name]; ok || name != "PATH" {
		return value
	}
	return defaultPath
}

// setEnv sets variables. The values of one step see those of the steps before.
func (b *box) setEnv(s step.Step) error {
	envs := map[string]string{}
	maps.Copy(envs, b.place.envs)
	size := 0
	for _, v := range s.Variables {
		value, err := step.Expand(v[1], b.lookUp)
		if err != nil {
			return err
		}
		envs[v[0]] = value
	}
	for k, v := range envs {
		size += len(k) + len(v)
	}
	if size > step.MaxText {
		return invalid("all variables together have more than %d bytes", step.MaxText)
	}
	b.place.envs = envs
	return nil
}

func (b *box) runCommand(ctx context.Context, s step.Step) error {
	if err := b.open(ctx); err != nil {
		return err
	}
	user := s.User
	if user == "" {
		user = b.place.user
	}
	b.changed = true
	log := b.job.log
	err := run(ctx, b.guest, command{text: s.Command, user: user, dir: b.place.dir, envs: b.place.envs, line: log.output})
	failed := new(exitError)
	if !errors.As(err, failed) {
		return err
	}
	tail := log.tail()
	if hint := b.hint(strings.Join(tail, "\n")); hint != "" {
		log.add(LevelWarn, "%s", hint)
		tail = append(tail, hint)
	}
	text := fmt.Sprintf("step %d, %s: %s", s.Number, s.Text(), failed.status)
	if len(tail) > 5 {
		tail = tail[len(tail)-5:]
	}
	return saidError{strings.Join(append([]string{text}, tail...), "\n")}
}

// hint says what a failure may come from that the command's own words do not tell.
func (b *box) hint(output string) string {
	switch {
	case offline().MatchString(output):
		return offlineHint
	case b.boundary == firebreak.BoundarySharedKernel && powerless().MatchString(output):
		return powerlessHint
	}
	return ""
}

func (b *box) copyFiles(ctx context.Context, s step.Step) error {
	files, err := b.job.openFiles(b.job.build.Tenant, s.FilesHash)
	if err != nil {
		return err
	}
	defer files.Close()
	dest, err := step.Expand(s.Copy.Dest, b.lookUp)
	if err != nil {
		return err
	}
	if err := b.open(ctx); err != nil {
		return err
	}
	b.changed = true
	return b.copyIn(ctx, s.Copy, dest, files)
}

// setWorkdir changes the directory in which steps and sandboxes begin, and makes it if need be.
func (b *box) setWorkdir(ctx context.Context, s step.Step) error {
	dir, err := step.Expand(s.Dir, b.lookUp)
	if err != nil {
		return err
	}
	if err := b.open(ctx); err != nil {
		return err
	}
	if dir, err = b.absolute(ctx, dir); err != nil {
		return err
	}
	there, err := exists(ctx, b.guest, dir)
	if err == nil && !there {
		err = b.makeDirs(ctx, dir)
	}
	b.place.dir = dir
	return err
}

// absolute returns dir as the user of the steps means it.
func (b *box) absolute(ctx context.Context, dir string) (string, error) {
	if path.IsAbs(dir) {
		return path.Clean(dir), nil
	}
	rest, tilde := strings.CutPrefix(dir, "~")
	if !tilde || rest != "" && rest[0] != '/' {
		if rest = dir; b.place.dir != "" {
			return path.Join(b.place.dir, dir), nil
		}
	}
	req := connect.NewRequest(&filesystemv1.StatRequest{Path: "~"})
	asUser(req, b.place.user)
	res, err := b.guest.Filesystem().Stat(ctx, req)
	if err != nil {
		return "", blame(ctx, err)
	}
	home := res.Msg.GetEntry().GetPath()
	if !path.IsAbs(home) || !step.Plain(home) || len(home) > step.MaxPath {
		return "", invalid("the home of %s is no directory", b.place.user)
	}
	return path.Join(home, rest), nil
}

// addUser makes an account, if there is none, with what the image has for that.
const addUser = `id -u %[1]s >/dev/null 2>&1 && exit 0
if command -v useradd >/dev/null; then exec useradd --create-home --shell /bin/bash %[1]s; fi
exec adduser -D -s /bin/bash %[1]s`

// addSudo lets an account become root without a password.
const addSudo = `command -v sudo >/dev/null || { echo "there is no sudo in the image"; exit 1; }
mkdir -p /etc/sudoers.d && printf '%%s ALL=(ALL:ALL) NOPASSWD: ALL\n' %[1]s >/etc/sudoers.d/build-%[2]d && chmod 0440 /etc/sudoers.d/build-%[2]d`

var numeric = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^[0-9]+(:[0-9]+)?$`)
})

// setUser changes who steps and sandboxes run as. Accounts that are numbers need not be there.
func (b *box) setUser(ctx context.Context, s step.Step) error {
	user := s.User
	if !numeric().MatchString(user) {
		user, _, _ = strings.Cut(user, ":") // its groups are the account's
		if err := b.open(ctx); err != nil {
			return err
		}
		b.changed = true // perhaps
		if _, err := collect(ctx, b.guest, fmt.Sprintf(addUser, user)); err != nil {
			return saidError{fmt.Sprintf("step %d, %s: %s", s.Number, s.Text(), tidy(err.Error()))}
		}
	}
	if s.Sudo {
		if err := b.open(ctx); err != nil {
			return err
		}
		b.changed = true
		if _, err := collect(ctx, b.guest, fmt.Sprintf(addSudo, user, s.Number)); err != nil {
			return saidError{fmt.Sprintf("step %d, %s: %s", s.Number, s.Text(), tidy(err.Error()))}
		}
	}
	b.place.user = user
	return nil
}
