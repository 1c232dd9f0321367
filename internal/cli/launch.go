package cli

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// deadlineSlack is how much later than the program a sandbox's own time is up: making it takes time too, and copying
// results out.
const deadlineSlack = time.Minute

// launch is one firebreak run at work.
type launch struct {
	app     *app
	flags   *runFlags
	client  *client.Client
	create  *firebreakv1.CreateSandboxRequest
	program program
	script  *script
	module  string // path of the WebAssembly module that is run, as the server understands it
	sandbox *firebreakv1.Sandbox
	inputs  []input
	report  runReport
}

func (a *app) run(cmd *cobra.Command, f *runFlags, args []string) (err error) {
	l := &launch{app: a, flags: f}
	l.report.begin()
	if f.json {
		defer func() { err = l.printJSON(err) }()
	}
	defer func() {
		if l.script != nil {
			_ = l.script.close() // opened for reading only
		}
	}()
	if err := l.prepare(cmd, args); err != nil {
		return err
	}
	err = a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
		l.client = c
		return l.run(ctx)
	})
	if f.verbose {
		l.report.printTimings(a.errOut)
	}
	return err
}

// prepare checks everything that can be checked before there is a server.
func (l *launch) prepare(cmd *cobra.Command, args []string) (err error) {
	a, f := l.app, l.flags
	if err := f.check(cmd, args); err != nil {
		return err
	}
	if args, err = l.find(cmd, args); err != nil {
		return err
	}
	if l.create, err = a.createRequest(f, args); err != nil {
		return err
	}
	if l.inputs, err = parseInputs(f.inputs); err != nil {
		return err
	}
	if l.program, err = a.program(&f.processFlags, cmd.Flags()); err != nil {
		return err
	}
	l.program.tag, l.program.command = mainTag, args
	if l.script != nil && f.template == "" {
		l.create.Language = l.script.language
	}
	if l.module != "" {
		l.program.command = append([]string{programOf(args[0])}, args[1:]...)
	}
	if f.lang != "" && l.script == nil {
		return invalid("", fmt.Errorf("--lang is for scripts, and %s is none here", args[0]), "leave --lang out")
	}
	if args[0] == "-" || f.detach {
		l.program.input = false
	}
	if f.timeout > 0 {
		l.create.Timeout = durationpb.New(time.Duration(f.timeout) + deadlineSlack)
		if f.detach {
			l.create.Timeout = durationpb.New(time.Duration(f.timeout))
			l.program.timeout = 0 // the sandbox ends itself
		}
	}
	if f.json {
		l.program.stdout, l.program.stderr = &l.report.stdout, &l.report.stderr
	}
	return nil
}

// find looks for the module or script that the first argument may name, and reads the flags that follow it.
func (l *launch) find(cmd *cobra.Command, args []string) (_ []string, err error) {
	if cmd.ArgsLenAtDash() == 0 {
		return args, nil
	}
	if l.module, err = l.app.findModule(args[0]); err == nil && l.module == "" {
		l.script, err = findScript(args[0], l.flags.lang, l.app.in)
	}
	if err != nil || l.module == "" && l.script == nil {
		return args, err
	}
	if args, err = l.flags.takeAfter(cmd, args); err != nil {
		return args, err
	}
	return args, l.flags.check(cmd, args)
}

// run makes the sandbox, runs the program in it and clears away.
func (l *launch) run(ctx context.Context) error {
	if err := l.template(ctx); err != nil {
		return err
	}
	stop := l.app.waiting("creating the sandbox")
	made, err := l.client.Sandboxes.CreateSandbox(ctx, connect.NewRequest(l.create))
	stop()
	if err != nil {
		return err
	}
	l.sandbox = made.Msg.GetSandbox()
	l.report.created(made.Msg)
	for _, w := range l.sandbox.GetWarnings() {
		l.app.warn("%s", w)
	}
	if d := l.sandbox.GetDecision(); d != nil && l.flags.verbose {
		l.app.say(plain, "%s", chosen(d))
		for _, text := range toSetUp(d) {
			l.app.say(plain, "%s", text)
		}
	}
	if l.flags.detach {
		return l.detach(ctx)
	}
	res, err := l.runProgram(ctx)
	if err == nil && res.code != 0 {
		l.suggestInput(ctx)
	}
	err = l.copyOut(ctx, err, res)
	return l.end(ctx, res, err)
}

// runProgram runs the program with the first of its commands that is there.
func (l *launch) runProgram(ctx context.Context) (res result, err error) {
	commands, err := l.ready(ctx)
	if err != nil {
		return res, err
	}
	if l.program.tty {
		if err := l.app.makeRaw(); err != nil {
			return res, fmt.Errorf("set up the terminal: %w", err)
		}
		defer l.app.restoreTerminal()
	}
	defer l.report.lap(&l.report.exec)()
	for _, l.program.command = range commands {
		res, err = l.app.attach(ctx, l.client, l.sandbox.GetId(), l.program)
		if !notFound(err) {
			return res, err
		}
	}
	return res, l.noInterpreter(commands, err)
}

func notFound(err error) bool {
	var e *startFailure
	return errors.As(err, &e) && e.code == 127
}

// ready copies in what the program needs, and returns what to try in turn.
func (l *launch) ready(ctx context.Context) ([][]string, error) {
	if err := l.copyIn(ctx); err != nil {
		return nil, err
	}
	return l.commands(ctx)
}

// commands uploads the script, if it is one, and returns what to try in turn.
func (l *launch) commands(ctx context.Context) ([][]string, error) {
	if l.script == nil {
		return [][]string{l.program.command}, nil
	}
	defer l.report.lap(&l.report.upload)()
	interpreters, err := l.interpreters(ctx)
	if err != nil {
		return nil, err
	}
	name, err := l.script.upload(ctx, l.client, l.sandbox.GetId(), l.sandbox.GetBoundary(), l.program)
	if err != nil {
		return nil, err
	}
	args := append([]string{name}, l.program.command[1:]...)
	var commands [][]string
	for _, c := range interpreters {
		commands = append(commands, append(append([]string{}, c...), args...))
	}
	return commands, nil
}

// interpreters returns what may run the script. Behind the boundary of a language that is what its template says: there is
// nothing else to try.
func (l *launch) interpreters(ctx context.Context) ([][]string, error) {
	all := l.script.commands
	if l.sandbox.GetBoundary() != firebreak.BoundaryLanguage.String() {
		return all, nil
	}
	got, err := l.client.Templates.GetTemplate(ctx, connect.NewRequest(&firebreakv1.GetTemplateRequest{Name: l.sandbox.GetTemplate()}))
	if err != nil {
		return nil, err
	}
	has := got.Msg.GetTemplate().GetCommand()
	modules := len(has) == 0 // of JavaScript, which have no program of their own
	if modules {
		has = []string{"node"}
	}
	if i := slices.IndexFunc(all, func(c []string) bool { return contains(has, c[0]) }); i >= 0 {
		return all[i : i+1], nil
	}
	if modules {
		return all, nil // for the driver to say what it runs
	}
	return [][]string{has[:1]}, nil
}

func (l *launch) noInterpreter(commands [][]string, err error) error {
	if l.script == nil {
		return l.onlyHere(err)
	}
	var names []string
	for _, c := range commands {
		names = append(names, c[0])
	}
	what := fmt.Errorf("%s needs %s, which template %s has not", l.script.name, strings.Join(names, " or "), l.sandbox.GetTemplate())
	return &startFailure{code: 127, err: &firebreak.Error{Kind: firebreak.KindNotFound, Err: what,
		Mend: "install it on this host, or choose a --template that has it"}}
}

// detach starts the program, prints the sandbox's id and leaves it.
func (l *launch) detach(ctx context.Context) error {
	err := l.startDetached(ctx)
	if err != nil {
		return l.end(ctx, result{}, err)
	}
	if l.flags.json {
		return nil
	}
	_, err = fmt.Fprintln(l.app.out, l.sandbox.GetId())
	return err
}

func (l *launch) startDetached(ctx context.Context) error {
	commands, err := l.ready(ctx)
	if err != nil {
		return err
	}
	for _, l.program.command = range commands {
		s := &attached{app: l.app, program: l.program, process: l.client.Process(l.sandbox.GetId())}
		if err = s.startOnly(ctx); !notFound(err) {
			return err
		}
	}
	return l.noInterpreter(commands, err)
}

// startOnly starts the program and leaves it to itself.
func (s *attached) startOnly(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stream, err := s.process.Start(ctx, request(s.program.user, s.startRequest()))
	if err == nil {
		_, err = startEvents(stream)()
	}
	if err != nil {
		return s.failure(ctx, err)
	}
	return nil
}

// end removes the sandbox, unless it is to be kept, says why it or its program died, and returns the exit status.
func (l *launch) end(ctx context.Context, res result, err error) error {
	ctx, cancel := cleanup(ctx)
	defer cancel()
	id := l.sandbox.GetId()
	if broken := firebreak.KindOf(err); err != nil && (broken == firebreak.KindUnavailable || broken == firebreak.KindNotFound) {
		l.awaitEnd(ctx) // only its record knows why the stream broke off
	}
	keep := !l.flags.detach && !l.flags.remove
	last, usage, lastErr := l.last(ctx, keep)
	if lastErr != nil && err == nil {
		err = lastErr
	}
	if last == nil {
		last = l.sandbox
	}
	out := outcome{result: res, err: err, sandbox: last, usage: usage, timeout: time.Duration(l.flags.timeout)}
	out.judge()
	l.report.outcome = out
	if out.text != "" && !l.flags.json {
		l.app.say(red, "run: %s", out.text)
	}
	if keep && !l.app.quiet && !l.flags.json {
		l.app.say(plain, "sandbox %s is kept; remove it with: firebreak kill %s", id, id)
	}
	if out.err != nil {
		return out.err
	}
	return exit(out.code)
}

// awaitEnd gives the server a moment to notice that the sandbox has ended.
func (l *launch) awaitEnd(ctx context.Context) {
	ctx, cancel := context.WithTimeout(ctx, 3*time.Second)
	defer cancel()
	_, _ = l.client.Sandboxes.WaitSandbox(ctx, connect.NewRequest(&firebreakv1.WaitSandboxRequest{Id: l.sandbox.GetId()})) // last asks again
}

// last returns the sandbox as it was last seen, and removes it unless it is to be kept.
func (l *launch) last(ctx context.Context, keep bool) (*firebreakv1.Sandbox, *firebreakv1.Usage, error) {
	if keep {
		got, err := l.client.Sandboxes.GetSandbox(ctx, connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: l.sandbox.GetId()}))
		if err != nil {
			return nil, nil, err
		}
		return got.Msg.GetSandbox(), got.Msg.GetUsage(), nil
	}
	defer l.report.lap(&l.report.destroy)()
	defer l.app.waiting("removing the sandbox")()
	deleted, err := l.client.Sandboxes.DeleteSandbox(ctx, connect.NewRequest(&firebreakv1.DeleteSandboxRequest{Id: l.sandbox.GetId()}))
	if firebreak.KindOf(err) == firebreak.KindNotFound {
		return nil, nil, nil // somebody else has removed it
	}
	if err != nil {
		return nil, nil, fmt.Errorf("remove sandbox: %w", err)
	}
	return deleted.Msg.GetSandbox(), deleted.Msg.GetUsage(), nil
}
