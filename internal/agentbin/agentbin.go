// Package agentbin finds the agent's executable: built from the source that the running program knows, embedded by
// `make build`, or beside the running program.
package agentbin

import (
	"compress/gzip"
	"context"
	"crypto/sha256"
	"embed"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"syscall"

	"github.com/firebreak-dev/firebreak"
)

//go:embed all:bin
var embedded embed.FS

const (
	embeddedName = "bin/firebreak-agent.gz"
	siblingName  = "firebreak-agent"
	maxSize      = 64 << 20 // of an agent, bytes
)

// Path returns the absolute path of the agent's executable in dir, which it makes if need be. The file's name holds the
// digest of where it came from, so that versions do not meet; several processes may call at once. The error is of
// firebreak.KindHost if there is no agent to be had.
//
// A program that knows the source it was built from, as go run and go test make it, takes the agent of that source as
// it is now: what an earlier make build left to embed is older. A program that was built to be moved does not know it.
func Path(ctx context.Context, dir string, log *slog.Logger) (string, error) {
	dir, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	path, err := fromSource(ctx, dir, log)
	if err == nil {
		return path, nil
	}
	if _, err := fs.Stat(embedded, embeddedName); err == nil {
		key, err := packedKey()
		if err != nil {
			return "", err
		}
		return install(dir, key, unpackEmbedded)
	}
	exe, err2 := os.Executable()
	if err2 != nil {
		return "", fmt.Errorf("find the running program: %w", err2)
	}
	sibling := filepath.Join(filepath.Dir(exe), siblingName)
	if info, err := os.Stat(sibling); err == nil && info.Mode().IsRegular() {
		key := fmt.Sprintf("%s %d %d", sibling, info.Size(), info.ModTime().UnixNano())
		return install(dir, digest([]byte(key)), func(w io.Writer) error { return copyFile(w, sibling) })
	}
	return "", noAgent(err)
}

// packedKey names what is embedded by the program that embeds it: reading a note is faster than digesting megabytes.
func packedKey() (string, error) {
	if key, err := buildKey("/proc/self/exe"); err == nil {
		return key, nil
	}
	packed, err := embedded.ReadFile(embeddedName)
	if err != nil {
		return "", fmt.Errorf("read the embedded agent: %w", err)
	}
	return digest(packed), nil
}

func digest(b []byte) string {
	sum := sha256.Sum256(b)
	return hex.EncodeToString(sum[:16])
}

func unpackEmbedded(w io.Writer) error {
	packed, err := embedded.Open(embeddedName)
	if err != nil {
		return err
	}
	defer packed.Close()
	return unpack(w, packed)
}

func unpack(w io.Writer, packed io.Reader) error {
	r, err := gzip.NewReader(packed)
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

// install makes dir/agent-key with what write gives, unless it is there. The rename makes it whole or absent.
func install(dir, key string, write func(io.Writer) error) (string, error) {
	path := filepath.Join(dir, "agent-"+key)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return "", installError(dir, err)
	}
	temp, err := os.CreateTemp(dir, ".agent-*")
	if err != nil {
		return "", installError(dir, err)
	}
	defer os.Remove(temp.Name())
	err = write(temp)
	err = errors.Join(err, temp.Chmod(0o555), temp.Close())
	if err == nil {
		err = os.Rename(temp.Name(), path)
	}
	if err != nil {
		return "", installError(dir, err)
	}
	return path, nil
}

func installError(dir string, err error) error {
	if errors.Is(err, syscall.ENOSPC) || errors.Is(err, syscall.EDQUOT) {
		return &firebreak.Error{Kind: firebreak.KindExhausted, Op: "install the agent", Err: err,
			Mend: "free space on the disk of " + dir + ", or use another state directory (--state-dir or FIREBREAK_STATE_DIR)"}
	}
	return fmt.Errorf("install the agent: %w", err)
}

// fromSource builds the agent from the module that the running program was built from. The key is the program's own
// build and the time of the newest file that the agent is made of: either may bring a new agent.
func fromSource(ctx context.Context, dir string, log *slog.Logger) (string, error) {
	module, err := moduleDir()
	if err != nil {
		return "", err
	}
	key, err := sourceKey(module)
	if err != nil {
		return "", err
	}
	path := filepath.Join(dir, "agent-"+key)
	if _, err := os.Stat(path); err == nil {
		return path, nil
	}
	gotool, err := exec.LookPath("go")
	if err != nil {
		return "", err
	}
	log.Info("building the agent, once for this build of firebreak")
	temp, err := os.MkdirTemp("", "firebreak-agent-")
	if err != nil {
		return "", fmt.Errorf("build the agent: %w", err)
	}
	defer os.RemoveAll(temp)
	built := filepath.Join(temp, siblingName)
	build := exec.CommandContext(ctx, gotool, "build", "-trimpath", "-ldflags", "-s -w", "-o", built, "./cmd/firebreak-agent")
	build.Dir = module
	build.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-buildvcs=false")
	if out, err := build.CombinedOutput(); err != nil {
		return "", fmt.Errorf("go build: %w: %s", err, lastLine(out))
	}
	return install(dir, key, func(w io.Writer) error { return copyFile(w, built) })
}

// sourceKey looks at times and not at contents, which would take longer than all the rest of a start.
func sourceKey(module string) (string, error) {
	own, err := buildKey("/proc/self/exe")
	if err != nil {
		return "", err
	}
	newest := int64(0)
	for _, part := range []string{"cmd/firebreak-agent", "internal/agent", "internal/api", "go.mod"} {
		err := filepath.WalkDir(filepath.Join(module, part), func(_ string, d fs.DirEntry, err error) error {
			if err != nil {
				return err
			}
			info, err := d.Info()
			if err == nil { // a directory's time tells of files that are gone
				newest = max(newest, info.ModTime().UnixNano())
			}
			return ignoreMissing(err)
		})
		if err != nil {
			return "", fmt.Errorf("look at the agent's source: %w", err)
		}
	}
	return digest(fmt.Appendf(nil, "%s %d", own, newest)), nil
}

func ignoreMissing(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

func noAgent(err error) error {
	return &firebreak.Error{Kind: firebreak.KindHost, Op: "find the agent that runs inside sandboxes", Err: err,
		Mend: "run `make build` in Firebreak's source and use bin/firebreak, which carries its agent"}
}

func lastLine(out []byte) string {
	text := strings.TrimSpace(string(out))
	return text[strings.LastIndexByte(text, '\n')+1:]
}

// moduleDir is where this source file lay when it was compiled, if it is still there.
func moduleDir() (string, error) {
	_, file, _, ok := runtime.Caller(0)
	if !ok || !filepath.IsAbs(file) {
		return "", errors.New("this program does not know where its source is")
	}
	dir := filepath.Join(filepath.Dir(file), "..", "..")
	if _, err := os.Stat(filepath.Join(dir, "cmd", siblingName)); err != nil {
		if errors.Is(err, fs.ErrNotExist) {
			return "", fmt.Errorf("its source is no longer at %s", dir)
		}
		return "", err
	}
	return dir, nil
}
