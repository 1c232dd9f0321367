package rpc_test

import (
	"context"
	"fmt"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
)

// callers takes the caller from a header, as the server takes him from a key.
func callers(h http.Handler) http.Handler {
	return http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		ctx := r.Context()
		switch name := r.Header.Get("X-Caller"); name {
		case "":
		case "operator":
			ctx = auth.WithCaller(ctx, auth.Caller{Operator: true})
		default:
			ctx = auth.WithCaller(ctx, auth.Caller{Tenant: auth.Tenant{ID: name}})
		}
		h.ServeHTTP(w, r.WithContext(ctx))
	})
}

// calling is a client's way in, as somebody.
type calling struct {
	*http.Client
	name string
}

func (c calling) Do(r *http.Request) (*http.Response, error) {
	if c.name != "" {
		r.Header.Set("X-Caller", c.name)
	}
	return c.Client.Do(r)
}

// town is a server and its clients.
type town struct {
	server    *httptest.Server
	pools     *fakePools
	templates *templates
}

func (w *town) as(name string) *client.Client {
	return client.New(w.server.URL, calling{w.server.Client(), name})
}

func newTown(t *testing.T) *town {
	cfg, m := newConfig(t)
	w := &town{pools: &fakePools{}, templates: cfg.Templates.(*templates)}
	cfg.Pools, cfg.Detach, cfg.MaxTimeout = w.pools, true, time.Hour
	w.server = httptest.NewServer(callers(newDoor(cfg, m)))
	t.Cleanup(w.server.Close)
	return w
}

// TestTenantsDoNotSeeEachOther asks for a tenant's sandbox at every method that takes one: by its id, the beginning of
// it and its name. To another it is as if there were none, word by word.
func TestTenantsDoNotSeeEachOther(t *testing.T) {
	w := newTown(t)
	acme, other := w.as("acme"), w.as("other")
	sb := create(t, acme, &firebreakv1.CreateSandboxRequest{Name: "work"})
	if sb.GetTenant() != "acme" || !sb.GetDetached() {
		t.Errorf("created %v", sb)
	}
	absent := strings.Repeat("z", len(sb.GetId()))
	for method, call := range map[string]func(ctx context.Context, c *client.Client, id string) error{
		"get": func(ctx context.Context, c *client.Client, id string) error {
			_, err := c.Sandboxes.GetSandbox(ctx, connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: id}))
			return err
		},
		"wait": func(ctx context.Context, c *client.Client, id string) error {
			_, err := c.Sandboxes.WaitSandbox(ctx, connect.NewRequest(&firebreakv1.WaitSandboxRequest{Id: id}))
			return err
		},
		"pause": func(ctx context.Context, c *client.Client, id string) error {
			_, err := c.Sandboxes.PauseSandbox(ctx, connect.NewRequest(&firebreakv1.PauseSandboxRequest{Id: id}))
			return err
		},
		"resume": func(ctx context.Context, c *client.Client, id string) error {
			_, err := c.Sandboxes.ResumeSandbox(ctx, connect.NewRequest(&firebreakv1.ResumeSandboxRequest{Id: id}))
			return err
		},
		"timeout": func(ctx context.Context, c *client.Client, id string) error {
			_, err := c.Sandboxes.SetSandboxTimeout(ctx, connect.NewRequest(&firebreakv1.SetSandboxTimeoutRequest{Id: id, Timeout: durationpb.New(time.Minute)}))
			return err
		},
		"watch": func(ctx context.Context, c *client.Client, id string) error {
			stream, err := c.Sandboxes.WatchSandboxes(ctx, connect.NewRequest(&firebreakv1.WatchSandboxesRequest{Id: id}))
			if err != nil {
				return err
			}
			defer stream.Close()
			if stream.Receive() {
				return nil
			}
			return stream.Err()
		},
		"delete": func(ctx context.Context, c *client.Client, id string) error {
			_, err := c.Sandboxes.DeleteSandbox(ctx, connect.NewRequest(&firebreakv1.DeleteSandboxRequest{Id: id}))
			return err
		},
	} {
		t.Run(method, func(t *testing.T) {
			none := call(t.Context(), other, absent)
			for _, ref := range []string{sb.GetId(), sb.GetId()[:8], "work"} {
				err := call(t.Context(), other, ref)
				if firebreak.KindOf(err) != firebreak.KindNotFound || strings.ReplaceAll(err.Error(), ref, "X") != strings.ReplaceAll(none.Error(), absent, "X") {
					t.Errorf("%s: %v\nwant as for one that is not there: %v", ref, err, none)
				}
			}
			if err := call(t.Context(), w.as(""), sb.GetId()); firebreak.KindOf(err) != firebreak.KindDenied {
				t.Errorf("nobody: %v, want denied", err)
			}
		})
	}
	for name, want := range map[string]int{"acme": 1, "other": 0, "operator": 1} {
		list, err := w.as(name).Sandboxes.ListSandboxes(t.Context(), connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
		if err != nil || len(list.Msg.GetSandboxes()) != want {
			t.Errorf("%s sees %v, %v", name, list, err)
		}
	}
	create(t, other, &firebreakv1.CreateSandboxRequest{Name: "work"}) // the name is free for him
	got, err := acme.Sandboxes.GetSandbox(t.Context(), connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: "work"}))
	if err != nil || got.Msg.GetSandbox().GetId() != sb.GetId() || got.Msg.GetSandbox().GetState() != "running" {
		t.Errorf("after all this: %v, %v", got, err)
	}
}

// TestEveryMethodIsInTheIsolationTable fails when a method is added that takes a sandbox's id and is not tried above.
func TestEveryMethodIsInTheIsolationTable(t *testing.T) {
	tried := []string{"GetSandbox", "WaitSandbox", "PauseSandbox", "ResumeSandbox", "SetSandboxTimeout", "WatchSandboxes", "DeleteSandbox", "ListSandboxes", "CreateSandbox"}
	methods := firebreakv1.File_firebreak_v1_firebreak_proto.Services().ByName("SandboxService").Methods()
	for i := range methods.Len() {
		if name := string(methods.Get(i).Name()); !slices.Contains(tried, name) {
			t.Errorf("nobody tries whether tenants are kept apart at %s", name)
		}
	}
}

// TestWhatIsForTheOperator calls every method of the operator's services, and those of others that reach beyond a
// tenant's sandboxes, as a tenant and as nobody.
func TestWhatIsForTheOperator(t *testing.T) {
	w := newTown(t)
	services := firebreakv1.File_firebreak_v1_firebreak_proto.Services()
	var procedures []protoreflect.MethodDescriptor
	for _, service := range []protoreflect.Name{"KeyService", "TenantService", "PoolService", "HostService"} {
		methods := services.ByName(service).Methods()
		for i := range methods.Len() {
			procedures = append(procedures, methods.Get(i))
		}
	}
	for _, name := range []protoreflect.Name{"MakeTemplate", "DeleteTemplate", "CollectGarbage"} {
		procedures = append(procedures, services.ByName("TemplateService").Methods().ByName(name))
	}
	for _, m := range procedures {
		url := fmt.Sprintf("%s/%s/%s", w.server.URL, m.Parent().FullName(), m.Name())
		contentType, body := "application/json", "{}"
		if m.IsStreamingServer() {
			contentType, body = "application/connect+json", "\x00\x00\x00\x00\x02{}"
		}
		for _, caller := range []string{"acme", ""} {
			req, err := http.NewRequestWithContext(t.Context(), "POST", url, strings.NewReader(body))
			if err != nil {
				t.Fatal(err)
			}
			req.Header.Set("Content-Type", contentType)
			resp, err := calling{w.server.Client(), caller}.Do(req)
			if err != nil {
				t.Fatal(err)
			}
			text := make([]byte, 4096)
			n, _ := resp.Body.Read(text)
			resp.Body.Close()
			if !strings.Contains(string(text[:n]), `"permission_denied"`) {
				t.Errorf("%s as %q: status %d, %q", m.FullName(), caller, resp.StatusCode, text[:n])
			}
		}
	}
}

func TestKeysAndTenants(t *testing.T) {
	ctx := t.Context()
	c := newTown(t).as("operator")
	made, err := c.Keys.CreateKey(ctx, connect.NewRequest(&firebreakv1.CreateKeyRequest{Name: "laptop"}))
	if err != nil {
		t.Fatal(err)
	}
	key := made.Msg.GetKey()
	if !strings.HasPrefix(made.Msg.GetSecret(), "e2b_"+key.GetId()) || key.GetTenant() != "default" || key.GetName() != "laptop" || key.GetUsedAt() != nil || key.GetRevokedAt() != nil {
		t.Errorf("made %v", made.Msg)
	}
	if _, err := c.Keys.CreateKey(ctx, connect.NewRequest(&firebreakv1.CreateKeyRequest{Tenant: "acme"})); firebreak.KindOf(err) != firebreak.KindNotFound || !strings.Contains(err.Error(), "firebreak tenant set acme") {
		t.Errorf("a key for a tenant that is not there: %v", err)
	}
	want := &firebreakv1.Tenant{Id: "acme", Limits: &firebreakv1.Tenant_Limits{Sandboxes: 3, Cpus: 1.5, MemoryBytes: 1 << 30, CreatesPerSecond: 2, Burst: 4},
		Workload: &firebreakv1.Workload{Origin: "untrusted", Needs: []string{"network"}}}
	set, err := c.Tenants.SetTenant(ctx, connect.NewRequest(&firebreakv1.SetTenantRequest{Tenant: want}))
	if err != nil || !proto.Equal(set.Msg.GetTenant(), want) {
		t.Errorf("set %v, %v", set, err)
	}
	if _, err := c.Keys.CreateKey(ctx, connect.NewRequest(&firebreakv1.CreateKeyRequest{Tenant: "acme"})); err != nil {
		t.Error(err)
	}
	tenants, err := c.Tenants.ListTenants(ctx, connect.NewRequest(&firebreakv1.ListTenantsRequest{}))
	if err != nil || len(tenants.Msg.GetTenants()) != 2 || !proto.Equal(tenants.Msg.GetTenants()[0], want) {
		t.Errorf("tenants %v, %v", tenants, err)
	}
	if _, err := c.Keys.RevokeKey(ctx, connect.NewRequest(&firebreakv1.RevokeKeyRequest{Id: key.GetId()})); err != nil {
		t.Error(err)
	}
	for tenant, want := range map[string]int{"": 2, "default": 1, "acme": 1, "nobody": 0} {
		keys, err := c.Keys.ListKeys(ctx, connect.NewRequest(&firebreakv1.ListKeysRequest{Tenant: tenant}))
		if err != nil || len(keys.Msg.GetKeys()) != want {
			t.Errorf("keys of %q: %v, %v", tenant, keys, err)
		}
		if tenant == "default" && keys.Msg.GetKeys()[0].GetRevokedAt() == nil {
			t.Error("it is not revoked")
		}
	}
	for name, err := range map[string]error{
		"a bad id":      call(c.Tenants.SetTenant(ctx, connect.NewRequest(&firebreakv1.SetTenantRequest{Tenant: &firebreakv1.Tenant{Id: "A B"}}))),
		"a bad limit":   call(c.Tenants.SetTenant(ctx, connect.NewRequest(&firebreakv1.SetTenantRequest{Tenant: &firebreakv1.Tenant{Id: "x", Limits: &firebreakv1.Tenant_Limits{Cpus: -1}}}))),
		"a bad word":    call(c.Tenants.SetTenant(ctx, connect.NewRequest(&firebreakv1.SetTenantRequest{Tenant: &firebreakv1.Tenant{Id: "x", Workload: &firebreakv1.Workload{Origin: "mars"}}}))),
		"nothing":       call(c.Tenants.SetTenant(ctx, connect.NewRequest(&firebreakv1.SetTenantRequest{}))),
		"a long name":   call(c.Keys.CreateKey(ctx, connect.NewRequest(&firebreakv1.CreateKeyRequest{Name: strings.Repeat("x", 200)}))),
		"a key for id":  call(c.Keys.RevokeKey(ctx, connect.NewRequest(&firebreakv1.RevokeKeyRequest{Id: made.Msg.GetSecret()}))),
		"a short token": call(c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{PageToken: "x"}))),
		"a bad state":   call(c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{States: []string{"asleep"}}))),
		"a bad size":    call(c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(&firebreakv1.ListSandboxesRequest{PageSize: -1}))),
	} {
		if firebreak.KindOf(err) != firebreak.KindInvalid || strings.Contains(err.Error(), made.Msg.GetSecret()) {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
}

// call drops an answer.
func call[T any](_ *connect.Response[T], err error) error { return err }

func TestPauseAndResume(t *testing.T) {
	ctx := t.Context()
	c := newTown(t).as("acme")
	sb := create(t, c, &firebreakv1.CreateSandboxRequest{Metadata: map[string]string{"a": "b"}, OnTimeout: "pause", AutoResume: true, Timeout: durationpb.New(time.Minute)})
	if sb.GetMetadata()["a"] != "b" || sb.GetOnTimeout() != "pause" || !sb.GetAutoResume() {
		t.Errorf("created %v", sb)
	}
	id := sb.GetId()
	paused, err := c.Sandboxes.PauseSandbox(ctx, connect.NewRequest(&firebreakv1.PauseSandboxRequest{Id: id}))
	if err != nil || paused.Msg.GetSandbox().GetState() != "paused" || paused.Msg.GetSandbox().GetPausedAt() == nil {
		t.Errorf("paused %v, %v", paused, err)
	}
	if err := call(c.Sandboxes.PauseSandbox(ctx, connect.NewRequest(&firebreakv1.PauseSandboxRequest{Id: id}))); firebreak.KindOf(err) != firebreak.KindState {
		t.Errorf("paused twice: %v", err)
	}
	for _, want := range []bool{true, false} {
		resumed, err := c.Sandboxes.ResumeSandbox(ctx, connect.NewRequest(&firebreakv1.ResumeSandboxRequest{Id: id, Timeout: durationpb.New(30 * time.Minute)}))
		if err != nil || resumed.Msg.GetResumed() != want || resumed.Msg.GetSandbox().GetState() != "running" || resumed.Msg.GetSandbox().GetPausedAt() != nil {
			t.Errorf("resumed %v, %v", resumed, err)
		}
	}
	before, err := c.Sandboxes.GetSandbox(ctx, connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: id}))
	if err != nil {
		t.Fatal(err)
	}
	for _, extend := range []bool{true, false} {
		set, err := c.Sandboxes.SetSandboxTimeout(ctx, connect.NewRequest(&firebreakv1.SetSandboxTimeoutRequest{Id: id, Timeout: durationpb.New(time.Minute), ExtendOnly: extend}))
		was, now := before.Msg.GetSandbox().GetDeadline().AsTime(), set.Msg.GetSandbox().GetDeadline().AsTime()
		if err != nil || now.Before(was) != !extend {
			t.Errorf("extend only %v: %v became %v, %v", extend, was, now, err)
		}
	}
}

// TestTimeIsBounded holds tenants to the longest time, and nobody else.
func TestTimeIsBounded(t *testing.T) {
	ctx := t.Context()
	w := newTown(t)
	acme, operator := w.as("acme"), w.as("operator")
	long := durationpb.New(time.Hour + time.Second)
	sb := create(t, acme, &firebreakv1.CreateSandboxRequest{})
	if left := time.Until(sb.GetDeadline().AsTime()); left > time.Hour || left < 50*time.Minute {
		t.Errorf("without a word it has %s", left)
	}
	for name, err := range map[string]error{
		"create":  call(acme.Sandboxes.CreateSandbox(ctx, connect.NewRequest(&firebreakv1.CreateSandboxRequest{Timeout: long}))),
		"resume":  call(acme.Sandboxes.ResumeSandbox(ctx, connect.NewRequest(&firebreakv1.ResumeSandboxRequest{Id: sb.GetId(), Timeout: long}))),
		"timeout": call(acme.Sandboxes.SetSandboxTimeout(ctx, connect.NewRequest(&firebreakv1.SetSandboxTimeoutRequest{Id: sb.GetId(), Timeout: long}))),
		"none":    call(acme.Sandboxes.SetSandboxTimeout(ctx, connect.NewRequest(&firebreakv1.SetSandboxTimeoutRequest{Id: sb.GetId()}))),
	} {
		if firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v, want invalid", name, err)
		}
	}
	if sb := create(t, operator, &firebreakv1.CreateSandboxRequest{}); sb.GetDeadline() != nil || sb.GetTenant() != "" {
		t.Errorf("the operator's is %v", sb)
	}
	if err := call(operator.Sandboxes.SetSandboxTimeout(ctx, connect.NewRequest(&firebreakv1.SetSandboxTimeoutRequest{Id: sb.GetId(), Timeout: long}))); err != nil {
		t.Errorf("the operator: %v", err)
	}
}

func TestPages(t *testing.T) {
	ctx := t.Context()
	c := newTown(t).as("acme")
	var ids []string
	for i := range 7 {
		sb := create(t, c, &firebreakv1.CreateSandboxRequest{Metadata: map[string]string{"even": fmt.Sprint(i%2 == 0), "x": ""}})
		ids = append(ids, sb.GetId())
	}
	if err := call(c.Sandboxes.PauseSandbox(ctx, connect.NewRequest(&firebreakv1.PauseSandboxRequest{Id: ids[0]}))); err != nil {
		t.Fatal(err)
	}
	for name, test := range map[string]struct {
		req  *firebreakv1.ListSandboxesRequest
		want int
	}{
		"all":              {&firebreakv1.ListSandboxesRequest{}, 7},
		"by metadata":      {&firebreakv1.ListSandboxesRequest{Metadata: map[string]string{"even": "true", "x": ""}}, 4},
		"by what is unset": {&firebreakv1.ListSandboxesRequest{Metadata: map[string]string{"odd": ""}}, 0},
		"paused":           {&firebreakv1.ListSandboxesRequest{States: []string{"paused"}}, 1},
		"both":             {&firebreakv1.ListSandboxesRequest{States: []string{"paused", "running"}, Metadata: map[string]string{"even": "true"}}, 4},
	} {
		for size := range int32(9) {
			seen, pages := map[string]bool{}, 0
			for token := ""; pages == 0 || token != ""; pages++ {
				req := proto.CloneOf(test.req)
				req.PageSize, req.PageToken = size, token
				page, err := c.Sandboxes.ListSandboxes(ctx, connect.NewRequest(req))
				if err != nil {
					t.Fatal(err)
				}
				token = page.Msg.GetNextPageToken()
				if n := len(page.Msg.GetSandboxes()); size > 0 && n > int(size) || token != "" && n == 0 {
					t.Errorf("%s: a page of %d, asked for %d", name, n, size)
				}
				for _, sb := range page.Msg.GetSandboxes() {
					if seen[sb.GetId()] {
						t.Errorf("%s: %s stands on two pages of %d", name, sb.GetId(), size)
					}
					seen[sb.GetId()] = true
				}
			}
			if len(seen) != test.want {
				t.Errorf("%s: %d in pages of %d, want %d", name, len(seen), size, test.want)
			}
		}
	}
}

func TestTenantsTemplates(t *testing.T) {
	ctx := t.Context()
	w := newTown(t)
	w.templates.more = []string{"acme/mine", "other/mine", "ghcr.io/owner/image:1"}
	for name, want := range map[string][]string{
		"acme":     {"host", "acme/mine", "ghcr.io/owner/image:1"},
		"other":    {"host", "other/mine", "ghcr.io/owner/image:1"},
		"operator": {"host", "acme/mine", "other/mine", "ghcr.io/owner/image:1"},
	} {
		list, err := w.as(name).Templates.ListTemplates(ctx, connect.NewRequest(&firebreakv1.ListTemplatesRequest{}))
		if err != nil {
			t.Fatal(err)
		}
		var got []string
		for _, tpl := range list.Msg.GetTemplates() {
			got = append(got, tpl.GetName())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%s sees %v, want %v", name, got, want)
		}
	}
	get := func(caller, name string) error {
		return call(w.as(caller).Templates.GetTemplate(ctx, connect.NewRequest(&firebreakv1.GetTemplateRequest{Name: name})))
	}
	for _, test := range []struct {
		caller, name string
		want         bool
	}{{"acme", "host", true}, {"acme", "acme/mine", true}, {"acme", "other/mine", false}, {"operator", "other/mine", true}, {"acme", "ghcr.io/owner/image:1", true}} {
		if err := get(test.caller, test.name); (err == nil) != test.want || err != nil && firebreak.KindOf(err) != firebreak.KindNotFound {
			t.Errorf("%s asks for %s: %v", test.caller, test.name, err)
		}
	}
}
