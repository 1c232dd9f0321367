package mcp

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/url"
	"strings"
	"unicode/utf8"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
)

const (
	scheme      = "sandbox"
	maxResource = 4 << 20 // bytes of a file that is read as a resource
)

// addResources offers the files and logs of a session's sandboxes, for people and programs rather than models. Sandbox
// "default" is the one that tools use which name none.
func (d *Door) addResources() {
	for _, t := range []struct {
		template sdk.ResourceTemplate
		read     func(*call, *url.URL) (*sdk.ResourceContents, error)
	}{
		{sdk.ResourceTemplate{Name: "file", Title: "A file of a sandbox", URITemplate: scheme + "://{sandbox}/files/{+path}",
			Description: "A file by its absolute path, 4 MiB at most. sandbox is an id, or default."}, (*call).readFileResource},
		{sdk.ResourceTemplate{Name: "log", Title: "What happened in a sandbox", URITemplate: scheme + "://{sandbox}/log", MIMEType: "text/plain",
			Description: "What was run in a sandbox and how it ended, the last 200 entries."}, (*call).readLogResource},
		{sdk.ResourceTemplate{Name: "output", Title: "The output of a command", URITemplate: scheme + "://{sandbox}/output/{command}", MIMEType: "text/plain",
			Description: "What a command or run_code printed, up to 256 KiB of its beginning and end."}, (*call).readOutputResource},
	} {
		d.server.AddResourceTemplate(&t.template, func(ctx context.Context, req *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
			return d.readResource(ctx, req, t.read)
		})
	}
}

func (d *Door) readResource(ctx context.Context, req *sdk.ReadResourceRequest, read func(*call, *url.URL) (*sdk.ResourceContents, error)) (*sdk.ReadResourceResult, error) {
	c, leave, err := d.enter(ctx, &sdk.CallToolRequest{Session: req.Session, Extra: req.Extra})
	if err != nil {
		return nil, explain(err)
	}
	defer leave()
	uri, err := url.Parse(req.Params.URI)
	if err != nil {
		return nil, sdk.ResourceNotFoundError(req.Params.URI)
	}
	contents, err := read(c, uri)
	if firebreak.KindOf(err) == firebreak.KindNotFound {
		return nil, sdk.ResourceNotFoundError(req.Params.URI)
	}
	if err != nil {
		return nil, explain(err)
	}
	contents.URI = req.Params.URI
	return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{contents}}, nil
}

// named returns the sandbox that a resource is of. Reading one makes none.
func (c *call) named(uri *url.URL) (*box, error) {
	b := c.session.find(uri.Host)
	if uri.Host == "default" {
		c.session.mu.Lock()
		b = c.session.standard
		c.session.mu.Unlock()
	}
	if b == nil {
		return nil, &firebreak.Error{Kind: firebreak.KindNotFound, Err: errors.New("this session has no such sandbox")}
	}
	return b, nil
}

func (c *call) readFileResource(uri *url.URL) (*sdk.ResourceContents, error) {
	b, err := c.named(uri)
	if err != nil {
		return nil, err
	}
	if err := b.alive(c); err != nil {
		return nil, err
	}
	g, err := c.door.cfg.Guests.Guest(c.ctx, b.id)
	if err != nil {
		return nil, err
	}
	path := "/" + strings.TrimLeft(strings.TrimPrefix(uri.Path, "/files/"), "/")
	body, size, err := g.ReadFile(c.ctx, path, "", 0, -1)
	if err != nil {
		return nil, err
	}
	defer body.Close() //nolint:errcheck // read as far as we want it
	data, err := io.ReadAll(io.LimitReader(body, maxResource+1))
	switch {
	case err != nil:
		return nil, broken(path, err)
	case len(data) > maxResource:
		return nil, invalid("use the tool read_file", "%s has %d bytes, more than %d", path, size, maxResource)
	}
	kind := http.DetectContentType(data)
	if utf8.Valid(data) && strings.HasPrefix(kind, "text/") {
		return &sdk.ResourceContents{MIMEType: "text/plain", Text: string(data)}, nil // never HTML that somebody might show
	}
	return &sdk.ResourceContents{MIMEType: kind, Blob: data}, nil
}

func (c *call) readLogResource(uri *url.URL) (*sdk.ResourceContents, error) {
	b, err := c.named(uri)
	if err != nil {
		return nil, err
	}
	return &sdk.ResourceContents{MIMEType: "text/plain", Text: b.log.text()}, nil
}

func (c *call) readOutputResource(uri *url.URL) (*sdk.ResourceContents, error) {
	b, err := c.named(uri)
	if err != nil {
		return nil, err
	}
	cmd, err := c.session.command(strings.TrimPrefix(uri.Path, "/output/"))
	if err != nil {
		return nil, err
	}
	if cmd.box != b {
		return nil, &firebreak.Error{Kind: firebreak.KindNotFound, Err: errors.New("that command ran in another sandbox")}
	}
	shown, _ := cmd.output.shown(maxKept, "they are not kept")
	return &sdk.ResourceContents{MIMEType: "text/plain", Text: shown}, nil
}
