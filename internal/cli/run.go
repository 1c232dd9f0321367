package cli

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// processFlags are what run and exec have in common.
type processFlags struct {
	env, envFiles    []string
	workdir, user    string
	interactive, tty bool
	timeout          durationFlag
}

func (f *processFlags) add(flags *pflag.FlagSet) {
	flags.StringArrayVarP(&f.env, "env", "e", nil, "environment variable `NAME=value`, or NAME to take it from here")
	flags.StringArrayVar(&f.envFiles, "env-file", nil, "`file` of lines NAME=value")
	flags.StringVarP(&f.workdir, "workdir", "w", "", "work `directory` in the sandbox")
	flags.StringVarP(&f.user, "user", "u", "", "`user` of the sandbox (default: the template's)")
	flags.BoolVarP(&f.interactive, "interactive", "i", false, "pass on standard input (default: if it is a pipe or a file)")
	flags.BoolVarP(&f.tty, "tty", "t", false, "give the program a terminal")
	flags.Var(&f.timeout, "timeout", "stop the program after this `time`, like 30s or 5m, with exit status 124")
}

// program makes of the flags what attach wants, its command and output left open.
func (a *app) program(f *processFlags, flags *pflag.FlagSet) (program, error) {
	if f.tty && !isTerminal(a.in) {
		return program{}, invalid("", errNoTerminal, "leave --tty out; a pipe is passed on without it")
	}
	input := f.interactive
	if !flags.Changed("interactive") {
		input = f.tty || piped(a.in)
	}
	p := program{cwd: f.workdir, user: f.user, tty: f.tty, input: input, timeout: time.Duration(f.timeout),
		stdout: a.out, stderr: a.errOut}
	if p.tty {
		p.envs = map[string]string{}
		if value, ok := a.lookupEnv("TERM"); ok {
			p.envs["TERM"] = value
		}
	}
	return p, nil
}

// runFlags are those of firebreak run.
type runFlags struct {
	processFlags
	workloadFlags
	template, name, lang          string
	cpus                          float64
	memory, disk                  sizeFlag
	pids                          int64
	volumes, inputs, outputs      []string
	metadata                      []string
	options                       []string
	allow                         allowFlag
	detach, remove, json, verbose bool
	exclusive                     bool
}

func (f *runFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.SetInterspersed(false) // what follows the program is the program's
	f.processFlags.add(flags)
	f.workloadFlags.add(cmd)
	flags.StringVar(&f.template, "template", "", "`template`, registry reference or path to start from (default host, or the language's)")
	flags.Float64Var(&f.cpus, "cpus", 0, "processors, fractions allowed")
	flags.Var(&f.memory, "memory", "memory of all its programs together, like 512m or 1g")
	flags.Var(&f.disk, "disk", "what it may write to its file system, like 1g")
	flags.Int64Var(&f.pids, "pids", 0, "processes and threads")
	flags.StringArrayVar(&f.volumes, "volume", nil, "share a path of this host: `host:guest[:ro]`")
	flags.Var(&f.allow, "allow", "let the code ask a host, or read a directory of this one: `capability` fetch=HOST or read=DIR")
	flags.StringArrayVar(&f.inputs, "input", nil, "copy this in before the program starts: `host[:guest]`")
	flags.StringArrayVar(&f.outputs, "output", nil, "copy this out when the program has ended: `guest[:host]`")
	flags.StringArrayVar(&f.options, "option", nil, "set what only the driver knows: `KEY=VALUE`, as fuel=1000000 for wasm")
	flags.BoolVar(&f.exclusive, "exclusive", false, "share the process of an engine such as V8 with no other sandbox")
	flags.StringVar(&f.lang, "lang", "", "`language` of the script, where its name does not tell")
	flags.StringVar(&f.name, "name", "", "`name` for the sandbox, usable instead of its id")
	flags.StringArrayVar(&f.metadata, "metadata", nil, "say something of the sandbox, for ls and inspect: `NAME=VALUE`")
	flags.BoolVarP(&f.detach, "detach", "d", false, "leave the sandbox running and print its id")
	flags.BoolVar(&f.remove, "rm", true, "remove the sandbox when the program has ended; --rm=false keeps it")
	flags.BoolVar(&f.json, "json", false, "print one JSON object at the end, the program's output in it")
	flags.BoolVarP(&f.verbose, "verbose", "v", false, "say what was chosen and why, and where the time went")
	complete(cmd, "lang", languageNames())
	_ = cmd.RegisterFlagCompletionFunc("allow", completeAllow) // fails only for a flag that does not exist
}

// optionExclusive is of drivers: the sandbox shares a process with no other.
const optionExclusive = "exclusive"

func drivers() []string { return []string{"gvisor", "container", "wasm", "v8", "process"} }

func (a *app) runCommand() *cobra.Command {
	f := &runFlags{}
	cmd := &cobra.Command{
		Use:   "run [flags] [--] COMMAND [ARG…] | SCRIPT [flags] [--] [ARG…] | MODULE.wasm [flags] [--] [ARG…] | -",
		Short: "Run a program or a script in a new sandbox",
		Long: `Run a program of the sandbox, or a script of this directory, in a sandbox of its own, which is removed afterwards.

The first argument is a script if it names a file with a known extension (.py .js .ts .sh .rb .pl .php .lua …) or a path
of a file that begins with #!. It is copied into the sandbox's work directory and run with the interpreter found there.
"-" reads the script from standard input. After "--" everything is a command of the sandbox.

Flags that decide what a script or module runs behind and what it may have may also stand right after it: those that say
something of the code (--needs, --origin …), --isolation, --accept-weaker, --allow, --exclusive, --option, --timeout and the limits. The
first word that is none of them begins the program's own arguments, and so does "--".

A file .wasm is a program for WASI, and runs in a sandbox that holds nothing else. A script that needs no more than to compute
(--needs compute) runs behind the boundary of its language where firebreak setup has fetched that, else behind gVisor.

What you say about the code decides what it must run behind; what you do not say is taken to be the careful word, so that
without flags it is code that a model wrote, for one tenant, with internal data. firebreak advise explains a choice.

The exit status is the program's (128+n if signal n killed it); 124 if its time was up; 125 if firebreak or the sandbox
failed; 126 if the program cannot be executed; 127 if it was not found.`,
		Example: `  firebreak run -- python3 -c 'print(sum(range(10)))'
  firebreak run --output report.svg examples/sales.py
  firebreak run --input data.csv --input lib -- python3 -c 'print(open("data.csv").read())'
  firebreak run --origin trusted --memory 512m --timeout 30s -- make test
  firebreak run primes.py --needs compute
  firebreak run filter.wasm < data
  firebreak run report.wasm --allow fetch=api.example.com --allow read=/data
  firebreak run -it -- bash
  curl -s https://example.com/x.sh | firebreak run --lang sh -`,
		Args: cobra.ArbitraryArgs,
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error { return a.run(cmd, f, args) }
	f.add(cmd)
	_ = cmd.RegisterFlagCompletionFunc("template", a.completeTemplates) // fails only for a flag that does not exist
	return cmd
}

// check refuses what contradicts itself before anything is made.
func (f *runFlags) check(cmd *cobra.Command, args []string) error {
	switch {
	case len(args) == 0:
		return invalid("", errors.New("no program"), "write firebreak run -- python3 -c 'print(1)'")
	case f.verbose && strings.Contains(args[0], ":/"):
		return invalid("", errors.New("-v is --verbose"), "did you mean --volume "+args[0]+"?")
	case f.json && f.tty:
		return invalid("", errors.New("--json and --tty exclude each other"), "leave --tty out")
	case f.detach && f.tty:
		return invalid("", errors.New("--detach and --tty exclude each other"), "firebreak exec -t joins a running sandbox")
	case f.detach && f.remove && cmd.Flags().Changed("rm"):
		return invalid("", errors.New("--detach and --rm exclude each other"), "firebreak kill removes it, --timeout ends it")
	case f.detach && len(f.outputs) > 0:
		return invalid("", errors.New("--detach and --output exclude each other"), "use firebreak cp")
	case f.template != "" && isModule(args[0]) && cmd.ArgsLenAtDash() != 0:
		return invalid("", fmt.Errorf("%s is all that its sandbox holds, so it takes no --template", args[0]), "write -- before a module of the template")
	case f.cpus < 0 || f.pids < 0:
		return invalid("", errors.New("a limit is negative"), "leave it out for the default")
	}
	if err := f.workloadFlags.check(); err != nil {
		return err
	}
	if strings.HasPrefix(args[0], "-") && args[0] != "-" && cmd.ArgsLenAtDash() != 0 {
		return invalid("", fmt.Errorf("unknown flag %s", args[0]), "see firebreak run --help")
	}
	return nil
}

// createRequest makes of the flags what the server wants, the template left open.
func (a *app) createRequest(f *runFlags, args []string) (*firebreakv1.CreateSandboxRequest, error) {
	envs, err := a.environment(f.env, f.envFiles)
	if err != nil {
		return nil, err
	}
	metadata, err := parseMetadata(f.metadata)
	if err != nil {
		return nil, err
	}
	req := &firebreakv1.CreateSandboxRequest{
		Driver: f.isolation, Metadata: metadata, Envs: envs, Name: f.name, Detached: f.detach || !f.remove, Command: strings.Join(args, " "),
		Workload: f.message(), AcceptWeaker: f.acceptWeaker,
		Limits: &firebreakv1.Limits{Cpus: f.cpus, MemoryBytes: int64(f.memory), DiskBytes: int64(f.disk), Pids: f.pids},
	}
	if req.Options, err = parseOptions(f.options); err != nil {
		return nil, err
	}
	if f.exclusive {
		if req.Options == nil {
			req.Options = map[string]string{}
		}
		req.Options[optionExclusive] = "true"
	}
	return req, a.addMounts(req, f)
}

// addMounts adds the directories that the flags name, and what --allow says besides.
func (a *app) addMounts(req *firebreakv1.CreateSandboxRequest, f *runFlags) (err error) {
	dir := ""
	if a.server == "" {
		if dir, err = os.Getwd(); err != nil {
			return fmt.Errorf("find work directory: %w", err)
		}
	}
	for _, v := range f.volumes {
		m, err := parseVolume(v, dir)
		if err != nil {
			return err
		}
		req.Mounts = append(req.Mounts, m)
	}
	if err := f.allow.apply(req, dir); err != nil {
		return err
	}
	for _, m := range req.Mounts {
		if _, err := os.Stat(m.Source); a.server == "" && err != nil {
			return invalid("", fmt.Errorf("share with the sandbox: %w", err), "create it first")
		}
	}
	return nil
}
