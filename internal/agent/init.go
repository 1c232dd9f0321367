package agent

import (
	"crypto/subtle"
	"encoding/json"
	"errors"
	"fmt"
	"net/http"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
	"github.com/firebreak-dev/firebreak/internal/agent/files"
	"github.com/firebreak-dev/firebreak/internal/signature"
)

const tokenHeader = "X-Access-Token"

// maxInit bounds the body of /init: the environment of a process cannot be larger than 2 MiB or so anyway.
const maxInit = 4 << 20

// initRequest is the body of POST /init.
type initRequest struct {
	AccessToken    string            `json:"accessToken"`
	EnvVars        map[string]string `json:"envVars"`
	DefaultUser    string            `json:"defaultUser"`
	DefaultWorkdir string            `json:"defaultWorkdir"`
	Deadline       time.Time         `json:"deadline"`
	SandboxID      string            `json:"sandboxID"`
	TemplateID     string            `json:"templateID"`
}

// claim is who owns the agent: whoever came first with a token. Until then, and if that token was empty, everybody is
// let in, because nobody but the host can be there yet.
type claim struct {
	mu    sync.Mutex
	token string
	timer *time.Timer // of the deadline
}

func (c *claim) close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.timer != nil {
		c.timer.Stop()
	}
}

func (c *claim) secret() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.token
}

// errUnauthorized is what a request without the token gets.
var errUnauthorized = errors.New("unauthorized access, please provide a valid access token")

func (c *claim) allows(r *http.Request) bool {
	token := c.secret()
	return token == "" || same(token, r.Header.Get(tokenHeader))
}

func same(a, b string) bool { return subtle.ConstantTimeCompare([]byte(a), []byte(b)) == 1 }

// admits asks for the token. /files may do with a signature instead, and looks itself.
func (c *claim) admits(r *http.Request) bool {
	return r.URL.Path == "/health" && r.Method == http.MethodGet || r.URL.Path == "/files" || c.allows(r)
}

// signed reports whether r may read or write the file that its query names: by the token, or by a signature that the
// token's owner made for that path.
func (c *claim) signed(r *http.Request, operation string) error {
	if c.allows(r) {
		return nil
	}
	signed, err := signature.Parse(r.URL.Query(), operation, time.Now())
	if err == nil && !signed.By(c.secret()) {
		err = errors.New("invalid signature")
	}
	return err
}

func (a *Agent) serveInit(w http.ResponseWriter, r *http.Request) {
	var req initRequest
	if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, maxInit)).Decode(&req); err != nil {
		files.Error(w, http.StatusBadRequest, fmt.Errorf("read init: %w", err))
		return
	}
	if err := a.init(req, r); err != nil {
		files.Error(w, http.StatusUnauthorized, err)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}

func (a *Agent) init(req initRequest, r *http.Request) error {
	c := &a.claim
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.token != "" && !same(c.token, r.Header.Get(tokenHeader)) { // somebody was faster than guard's look
		return errors.New("this agent belongs to somebody else")
	}
	if req.AccessToken != "" {
		c.token = req.AccessToken
	}
	a.session.SetDefaults(account.Defaults{User: req.DefaultUser, Workdir: req.DefaultWorkdir, Envs: req.environ()})
	if ids := [2]string{req.SandboxID, req.TemplateID}; a.owns && ids != a.wrote { // behind gVisor it takes longer than all else
		if err := req.writeIDs("/run"); err != nil {
			a.log.Warn("programs do not find the sandbox's ids in /run/e2b", "error", err)
		}
		a.wrote = ids
	}
	if c.timer != nil {
		c.timer.Stop()
		c.timer = nil
	}
	if !req.Deadline.IsZero() {
		c.timer = time.AfterFunc(time.Until(req.Deadline), a.expire)
	}
	return nil
}

func (a *Agent) expire() {
	a.dueOnce.Do(func() {
		close(a.due)
		if a.onDue != nil {
			a.onDue()
		}
	})
}

func (a *Agent) serveEnvs(w http.ResponseWriter, _ *http.Request) {
	envs := a.session.Defaults().Envs
	if envs == nil {
		envs = map[string]string{}
	}
	files.JSON(w, http.StatusOK, envs)
}
