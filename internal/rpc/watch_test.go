package rpc_test

import (
	"context"
	"slices"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// watching opens a watch and returns once it is on.
func watching(t *testing.T, c *client.Client, req *firebreakv1.WatchSandboxesRequest) *connect.ServerStreamForClient[firebreakv1.WatchSandboxesResponse] {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	t.Cleanup(cancel)
	stream, err := c.Sandboxes.WatchSandboxes(ctx, connect.NewRequest(req))
	if err != nil {
		t.Fatal(err)
	}
	if !stream.Receive() || stream.Msg().GetEvent() != nil {
		t.Fatalf("it begins with %v, %v", stream.Msg(), stream.Err())
	}
	return stream
}

func next(t *testing.T, stream *connect.ServerStreamForClient[firebreakv1.WatchSandboxesResponse]) *firebreakv1.Event {
	t.Helper()
	if !stream.Receive() {
		t.Fatalf("no more events: %v", stream.Err())
	}
	return stream.Msg().GetEvent()
}

func TestWatch(t *testing.T) {
	ctx := t.Context()
	w := newTown(t)
	acme, other := w.as("acme"), w.as("other")
	all, own := watching(t, w.as("operator"), &firebreakv1.WatchSandboxesRequest{}), watching(t, acme, &firebreakv1.WatchSandboxesRequest{})
	create(t, other, &firebreakv1.CreateSandboxRequest{}) // which acme must not hear of
	sb := create(t, acme, &firebreakv1.CreateSandboxRequest{Metadata: map[string]string{"a": "b"}})
	one := watching(t, acme, &firebreakv1.WatchSandboxesRequest{Id: sb.GetId()[:10], Types: []string{"paused", "killed"}})
	if err := call(acme.Sandboxes.PauseSandbox(ctx, connect.NewRequest(&firebreakv1.PauseSandboxRequest{Id: sb.GetId()}))); err != nil {
		t.Fatal(err)
	}
	create(t, acme, &firebreakv1.CreateSandboxRequest{})
	if err := call(acme.Sandboxes.DeleteSandbox(ctx, connect.NewRequest(&firebreakv1.DeleteSandboxRequest{Id: sb.GetId()}))); err != nil {
		t.Fatal(err)
	}
	var after string
	for i, want := range []string{"created", "paused", "created", "killed"} {
		e := next(t, own)
		if e.GetType() != want || e.GetTenant() != "acme" || e.GetTemplate() != "host" || e.GetDriver() != "fake" || e.GetAt() == nil || e.GetId() == "" {
			t.Errorf("%d: %v, want %s", i, e, want)
		}
		if i == 0 && (e.GetSandboxId() != sb.GetId() || e.GetMetadata()["a"] != "b") {
			t.Errorf("created %v", e)
		}
		if i == 1 {
			after = e.GetId()
		}
		if i == 3 && e.GetReason() != "destroyed" {
			t.Errorf("killed %v", e)
		}
	}
	for _, want := range []string{"paused", "killed"} {
		if e := next(t, one); e.GetType() != want || e.GetSandboxId() != sb.GetId() {
			t.Errorf("of one sandbox: %v, want %s", e, want)
		}
	}
	var tenants []string
	for range 5 {
		tenants = append(tenants, next(t, all).GetTenant())
	}
	if slices.Sort(tenants); strings.Join(tenants, " ") != "acme acme acme acme other" {
		t.Errorf("the operator hears of %v", tenants)
	}
	again := watching(t, acme, &firebreakv1.WatchSandboxesRequest{After: after})
	for _, want := range []string{"created", "killed"} {
		if e := next(t, again); e.GetType() != want {
			t.Errorf("after the second: %v, want %s", e, want)
		}
	}
	for name, req := range map[string]*firebreakv1.WatchSandboxesRequest{
		"an unknown type":    {Types: []string{"moved"}},
		"an unknown event":   {After: "nothing"},
		"an unknown sandbox": {Id: "nobody"},
	} {
		stream, err := acme.Sandboxes.WatchSandboxes(ctx, connect.NewRequest(req))
		if err != nil {
			t.Fatal(err)
		}
		for stream.Receive() && stream.Msg().GetEvent() == nil {
		}
		if kind := firebreak.KindOf(stream.Err()); kind != firebreak.KindInvalid && kind != firebreak.KindNotFound {
			t.Errorf("%s: %v", name, stream.Err())
		}
		stream.Close()
	}
	stream, err := other.Sandboxes.WatchSandboxes(ctx, connect.NewRequest(&firebreakv1.WatchSandboxesRequest{After: after}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	for stream.Receive() && stream.Msg().GetEvent() == nil {
	}
	if firebreak.KindOf(stream.Err()) != firebreak.KindNotFound {
		t.Errorf("another tenant's event: %v", stream.Err())
	}
}
