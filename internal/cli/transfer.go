package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// input is a file or directory of the caller that is copied in before the program starts.
type input struct{ host, guest string }

// parseInputs reads host[:guest]. A file that is there under all of the name is meant by it.
func parseInputs(specs []string) (all []input, err error) {
	for _, spec := range specs {
		in := input{host: spec}
		if _, err = os.Stat(spec); err != nil {
			if at := strings.LastIndexByte(spec, ':'); at > 0 {
				in = input{spec[:at], spec[at+1:]}
				_, err = os.Stat(in.host)
			}
		}
		switch {
		case errors.Is(err, fs.ErrNotExist):
			return nil, noFile(in.host, "write --input HOST or --input HOST:GUEST")
		case err != nil:
			return nil, invalid("", err, "")
		}
		all = append(all, in)
	}
	return all, nil
}

// copyIn copies the --input files into a sandbox in which nothing runs yet.
func (l *launch) copyIn(ctx context.Context) error {
	if len(l.inputs) == 0 {
		return nil
	}
	defer l.report.lap(&l.report.upload)()
	boundary := l.sandbox.GetBoundary()
	if boundary == firebreak.BoundaryNone.String() {
		return &firebreak.Error{Kind: firebreak.KindUnsupported, Err: errors.New("nothing is copied in: programs without isolation have this host's files, which it could overwrite"),
			Mend: "leave --input out"}
	}
	for _, in := range l.inputs {
		to := remotePath{client: l.client, id: l.sandbox.GetId(), path: l.below(in.guest), user: l.program.user}
		up, err := l.app.upload(ctx, in.host, to)
		if err == nil && boundary != firebreak.BoundaryLanguage.String() { // where files have no permissions that matter
			err = up.setModes(ctx)
		}
		if err != nil {
			return fmt.Errorf("%w %s in: %w", errCopyIn, in.host, err)
		}
	}
	return nil
}

// suggestInput says which file of the caller a program that failed may have looked for.
func (l *launch) suggestInput(ctx context.Context) {
	const blind = "v8" // the driver whose programs see no files
	if l.app.quiet || l.flags.json || l.sandbox.GetDriver() == blind || l.sandbox.GetBoundary() == firebreak.BoundaryNone.String() {
		return
	}
	ctx, cancel := context.WithTimeout(ctx, killed) // for an agent that the program may have stopped
	defer cancel()
	for _, arg := range l.program.command[1:] {
		if !isFileBelow(arg) {
			continue
		}
		at := remotePath{client: l.client, id: l.sandbox.GetId(), path: l.below(arg), user: l.program.user}
		if _, err := at.stat(ctx); firebreak.KindOf(err) == firebreak.KindNotFound {
			l.app.say(plain, "%s lies on this host and not in the sandbox; --input %s copies it in", arg, topOf(arg))
			return
		}
	}
}

// onlyHere is the error of a program that was not found in the sandbox, and may be one of this host.
func (l *launch) onlyHere(err error) error {
	var failed *startFailure
	name := l.program.command[0]
	if !errors.As(err, &failed) || !isFileBelow(name) || len(l.inputs) > 0 || l.sandbox.GetBoundary() == firebreak.BoundaryNone.String() {
		return err
	}
	return &startFailure{code: failed.code, err: &firebreak.Error{Kind: failed.err.Kind, Err: failed.err.Err,
		Mend: "it lies on this host: " + withInput(name)}}
}

// withInput is how to run a program of this host.
func withInput(name string) string {
	if name = path.Clean(name); filepath.IsLocal(name) {
		return fmt.Sprintf("firebreak run --input %s -- ./%s", topOf(name), name)
	}
	return fmt.Sprintf("firebreak run --input %s -- ./%s", name, path.Base(name))
}

// isFileBelow reports whether a word names a file of this host below the work directory.
func isFileBelow(name string) bool {
	info, err := os.Stat(name)
	return err == nil && info.Mode().IsRegular() && filepath.IsLocal(name)
}

// topOf is the first directory of a path, or the file itself: with it, all keeps its place.
func topOf(name string) string {
	top, _, _ := strings.Cut(path.Clean(name), "/")
	return top
}

// below is the path that is meant by one relative to the work directory; "" is that directory.
func (l *launch) below(guest string) string {
	switch dir := l.program.cwd; {
	case guest == "":
		return path.Clean(dir) + "/"
	case dir == "" || path.IsAbs(guest):
		return guest
	case strings.HasSuffix(guest, "/"):
		return path.Join(dir, guest) + "/"
	default:
		return path.Join(dir, guest)
	}
}

// errCopyIn marks an error of copying in, when no program has begun.
var errCopyIn = errors.New("copy")

// errCopy marks an error of copying out: the program has ended by then.
var errCopy = errors.New("copy")

// copyOut copies the --output results out of a sandbox that still lives. Without the program's success a missing result
// is no error of its own.
func (l *launch) copyOut(ctx context.Context, err error, res result) error {
	if err != nil && !errors.Is(err, errTimeLimit) {
		return err
	}
	for _, spec := range l.flags.outputs {
		guest, host, given := strings.Cut(spec, ":")
		if !given || host == "" {
			host = "."
		}
		from := remotePath{client: l.client, id: l.sandbox.GetId(), path: l.below(guest), user: l.program.user}
		copyErr := l.app.copyFrom(ctx, from, host, defaultCopyLimit)
		switch {
		case copyErr == nil:
		case err == nil && res.code == 0:
			err = fmt.Errorf("%w %s out: %w", errCopy, guest, copyErr)
		default:
			l.app.warn("%s was not copied out: %s", guest, copyErr)
		}
	}
	return err
}
