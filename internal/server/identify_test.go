package server

import (
	"bytes"
	"encoding/json"
	"net/http"
	"strings"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
)

func TestWhoCallsAtWhichDoor(t *testing.T) {
	r := start(t, nil, nil)
	tcp := r.client("tcp", r.listeners.Plain.String(), http1)
	unix := r.client("unix", r.listeners.Socket, http1)
	for name, test := range map[string]struct {
		client  *http.Client
		path    string
		headers []string
		status  int
		want    string
	}{
		"key":                        {tcp, "/sandboxes", []string{"X-API-KEY", goodKey}, 200, "e2b acme 0 " + goodKey},
		"bearer":                     {tcp, "/teams", []string{"Authorization", "bearer  " + goodKey}, 200, "e2b acme 0 bearer  " + goodKey},
		"no key":                     {tcp, "/sandboxes", nil, 401, ""},
		"wrong key":                  {tcp, "/sandboxes", []string{"X-API-KEY", "e2b_no"}, 401, ""},
		"any word for a key":         {tcp, "/sandboxes", []string{"X-API-KEY", "anything-goes"}, 401, ""},
		"a volume's token":           {tcp, "/volumecontent/1/file", []string{"Authorization", "Bearer vol_1"}, 401, ""},
		"a broken store":             {tcp, "/sandboxes", []string{"X-API-KEY", "e2b_broken"}, 502, ""},
		"public":                     {tcp, "/health", nil, 200, "e2b nobody 0 "},
		"public with a wrong key":    {tcp, "/health", []string{"X-API-KEY", "e2b_no"}, 401, ""},
		"rpc":                        {tcp, "/firebreak.v1.SandboxService/ListSandboxes", []string{"X-API-KEY", goodKey}, 200, "rpc acme 0 " + goodKey},
		"rpc of no protocol":         {tcp, "/firebreak.v1.SandboxService/ListSandboxes", []string{"Content-Type", "text/plain"}, 401, ""},
		"rpc of no protocol, broken": {tcp, "/firebreak.v1.SandboxService/ListSandboxes", []string{"Content-Type", "text/plain", "X-API-KEY", "e2b_broken"}, 502, ""},
		"gRPC's own":                 {tcp, "/grpc.health.v1.Health/Check", nil, 200, "rpc nobody 0 "},
		"gRPC's own with wrong key":  {tcp, "/grpc.health.v1.Health/Check", []string{"X-API-KEY", "e2b_no"}, 200, "rpc nobody 0 e2b_no"},
		"mcp":                        {tcp, "/mcp", []string{"Authorization", "Bearer " + goodKey}, 200, "mcp acme 0 Bearer " + goodKey},
		"mcp without a key":          {tcp, "/mcp", nil, 401, ""},
		"mcp of the operator":        {unix, "/mcp", nil, 200, "mcp operator 0 "},
		"below mcp":                  {tcp, "/mcp/x", []string{"X-API-KEY", goodKey}, 200, "e2b acme 0 " + goodKey},
		"data":                       {tcp, "/x", []string{"E2b-Sandbox-Id", "a"}, 200, "data nobody 0 "},
		"data with a key":            {tcp, "/x", []string{"E2b-Sandbox-Id", "a", "X-API-KEY", goodKey}, 200, "data acme 0 "}, // and without it
		"data with a key as bearer":  {tcp, "/x", []string{"E2b-Sandbox-Id", "a", "Authorization", "Bearer " + goodKey}, 200, "data acme 0 "},
		"data with an app's key":     {tcp, "/x", []string{"E2b-Sandbox-Id", "a", "X-API-KEY", "app"}, 200, "data nobody 0 app"},
		"data with an app's bearer":  {tcp, "/x", []string{"E2b-Sandbox-Id", "a", "Authorization", "Bearer e2b_app"}, 200, "data nobody 0 Bearer e2b_app"},
		"data with a user":           {tcp, "/x", []string{"E2b-Sandbox-Id", "a", "Authorization", "Basic dXNlcjo="}, 200, "data nobody 0 Basic dXNlcjo="},
		"operator":                   {unix, "/sandboxes", nil, 200, "e2b operator 0 "},
		"operator at rpc":            {unix, "/firebreak.v1.KeyService/ListKeys", nil, 200, "rpc operator 0 "},
		"operator with a key":        {unix, "/sandboxes", []string{"X-API-KEY", goodKey}, 200, "e2b acme 0 " + goodKey},
		"operator with a wrong key":  {unix, "/sandboxes", []string{"X-API-KEY", "e2b_no"}, 401, ""},
		"data before healthz":        {tcp, "/healthz", []string{"E2b-Sandbox-Id", "a"}, 200, "data nobody 0 "},
		"healthz":                    {tcp, "/healthz", nil, 200, "ok\n"},
		"readyz":                     {tcp, "/readyz", nil, 200, "ok\n"},
		"metrics":                    {tcp, "/metrics", nil, 200, "metrics nobody 0 "},
		"metrics on the socket":      {unix, "/metrics", nil, 200, "metrics nobody 0 "},
		"metrics through a proxy":    {tcp, "/metrics", []string{"X-Forwarded-For", "192.0.2.1"}, 403, ""},
		"metrics through a proxy II": {tcp, "/metrics", []string{"Forwarded", "for=192.0.2.1"}, 403, ""},
		"no authority's certificate": {tcp, "/ca.pem", []string{"X-API-KEY", goodKey}, 200, "e2b acme 0 " + goodKey},
	} {
		t.Run(name, func(t *testing.T) {
			status, body := send(t, test.client, "POST", "http://firebreak"+test.path, http.NoBody, test.headers...)
			if status != test.status || test.status == 200 && body != test.want {
				t.Errorf("status %d, %q; want %d, %q", status, body, test.status, test.want)
			}
			var refusal struct {
				Code    int
				Message string
			}
			if test.status != 200 {
				if err := json.Unmarshal([]byte(body), &refusal); err != nil || refusal.Code != test.status || refusal.Message == "" {
					t.Errorf("the refusal is %q, %v", body, err)
				}
			}
			if strings.Contains(body, "e2b_no") && status != 200 {
				t.Errorf("the refusal repeats the key: %q", body)
			}
		})
	}
}

// TestRefusalsSpeakTheProtocol refuses clients of all protocols of the rpc door, in theirs.
func TestRefusalsSpeakTheProtocol(t *testing.T) {
	r := start(t, nil, nil)
	for name, c := range map[string]struct {
		http    *http.Client
		options []connect.ClientOption
	}{
		"Connect":             {r.client("tcp", r.listeners.Plain.String(), http1), nil},
		"Connect with JSON":   {r.client("tcp", r.listeners.Plain.String(), http1), []connect.ClientOption{connect.WithProtoJSON()}},
		"gRPC over h2c":       {r.client("tcp", r.listeners.Plain.String(), h2c), []connect.ClientOption{connect.WithGRPC()}},
		"gRPC-Web":            {r.client("tcp", r.listeners.Plain.String(), http1), []connect.ClientOption{connect.WithGRPCWeb()}},
		"gRPC on the socket":  {r.client("unix", r.listeners.Socket, h2c), []connect.ClientOption{connect.WithGRPC()}},
		"gRPC with a bad key": {r.client("tcp", r.listeners.Plain.String(), h2c), []connect.ClientOption{connect.WithGRPC()}},
	} {
		t.Run(name, func(t *testing.T) {
			service := firebreakv1connect.NewSandboxServiceClient(c.http, "http://firebreak", c.options...)
			req := connect.NewRequest(&firebreakv1.ListSandboxesRequest{})
			if strings.Contains(name, "bad") || strings.Contains(name, "socket") {
				req.Header().Set("X-API-KEY", "e2b_no")
			}
			_, err := service.ListSandboxes(t.Context(), req)
			if connect.CodeOf(err) != connect.CodeUnauthenticated || !strings.Contains(err.Error(), "API key") && !strings.Contains(err.Error(), "not valid") {
				t.Errorf("%v, want unauthenticated", err)
			}
			stream, err := service.WatchSandboxes(t.Context(), connect.NewRequest(&firebreakv1.WatchSandboxesRequest{}))
			if err == nil && name != "gRPC on the socket" {
				if stream.Receive() || connect.CodeOf(stream.Err()) != connect.CodeUnauthenticated {
					t.Errorf("a stream: %v, want unauthenticated", stream.Err())
				}
			}
			if stream != nil {
				stream.Close()
			}
		})
	}
	t.Run("our client", func(t *testing.T) {
		c := client.New(r.plain(), nil, client.WithAPIKey("e2b_no"))
		_, err := c.Sandboxes.ListSandboxes(t.Context(), connect.NewRequest(&firebreakv1.ListSandboxesRequest{}))
		if firebreak.KindOf(err) != firebreak.KindDenied {
			t.Errorf("%v, want denied", err)
		}
	})
}

// TestLogKeepsSecrets asks for everything with secrets in all places, and looks for them in the log of all levels.
func TestLogKeepsSecrets(t *testing.T) {
	r := start(t, nil, nil)
	c := r.client("tcp", r.listeners.Plain.String(), http1)
	for _, path := range []string{"/sandboxes?api_key=secret1", "/files?signature=secret1&path=x", "/firebreak.v1.X/Y?a=secret1", "/healthz?secret1"} {
		for _, headers := range [][]string{
			{"X-API-KEY", goodKey}, {"X-API-KEY", "e2b_secret2"}, {"Authorization", "Bearer secret2"},
			{"E2b-Sandbox-Id", "a", "X-Access-Token", "secret2", "E2b-Traffic-Access-Token", "secret2", "Cookie", "a=secret2"},
		} {
			send(t, c, "POST", r.plain()+path, bytes.NewReader([]byte("secret3")), headers...)
		}
	}
	log := r.log.String()
	for _, secret := range []string{"secret", goodKey} {
		if strings.Contains(log, secret) {
			t.Errorf("%q is in the log:\n%s", secret, log)
		}
	}
	for _, want := range []string{"path=/sandboxes", "path=/files", "tenant=acme", "status=401", "method=POST"} {
		if !strings.Contains(log, want) {
			t.Errorf("%q is not in the log:\n%s", want, log)
		}
	}
}
