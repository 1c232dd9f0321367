// Package cli is the command line of Firebreak. It speaks to a server through package client and nothing else: whether
// that server is another machine or lives inside this process is the business of the Connect function it is given, and
// so is being a server that of Serve. A policy's file that is to be checked or tested needs no server.
package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net/url"
	"os"
	"strings"
	"sync/atomic"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/term"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/config"
)

// ServerOptions say which server a command talks to.
type ServerOptions struct {
	Server   string       // URL of another server, or unix:// and the path of its socket; empty: one inside this process
	APIKey   string       // for another server; empty: none
	StateDir string       // where the one inside this process keeps its state; empty: its default
	Policy   string       // file by which the one inside this process decides; empty: the built-in policy
	Log      *slog.Logger // for the one inside this process; never nil
}

// Connect opens the way to a server. The close function ends a server inside this process, and with it the sandboxes
// that are not detached.
type Connect func(ctx context.Context, opts ServerOptions) (c *client.Client, closeServer func() error, err error)

// Serve is a server for others, until ctx is done. What clients need to know goes to out, what people do to told.
type Serve func(ctx context.Context, cfg config.Config, out, told io.Writer) error

// Main runs one command line (without the program's name) and returns the exit status. It takes over the signals
// SIGINT, SIGTERM, SIGHUP and SIGQUIT until it returns.
func Main(ctx context.Context, args []string, stdin, stdout, stderr *os.File, connect Connect, serve Serve, speakMCP MCP, place StateDir) int {
	a := &app{in: stdin, out: stdout, errOut: stderr, connect: connect, serve: serve, speakMCP: speakMCP, place: place, lookupEnv: os.LookupEnv, subscribe: osSignals}
	return a.main(ctx, args)
}

// app is one command line at work.
type app struct {
	in, out, errOut *os.File
	connect         Connect
	serve           Serve
	speakMCP        MCP
	place           StateDir
	lookupEnv       func(string) (string, bool)
	subscribe       func() (<-chan os.Signal, func())

	server, stateDir, policy string
	apiKey                   string
	quiet, debug             bool
	signals                  signalRouter
	terminal                 atomic.Pointer[rawTerminal] // while one is raw, so that every way out can restore it
}

func (a *app) main(ctx context.Context, args []string) (code int) {
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	stop := a.signals.start(a.subscribe, cancel, a.abort)
	defer stop()
	defer a.restoreOnPanic()

	root := a.rootCommand()
	root.SetArgs(args)
	root.SetIn(a.in)
	root.SetOut(a.out)
	root.SetErr(a.errOut)
	cmd, err := root.ExecuteContextC(ctx)
	if cause := new(signalError); err != nil && errors.As(context.Cause(ctx), &cause) {
		var done *exitError
		if !errors.As(err, &done) {
			return cause.exitCode()
		}
	}
	return a.report(cmd, err)
}

// abort is the way out when a second signal says that cleaning up takes too long. What is left of the sandboxes, the
// next start of a server clears.
func (a *app) abort(code int) {
	a.restoreTerminal()
	os.Exit(code)
}

// rootCommand makes the tree of commands.
func (a *app) rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "firebreak",
		Short: "Run the code of AI agents behind the isolation its risk demands",
		Long: "Firebreak runs code nobody has read in sandboxes: gVisor by default, on any Linux host,\n" +
			"with no daemon and nothing to install.",
		Example:       "  firebreak run -- python3 -c 'print(sum(range(10)))'\n  firebreak run examples/sales.py",
		Version:       versionOf(buildInfo()).String(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.ArbitraryArgs,
		RunE:          a.runRoot,
	}
	root.SetVersionTemplate("{{.Version}}\n")
	flags := root.PersistentFlags()
	flags.StringVar(&a.server, "server", "", "talk to the server at this `URL`, or unix:///path of its socket (default: one inside this process; env FIREBREAK_SERVER)")
	flags.StringVar(&a.stateDir, "state-dir", "", "`directory` of sandboxes and templates (env FIREBREAK_STATE_DIR)")
	flags.StringVar(&a.policy, "policy", "", "`file` of rules that replace or extend the built-in policy (env FIREBREAK_POLICY)")
	flags.BoolVarP(&a.quiet, "quiet", "q", false, "print no warnings and no progress; lists print names only")
	flags.BoolVar(&a.debug, "debug", false, "print the log of the server inside this process")
	root.PersistentPreRun = func(*cobra.Command, []string) { a.readEnvironment() }
	root.SetFlagErrorFunc(flagError)
	root.AddCommand(a.runCommand(), a.execCommand(), a.cpCommand(), a.lsCommand(), a.logsCommand(), a.waitCommand(),
		a.killCommand(), a.pauseCommand(), a.resumeCommand(), a.timeoutCommand(), a.inspectCommand(), a.adviseCommand(),
		a.doctorCommand(), a.policyCommand(), a.templateCommand(), a.serveCommand(), a.keyCommand(), a.tenantCommand(),
		a.poolCommand(), a.setupCommand(), a.mcpCommand(), a.versionCommand())
	return root
}

// runRoot is reached with no command or an unknown one.
func (a *app) runRoot(cmd *cobra.Command, args []string) error {
	if len(args) == 0 {
		return cmd.Help()
	}
	return unknownCommand(cmd, args)
}

func (a *app) readEnvironment() {
	for name, value := range map[string]*string{"FIREBREAK_SERVER": &a.server, "FIREBREAK_STATE_DIR": &a.stateDir, "FIREBREAK_POLICY": &a.policy} {
		if set, ok := a.lookupEnv(name); ok && *value == "" {
			*value = set
		}
	}
	if a.server == "" {
		return // the one inside this process knows its user
	}
	a.apiKey, _ = a.lookupEnv("FIREBREAK_API_KEY")
	if key, ok := a.lookupEnv("E2B_API_KEY"); ok && a.apiKey == "" && !strings.HasPrefix(a.server, client.UnixScheme) {
		a.apiKey = key // a socket knows its user: a key that was set for E2B's clients would only take rights away
	}
}

// with opens the server, runs do and closes the server again.
func (a *app) with(ctx context.Context, do func(context.Context, *client.Client) error) (err error) {
	if a.server != "" && a.policy != "" {
		return invalid("", errors.New("--policy (or FIREBREAK_POLICY) is for a server inside this process; another server decides by its own policy"),
			"leave it out")
	}
	if err := checkServer(a.server); err != nil {
		return err
	}
	stop := a.waiting("starting")
	c, closeServer, err := a.connect(ctx, a.serverOptions())
	stop()
	if err != nil {
		return err
	}
	defer func() {
		stop := a.waiting("clearing away")
		closeErr := closeServer()
		stop()
		if err == nil {
			err = closeErr
		}
	}()
	return do(ctx, c)
}

func (a *app) serverOptions() ServerOptions {
	log := slog.New(slog.DiscardHandler)
	if a.debug {
		log = slog.New(slog.NewTextHandler(a.errOut, &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	return ServerOptions{Server: a.server, APIKey: a.apiKey, StateDir: a.stateDir, Policy: a.policy, Log: log}
}

func checkServer(address string) error {
	u, err := url.Parse(address)
	if address == "" || err == nil && (u.Scheme == "http" || u.Scheme == "https") && u.Host != "" || err == nil && u.Scheme == "unix" && u.Host == "" && u.Path != "" {
		return nil
	}
	return invalid("", fmt.Errorf("--server (or FIREBREAK_SERVER) %q is no address of a server", address),
		"write it like http://127.0.0.1:7070 or unix:///run/firebreak.sock")
}

// cleanup returns a context for what must be done although ctx has ended.
func cleanup(ctx context.Context) (context.Context, context.CancelFunc) {
	return context.WithTimeout(context.WithoutCancel(ctx), time.Minute)
}

// colored reports whether w shows colours.
func (a *app) colored(w io.Writer) bool {
	none, ok := a.lookupEnv("NO_COLOR")
	dumb, _ := a.lookupEnv("TERM")
	return isTerminal(w) && (!ok || none == "") && dumb != "dumb"
}

func isTerminal(w io.Writer) bool {
	f, ok := w.(*os.File)
	return ok && term.IsTerminal(int(f.Fd()))
}

func invalid(op string, err error, mend string) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: op, Err: err, Mend: mend}
}
