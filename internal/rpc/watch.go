package rpc

import (
	"context"
	"errors"
	"fmt"
	"slices"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
)

// Events tells what happens to sandboxes.
type Events interface {
	// Watch calls fn for each event that f passes and the caller may see, until ctx is done or fn fails.
	Watch(ctx context.Context, f event.Filter, fn func(event.Event) error) error
	// Last returns the Seq of the event that was kept last.
	Last(ctx context.Context) (int64, error)
}

func (s *sandboxService) WatchSandboxes(ctx context.Context, req *connect.Request[firebreakv1.WatchSandboxesRequest], stream *connect.ServerStream[firebreakv1.WatchSandboxesResponse]) error {
	if _, err := auth.CallerOf(ctx); err != nil {
		return err
	}
	if s.cfg.Events == nil {
		return &firebreak.Error{Kind: firebreak.KindUnsupported, Op: "watch sandboxes", Err: errors.New("nobody keeps events here")}
	}
	f, err := s.filterOf(ctx, req.Msg)
	if err != nil {
		return err
	}
	// The client may act once it knows that the watch is on.
	if err := stream.Send(&firebreakv1.WatchSandboxesResponse{}); err != nil {
		return err
	}
	err = s.cfg.Events.Watch(ctx, f, func(e event.Event) error {
		return stream.Send(&firebreakv1.WatchSandboxesResponse{Event: eventMessage(e)})
	})
	return ended(ctx, err)
}

func (s *sandboxService) filterOf(ctx context.Context, msg *firebreakv1.WatchSandboxesRequest) (event.Filter, error) {
	f := event.Filter{After: msg.GetAfter()}
	for _, word := range msg.GetTypes() {
		t := event.Type(word)
		if !slices.Contains(event.Types(), t) {
			return f, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "watch sandboxes", Err: fmt.Errorf("%.40q is no type of event", word),
				Mend: fmt.Sprintf("choose of %v", event.Types())}
		}
		f.Types = append(f.Types, t)
	}
	if ref := msg.GetId(); ref != "" {
		rec, err := s.cfg.Sandboxes.Get(ctx, ref)
		if err != nil {
			return f, err
		}
		f.Sandbox = string(rec.ID)
	}
	if f.After != "" {
		return f, nil
	}
	last, err := s.cfg.Events.Last(ctx)
	if f.Seq = last; last == 0 {
		f.Seq = -1 // after none, which 0 would not say
	}
	return f, err
}

func eventMessage(e event.Event) *firebreakv1.Event {
	return &firebreakv1.Event{Id: e.ID, Type: string(e.Type), At: timestamp(e.Time), SandboxId: e.Sandbox, Tenant: e.Tenant, Template: e.Template, Driver: e.Driver,
		Metadata: e.Data.Metadata, Deadline: timestamp(e.Data.Deadline), Reason: e.Data.Reason, Detail: e.Data.Detail, Rules: e.Data.Rules}
}
