package cli

import (
	"context"
	"errors"
	"io"
	"os"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak/client"
)

// What comes out of a sandbox is bounded, because a sandbox may claim any size: a sparse file of terabytes, a directory
// of itself.
const (
	defaultCopyLimit = 10 << 30 // bytes, all files together; firebreak cp --limit
	maxCopyEntries   = 1_000_000
	maxCopyDepth     = 128
	maxUnsized       = 64 << 20 // bytes of a file that claims to be empty, as those of /proc do
)

// remotePath is a file or directory in a sandbox.
type remotePath struct {
	client         *client.Client
	id, path, user string
}

func (a *app) cpCommand() *cobra.Command {
	limit := sizeFlag(defaultCopyLimit)
	user := ""
	cmd := &cobra.Command{
		Use:   "cp SANDBOX:PATH DEST | SRC SANDBOX:PATH",
		Short: "Copy files and directories out of a sandbox or into it",
		Long: `Copy files and directories out of a sandbox or into it. As with cp -r, a destination that is a directory gets the
source under its own name. "-" is standard input or output, for one file.

What comes out stays below the destination, whatever its names and links say: links that lead out of what is copied are
left out, with a warning, and so are devices. Permissions are kept, but never setuid and the like.`,
		Example: "  firebreak cp work:report.svg .\n  firebreak cp ./data work:/tmp/data\n  firebreak cp work:/etc/os-release -",
		Args:    arguments(2, 2, "write firebreak cp SANDBOX:PATH DEST, or firebreak cp SRC SANDBOX:PATH"),
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		return a.cp(cmd.Context(), args[0], args[1], user, int64(limit))
	}
	cmd.Flags().StringVarP(&user, "user", "u", "", "`user` of the sandbox who reads or writes (default: the template's)")
	cmd.Flags().Var(&limit, "limit", "stop when what comes out is more than this")
	cmd.ValidArgsFunction = func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
		names, _ := a.completeSandboxes(cmd, args, word)
		for i, name := range names {
			id, _, _ := strings.Cut(name, "\t")
			names[i] = id + ":"
		}
		return names, cobra.ShellCompDirectiveNoSpace
	}
	return cmd
}

var remotePattern = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`^([A-Za-z0-9][A-Za-z0-9_.-]*):(.*)$`)
})

// splitRemote takes "ID:PATH" apart. A local path with a colon is written ./with:colon.
func splitRemote(s string) (sandbox, file string, ok bool) {
	m := remotePattern().FindStringSubmatch(s)
	if m == nil {
		return "", "", false
	}
	if m[2] == "" {
		m[2] = "."
	}
	return m[1], m[2], true
}

func (a *app) cp(ctx context.Context, src, dst, user string, limit int64) error {
	srcBox, srcPath, out := splitRemote(src)
	dstBox, dstPath, in := splitRemote(dst)
	switch {
	case out && in:
		return invalid("", errors.New("both are in a sandbox"), "copy by way of this host")
	case !out && !in:
		return invalid("", errors.New("neither is in a sandbox"), "write SANDBOX:PATH for the one that is")
	}
	return a.with(ctx, func(ctx context.Context, c *client.Client) error {
		id, err := resolveLive(ctx, c, srcBox+dstBox)
		if err != nil {
			return err
		}
		remote := remotePath{client: c, id: id, path: srcPath + dstPath, user: user}
		switch {
		case out && dst == "-":
			return a.copyToStdout(ctx, remote)
		case out:
			return a.copyFrom(ctx, remote, dst, limit)
		case src == "-":
			return a.copyStdin(ctx, remote)
		}
		return a.copyTo(ctx, src, remote)
	})
}

func (a *app) copyToStdout(ctx context.Context, from remotePath) error {
	r, err := from.client.ReadFile(ctx, from.id, from.path, from.user)
	if err != nil {
		return err
	}
	defer r.Close()
	_, err = io.Copy(a.out, r)
	return err
}

func (a *app) copyStdin(ctx context.Context, to remotePath) error {
	if strings.HasSuffix(to.path, "/") || path.Clean(to.path) == "." {
		return invalid("", errors.New("the name of the file is missing"), "write SANDBOX:PATH/NAME")
	}
	in, err := newInputReader(a.in)
	if err != nil {
		return err
	}
	defer in.Close()
	stop := context.AfterFunc(ctx, in.Stop)
	defer stop()
	return to.client.WriteFile(ctx, to.id, to.path, to.user, in)
}

// mode is what of a file's permissions is kept.
func mode(m uint32) os.FileMode { return os.FileMode(m) & os.ModePerm }
