package webhook_test

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/webhook"
)

func TestTenantsHaveTheirOwn(t *testing.T) {
	w := newWorld(t, t.TempDir())
	hooks := w.webhooks(usual(), nil)
	mine, theirs := create(t, hooks, "acme", "https://example.com/a"), create(t, hooks, "umbra", "https://example.com/u")
	all, err := hooks.List(as(t, "acme"))
	if err != nil || len(all) != 1 || all[0].ID != mine.ID {
		t.Errorf("%+v, %v", all, err)
	}
	if all, err := hooks.List(auth.WithCaller(t.Context(), auth.Caller{Operator: true})); err != nil || len(all) != 2 ||
		!slices.ContainsFunc(all, func(h webhook.Webhook) bool { return h.ID == mine.ID }) ||
		!slices.ContainsFunc(all, func(h webhook.Webhook) bool { return h.ID == theirs.ID }) { // both may be of one millisecond
		t.Errorf("the operator sees %+v, %v", all, err)
	}
	name := "taken over"
	for what, try := range map[string]func() error{
		"get": func() error { _, err := hooks.Get(as(t, "acme"), theirs.ID); return err },
		"update": func() error {
			_, err := hooks.Update(as(t, "acme"), theirs.ID, webhook.Change{Name: &name})
			return err
		},
		"delete": func() error { return hooks.Delete(as(t, "acme"), theirs.ID) },
		"gone":   func() error { return hooks.Delete(as(t, "acme"), "x") },
	} {
		if err := try(); !errors.Is(err, fs.ErrNotExist) || firebreak.KindOf(err) != firebreak.KindNotFound {
			t.Errorf("%s: %v", what, err)
		}
	}
	if got, err := hooks.Get(as(t, "umbra"), theirs.ID); err != nil || got.Name != "mine" {
		t.Errorf("%+v, %v", got, err)
	}
	for _, ctx := range []func() error{
		func() error { _, err := hooks.List(t.Context()); return err },
		func() error { _, err := hooks.Create(t.Context(), spec("https://example.com")); return err },
		func() error { _, err := hooks.Create(as(t, ""), spec("https://example.com")); return err },
		func() error { _, err := hooks.Get(t.Context(), mine.ID); return err },
	} {
		if err := ctx(); firebreak.KindOf(err) != firebreak.KindDenied {
			t.Errorf("nobody: %v", err)
		}
	}
}

func TestWebhooksAreCheckedAndCounted(t *testing.T) {
	w := newWorld(t, t.TempDir())
	hooks := w.webhooks(usual(), nil)
	for what, change := range map[string]func(*webhook.Spec){
		"no events": func(s *webhook.Spec) { s.Events = nil }, "foreign event": func(s *webhook.Spec) { s.Events = []event.Type{event.TypeRefused} },
		"no secret": func(s *webhook.Spec) { s.Secret = "" }, "long secret": func(s *webhook.Spec) { s.Secret = webhook.Secret(strings.Repeat("x", 1025)) },
		"long name": func(s *webhook.Spec) { s.Name = strings.Repeat("x", 129) }, "bell": func(s *webhook.Spec) { s.Name = "\a" },
		"no URL": func(s *webhook.Spec) { s.URL = "" }, "metadata": func(s *webhook.Spec) { s.URL = "http://169.254.169.254/latest" },
	} {
		s := spec("https://example.com")
		change(&s)
		if _, err := hooks.Create(as(t, "acme"), s); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	for range 20 {
		create(t, hooks, "acme", "https://example.com")
	}
	if _, err := hooks.Create(as(t, "acme"), spec("https://example.com")); firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Errorf("one more: %v", err)
	}
	create(t, hooks, "umbra", "https://example.com")
}

func TestSecretIsNotShown(t *testing.T) {
	w := newWorld(t, t.TempDir())
	hook := create(t, w.webhooks(usual(), nil), "acme", "https://example.com")
	kept, err := w.store.ListWebhooks(t.Context())
	if err != nil || len(kept) != 1 || string(kept[0].Secret) != secret {
		t.Fatalf("%d are kept, %v", len(kept), err)
	}
	asJSON, err := json.Marshal(kept[0])
	if err != nil {
		t.Fatal(err)
	}
	var line strings.Builder
	slog.New(slog.NewJSONHandler(&line, nil)).Info("x", "record", kept[0], "secret", kept[0].Secret)
	for _, text := range []string{fmt.Sprintf("%v %+v %#v %s", hook, kept, kept, kept[0].Secret), string(asJSON), line.String()} {
		if strings.Contains(text, secret) {
			t.Errorf("the secret shows: %s", text)
		}
	}
}

func TestUpdateAndDelete(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir)
	r, other := receive(t, nil), receive(t, nil)
	hooks := w.webhooks(usual(), nil)
	hook := create(t, hooks, "acme", r.URL)
	w.publish("acme", "a", event.TypeCreated)
	r.wait(atLeast(1))
	off, on := false, true
	if got, err := hooks.Update(as(t, "acme"), hook.ID, webhook.Change{Enabled: &off}); err != nil || got.Enabled || got.URL != r.URL {
		t.Fatalf("%+v, %v", got, err)
	}
	w.publish("acme", "while it is off", event.TypeCreated)
	to := webhook.Change{Enabled: &on, URL: &other.URL, Events: []event.Type{event.TypeKilled, event.TypeKilled}}
	got, err := hooks.Update(as(t, "acme"), hook.ID, to)
	if err != nil || !got.Enabled || !slices.Equal(got.Events, []event.Type{event.TypeKilled}) || !got.Created.Equal(hook.Created) {
		t.Fatalf("%+v, %v", got, err)
	}
	w.publish("acme", "not asked for", event.TypeCreated)
	w.publish("acme", "b", event.TypeKilled)
	if s := sandboxes(other.wait(atLeast(1))); s != "b" {
		t.Errorf("got %s", s)
	}
	bad := "ftp://example.com"
	if _, err := hooks.Update(as(t, "acme"), hook.ID, webhook.Change{URL: &bad}); firebreak.KindOf(err) != firebreak.KindInvalid {
		t.Error(err)
	}
	w.publish("acme", "c", event.TypeKilled) // it is served as before
	other.wait(atLeast(2))
	if kept, err := w.store.ListWebhooks(t.Context()); err != nil || len(kept) != 1 || kept[0].URL != other.URL {
		t.Errorf("%+v, %v", kept, err)
	}
	if err := hooks.Delete(as(t, "acme"), hook.ID); err != nil {
		t.Fatal(err)
	}
	w.publish("acme", "d", event.TypeKilled)
	second := create(t, hooks, "acme", r.URL)
	w.publish("acme", "e", event.TypeCreated)
	if s := sandboxes(r.wait(atLeast(2))); s != "a e" {
		t.Errorf("got %s", s)
	}
	if all, err := hooks.List(as(t, "acme")); err != nil || len(all) != 1 || all[0].ID != second.ID {
		t.Errorf("%+v, %v", all, err)
	}
	if s := sandboxes(other.got); s != "b c" {
		t.Errorf("the deleted one got %s", s)
	}
}

// A name that stands for this host passes every look at it, and is refused when it is dialled.
func TestNamesOfThisHostAreNotDialled(t *testing.T) {
	dir := t.TempDir()
	w := newWorld(t, dir)
	r := receive(t, nil)
	u, err := url.Parse(r.URL)
	if err != nil {
		t.Fatal(err)
	}
	record := webhook.Record{Secret: secret, Webhook: webhook.Webhook{ID: "x", Tenant: "acme", Enabled: true, Events: event.E2BTypes(),
		URL: "http://localhost:" + u.Port()}} // as if a name had changed what it stands for
	if err := w.store.InsertWebhook(t.Context(), record); err != nil {
		t.Fatal(err)
	}
	told := outcomes{n: map[string]int{}}
	hooks := w.webhooks(usual(), func(c *webhook.Config) { c.AllowPrivate, c.Sent = false, told.count })
	w.publish("acme", "a", event.TypeCreated)
	told.becomes(t, "map[dropped:1 failed:2]")
	hooks.Close() // it writes no more to the log
	if len(r.got) > 0 || !strings.Contains(w.lines.String(), "not an address of the public internet") {
		t.Errorf("%d came; log: %s", len(r.got), w.lines.String())
	}
}

func TestAddresses(t *testing.T) {
	const public, private, never = 0, 1, 2
	for addr, kind := range map[string]int{
		"1.1.1.1": public, "8.8.8.8": public, "2606:4700::1111": public, "2a00:1450::1": public, "::ffff:1.1.1.1": public, "64:ff9b::101:101": public,
		"127.0.0.1": private, "127.9.9.9": private, "::1": private, "::ffff:127.0.0.1": private, "10.0.0.1": private, "172.16.0.1": private,
		"172.31.255.255": private, "192.168.1.1": private, "100.64.0.1": private, "198.18.0.1": private, "fc00::1": private, "fd12::1": private,
		"64:ff9b::7f00:1": private, "64:ff9b::a00:1": private, "2002:7f00:1::": private, "2002:c0a8:101::": private,
		"169.254.169.254": never, "169.254.0.1": never, "fe80::1": never, "fe80::1%eth0": never, "::ffff:169.254.169.254": never, "64:ff9b::a9fe:a9fe": never,
		"2002:a9fe:a9fe::": never, "fd00:ec2::254": never, "fd20:ce::254": never, "100.100.100.200": never, "168.63.129.16": never, "0.0.0.0": never, "::": never,
		"0.1.2.3": never, "224.0.0.1": never, "255.255.255.255": never, "ff02::1": never, "240.0.0.1": never, "192.0.2.1": never, "2001:db8::1": never,
		"2001::1": never, "::7f00:1": never, "4000::1": never, "192.0.0.192": never,
	} {
		a := netip.MustParseAddr(addr)
		if got := webhook.CheckAddr(a, false) == nil; got != (kind == public) {
			t.Errorf("%s: allowed %v", addr, got)
		}
		if got := webhook.CheckAddr(a, true) == nil; got != (kind != never) {
			t.Errorf("%s: allowed %v where private ones are", addr, got)
		}
	}
	if webhook.CheckAddr(netip.Addr{}, true) == nil {
		t.Error("no address is allowed")
	}
}

func TestURLs(t *testing.T) {
	for text, ok := range map[string]bool{
		"https://example.com/hook?x=1": true, "http://example.com:8080": true, "https://8.8.8.8/": true, "https://[2606:4700::1]:8443/a": true,
		"": false, "example.com": false, "ftp://example.com": false, "https://": false, "https:///path": false, "http:example.com": false,
		"https://user:pass@example.com": false, "https://example.com/#x": false, "http://127.0.0.1": false, "http://[::1]/": false, "http://localhost:80": false,
		"http://LOCALHOST./": false, "http://a.localhost": false, "http://169.254.169.254/latest/meta-data": false, "http://[::ffff:10.0.0.1]": false,
		"https://example.com/\x7f": false, "http://[fe80::1%25eth0]/": false, "https://example.com/" + strings.Repeat("x", 2048): false, "file:///etc/passwd": false,
	} {
		if err := webhook.CheckURL(text, false); (err == nil) != ok {
			t.Errorf("%.80q: %v", text, err)
		}
	}
	if err := webhook.CheckURL("http://127.0.0.1:80/", true); err != nil {
		t.Error(err)
	}
}

func FuzzURL(f *testing.F) {
	for _, text := range []string{"https://example.com/hook", "http://127.0.0.1", "http://[::1]:80/x", "http://0x7f.1", "//x", "http://a\x00b"} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text string) {
		if webhook.CheckURL(text, false) != nil {
			return
		}
		u, err := url.Parse(text)
		if err != nil || u.User != nil || u.Scheme != "http" && u.Scheme != "https" || u.Hostname() == "" {
			t.Fatalf("%q: %+v, %v", text, u, err)
		}
		if addr, err := netip.ParseAddr(u.Hostname()); err == nil && (addr.IsLoopback() || addr.IsPrivate() || addr.IsLinkLocalUnicast()) {
			t.Errorf("%q is allowed", text)
		}
	})
}
