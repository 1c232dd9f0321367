package cli

import (
	"errors"
	"io"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"github.com/firebreak-dev/firebreak/internal/config"
)

// settingFlag is a pflag.Value that notes what is said, for the settings to be made of all sources at once.
type settingFlag struct {
	setting config.Setting
	said    map[string]string
}

func (f *settingFlag) Set(s string) error {
	f.said[f.setting.Key] = s
	return nil
}

func (f *settingFlag) Type() string {
	if f.setting.Bool {
		return "bool"
	}
	return "string"
}

func (f *settingFlag) String() string { return "" }

func (a *app) serveCommand() *cobra.Command {
	var file string
	var show bool
	said := map[string]string{}
	cmd := &cobra.Command{
		Use:   "serve",
		Short: "Be a server for E2B's clients, gRPC and other firebreaks",
		Long: `Be a server for E2B's clients, gRPC and other firebreaks, until SIGTERM or SIGINT. Its sandboxes live on, and the next
server on the same state directory takes them over.

Standard output gets what clients need, as lines for a shell; all else goes to standard error. On addresses of this host
only, a server without API keys makes one. Settings come from flags, else from the environment (FIREBREAK_ and the name of
the flag), else from the file.`,
		Example: "  firebreak serve\n  firebreak serve --tls auto --domain box.lan --tls-listen :7443 --listen 127.0.0.1:7070\n  firebreak serve --config /etc/firebreak.yaml --print-config",
		Args:    arguments(0, 0, "firebreak serve takes no arguments, only flags"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			if cmd.Flags().Changed("server") {
				return invalid("", errors.New("serve is a server, and --server is for commands that talk to one"), "leave it out")
			}
			cfg, err := a.settings(cmd.Flags(), file, said)
			if err != nil {
				return err
			}
			if show {
				_, err := io.WriteString(a.out, cfg.YAML())
				return err
			}
			if a.serve == nil {
				return errors.New("this program cannot be a server")
			}
			return a.serve(cmd.Context(), cfg, a.out, a.errOut)
		},
	}
	flags := cmd.Flags()
	flags.StringVar(&file, "config", "", "`file` of settings, YAML (env FIREBREAK_CONFIG)")
	flags.BoolVar(&show, "print-config", false, "print all settings, and where they come from, and end")
	for _, s := range config.Settings() {
		if s.Key == "state_dir" || s.Key == "policy" {
			continue // flags of all commands
		}
		flag := flags.VarPF(&settingFlag{s, said}, s.Flag(), "", s.Usage)
		if s.Bool {
			flag.NoOptDefVal = "true"
		}
	}
	return cmd
}

func (a *app) settings(flags *pflag.FlagSet, file string, said map[string]string) (config.Config, error) {
	if file == "" {
		file, _ = a.lookupEnv("FIREBREAK_CONFIG")
	}
	for key, name := range map[string]string{"state_dir": "state-dir", "policy": "policy"} {
		if f := flags.Lookup(name); f != nil && f.Changed {
			said[key] = f.Value.String()
		}
	}
	if _, given := said["log.level"]; a.debug && !given {
		said["log.level"] = "debug"
	}
	return config.Load(file, a.lookupEnv, said)
}
