package cli

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"connectrpc.com/connect"
	"github.com/spf13/cobra"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// template finds the template that --template names, or imports it: from a path, or from a registry if the word can be
// nothing but a reference. A bare word is never pulled, because it may be a mistyped name.
func (l *launch) template(ctx context.Context) error {
	if l.module != "" {
		return l.moduleTemplate(ctx)
	}
	word := l.flags.template
	if word == "" {
		return nil
	}
	defer l.report.lap(&l.report.image)()
	req := &firebreakv1.MakeTemplateRequest{IfMissing: true}
	if isPath(word) {
		path, err := l.app.serverPath(word)
		if err == nil {
			err = new(importFlags).apply(l.app, req, path)
		}
		if err != nil {
			return err
		}
	} else {
		_, err := l.client.Templates.GetTemplate(ctx, connect.NewRequest(&firebreakv1.GetTemplateRequest{Name: word}))
		if err == nil || firebreak.KindOf(err) != firebreak.KindNotFound {
			l.create.Template = word
			return err
		}
		if !isReference(word) {
			return missingTemplate(ctx, l.client, word)
		}
		req.Source = &firebreakv1.MakeTemplateRequest_Reference{Reference: word}
	}
	made, err := l.app.makeTemplate(ctx, l.client, req)
	l.create.Template = made.GetName()
	return err
}

func isPath(word string) bool {
	return filepath.IsAbs(word) || word == "." || word == ".." || strings.HasPrefix(word, "./") || strings.HasPrefix(word, "../") ||
		strings.HasSuffix(word, ".tar") || strings.HasSuffix(word, ".tar.gz") || strings.HasSuffix(word, ".tgz") || isModule(word)
}

func isReference(word string) bool { return strings.ContainsAny(word, "/:@") }

// serverPath makes a path of the caller one that the server understands.
func (a *app) serverPath(path string) (string, error) {
	if a.server != "" {
		if !filepath.IsAbs(path) {
			return "", invalid("", fmt.Errorf("path %s must be absolute, it is one of the server's host", path), "")
		}
		return path, nil
	}
	abs, err := filepath.Abs(path)
	if err != nil {
		return "", err
	}
	if _, err := os.Stat(abs); err != nil {
		mend := "a template needs a directory, a tar, an OCI layout or a docker save archive"
		if errors.Is(err, fs.ErrPermission) {
			mend = "make it readable for this user"
		}
		return "", invalid("", err, mend)
	}
	return abs, nil
}

// missingTemplate names the near ones.
func missingTemplate(ctx context.Context, c *client.Client, word string) error {
	mend := "firebreak template ls shows what is there; firebreak template import docker.io/library/" + word + " would fetch an image"
	if list, err := c.Templates.ListTemplates(ctx, connect.NewRequest(&firebreakv1.ListTemplatesRequest{})); err == nil {
		var names []string
		for _, t := range list.Msg.GetTemplates() {
			names = append(names, t.GetName())
		}
		if near := nearest(word, names); near != "" {
			mend = "did you mean " + near + "?"
		} else if word == "base" {
			mend = "make it with: firebreak template build base"
		}
	}
	return &firebreak.Error{Kind: firebreak.KindNotFound, Err: fmt.Errorf("there is no template %q", word), Mend: mend}
}

// makeTemplate shows the progress of a make and returns the template.
func (a *app) makeTemplate(ctx context.Context, c *client.Client, req *firebreakv1.MakeTemplateRequest) (*firebreakv1.Template, error) {
	stream, err := c.Templates.MakeTemplate(ctx, connect.NewRequest(req))
	if err != nil {
		return nil, err
	}
	defer stream.Close()
	bars := a.newBars()
	defer bars.close()
	var made *firebreakv1.Template
	for stream.Receive() {
		if p := stream.Msg().GetProgress(); p != nil {
			bars.show(p)
		}
		if t := stream.Msg().GetTemplate(); t != nil {
			made = t
		}
	}
	if err := stream.Err(); err != nil {
		return nil, err
	}
	if made == nil {
		return nil, errors.New("the server ended before the template was made")
	}
	return made, nil
}

func (a *app) templateCommand() *cobra.Command {
	cmd := &cobra.Command{
		Use:     "template",
		Aliases: []string{"templates"},
		Short:   "List, make and remove what sandboxes start from",
		Args:    cobra.ArbitraryArgs,
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				return unknownBelow(cmd, args[0])
			}
			return cmd.Help()
		},
	}
	cmd.AddCommand(a.templateLsCommand(), a.templateMakeCommand("import"), a.templateMakeCommand("build"),
		a.templateInspectCommand(), a.templateRmCommand(), a.templateGCCommand())
	return cmd
}

func (a *app) templateLsCommand() *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:     "ls",
		Aliases: []string{"list"},
		Short:   "List templates",
		Args:    arguments(0, 0, "firebreak template ls takes no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				list, err := c.Templates.ListTemplates(ctx, connect.NewRequest(&firebreakv1.ListTemplatesRequest{}))
				if err != nil {
					return err
				}
				if asJSON {
					return printMessages(a.out, list.Msg.GetTemplates())
				}
				return a.printTemplates(list.Msg.GetTemplates())
			})
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) printTemplates(templates []*firebreakv1.Template) error {
	rows := [][]string{{"NAME", "FORM", "DIGEST", "SIZE", "AGE", "SOURCE"}}
	for _, t := range templates {
		digest := strings.TrimPrefix(t.GetDigest(), "sha256:")
		size := formatSize(t.GetSizeBytes())
		if t.GetDigest() == "" {
			size = "-" // host: nothing is copied
		}
		rows = append(rows, []string{t.GetName(), formOf(t), digest[:min(12, len(digest))], size, age(t.GetCreatedAt()), t.GetSource()})
	}
	return a.printTable(rows)
}

// formOf says in two words at most what a template is.
func formOf(t *firebreakv1.Template) string {
	if t.GetForm() == "" {
		return "root"
	}
	return strings.TrimSuffix(t.GetForm()+" "+t.GetLanguage(), " ")
}

// templateMakeCommand makes "template import" or "template build".
func (a *app) templateMakeCommand(verb string) *cobra.Command {
	var name string
	var asJSON bool
	var f importFlags
	cmd := &cobra.Command{
		Use:   "import PATH|REFERENCE",
		Short: "Make a template from an image of a registry, a directory, a tar, an OCI layout, a docker save archive or a WebAssembly module",
		Example: "  firebreak template import docker.io/library/python:3.12-slim\n  firebreak template import --name work ./rootfs\n" +
			"  firebreak template import --name wasm-lua --language lua --lib ./share lua.wasm",
		Args: arguments(1, 1, "say what to import: firebreak template import docker.io/library/debian:12"),
	}
	if verb == "build" {
		cmd.Use, cmd.Short, cmd.Example = "build RECIPE", "Make a template from Debian packages", "  firebreak template build base"
		cmd.Args = arguments(1, 1, "say what to build: firebreak template build base")
	}
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		req := &firebreakv1.MakeTemplateRequest{Name: name}
		switch _, statErr := os.Stat(args[0]); {
		case verb == "build":
			req.Source = &firebreakv1.MakeTemplateRequest_Recipe{Recipe: args[0]}
		case isPath(args[0]) || statErr == nil && a.server == "":
			path, err := a.serverPath(args[0])
			if err == nil {
				err = f.apply(a, req, path)
			}
			if err != nil {
				return err
			}
		default:
			req.Source = &firebreakv1.MakeTemplateRequest_Reference{Reference: args[0]}
			if err := f.check(req); err != nil {
				return err
			}
		}
		return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
			made, err := a.makeTemplate(ctx, c, req)
			if err != nil {
				return err
			}
			if asJSON {
				return printMessage(a.out, made)
			}
			_, err = fmt.Fprintln(a.out, oneLine(made.GetName()))
			return err
		})
	}
	if verb == "import" {
		f.add(cmd)
	}
	cmd.Flags().StringVar(&name, "name", "", "`name` of the template (default: taken from its source)")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func (a *app) templateInspectCommand() *cobra.Command {
	return &cobra.Command{
		Use: "inspect NAME", Short: "Print all there is to know about a template, as JSON",
		Args:              arguments(1, 1, "say which template: firebreak template inspect NAME"),
		ValidArgsFunction: a.completeTemplates,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				got, err := c.Templates.GetTemplate(ctx, connect.NewRequest(&firebreakv1.GetTemplateRequest{Name: args[0]}))
				if firebreak.KindOf(err) == firebreak.KindNotFound {
					return missingTemplate(ctx, c, args[0])
				}
				if err != nil {
					return err
				}
				return printMessage(a.out, got.Msg.GetTemplate())
			})
		},
	}
}

func (a *app) templateRmCommand() *cobra.Command {
	return &cobra.Command{
		Use: "rm NAME…", Aliases: []string{"remove", "delete"}, Short: "Remove templates",
		Args:              arguments(1, -1, "say which template: firebreak template rm NAME"),
		ValidArgsFunction: a.completeTemplates,
		RunE: func(cmd *cobra.Command, args []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				return a.each(cmd, args, func(name string) error {
					_, err := c.Templates.DeleteTemplate(ctx, connect.NewRequest(&firebreakv1.DeleteTemplateRequest{Name: name}))
					if firebreak.KindOf(err) == firebreak.KindNotFound {
						return missingTemplate(ctx, c, name)
					}
					return err
				})
			})
		},
	}
}

func (a *app) templateGCCommand() *cobra.Command {
	return &cobra.Command{
		Use: "gc", Short: "Free the space of images that no template and no sandbox refers to",
		Args: arguments(0, 0, "firebreak template gc takes no arguments"),
		RunE: func(cmd *cobra.Command, _ []string) error {
			return a.with(cmd.Context(), func(ctx context.Context, c *client.Client) error {
				stop := a.waiting("collecting garbage")
				done, err := c.Templates.CollectGarbage(ctx, connect.NewRequest(&firebreakv1.CollectGarbageRequest{}))
				stop()
				if err != nil {
					return err
				}
				_, err = fmt.Fprintf(a.out, "removed %d, freed %s\n", done.Msg.GetRemoved(), formatSize(done.Msg.GetFreedBytes()))
				return err
			})
		},
	}
}
