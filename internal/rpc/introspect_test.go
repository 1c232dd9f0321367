package rpc_test

import (
	"bytes"
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"slices"
	"strings"
	"testing"
	"time"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"
	"connectrpc.com/grpcreflect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"
	"google.golang.org/protobuf/types/descriptorpb"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
	"github.com/firebreak-dev/firebreak/internal/rpc"
)

// raw serves a handler with and without HTTP/2, on a plain port.
func raw(t *testing.T, h http.Handler) (url string, http1, h2c *http.Client) {
	t.Helper()
	server := httptest.NewUnstartedServer(h)
	server.Config.Protocols = &http.Protocols{}
	server.Config.Protocols.SetHTTP1(true)
	server.Config.Protocols.SetUnencryptedHTTP2(true)
	server.Start()
	t.Cleanup(server.Close)
	clients := make([]*http.Client, 2)
	for i := range clients {
		p := &http.Protocols{}
		p.SetHTTP1(i == 0)
		p.SetUnencryptedHTTP2(i == 1)
		transport := &http.Transport{Protocols: p}
		t.Cleanup(transport.CloseIdleConnections)
		clients[i] = &http.Client{Transport: transport}
	}
	return server.URL, clients[0], clients[1]
}

// TestProtocols makes and lists a sandbox, and streams, in each protocol that the door speaks.
func TestProtocols(t *testing.T) {
	h, _ := newHandler(t)
	url, http1, h2c := raw(t, operator(h))
	for name, test := range map[string]struct {
		http    *http.Client
		options []connect.ClientOption
	}{
		"Connect":           {http1, nil},
		"Connect with JSON": {http1, []connect.ClientOption{connect.WithProtoJSON()}},
		"Connect over h2c":  {h2c, nil},
		"Connect, gzipped":  {http1, []connect.ClientOption{connect.WithSendGzip()}},
		"gRPC":              {h2c, []connect.ClientOption{connect.WithGRPC()}},
		"gRPC-Web":          {http1, []connect.ClientOption{connect.WithGRPCWeb()}},
	} {
		t.Run(name, func(t *testing.T) {
			sandboxes := firebreakv1connect.NewSandboxServiceClient(test.http, url, test.options...)
			made, err := sandboxes.CreateSandbox(t.Context(), connect.NewRequest(&firebreakv1.CreateSandboxRequest{}))
			if err != nil {
				t.Fatal(err)
			}
			got, err := sandboxes.GetSandbox(t.Context(), connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: made.Msg.GetSandbox().GetId()}))
			if err != nil || got.Msg.GetSandbox().GetState() != "running" {
				t.Errorf("%v, %v", got, err)
			}
			err = call(sandboxes.GetSandbox(t.Context(), connect.NewRequest(&firebreakv1.GetSandboxRequest{Id: "nobody"})))
			if connect.CodeOf(err) != connect.CodeNotFound || !strings.Contains(err.Error(), "firebreak ls") {
				t.Errorf("%v", err)
			}
			stream, err := firebreakv1connect.NewHostServiceClient(test.http, url, test.options...).Doctor(t.Context(), connect.NewRequest(&firebreakv1.DoctorRequest{}))
			if err != nil {
				t.Fatal(err)
			}
			defer stream.Close()
			var report *firebreakv1.Report
			for stream.Receive() {
				report = stream.Msg().GetReport()
			}
			if stream.Err() != nil || len(report.GetDrivers()) == 0 {
				t.Errorf("%v, %v", report, stream.Err())
			}
		})
	}
}

// TestReflection asks as grpcurl does, with a client that is not ours, and puts together what it is told.
func TestReflection(t *testing.T) {
	url, _, h2c := raw(t, rpc.Introspect(func(context.Context) error { return nil }))
	stream := grpcreflect.NewClient(h2c, url, connect.WithGRPC()).NewStream(t.Context())
	defer stream.Close()
	names, err := stream.ListServices()
	if err != nil || len(names) != 7 || !slices.Contains(names, "firebreak.v1.SandboxService") {
		t.Fatalf("services %v, %v", names, err)
	}
	files := &descriptorpb.FileDescriptorSet{}
	need := []string{}
	for _, name := range names {
		got, err := stream.FileContainingSymbol(name)
		if err != nil || len(got) != 1 {
			t.Fatalf("%s: %v, %v", name, got, err)
		}
		need = append(need, got[0].GetName())
	}
	for seen := map[string]bool{}; len(need) > 0; {
		name := need[0]
		need = need[1:]
		if seen[name] {
			continue
		}
		seen[name] = true
		got, err := stream.FileByFilename(name)
		if err != nil || len(got) != 1 {
			t.Fatalf("%s: %v, %v", name, got, err)
		}
		files.File = append(files.File, got[0])
		need = append(need, got[0].GetDependency()...)
	}
	registry, err := protodesc.NewFiles(files)
	if err != nil {
		t.Fatal(err)
	}
	d, err := registry.FindDescriptorByName("firebreak.v1.SandboxService.CreateSandbox")
	if err != nil || d.(protoreflect.MethodDescriptor).Input().Fields().ByName("metadata") == nil {
		t.Errorf("%v, %v", d, err)
	}
	for symbol, want := range map[protoreflect.FullName]bool{
		"firebreak.v1.Sandbox": true, "firebreak.v1.Decision.Step": true, "firebreak.v1.SandboxService.GetSandbox": true, "google.protobuf.Timestamp": true,
		"firebreak.v1": false, "nothing": false, "": false, "firebreak.v1.": false, "process.Process": false, "google.protobuf.FileDescriptorSet": false,
	} {
		if got, err := stream.FileContainingSymbol(symbol); (err == nil && len(got) == 1) != want {
			t.Errorf("%q: %v, %v", symbol, got, err)
		}
	}
	if got, err := stream.FileByFilename("process/process.proto"); err == nil {
		t.Errorf("it tells of other protocols: %v", got)
	}
	if got, err := stream.AllExtensionNumbers("firebreak.v1.Sandbox"); err == nil {
		t.Errorf("it has extensions: %v", got)
	}
}

func TestHealth(t *testing.T) {
	notReady := errors.New("not yet")
	ready := notReady
	url, _, h2c := raw(t, rpc.Introspect(func(context.Context) error { return ready }))
	check := func(service string) (grpchealth.Status, error) {
		resp, err := grpchealth.NewClient(h2c, url, connect.WithGRPC()).Check(t.Context(), &grpchealth.CheckRequest{Service: service})
		if err != nil {
			return grpchealth.StatusUnknown, err
		}
		return resp.Status, nil
	}
	if got, err := check(""); got != grpchealth.StatusNotServing || err != nil {
		t.Errorf("%v, %v", got, err)
	}
	ready = nil
	for _, service := range []string{"", "firebreak.v1.SandboxService"} {
		if got, err := check(service); got != grpchealth.StatusServing || err != nil {
			t.Errorf("%q: %v, %v", service, got, err)
		}
	}
	if _, err := check("mail"); connect.CodeOf(err) != connect.CodeNotFound {
		t.Errorf("%v", err)
	}
}

// FuzzFrames sends what is no protocol at all, or almost one, to every procedure. It must be answered, and with no more
// than an error.
func FuzzFrames(f *testing.F) {
	good, err := proto.Marshal(&firebreakv1.CreateSandboxRequest{Name: "x", Metadata: map[string]string{"a": "b"}})
	if err != nil {
		f.Fatal(err)
	}
	frame := append([]byte{0, 0, 0, 0, byte(len(good))}, good...)
	for i, body := range [][]byte{good, frame, []byte("{}"), []byte(`{"name":1}`), {1, 255, 255, 255, 255}, {2, 0, 0, 0, 2, '{', '}'}, {0, 0, 0, 0, 4, 1}, {0x1f, 0x8b}, nil} {
		f.Add(uint8(i), uint8(i), "gzip", "1000", body)
	}
	types := []string{"application/proto", "application/json", "application/connect+proto", "application/connect+json", "application/grpc", "application/grpc+json", "application/grpc-web+proto", "text/plain", ""}
	var paths []string
	services := firebreakv1.File_firebreak_v1_firebreak_proto.Services()
	for i := range services.Len() {
		methods := services.Get(i).Methods()
		for j := range methods.Len() {
			paths = append(paths, "/"+string(services.Get(i).FullName())+"/"+string(methods.Get(j).Name()))
		}
	}
	paths = append(paths, "/grpc.health.v1.Health/Check", "/grpc.reflection.v1.ServerReflection/ServerReflectionInfo")
	cfg, _ := newConfig(f)
	own, tools := rpc.New(cfg), rpc.Introspect(func(context.Context) error { return nil })
	f.Fuzz(func(t *testing.T, path, kind uint8, encoding, timeout string, body []byte) {
		p := paths[int(path)%len(paths)]
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		r := httptest.NewRequest("POST", p, bytes.NewReader(body)).WithContext(ctx) // of nobody, whom no method serves
		r.Header.Set("Content-Type", types[int(kind)%len(types)])
		r.Header.Set("Content-Encoding", encoding)
		r.Header.Set("Connect-Content-Encoding", encoding)
		r.Header.Set("Grpc-Encoding", encoding)
		r.Header.Set("Connect-Timeout-Ms", timeout)
		r.Header.Set("Te", "trailers")
		r.ProtoMajor, r.ProtoMinor = 2, 0
		w := httptest.NewRecorder()
		h := own
		if strings.HasPrefix(p, "/grpc.") {
			h = tools
		}
		h.ServeHTTP(w, r)
		resp := w.Result()
		text, err := io.ReadAll(resp.Body)
		if err != nil || len(text) > 1<<20 {
			t.Errorf("%s: %d bytes, %v", p, len(text), err)
		}
	})
}
