// Package api holds the code generated from the protocol definitions in the folder proto, one package a protocol.
package api

//go:generate sh -c "cd ../../proto && go build -o /tmp/firebreak-protoc/ google.golang.org/protobuf/cmd/protoc-gen-go connectrpc.com/connect/cmd/protoc-gen-connect-go && PATH=/tmp/firebreak-protoc:$PATH protoc --go_out=.. --go_opt=module=github.com/firebreak-dev/firebreak --connect-go_out=.. --connect-go_opt=module=github.com/firebreak-dev/firebreak process/process.proto filesystem/filesystem.proto firebreak/v1/firebreak.proto reflection/reflection.proto"
