package guest

import (
	"bufio"
	"io"
	"net/http"
	"net/http/httptest"
	"testing"
)

// TestAnswerBeforeTheRequestEnds: an agent may begin to answer while the request is still on its way, as it does for all
// streams on a busy machine.
func TestAnswerBeforeTheRequestEnds(t *testing.T) {
	g := hostile(t, func(w http.ResponseWriter, r *http.Request) {
		FullDuplex(w)
		_, _ = io.WriteString(w, "begun\n")
		_ = http.NewResponseController(w).Flush()
		rest, err := io.ReadAll(r.Body)
		if err != nil {
			t.Errorf("the agent got %q: %v", rest, err)
		}
		_, _ = w.Write(rest)
	})
	door := httptest.NewServer(g.Handler())
	defer door.Close()
	body, writer := io.Pipe()
	req, err := http.NewRequestWithContext(t.Context(), http.MethodPost, door.URL+"/process.Process/Connect", body)
	if err != nil {
		t.Fatal(err)
	}
	go func() { _, _ = io.WriteString(writer, "first ") }()
	res, err := http.DefaultClient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	answer := bufio.NewReader(res.Body)
	if line, err := answer.ReadString('\n'); err != nil || line != "begun\n" {
		t.Fatalf("the answer begins with %q, %v", line, err)
	}
	_, _ = io.WriteString(writer, "second")
	_ = writer.Close()
	if rest, err := io.ReadAll(answer); err != nil || string(rest) != "first second" {
		t.Errorf("the agent was told %q, %v", rest, err)
	}
}
