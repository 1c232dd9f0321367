// Package metrics counts and measures what a server does, for Prometheus. Every label has few values, whatever clients
// send: what is beyond that is counted as "other".
package metrics

import (
	"context"
	"net/http"
	"runtime"
	"slices"
	"sync"
	"time"
	"unicode/utf8"

	"github.com/prometheus/client_golang/prometheus"
	"github.com/prometheus/client_golang/prometheus/collectors"
	"github.com/prometheus/client_golang/prometheus/promhttp"

	"github.com/firebreak-dev/firebreak"
)

// Config is what metrics are made of. The zero value will do.
type Config struct {
	Version string // of this program
	Commit  string
	Tenants bool // count the sandboxes of each tenant apart

	// What is asked at each scrape, of which at most one is under way. Any may be nil.
	Sandboxes   func(context.Context) ([]Sandbox, error) // the living ones; it must return soon after its context ends
	Pools       func() []Pool
	Connections func() int // that are open
}

// Sandbox is what is counted of a living sandbox.
type Sandbox struct {
	Driver, State, Tenant string
	CPUs                  float64 // its limit; 0: none
	Memory                int64   // its limit, bytes; 0: none
	UsedCPU               time.Duration
	UsedMemory            int64 // bytes
}

// Pool is what is told of a pool.
type Pool struct {
	Name                                      string
	Ready, Making, Target, Min, Max           int
	Claims, Misses, Made, Discarded, Failures uint64
}

// Phases say where the time of a create went. Those of zero are not counted.
type Phases struct {
	Image  time.Duration // to find the template's root
	Create time.Duration // for the driver to isolate something
	Agent  time.Duration // for the agent in it to answer
}

const namespace = "firebreak"

// The bounds of labels.
const (
	maxDrivers = 32
	maxReasons = 32
	maxRules   = 200
	maxRoutes  = 200
	maxPools   = 100
	maxTenants = 500
)

// Metrics counts. It may be used concurrently. A nil one counts nothing.
type Metrics struct {
	registry *prometheus.Registry

	creates  *prometheus.HistogramVec
	phases   *prometheus.HistogramVec
	ended    *prometheus.CounterVec
	endedCPU *prometheus.CounterVec
	refused  *prometheus.CounterVec
	execs    *prometheus.HistogramVec
	webhooks *prometheus.CounterVec
	requests *prometheus.HistogramVec
	inFlight *prometheus.GaugeVec

	drivers, reasons, rules, routes *bounded
}

// New makes metrics in a registry of their own, with those of the Go runtime and of this process.
func New(cfg Config) *Metrics {
	m := &Metrics{registry: prometheus.NewRegistry(), drivers: newBounded(maxDrivers), reasons: newBounded(maxReasons), rules: newBounded(maxRules), routes: newBounded(maxRoutes)}
	// From a claim that takes a millisecond to a create that is given up.
	slow := []float64{.001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 2, 5, 10, 30, 120}
	quick := []float64{.0005, .001, .002, .005, .01, .02, .05, .1, .2, .5, 1, 5, 30}
	m.creates = m.histogram("create_seconds", "Time of creates, by what made the sandbox, how it went, and whether it was made ahead.", slow, "driver", "outcome", "source")
	m.phases = m.histogram("create_phase_seconds", "Time of the parts of creates that went well.", slow, "driver", "phase")
	m.execs = m.histogram("exec_seconds", "Time from the request to start a process until it has started.", quick, "driver")
	m.requests = m.histogram("http_request_seconds", "Time of requests, by door, route, method and status.", slow, "door", "route", "method", "code")
	m.ended = m.counter("ended_total", "Sandboxes that ended, by why.", "driver", "reason")
	m.endedCPU = m.counter("ended_cpu_seconds_total", "Processor time of sandboxes that ended.", "driver")
	m.refused = m.counter("refusals_total", "Requests that the policy refused, by rule.", "rule")
	m.webhooks = m.counter("webhook_attempts_total", "Attempts to send an event to a webhook, by how they went.", "outcome")
	m.inFlight = prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "http_requests_in_flight", Help: "Requests under way, by door."}, []string{"door"})
	build := prometheus.NewGaugeVec(prometheus.GaugeOpts{Namespace: namespace, Name: "build_info", Help: "Always 1; the labels say what runs here."}, []string{"version", "commit", "go"})
	build.WithLabelValues(cfg.Version, cfg.Commit, runtime.Version()).Set(1)
	m.registry.MustRegister(m.inFlight, build, newSampler(cfg, m.drivers), collectors.NewGoCollector(),
		collectors.NewProcessCollector(collectors.ProcessCollectorOpts{}))
	return m
}

func (m *Metrics) histogram(name, help string, buckets []float64, labels ...string) *prometheus.HistogramVec {
	h := prometheus.NewHistogramVec(prometheus.HistogramOpts{Namespace: namespace, Name: name, Help: help, Buckets: buckets}, labels)
	m.registry.MustRegister(h)
	return h
}

func (m *Metrics) counter(name, help string, labels ...string) *prometheus.CounterVec {
	c := prometheus.NewCounterVec(prometheus.CounterOpts{Namespace: namespace, Name: name, Help: help}, labels)
	m.registry.MustRegister(c)
	return c
}

// Handler serves the metrics. They tell of all tenants, so who may ask is for the server to say.
func (m *Metrics) Handler() http.Handler {
	if m == nil {
		return http.NotFoundHandler()
	}
	return promhttp.HandlerFor(m.registry, promhttp.HandlerOpts{MaxRequestsInFlight: 8, Timeout: 10 * time.Second, EnableOpenMetrics: true,
		ErrorHandling: promhttp.ContinueOnError})
}

// Created counts a create that took so long in all. The driver is empty where none was chosen. pooled says that the
// sandbox was made ahead.
func (m *Metrics) Created(driver string, pooled bool, total time.Duration, phases Phases, err error) {
	if m == nil {
		return
	}
	driver, outcome, source := m.drivers.value(driver), "ok", "cold"
	if pooled {
		source = "pool"
	}
	if err != nil {
		outcome = firebreak.KindOf(err).String()
	}
	m.creates.WithLabelValues(driver, outcome, source).Observe(total.Seconds())
	if err != nil {
		return
	}
	for _, p := range []struct {
		name string
		time time.Duration
	}{{"image", phases.Image}, {"create", phases.Create}, {"agent", phases.Agent}} {
		if p.time > 0 {
			m.phases.WithLabelValues(driver, p.name).Observe(p.time.Seconds())
		}
	}
}

// Ended counts a sandbox that is gone, with the processor time that it used.
func (m *Metrics) Ended(driver, reason string, cpu time.Duration) {
	if m == nil {
		return
	}
	driver = m.drivers.value(driver)
	m.ended.WithLabelValues(driver, m.reasons.value(reason)).Inc()
	m.endedCPU.WithLabelValues(driver).Add(max(0, cpu.Seconds()))
}

// Refused counts a refusal of the policy for each rule that it names.
func (m *Metrics) Refused(rules []string) {
	if m == nil {
		return
	}
	if len(rules) == 0 {
		rules = []string{""}
	}
	for _, rule := range rules {
		m.refused.WithLabelValues(m.rules.value(rule)).Inc()
	}
}

// Exec counts a process that was started after so long a time.
func (m *Metrics) Exec(driver string, took time.Duration) {
	if m != nil {
		m.execs.WithLabelValues(m.drivers.value(driver)).Observe(took.Seconds())
	}
}

// Webhook counts an attempt to send an event, by one of few outcomes.
func (m *Metrics) Webhook(outcome string) {
	if m != nil {
		m.webhooks.WithLabelValues(outcome).Inc()
	}
}

// bounded is the set of values that a label has had.
type bounded struct {
	most int
	mu   sync.Mutex
	seen []string // guarded by mu; sorted
}

func newBounded(most int) *bounded { return &bounded{most: most} }

const maxValue = 100 // bytes

// value returns text, or "other" if the label has had too many values already, or this one is too long or no text.
func (b *bounded) value(text string) string {
	if text == "" {
		return "none"
	}
	if len(text) > maxValue || !utf8.ValidString(text) {
		return "other"
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	i, ok := slices.BinarySearch(b.seen, text)
	if !ok {
		if len(b.seen) >= b.most {
			return "other"
		}
		b.seen = slices.Insert(b.seen, i, text)
	}
	return text
}
