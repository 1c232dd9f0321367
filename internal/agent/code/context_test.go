package code

import (
	"net/http"
	"testing"
)

// A restart that comes after the end, as of a client who found the context just before, brings it not back: nobody could
// end its kernel any more.
func TestRestartAfterEnd(t *testing.T) {
	s := New(Config{})
	s.closed = true // so that what is wrong is refused otherwise, and starts nothing
	c := &Context{ID: "c", service: s}
	c.end("the context was deleted")
	c.Restart()
	if c.ended == "" {
		t.Error("it is there again")
	}
	if _, err := c.live(); statusOf(err) != http.StatusNotFound {
		t.Errorf("a run is refused with %v", err)
	}
}
