package rpc

import (
	"context"
	"errors"
	"fmt"
	"io"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/reflect/protodesc"
	"google.golang.org/protobuf/reflect/protoreflect"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/api/reflection"
)

// reflector tells what our services look like, and nothing of what else this program links. It is our own, because the
// library for this builds descriptors when a program starts, for a millisecond that every firebreak run would pay.
type reflector struct {
	files map[string]protoreflect.FileDescriptor // by path
}

func newReflector() *reflector {
	r := &reflector{files: map[string]protoreflect.FileDescriptor{}}
	r.add(firebreakv1.File_firebreak_v1_firebreak_proto)
	return r
}

// add adds a file and all that it imports.
func (r *reflector) add(f protoreflect.FileDescriptor) {
	if r.files[f.Path()] != nil {
		return
	}
	r.files[f.Path()] = f
	imports := f.Imports()
	for i := range imports.Len() {
		r.add(imports.Get(i).FileDescriptor)
	}
}

type reflectStream = connect.BidiStream[reflection.ServerReflectionRequest, reflection.ServerReflectionResponse]

func (r *reflector) serve(_ context.Context, stream *reflectStream) error {
	for {
		req, err := stream.Receive()
		if errors.Is(err, io.EOF) {
			return nil
		}
		if err == nil {
			err = stream.Send(r.answer(req))
		}
		if err != nil {
			return err
		}
	}
}

func (r *reflector) answer(req *reflection.ServerReflectionRequest) *reflection.ServerReflectionResponse {
	resp := &reflection.ServerReflectionResponse{ValidHost: req.GetHost(), OriginalRequest: req}
	switch q := req.GetMessageRequest().(type) {
	case *reflection.ServerReflectionRequest_ListServices:
		list := &reflection.ListServiceResponse{}
		for _, name := range services() {
			list.Service = append(list.Service, &reflection.ServiceResponse{Name: name})
		}
		resp.MessageResponse = &reflection.ServerReflectionResponse_ListServicesResponse{ListServicesResponse: list}
	case *reflection.ServerReflectionRequest_FileByFilename:
		r.answerFile(resp, r.files[q.FileByFilename])
	case *reflection.ServerReflectionRequest_FileContainingSymbol:
		r.answerFile(resp, r.fileOf(protoreflect.FullName(q.FileContainingSymbol)))
	default: // there are no extensions
		r.answerFile(resp, nil)
	}
	return resp
}

func (r *reflector) answerFile(resp *reflection.ServerReflectionResponse, f protoreflect.FileDescriptor) {
	err := errors.New("this server has no such thing")
	var text []byte
	if f != nil {
		text, err = proto.Marshal(protodesc.ToFileDescriptorProto(f))
	}
	if err != nil {
		resp.MessageResponse = &reflection.ServerReflectionResponse_ErrorResponse{ErrorResponse: &reflection.ErrorResponse{
			ErrorCode: int32(connect.CodeNotFound), ErrorMessage: fmt.Sprint(err)}}
		return
	}
	resp.MessageResponse = &reflection.ServerReflectionResponse_FileDescriptorResponse{FileDescriptorResponse: &reflection.FileDescriptorResponse{
		FileDescriptorProto: [][]byte{text}}}
}

// fileOf returns the file that declares a name, or what the name lies in: a method of a service, a field, a nested
// message. nil if none does.
func (r *reflector) fileOf(name protoreflect.FullName) protoreflect.FileDescriptor {
	if !name.IsValid() {
		return nil
	}
	for ; name != ""; name = name.Parent() {
		for _, f := range r.files {
			if f.Package() == name.Parent() && declares(f, name.Name()) {
				return f
			}
		}
	}
	return nil
}

func declares(f protoreflect.FileDescriptor, name protoreflect.Name) bool {
	return f.Services().ByName(name) != nil || f.Messages().ByName(name) != nil || f.Enums().ByName(name) != nil || f.Extensions().ByName(name) != nil
}
