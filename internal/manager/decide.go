package manager

import (
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/event"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// Question asks what a workload must run behind on this host.
type Question struct {
	Workload     firebreak.Workload
	Driver       string        // empty: the first that is acceptable and healthy
	AcceptWeaker string        // why Driver may be weaker than the policy accepts
	TimeLimit    time.Duration // after which the sandbox is to be destroyed; zero: never

	Template string // from which it is to start; empty: the driver's own for Language, or host
	Language string // what the code is written in, where no template is named; empty: nobody says, or programs of Linux
	Detached bool   // it is to live on when this process ends

	Needs   driver.Caps // without which it cannot be made as it is asked for
	Writes  bool        // to files of the host
	Fetches bool        // from hosts that it is allowed by name
	Alone   bool        // no other sandbox shares its process
}

// maxWhy bounds the reason for accepting less, which stands in each record and each log.
const maxWhy = 1000

// dutyTimeLimit is what a sandbox gets that must end by itself, where nobody says when: long enough for a day's work, and
// short enough that what is forgotten is not there for ever.
const dutyTimeLimit = 24 * time.Hour

// maxDecisions is how many decisions are kept: a host knows a handful, and a caller could ask for any number.
const maxDecisions = 256

func (q Question) options() policy.Options {
	return policy.Options{Driver: q.Driver, AcceptWeaker: q.AcceptWeaker, TimeLimit: firebreak.Duration(q.TimeLimit)}
}

// Advise decides as Create would, and makes nothing. That nothing may be made is in the decision, and no error.
func (m *Manager) Advise(ctx context.Context, q Question) (policy.Decision, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return policy.Decision{}, err
	}
	defer done()
	d, _, err := m.decide(ctx, q)
	return d, err
}

// Policy returns the policy by which this manager decides.
func (m *Manager) Policy() (*policy.Policy, []byte, error) {
	p, err := m.rules.compile()
	if err != nil {
		return nil, nil, err
	}
	text, err := m.rules.read()
	return p, slices.Clone(text.data), err
}

// decide returns the decision and what the drivers said, the chosen one's forms and abilities with it. Before it refuses
// for want of a healthy driver, it tries those anew that would do: their mends may have been followed.
func (m *Manager) decide(ctx context.Context, q Question) (policy.Decision, fitting, error) {
	if len(q.AcceptWeaker) > maxWhy {
		return policy.Decision{}, fitting{}, invalid("the reason for accepting less is longer than %d bytes", maxWhy)
	}
	if err := image.CheckLanguage(q.Language); err != nil {
		return policy.Decision{}, fitting{}, err
	}
	all, err := m.probes(ctx, none)
	if err != nil {
		return policy.Decision{}, fitting{}, err
	}
	if q.TimeLimit == 0 { // without the duty of one it shows nowhere
		q.TimeLimit = dutyTimeLimit
	}
	d, f, err := m.judge(q, all)
	if again := worthTrying(d, q, all); err == nil && len(again) > 0 {
		if all, err = m.probes(ctx, func(name string) bool { return slices.Contains(again, name) }); err == nil {
			d, f, err = m.judge(q, all)
		}
	}
	if err != nil {
		return policy.Decision{}, fitting{}, err
	}
	d.RefuseUnmet()
	return d, f, nil
}

// needsTimeLimit reports whether the sandbox must end by itself.
func needsTimeLimit(d policy.Decision) bool {
	return slices.ContainsFunc(d.Duties, func(s policy.DutyStatus) bool { return s.Duty == policy.DutyTimeLimit })
}

// worthTrying names the drivers whose health would turn a refusal, if what is known of them is not from just now.
func worthTrying(d policy.Decision, q Question, all []probed) []string {
	if d.Refusal == nil || d.Refusal.Kind != firebreak.KindHost {
		return nil
	}
	var names []string
	for _, p := range all {
		wanted := p.info.Name == q.Driver || q.Driver == "" && slices.Contains(d.Drivers, p.info.Name)
		if wanted && p.kept && !p.info.Healthy() {
			names = append(names, p.info.Name)
		}
	}
	return names
}

// judge applies the policy, or returns what it said before to the same question in the same circumstances.
func (m *Manager) judge(q Question, all []probed) (d policy.Decision, f fitting, err error) {
	if f, err = m.fit(q, all); err != nil {
		return d, f, err
	}
	key := decisionKey(f, all)
	if d, ok := m.decided.get(key); ok {
		return d, f, nil
	}
	if d, err = m.judgeAnew(f.question, f.infos); err == nil && d.Refusal == nil && d.Override == nil {
		m.decided.put(key, d)
	}
	return d, f, err
}

// decided are the decisions of this process. What is in them is shared, and nobody changes it.
type decided struct {
	mu  sync.Mutex
	all map[string]policy.Decision // guarded by mu
}

func (c *decided) get(key string) (policy.Decision, bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	d, ok := c.all[key]
	return d, ok
}

func (c *decided) put(key string, d policy.Decision) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.all == nil || len(c.all) >= maxDecisions {
		c.all = map[string]policy.Decision{}
	}
	if key != "" {
		c.all[key] = d
	}
}

// decisionKey is what of the question the policy is asked, when each driver said what it can do, and what that is not good
// for here. Empty: a workload without words.
func decisionKey(f fitting, all []probed) string {
	q := f.question
	q.Template, q.Language, q.Detached, q.Needs, q.Writes, q.Fetches, q.Alone = "", "", false, 0, false, false, false
	key, err := json.Marshal(q)
	if err != nil {
		return ""
	}
	for _, p := range all {
		key = fmt.Appendf(key, " %s %d", p.info.Name, p.at.UnixNano())
	}
	return string(key) + f.unfitness(all)
}

// judgeAnew looks for a decision that an earlier process has kept.
func (m *Manager) judgeAnew(q Question, infos []driver.Info) (policy.Decision, error) {
	path, err := m.decisionPath(q, infos)
	if err != nil {
		return policy.Decision{}, err
	}
	var kept policy.Decision
	if path != "" && m.readKept(path, &kept) && kept.Driver != "" {
		return kept, nil
	}
	p, err := m.rules.compile()
	if err != nil {
		return policy.Decision{}, err
	}
	unknown := func(name string) bool {
		return !slices.ContainsFunc(p.Technologies(), func(t policy.Technology) bool { return t.Name == name })
	}
	if q.Driver != "" && !slices.Contains(m.cfg.Drivers.Names(), q.Driver) && unknown(q.Driver) {
		return policy.Decision{}, m.driverError(q.Driver, fs.ErrNotExist)
	}
	d := policy.DecideFor(p, q.Workload, infos, q.options())
	if path != "" && d.Refusal == nil && d.Override == nil {
		m.keepDecision(path, d)
	}
	return d, nil
}

// decisionPath is named after all that a decision depends on. Empty: this one cannot be kept.
func (m *Manager) decisionPath(q Question, infos []driver.Info) (string, error) {
	text, err := m.rules.read()
	if err != nil {
		return "", err
	}
	key, err := m.key()
	if err != nil || q.AcceptWeaker != "" {
		return "", nil
	}
	asked, err := json.Marshal(struct {
		Key, Policy string
		Workload    firebreak.Workload
		Options     policy.Options
		Infos       []driver.Info
	}{key, text.digest, q.Workload, q.options(), infos})
	if err != nil {
		return "", nil // a workload without words: DecideFor says what is wrong with it
	}
	sum := sha256.Sum256(asked)
	return filepath.Join(m.decisionDir(), hex.EncodeToString(sum[:])+".json"), nil
}

func (m *Manager) decisionDir() string { return filepath.Join(m.cfg.StateDir, "probes", "decisions") }

func (m *Manager) keepDecision(path string, d policy.Decision) {
	if files, err := os.ReadDir(m.decisionDir()); err == nil && len(files) >= maxDecisions {
		for _, f := range files {
			_ = os.Remove(filepath.Join(m.decisionDir(), f.Name())) // another process may have done so
		}
	}
	if err := writeFile(path, d); err != nil {
		m.log.Debug("keep decision", "err", err)
	}
}

// logDecision writes the one line that says what was chosen for a sandbox, and why.
func (m *Manager) logDecision(id driver.ID, d policy.Decision) {
	args := []any{"sandbox", id, "driver", d.Driver, "boundary", d.Boundary, "policy", d.Policy, "rules", strings.Join(d.Fired(), ",")}
	if d.Override != nil {
		args = append(args, "against", strings.Join(d.Override.Rules, ","), "because", d.Override.Why)
	}
	m.log.Info("decided", args...)
}

func (m *Manager) logRefusal(q Question, d policy.Decision) {
	m.log.Info("refused", "isolation", q.Driver, "policy", d.Policy, "rules", strings.Join(d.Refusal.Rules, ","), "reason", d.Refusal.Text)
}

// tellRefusal keeps for the caller's tenant that he was refused, and why.
func (m *Manager) tellRefusal(ctx context.Context, q Question, d policy.Decision) {
	by, err := auth.CallerOf(ctx)
	if err == nil {
		err = m.cfg.Events.Publish(ctx, event.Event{Type: event.TypeRefused, Tenant: by.Tenant.ID, Driver: q.Driver,
			Data: event.Data{Reason: d.Refusal.Text, Rules: d.Refusal.Rules}})
	}
	if err != nil {
		m.log.Warn("keep a refusal", "err", err)
	}
}

// warningsOfDecision states what the decision asks for and nobody gets. What the sandbox was not handed needs no broker.
func warningsOfDecision(d policy.Decision, handed bool) []string {
	var all, missing []string
	if o := d.Override; o != nil {
		text := fmt.Sprintf("%s (%s) is weaker than the policy accepts, taken because: %s", o.Driver, d.Boundary, o.Why)
		if len(o.Rules) > 0 {
			text += "; against rule " + strings.Join(o.Rules, ", ")
		}
		all = append(all, text)
	}
	for _, s := range d.Duties {
		if s.Duty == policy.DutyBrokeredSecrets && !handed {
			continue
		}
		if s.Status == policy.StatusNotYet || s.Status == policy.StatusWaived {
			missing = append(missing, fmt.Sprintf("%s (%s)", s.Duty, strings.TrimSuffix(s.Text, ".")))
		}
	}
	if len(missing) > 0 {
		all = append(all, "not enforced: "+strings.Join(missing, ", "))
	}
	return all
}
