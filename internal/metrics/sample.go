package metrics

import (
	"context"
	"sync"
	"time"

	"github.com/prometheus/client_golang/prometheus"
)

const (
	sampleTimeout = 2 * time.Second
	sampleAge     = time.Second // for which one is good enough, however often somebody asks
)

// sampler asks at each scrape for what is not counted but there.
type sampler struct {
	cfg                             Config
	drivers, states, pools, tenants *bounded
	failures                        prometheus.Counter

	sandboxes, limitCPUs, limitMemory, usedCPU, usedMemory *prometheus.Desc
	tenant, connections                                    *prometheus.Desc
	poolSize, poolCount                                    *prometheus.Desc

	mu      sync.Mutex
	sampled time.Time // guarded by mu
	last    []Sandbox // guarded by mu
	lastErr error     // guarded by mu
}

func newSampler(cfg Config, drivers *bounded) *sampler {
	desc := func(name, help string, labels ...string) *prometheus.Desc {
		return prometheus.NewDesc(prometheus.BuildFQName(namespace, "", name), help, labels, nil)
	}
	return &sampler{
		cfg: cfg, drivers: drivers, states: newBounded(maxReasons), pools: newBounded(maxPools), tenants: newBounded(maxTenants),
		failures:    prometheus.NewCounter(prometheus.CounterOpts{Namespace: namespace, Name: "sample_failures_total", Help: "Scrapes without sandboxes, because these could not be listed in time."}),
		sandboxes:   desc("sandboxes", "Living sandboxes, by driver and state.", "driver", "state"),
		limitCPUs:   desc("sandboxes_limit_cpus", "Sum of the processors that living sandboxes may use, of those with a limit.", "driver"),
		limitMemory: desc("sandboxes_limit_memory_bytes", "Sum of the memory that living sandboxes may use, of those with a limit.", "driver"),
		usedCPU:     desc("sandboxes_cpu_seconds", "Processor time that living sandboxes have used so far.", "driver"),
		usedMemory:  desc("sandboxes_memory_bytes", "Memory that living sandboxes use.", "driver"),
		tenant:      desc("tenant_sandboxes", "Living sandboxes, by tenant.", "tenant"),
		connections: desc("connections", "Open connections."),
		poolSize:    desc("pool_sandboxes", "Sandboxes of a pool: ready, in the making, and as many as are wanted and allowed.", "pool", "what"),
		poolCount:   desc("pool_total", "What became of a pool's sandboxes, and how often none was ready (miss).", "pool", "what"),
	}
}

// Describe implements prometheus.Collector.
func (s *sampler) Describe(ch chan<- *prometheus.Desc) {
	s.failures.Describe(ch)
	for _, d := range []*prometheus.Desc{s.sandboxes, s.limitCPUs, s.limitMemory, s.usedCPU, s.usedMemory, s.tenant, s.connections, s.poolSize, s.poolCount} {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *sampler) Collect(ch chan<- prometheus.Metric) {
	s.collectSandboxes(ch)
	s.failures.Collect(ch)
	if s.cfg.Connections != nil {
		ch <- prometheus.MustNewConstMetric(s.connections, prometheus.GaugeValue, float64(s.cfg.Connections()))
	}
	if s.cfg.Pools != nil {
		s.collectPools(ch)
	}
}

func (s *sampler) collectPools(ch chan<- prometheus.Metric) {
	done := map[string]bool{}
	for _, p := range s.cfg.Pools() {
		name := s.pools.value(p.Name)
		if done[name] {
			continue // of the many that are "other" the first one stands for all
		}
		done[name] = true
		for what, n := range map[string]int{"ready": p.Ready, "making": p.Making, "target": p.Target, "min": p.Min, "max": p.Max} {
			ch <- prometheus.MustNewConstMetric(s.poolSize, prometheus.GaugeValue, float64(n), name, what)
		}
		for what, n := range map[string]uint64{"claim": p.Claims, "miss": p.Misses, "made": p.Made, "discarded": p.Discarded, "failure": p.Failures} {
			ch <- prometheus.MustNewConstMetric(s.poolCount, prometheus.CounterValue, float64(n), name, what)
		}
	}
}

// sample returns the living sandboxes. Scrapes at the same time wait for one another, and share what one found.
func (s *sampler) sample() ([]Sandbox, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if time.Since(s.sampled) < sampleAge {
		return s.last, s.lastErr
	}
	ctx, cancel := context.WithTimeout(context.Background(), sampleTimeout)
	defer cancel()
	s.last, s.lastErr = s.cfg.Sandboxes(ctx)
	s.sampled = time.Now()
	if s.lastErr != nil {
		s.failures.Inc()
	}
	return s.last, s.lastErr
}

// sum is what the sandboxes of one driver have together.
type sum struct {
	states     map[string]int
	cpus       float64
	memory     int64
	usedCPU    time.Duration
	usedMemory int64
}

func (s *sampler) collectSandboxes(ch chan<- prometheus.Metric) {
	if s.cfg.Sandboxes == nil {
		return
	}
	all, err := s.sample()
	if err != nil {
		return
	}
	sums, tenants := map[string]*sum{}, map[string]int{}
	for _, b := range all {
		driver := s.drivers.value(b.Driver)
		of := sums[driver]
		if of == nil {
			of = &sum{states: map[string]int{}}
			sums[driver] = of
		}
		of.states[s.states.value(b.State)]++
		of.cpus += b.CPUs
		of.memory += b.Memory
		of.usedCPU += b.UsedCPU
		of.usedMemory += b.UsedMemory
		if s.cfg.Tenants {
			tenants[s.tenants.value(b.Tenant)]++
		}
	}
	for driver, of := range sums {
		for state, n := range of.states {
			ch <- prometheus.MustNewConstMetric(s.sandboxes, prometheus.GaugeValue, float64(n), driver, state)
		}
		for _, v := range []struct {
			desc  *prometheus.Desc
			value float64
		}{{s.limitCPUs, of.cpus}, {s.limitMemory, float64(of.memory)}, {s.usedCPU, of.usedCPU.Seconds()}, {s.usedMemory, float64(of.usedMemory)}} {
			ch <- prometheus.MustNewConstMetric(v.desc, prometheus.GaugeValue, v.value, driver)
		}
	}
	for tenant, n := range tenants {
		ch <- prometheus.MustNewConstMetric(s.tenant, prometheus.GaugeValue, float64(n), tenant)
	}
}
