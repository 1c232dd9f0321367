package client_test

import (
	"encoding/binary"
	"net/http"
	"net/http/httptest"
	"testing"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/client"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/api/process"
)

// TestHugeMessagesOfASandboxAreRefused serves what a hostile sandbox may: the server passes its messages on unread.
func TestHugeMessagesOfASandboxAreRefused(t *testing.T) {
	const size = 64 << 20
	server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		w.Header().Set("Content-Type", r.Header.Get("Content-Type"))
		if r.Header.Get("Content-Type") == "application/connect+proto" {
			header := binary.BigEndian.AppendUint32([]byte{0}, size)
			w.Write(header)
		}
		chunk := make([]byte, 64<<10)
		for range size / len(chunk) {
			if _, err := w.Write(chunk); err != nil {
				return
			}
		}
	}))
	defer server.Close()
	c := client.New(server.URL, server.Client())
	_, err := c.Filesystem("box").ListDir(t.Context(), connect.NewRequest(&filesystem.ListDirRequest{Path: "/"}))
	if firebreak.KindOf(err) != firebreak.KindExhausted {
		t.Errorf("a listing of %d bytes: %v, want exhausted", size, err)
	}
	stream, err := c.Process("box").Start(t.Context(), connect.NewRequest(&process.StartRequest{}))
	if err != nil {
		t.Fatal(err)
	}
	defer stream.Close()
	if stream.Receive() || firebreak.KindOf(stream.Err()) != firebreak.KindExhausted {
		t.Errorf("an event of %d bytes: %v, want exhausted", size, stream.Err())
	}
}
