// Package agentbin finds the programs that run in and around sandboxes: the agent, embedded by `make build`, beside the
// running program, or built from source with the Go toolchain; and the running program itself in a static build.
package agentbin

import (
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"

	"github.com/firebreak-dev/firebreak"
)

//go:embed all:bin
var embedded embed.FS

const (
	embeddedName = "bin/firebreak-agent.gz"
	siblingName  = "firebreak-agent"
	maxSize      = 512 << 20 // of a program, bytes
)

// Path returns the absolute path of the agent's executable in dir, which it makes if need be. The file's name holds the
// digest of where it came from, so that versions do not meet; several processes may call at once. The error is of
// firebreak.KindHost if there is no agent to be had.
func Path(ctx context.Context, dir string, log *slog.Logger) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	packed, err := embedded.ReadFile(embeddedName)
	if err == nil {
		return install(dir, "agent-"+digest(packed), func(w io.Writer) error { return unpack(w, packed) })
	}
	exe, err := os.Executable()
	if err != nil {
		return "", fmt.Errorf("find the running program: %w", err)
	}
	sibling := filepath.Join(filepath.Dir(exe), siblingName)
	if info, err := os.Stat(sibling); err == nil && info.Mode().IsRegular() {
		key := fmt.Sprintf("%s %d %d", sibling, info.Size(), info.ModTime().UnixNano())
		return install(dir, "agent-"+digest([]byte(key)), func(w io.Writer) error { return copyFile(w, sibling) })
	}
	return fromSource(ctx, dir, exe, log)
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func unpack(w io.Writer, packed []byte) error {
	r, err := gzip.NewReader(bytes.NewReader(packed))
	if err != nil {
		return err
	}
	_, err = io.Copy(w, io.LimitReader(r, maxSize))
	return err
}

func copyFile(w io.Writer, name string) error {
	f, err := os.Open(name)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.Copy(w, io.LimitReader(f, maxSize))
	return err
}

// install makes dir/name with what write gives, unless it is there. The rename makes it whole or absent.
func install(dir, name string, write func(io.Writer) error) (string, error) {
	path := filepath.Join(dir, name)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", fmt.Errorf("make directory for programs: %w", err)
	}
	temp, err := os.CreateTemp(dir, ".new-*")
	if err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	defer os.Remove(temp.Name())
	err = write(temp)
	err = errors.Join(err, temp.Chmod(0o555), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return "", fmt.Errorf("install %s: %w", name, err)
	}
	return path, nil
}

// fromSource builds the agent from the module that the running program was built from.
func fromSource(ctx context.Context, dir, exe string, log *slog.Logger) (string, error) {
	path, err := build(ctx, dir, exe, program{"agent", "./cmd/firebreak-agent"}, log)
	if err != nil {
		return "", noAgent(err)
	}
	return path, nil
}

func noAgent(err error) error {
	return &firebreak.Error{Kind: firebreak.KindHost, Op: "find the agent that runs inside sandboxes", Err: err,
		Mend: "run `make build` in Firebreak's source and use bin/firebreak, which carries its agent"}
}
