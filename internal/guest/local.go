package guest

import (
	"context"
	"fmt"
	"io/fs"
	"net/http"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// To returns the guest of a sandbox's agent, which token opens. It does not dial yet, and if the agent is a part of this
// process it dials for ports only.
func To(sb driver.Sandbox, token string) *Guest {
	l, err := driver.As[driver.Local](sb)
	if err != nil {
		return New(sb.Dial, token)
	}
	var t local
	t.live, t.agent = l.Agent()
	return newGuest(patient(sb.Dial), token, t)
}

// local takes requests to an agent of this process: what a server and a client of HTTP do with a stream between them is
// done without one, to the same effect.
type local struct {
	live  context.Context // done when the agent begins to end
	agent http.Handler
}

// RoundTrip implements http.RoundTripper.
func (l local) RoundTrip(r *http.Request) (*http.Response, error) {
	ctx := r.Context()
	err := ctx.Err()
	if err == nil && l.live.Err() != nil {
		err = fmt.Errorf("the sandbox has ended: %w", fs.ErrNotExist)
	}
	if err != nil {
		closeBody(r)
		return nil, err
	}
	return newExchange(r, l.live).run(l.agent)
}

func closeBody(r *http.Request) {
	if r.Body != nil {
		_ = r.Body.Close() // nobody reads it
	}
}
