package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// isModule reports whether a word means a file with a WebAssembly module.
func isModule(word string) bool { return strings.HasSuffix(word, ".wasm") }

// findModule returns the path, as the server understands it, of the module that the first argument names; empty: it names
// none.
func (a *app) findModule(arg string) (string, error) {
	if !isModule(arg) {
		return "", nil
	}
	path, err := a.serverPath(arg)
	if errors.Is(err, fs.ErrNotExist) {
		return "", missingScript(arg, fs.ErrNotExist)
	}
	return path, err
}

// programOf is the name by which the program in a module's file is run.
func programOf(path string) string { return strings.TrimSuffix(filepath.Base(path), ".wasm") }

// moduleTemplate makes the template of a module that is run, or finds it.
func (l *launch) moduleTemplate(ctx context.Context) error {
	defer l.report.lap(&l.report.image)()
	made, err := l.app.makeTemplate(ctx, l.client, &firebreakv1.MakeTemplateRequest{IfMissing: true,
		Source: &firebreakv1.MakeTemplateRequest_Module{Module: &firebreakv1.Module{Path: l.module, ByContent: true}}})
	l.create.Template = made.GetName()
	if command := made.GetCommand(); len(command) > 0 {
		l.program.command[0] = command[0]
	}
	return err
}

// importFlags are those of template import that are for modules and scripts.
type importFlags struct {
	library, language string
	command           []string
	scripts           bool
}

func (f *importFlags) add(cmd *cobra.Command) {
	flags := cmd.Flags()
	flags.StringVar(&f.library, "lib", "", "`directory` that a module sees as /lib")
	flags.StringVar(&f.language, "language", "", "`language` that a module runs, or that scripts are written in")
	flags.StringSliceVar(&f.command, "command", nil, "`names` by which a module is run (default: its file's)")
	flags.BoolVar(&f.scripts, "scripts", false, "the path is a directory of JavaScript modules")
}

// apply makes of a path what the flags say.
func (f *importFlags) apply(a *app, req *firebreakv1.MakeTemplateRequest, path string) error {
	req.Language, req.Command = f.language, f.command
	switch {
	case f.scripts && isModule(path):
		return invalid("", fmt.Errorf("%s is a module, and --scripts is for directories", path), "leave --scripts out")
	case f.scripts:
		req.Source = &firebreakv1.MakeTemplateRequest_Scripts{Scripts: path}
	case isModule(path):
		m := &firebreakv1.Module{Path: path}
		if f.library != "" {
			library, err := a.serverPath(f.library)
			if err != nil {
				return err
			}
			m.Library = library
		}
		req.Source = &firebreakv1.MakeTemplateRequest_Module{Module: m}
	default:
		req.Source = &firebreakv1.MakeTemplateRequest_Path{Path: path}
	}
	return f.check(req)
}

// check refuses flags that the source has no use for.
func (f *importFlags) check(req *firebreakv1.MakeTemplateRequest) error {
	module, scripts := req.GetModule() != nil, req.GetScripts() != ""
	for _, c := range []struct {
		set  bool
		fits bool
		flag string
	}{
		{f.library != "", module, "--lib"}, {len(f.command) > 0, module, "--command"},
		{f.language != "", module || scripts, "--language"}, {f.scripts, scripts, "--scripts"},
	} {
		if c.set && !c.fits {
			return invalid("", fmt.Errorf("%s is for a WebAssembly module, a file .wasm", c.flag), "leave it out")
		}
	}
	return nil
}

// parseOptions reads options of the driver, KEY=VALUE.
func parseOptions(words []string) (map[string]string, error) {
	options := map[string]string{}
	for _, word := range words {
		key, value, found := strings.Cut(word, "=")
		if _, twice := options[key]; twice || !found || key == "" {
			return nil, &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("--option %q", word), Mend: "write each as KEY=VALUE, and once"}
		}
		options[key] = value
	}
	return options, nil
}
