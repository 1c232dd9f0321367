package mcp

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"connectrpc.com/connect"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

const (
	maxCommand  = 64 << 10 // bytes of a command
	maxCommands = 32       // that a session can ask for, and that run in the background
	maxSeconds  = 6 * 3600

	killTime     = 5 * time.Second        // for a signal to reach the sandbox although its call has ended
	overdue      = 5 * time.Second        // beyond a time limit, which the agent keeps
	progressTime = 250 * time.Millisecond // between two notes of progress
)

// command is something that runs or ran in a sandbox, with what it printed.
type command struct {
	id     string
	box    *box
	text   string
	output *output // both streams as they came, to be read on
	stdout *output // their beginnings and ends, to be shown
	stderr *output
	begin  sync.Once
	began  chan struct{} // closed when its process has begun
	done   chan struct{} // closed when it has ended

	mu  sync.Mutex
	end *process.ProcessEvent_EndEvent // guarded by mu; nil: it runs, or how it ended is not known
	err error                          // guarded by mu: why that is not known
}

type runCommandIn struct {
	Command    string            `json:"command" jsonschema:"a command line for bash (sh where there is no bash)"`
	Cwd        string            `json:"cwd,omitempty" jsonschema:"directory to run it in; default: the sandbox's home, or /workspace if one is shared"`
	Env        map[string]string `json:"env,omitempty" jsonschema:"environment variables for this command"`
	Background bool              `json:"background,omitempty" jsonschema:"return at once and let it run on, for servers and long jobs; read_output shows what it prints, kill_command ends it"`
	Timeout    int               `json:"timeout_seconds,omitempty" jsonschema:"kill it after so many seconds; default 120, in the background none"`
	Sandbox    string            `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type commandOut struct {
	Sandbox   string `json:"sandbox"`
	CommandID string `json:"command_id" jsonschema:"for read_output and kill_command"`
	Running   bool   `json:"running"`
	ExitCode  *int   `json:"exit_code,omitempty" jsonschema:"128 plus the signal's number if a signal ended it"`
	Stdout    string `json:"stdout,omitempty"`
	Stderr    string `json:"stderr,omitempty"`
	Truncated bool   `json:"truncated,omitempty" jsonschema:"parts were left out; read_output with the command_id has them"`
	TimedOut  bool   `json:"timed_out,omitempty"`
}

func (d *Door) addCommandTools() {
	add(d, tool{name: "run_command", title: "Run a command",
		about: "Run a shell command in the sandbox and return its output and exit code. Each call is a new shell; files stay, shell variables and cd do not. " +
			"Output beyond 16 KiB per stream is cut in the middle; read_output has the rest. Use background for what does not end by itself.",
		limits: limits{"command": longest(maxCommand), "cwd": longest(maxPath), "timeout_seconds": between(1, maxSeconds), "sandbox": longest(maxID)}},
		(*call).runCommand)
	add(d, tool{name: "read_output", title: "Read a command's output", readOnly: true,
		about: "Read what run_command or run_code printed, from a byte offset on: the parts that were cut, or what a background command has printed meanwhile. " +
			"Returns next_offset to go on from, whether it still runs, and its exit code.",
		limits: limits{"command_id": longest(maxID), "wait_seconds": between(0, 300), "max_bytes": between(1, maxRead)}},
		(*call).readOutput)
	add(d, tool{name: "kill_command", title: "Stop a command", destructive: true, idempotent: true,
		about:  "Send a signal to a running command and what it started, SIGKILL by default.",
		limits: limits{"command_id": longest(maxID), "signal": oneOf("KILL", "TERM", "INT", "HUP", "QUIT", "USR1", "USR2")}},
		(*call).killCommand)
}

func (c *call) runCommand(in runCommandIn) (result, commandOut, error) {
	if strings.TrimSpace(in.Command) == "" {
		return result{}, commandOut{}, invalid("say what to run", "the command is empty")
	}
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, commandOut{}, err
	}
	limit := time.Duration(in.Timeout) * time.Second
	if limit == 0 && !in.Background {
		limit = 2 * time.Minute
	}
	cmd, err := c.session.newCommand(b, in.Command)
	if err != nil {
		return result{}, commandOut{}, err
	}
	start := shellRequest(in, limit)
	start.Msg.Tag = &cmd.id
	if in.Background {
		return c.startBackground(g, cmd, start)
	}
	tell := c.progress()
	stop := b.keep(c.ctx, c.door)
	cmd.run(c.ctx, g, start, tell)
	stop()
	if err := c.ctx.Err(); err != nil {
		return result{}, commandOut{}, err
	}
	b.log.add("$ %s: %s", in.Command, cmd.state())
	r, out := cmd.result(limit)
	return r, out, cmd.failure()
}

// shellRequest runs a command line with bash, or with sh in sandboxes that have none.
func shellRequest(in runCommandIn, limit time.Duration) *connect.Request[process.StartRequest] {
	no := false
	config := &process.ProcessConfig{Cmd: "/bin/sh", Args: []string{"-c",
		`if command -v bash >/dev/null 2>&1; then exec bash -c "$1"; else exec sh -c "$1"; fi`, "sh", in.Command}, Envs: in.Env}
	if in.Cwd != "" {
		config.Cwd = &in.Cwd
	}
	req := connect.NewRequest(&process.StartRequest{Process: config, Stdin: &no})
	if limit > 0 {
		req.Header().Set("Connect-Timeout-Ms", strconv.FormatInt(limit.Milliseconds(), 10))
	}
	return req
}

// startBackground returns once the command has begun, which is then the session's.
func (c *call) startBackground(g *guest.Guest, cmd *command, start *connect.Request[process.StartRequest]) (result, commandOut, error) {
	ctx, leave, err := c.session.join(c.session.ctx)
	if err != nil {
		return result{}, commandOut{}, err
	}
	stop := cmd.box.keep(ctx, c.door)
	go func() {
		defer leave()
		defer stop()
		cmd.run(ctx, g, start, c.door.teller(cmd))
		cmd.box.log.add("& %s: %s", cmd.text, cmd.state())
		cmd.changed(c.door)
	}()
	select {
	case <-cmd.began:
	case <-cmd.done:
	case <-c.ctx.Done():
		return result{}, commandOut{}, c.ctx.Err()
	}
	if err := cmd.failure(); err != nil {
		return result{}, commandOut{}, err
	}
	cmd.box.log.add("& %s: started as %s", cmd.text, cmd.id)
	return text("Started in the background as %s. read_output with command_id %q shows what it prints (wait_seconds waits for more), kill_command ends it.", cmd.id, cmd.id),
		commandOut{Sandbox: cmd.box.id, CommandID: cmd.id, Running: true}, nil
}

// teller tells who has subscribed that a command printed something, not too often.
func (d *Door) teller(cmd *command) func(int64, []byte) {
	var told time.Time
	return func(int64, []byte) {
		if now := time.Now(); now.Sub(told) >= progressTime {
			told = now
			cmd.changed(d)
		}
	}
}

// newCommand gives a command its id. The oldest that has ended is forgotten for it.
func (s *session) newCommand(b *box, line string) (*command, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(s.commands) >= maxCommands {
		i := slices.IndexFunc(s.commands, func(c *command) bool { return !c.running() })
		if i < 0 {
			return nil, &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("%d commands of this session run already", maxCommands),
				Mend: "end one with kill_command"}
		}
		s.commands[i].output.free()
		s.commands = slices.Delete(s.commands, i, i+1)
	}
	s.count++
	c := &command{id: fmt.Sprintf("c%d", s.count), box: b, text: line, output: newOutput(maxKept, s.door.spare),
		stdout: newOutput(maxShown, nil), stderr: newOutput(maxShown, nil), began: make(chan struct{}), done: make(chan struct{})}
	s.commands = append(s.commands, c)
	return c, nil
}

func (s *session) command(id string) (*command, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, c := range s.commands {
		if c.id == id {
			return c, nil
		}
	}
	return nil, &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("this session has no command %.80q, or has forgotten it: the last %d are kept", id, maxCommands),
		Mend: "take the command_id of a result"}
}

func (c *command) running() bool { return !isClosed(c.done) }

// run starts the process and follows it to its end. If ctx ends first, the process is killed.
func (c *command) run(ctx context.Context, g *guest.Guest, start *connect.Request[process.StartRequest], tell func(int64, []byte)) {
	defer close(c.done)
	end, err := c.follow(ctx, g, start, tell)
	if ctx.Err() != nil || errors.Is(err, errTimeLimit) {
		c.kill(ctx, g)
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	c.end, c.err = end, err
}

func (c *command) follow(ctx context.Context, g *guest.Guest, start *connect.Request[process.StartRequest], tell func(int64, []byte)) (*process.ProcessEvent_EndEvent, error) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil) // closing a stream by itself would read on for what may still come
	if ms, err := strconv.ParseInt(start.Header().Get("Connect-Timeout-Ms"), 10, 64); err == nil {
		// Not the context's deadline: that would become the agent's.
		timer := time.AfterFunc(time.Duration(ms)*time.Millisecond+overdue, func() { cancel(errTimeLimit) })
		defer timer.Stop()
	}
	stream, err := g.Process().Start(ctx, start)
	if err != nil {
		return nil, followError(ctx, err)
	}
	for stream.Receive() {
		switch e := stream.Msg().GetEvent().GetEvent().(type) {
		case *process.ProcessEvent_Start:
			c.begin.Do(func() { close(c.began) }) // a sandbox may say so twice
		case *process.ProcessEvent_Data:
			c.take(e.Data, tell)
		case *process.ProcessEvent_End:
			return e.End, nil
		}
	}
	if err := stream.Err(); err != nil {
		return nil, followError(ctx, err)
	}
	return nil, &firebreak.Error{Kind: firebreak.KindUnavailable, Err: errors.New("its output ended before it did")}
}

func followError(ctx context.Context, err error) error {
	if errors.Is(context.Cause(ctx), errTimeLimit) {
		return errTimeLimit
	}
	return api.ErrorFromWire(err)
}

var errTimeLimit = errors.New("its time is up")

func (c *command) take(data *process.ProcessEvent_DataEvent, tell func(int64, []byte)) {
	stream, bytes := c.stdout, data.GetStdout()
	if _, ok := data.GetOutput().(*process.ProcessEvent_DataEvent_Stderr); ok {
		stream, bytes = c.stderr, data.GetStderr()
	}
	_, _ = stream.Write(bytes)
	_, _ = c.output.Write(bytes)
	tell(int64(len(bytes)), bytes)
}

// kill ends the process although whoever wanted it has gone. Its start may still be on its way.
func (c *command) kill(ctx context.Context, g *guest.Guest) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), killTime)
	defer cancel()
	for try := 0; try < 10; try++ {
		err := c.signal(ctx, g, process.Signal_SIGNAL_SIGKILL)
		if firebreak.KindOf(err) != firebreak.KindNotFound || isClosed(c.began) {
			return // it was reached, or had ended, or nobody can be reached
		}
		time.Sleep(100 * time.Millisecond)
	}
}

// signal goes by the command's name, which the agent knows before anybody is told the process's number.
func (c *command) signal(ctx context.Context, g *guest.Guest, sig process.Signal) error {
	_, err := g.Process().SendSignal(ctx, connect.NewRequest(&process.SendSignalRequest{
		Process: &process.ProcessSelector{Selector: &process.ProcessSelector_Tag{Tag: c.id}}, Signal: sig}))
	return api.ErrorFromWire(err)
}

func isClosed(c <-chan struct{}) bool {
	select {
	case <-c:
		return true
	default:
		return false
	}
}

// failure is why it is not known how the command ended; nil if it is, or it runs.
func (c *command) failure() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.err != nil && !errors.Is(c.err, errTimeLimit) && firebreak.KindOf(c.err) != firebreak.KindDeadline { // the agent keeps the limit too
		return c.err
	}
	return nil
}

// exit returns the code as a shell would say it; -1 if there is none.
func (c *command) exit() int {
	c.mu.Lock()
	defer c.mu.Unlock()
	switch {
	case c.end.GetExited():
		return int(c.end.GetExitCode()) & 0xff
	case c.end != nil:
		return 128 + signalNumber(c.end.GetStatus())
	}
	return -1
}

func (c *command) timedOut(limit time.Duration) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return limit > 0 && (errors.Is(c.err, errTimeLimit) || firebreak.KindOf(c.err) == firebreak.KindDeadline)
}

func (c *command) state() string {
	if c.running() {
		return "running"
	}
	if code := c.exit(); code >= 0 {
		return fmt.Sprintf("exit code %d", code)
	}
	return "ended"
}

// result shows a command that has ended.
func (c *command) result(limit time.Duration) (result, commandOut) {
	out := commandOut{Sandbox: c.box.id, CommandID: c.id}
	rest := fmt.Sprintf("read_output with command_id %q has them", c.id)
	var cutOut, cutErr bool
	out.Stdout, cutOut = c.stdout.shown(maxShown, rest)
	out.Stderr, cutErr = c.stderr.shown(maxShown, rest)
	out.Truncated = cutOut || cutErr
	out.TimedOut = c.timedOut(limit)
	if code := c.exit(); code >= 0 {
		out.ExitCode = &code
	}
	var b strings.Builder
	b.WriteString(out.Stdout)
	if out.Stderr != "" {
		fmt.Fprintf(&b, "%sstderr:\n%s", newline(b.String()), out.Stderr)
	}
	fmt.Fprintf(&b, "%s[%s%s]", newline(b.String()), c.state(), lateText(out.TimedOut, limit))
	return text("%s", b.String()), out
}

func lateText(late bool, limit time.Duration) string {
	if !late {
		return ""
	}
	return fmt.Sprintf(": killed after %s; give it more with timeout_seconds, or run it with background", limit)
}

// newline ends a last line.
func newline(s string) string {
	if s == "" || strings.HasSuffix(s, "\n") {
		return ""
	}
	return "\n"
}

// progress returns what tells the client of output as it comes, not too often.
func (c *call) progress() func(n int64, last []byte) {
	token := c.req.Params.GetProgressToken()
	if token == nil {
		return func(int64, []byte) {}
	}
	var total int64
	var told time.Time
	return func(n int64, last []byte) {
		total += n
		if now := time.Now(); now.Sub(told) >= progressTime {
			told = now
			line := strings.TrimRight(valid(last), "\n")
			line = line[strings.LastIndexByte(line, '\n')+1:]
			line, _ = cut(line, 200, "the result has more")
			_ = c.req.Session.NotifyProgress(c.ctx, &sdk.ProgressNotificationParams{ProgressToken: token, Progress: float64(total), Message: line}) // it may have gone
		}
	}
}
