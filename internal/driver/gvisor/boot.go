package gvisor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"time"

	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"

	"github.com/firebreak-dev/firebreak"
)

// boot waits until the sentry is up, and has it start the agent as its first program.
func (s *box) boot(ctx context.Context, ready *os.File) error {
	err := awaitBoot(ctx, ready)
	if err == nil {
		err = s.startAgent(ctx)
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		return nil
	}
	words := lastWords(s.record)
	return &firebreak.Error{Kind: kindOf(words), Op: "boot gVisor", Err: errors.New(err.Error() + words)}
}

// startAgent does what runsc start does.
func (s *box) startAgent(ctx context.Context) error {
	conn, err := dialControl(ctx, s.record)
	if err != nil {
		return err
	}
	defer conn.Close()
	loopback := boot.CreateLinksAndRoutesArgs{LoopbackLinks: []boot.LoopbackLink{boot.DefaultLoopbackLink}}
	if err := callOn(ctx, conn, boot.ContMgrSetNetworkArgs, &loopback, nil); err != nil {
		return err
	}
	id := string(s.id)
	return callOn(ctx, conn, boot.ContMgrRootContainerStart, &id, nil)
}

// awaitBoot returns when the sentry listens on its control socket.
func awaitBoot(ctx context.Context, ready *os.File) error {
	stop := context.AfterFunc(ctx, func() { _ = ready.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if _, err := ready.Read(make([]byte, 1)); err != nil {
		return errors.New("it ended before it was up")
	}
	return nil
}

// kindOf classes what gVisor says only in words.
func kindOf(words string) firebreak.Kind {
	if strings.Contains(words, unix.ENOSPC.Error()) {
		return firebreak.KindExhausted
	}
	return firebreak.KindHost
}

// lastWords is what gVisor itself wrote before it gave up, for a person.
func lastWords(record string) string {
	file, err := os.Open(filepath.Join(record, panicName))
	if err != nil {
		return ""
	}
	defer file.Close()
	text := make([]byte, 4096)
	n, _ := file.Read(text)
	return tail(string(text[:n]))
}

// tail is the first line of text, after a colon.
func tail(text string) string {
	line, _, _ := strings.Cut(strings.TrimSpace(text), "\n")
	if line == "" {
		return ""
	}
	return ": " + line
}

// rootless reports whether we are root of a user namespace only, rather than of the host.
func rootless() bool {
	data, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && strings.Join(strings.Fields(string(data)), " ") != "0 0 4294967295"
}
