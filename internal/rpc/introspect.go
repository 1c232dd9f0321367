package rpc

import (
	"context"
	"fmt"
	"net/http"

	"connectrpc.com/connect"
	"connectrpc.com/grpchealth"

	"github.com/firebreak-dev/firebreak/internal/api/firebreak/v1/firebreakv1connect"
)

func services() []string {
	return []string{firebreakv1connect.SandboxServiceName, firebreakv1connect.TemplateServiceName, firebreakv1connect.PolicyServiceName,
		firebreakv1connect.HostServiceName, firebreakv1connect.PoolServiceName, firebreakv1connect.KeyServiceName, firebreakv1connect.TenantServiceName}
}

// Introspect returns gRPC's own services, health and reflection, for tools such as grpcurl. The server is healthy while
// ready returns nil.
func Introspect(ready func(context.Context) error) http.Handler {
	mux := http.NewServeMux()
	r := newReflector()
	for _, version := range []string{"v1", "v1alpha"} {
		procedure := "/grpc.reflection." + version + ".ServerReflection/ServerReflectionInfo"
		mux.Handle(procedure, connect.NewBidiStreamHandler(procedure, r.serve, connect.WithReadMaxBytes(maxQuestion)))
	}
	mux.Handle(grpchealth.NewHandler(checker(ready), connect.WithReadMaxBytes(maxQuestion)))
	return mux
}

// maxQuestion bounds a request to these services, in bytes.
const maxQuestion = 64 << 10

type checker func(context.Context) error

// Check implements grpchealth.Checker.
func (c checker) Check(ctx context.Context, req *grpchealth.CheckRequest) (*grpchealth.CheckResponse, error) {
	known := req.Service == ""
	for _, name := range services() {
		known = known || name == req.Service
	}
	if !known {
		return nil, connect.NewError(connect.CodeNotFound, fmt.Errorf("there is no service %.100q", req.Service))
	}
	if c(ctx) != nil {
		return &grpchealth.CheckResponse{Status: grpchealth.StatusNotServing}, nil
	}
	return &grpchealth.CheckResponse{Status: grpchealth.StatusServing}, nil
}
