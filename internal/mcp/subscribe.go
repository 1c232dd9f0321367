package mcp

import (
	"context"
	"net/url"
	"slices"
	"strings"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
)

const maxCompletions = 100 // that the protocol allows

// subscribe lets a client be told when the log or an output of one of its own sandboxes changes.
func (d *Door) subscribe(ctx context.Context, req *sdk.SubscribeRequest) error {
	s, err := d.of(ctx, req.Session)
	if err != nil {
		return explain(err)
	}
	if slices.Contains(d.cfg.Watched, req.Params.URI) {
		return nil
	}
	uri, err := url.Parse(req.Params.URI)
	if err != nil || uri.Scheme != scheme || s.find(uri.Host) == nil || uri.Path != "/log" && !strings.HasPrefix(uri.Path, "/output/") {
		return sdk.ResourceNotFoundError(req.Params.URI) // a file tells nobody that it changes
	}
	if command, ok := strings.CutPrefix(uri.Path, "/output/"); ok {
		if _, err := s.command(command); err != nil {
			return sdk.ResourceNotFoundError(req.Params.URI)
		}
	}
	return nil
}

func (d *Door) unsubscribe(context.Context, *sdk.UnsubscribeRequest) error { return nil }

// changed tells who has subscribed.
func (c *command) changed(d *Door) {
	for _, path := range []string{"/log", "/output/" + c.id} {
		_ = d.server.ResourceUpdated(context.Background(), &sdk.ResourceUpdatedNotificationParams{URI: scheme + "://" + c.box.id + path}) // never fails
	}
}

// complete proposes the sandboxes and commands of the session, for the addresses of resources.
func (d *Door) complete(ctx context.Context, req *sdk.CompleteRequest) (*sdk.CompleteResult, error) {
	s, err := d.of(ctx, req.Session)
	if err != nil {
		return nil, explain(err)
	}
	var all []string
	if ref := req.Params.Ref; ref != nil && strings.HasPrefix(ref.URI, scheme+"://") {
		switch req.Params.Argument.Name {
		case "sandbox":
			all = append(all, "default")
			for _, b := range s.list() {
				all = append(all, b.id)
			}
		case "command":
			s.mu.Lock()
			for _, c := range s.commands {
				all = append(all, c.id)
			}
			s.mu.Unlock()
		}
	}
	res := &sdk.CompleteResult{Completion: sdk.CompletionResultDetails{Values: []string{}}}
	for _, v := range all {
		if strings.HasPrefix(v, req.Params.Argument.Value) && len(res.Completion.Values) < maxCompletions {
			res.Completion.Values = append(res.Completion.Values, v)
		}
	}
	res.Completion.Total = len(res.Completion.Values)
	return res, nil
}
