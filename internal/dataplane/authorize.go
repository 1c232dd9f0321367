package dataplane

import (
	"context"
	"crypto/subtle"
	"errors"
	"io/fs"
	"net/http"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/guest"
	"github.com/firebreak-dev/firebreak/internal/signature"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// searchWait is how long a signature waits for others that are being searched before it is turned away. Each search
// costs a hash for each sandbox there is, and anybody can ask for one.
const searchWait = time.Second

// operator is for asking about sandboxes whoever they belong to; authorize says who may reach them.
func operator(ctx context.Context) context.Context {
	return auth.WithCaller(ctx, auth.Caller{Operator: true})
}

// find returns the sandbox that a request is for.
func (p *Plane) find(r *http.Request, to address) (rec store.Record, err error) {
	ctx := operator(r.Context())
	switch to.way {
	case wayHost, wayHeader:
		rec, err = p.cfg.Sandboxes.Find(ctx, to.id)
		if err == nil && string(rec.ID) != to.id || firebreak.KindOf(err) == firebreak.KindInvalid {
			return store.Record{}, fs.ErrNotExist // a name, or the beginning of an ID: people may write that, not programs
		}
	case wayToken:
		token := r.Header.Get(headerToken)
		rec, err = p.cfg.Sandboxes.Signed(ctx, func(t string) bool { return t != "" && same(t, token) })
	case waySignature:
		rec, err = p.search(ctx, r)
	default:
		return rec, refusal{http.StatusBadRequest, errNoSandbox.Error()}
	}
	if err != nil {
		return rec, err
	}
	if rec.State != firebreak.StateRunning && rec.State != firebreak.StatePaused || rec.Pool != "" {
		return rec, fs.ErrNotExist
	}
	return rec, nil
}

// search tries a signature on the tokens of all sandboxes.
func (p *Plane) search(ctx context.Context, r *http.Request) (store.Record, error) {
	claim, err := signature.Parse(r.URL.Query(), signature.Operation(r.Method), time.Now())
	if err != nil {
		return store.Record{}, refusal{http.StatusUnauthorized, err.Error()}
	}
	wait := time.NewTimer(searchWait)
	defer wait.Stop()
	select {
	case p.searches <- struct{}{}:
		defer func() { <-p.searches }()
	case <-wait.C:
		return store.Record{}, refusal{http.StatusTooManyRequests, "Too many signatures are being checked"}
	case <-ctx.Done():
		return store.Record{}, ctx.Err()
	}
	rec, err := p.cfg.Sandboxes.Signed(ctx, claim.By)
	if errors.Is(err, fs.ErrNotExist) {
		return rec, refusal{http.StatusUnauthorized, "invalid signature, or the sandbox is gone"}
	}
	return rec, err
}

// authorize returns a refusal unless a request may reach what it is for.
func authorize(r *http.Request, to address, rec store.Record) error {
	token := rec.Token != "" && same(rec.Token, r.Header.Get(headerToken))
	traffic := rec.TrafficToken != "" && same(rec.TrafficToken, r.Header.Get(headerTraffic))
	caller, err := auth.CallerOf(r.Context())
	if token || err == nil && caller.May(rec.Tenant) {
		return nil
	}
	switch {
	case to.port == guest.AgentPort:
		return authorizeAgent(r, rec)
	case traffic:
		return nil
	case to.port == CodePort, rec.Annotations[AnnotationPrivate] == "true":
		return refusal{http.StatusForbidden, "The traffic access token is missing or wrong"}
	}
	return nil
}

// authorizeAgent lets in who brings no token: to ask whether the sandbox is there, and to files with a signature.
func authorizeAgent(r *http.Request, rec store.Record) error {
	message := "unauthorized access, please provide a valid access token"
	switch r.URL.Path {
	case "/health":
		if r.Method == http.MethodGet || r.Method == http.MethodHead {
			return nil
		}
	case "/files":
		claim, err := signature.Parse(r.URL.Query(), signature.Operation(r.Method), time.Now())
		if err == nil && claim.By(rec.Token) {
			return nil
		}
		if message = "invalid signature"; err != nil {
			message = err.Error()
		}
	}
	return refusal{http.StatusUnauthorized, message}
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// awake refuses what is for a sandbox that is paused and that traffic does not resume. Clients that ask whether it runs
// take 502 for no, and anything else for an error.
func awake(r *http.Request, to address, rec store.Record) error {
	switch {
	case rec.State != firebreak.StatePaused || rec.AutoResume:
		return nil
	case to.port == guest.AgentPort && r.URL.Path == "/health":
		return refusal{http.StatusBadGateway, "The sandbox is paused"}
	}
	return refusal{http.StatusConflict, "The sandbox is paused: connect to it to resume it"}
}

// crowds counts the requests under way to each sandbox.
type crowds struct {
	most int

	mu  sync.Mutex
	now map[string]int // guarded by mu
}

func (c *crowds) enter(id string) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now[id] >= c.most {
		return false
	}
	c.now[id]++
	return true
}

func (c *crowds) leave(id string) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.now[id]--; c.now[id] == 0 {
		delete(c.now, id)
	}
}
