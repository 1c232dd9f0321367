package mcp

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api/process"
)

type readOutputIn struct {
	CommandID string `json:"command_id" jsonschema:"the command_id or output_id of a result"`
	Offset    int64  `json:"offset,omitempty" jsonschema:"byte to begin with; negative: so many bytes before the end"`
	MaxBytes  int    `json:"max_bytes,omitempty" jsonschema:"how much to return; default and most: 32768"`
	Wait      int    `json:"wait_seconds,omitempty" jsonschema:"wait so long for it to print more than offset, or to end"`
}

type readOutputOut struct {
	CommandID  string `json:"command_id"`
	Text       string `json:"text"`
	Offset     int64  `json:"offset"`
	NextOffset int64  `json:"next_offset"`
	Length     int64  `json:"length" jsonschema:"bytes printed so far"`
	Running    bool   `json:"running"`
	ExitCode   *int   `json:"exit_code,omitempty"`
}

func (c *call) readOutput(in readOutputIn) (result, readOutputOut, error) {
	cmd, err := c.session.command(in.CommandID)
	if err != nil {
		return result{}, readOutputOut{}, err
	}
	if err := c.await(cmd, in.Offset, time.Duration(in.Wait)*time.Second); err != nil {
		return result{}, readOutputOut{}, err
	}
	most := in.MaxBytes
	if most == 0 {
		most = maxRead
	}
	running := cmd.running() // before the output is read, so that what ended has no more
	p := cmd.output.read(in.Offset, most)
	out := readOutputOut{CommandID: cmd.id, Text: p.text, Offset: p.from, NextOffset: p.next, Length: p.length, Running: running}
	if code := cmd.exit(); code >= 0 {
		out.ExitCode = &code
	}
	var b strings.Builder
	if p.skipped > 0 {
		fmt.Fprintf(&b, "[%d bytes before this are not kept]\n", p.skipped)
	}
	b.WriteString(p.text)
	fmt.Fprintf(&b, "%s[bytes %d to %d of %d", newline(b.String()), p.from, p.next, p.length)
	if p.next < p.length {
		fmt.Fprintf(&b, "; go on with offset %d", p.next)
	}
	fmt.Fprintf(&b, "; %s]", cmd.state())
	return text("%s", b.String()), out, nil
}

// await waits until a command has printed more than offset, or has ended, or the time is up.
func (c *call) await(cmd *command, offset int64, most time.Duration) error {
	if most == 0 {
		return nil
	}
	over := time.After(most)
	look := time.NewTicker(50 * time.Millisecond)
	defer look.Stop()
	for cmd.running() && (offset < 0 || cmd.output.read(offset, 1).text == "") {
		select {
		case <-cmd.done:
		case <-look.C:
		case <-over:
			return nil
		case <-c.ctx.Done():
			return c.ctx.Err()
		}
	}
	return nil
}

type killCommandIn struct {
	CommandID string `json:"command_id" jsonschema:"the command_id of run_command's result"`
	Signal    string `json:"signal,omitempty" jsonschema:"default: KILL"`
}

type killCommandOut struct {
	CommandID string `json:"command_id"`
	Running   bool   `json:"running"`
}

func (c *call) killCommand(in killCommandIn) (result, killCommandOut, error) {
	cmd, err := c.session.command(in.CommandID)
	if err != nil {
		return result{}, killCommandOut{}, err
	}
	name := in.Signal
	if name == "" {
		name = "KILL"
	}
	if cmd.running() {
		err = c.signal(cmd, process.Signal(process.Signal_value["SIGNAL_SIG"+name]))
	}
	if err != nil {
		return result{}, killCommandOut{}, err
	}
	if name == "KILL" {
		select {
		case <-cmd.done:
		case <-time.After(killTime):
		case <-c.ctx.Done():
			return result{}, killCommandOut{}, c.ctx.Err()
		}
	}
	cmd.box.log.add("SIG%s to %s", name, cmd.id)
	return text("%s: %s", cmd.id, cmd.state()), killCommandOut{CommandID: cmd.id, Running: cmd.running()}, nil
}

func (c *call) signal(cmd *command, sig process.Signal) error {
	g, err := c.door.cfg.Guests.Guest(c.ctx, cmd.box.id)
	if err != nil {
		return err
	}
	select {
	case <-cmd.began:
		err = cmd.signal(c.ctx, g, sig)
	case <-c.ctx.Done():
		return c.ctx.Err()
	default:
		return &firebreak.Error{Kind: firebreak.KindState, Err: errors.New("it has no process: code is stopped by cancelling run_code"), Mend: "wait for it to end"}
	}
	if firebreak.KindOf(err) == firebreak.KindNotFound {
		return nil // it has ended meanwhile
	}
	return err
}

// signalNumber reads how the agent says which signal ended a process; SIGKILL if it says nothing that makes sense.
func signalNumber(status string) int {
	said, _, _ := strings.Cut(strings.TrimPrefix(status, "signal: "), " (core dumped)")
	for sig := syscall.Signal(1); sig <= 64; sig++ {
		if sig.String() == said {
			return int(sig)
		}
	}
	return int(syscall.SIGKILL)
}
