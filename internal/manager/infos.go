package manager

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// badProbeLife is how long a driver that could not serve is not tried again: its mend may be followed at any time, and
// trying costs more than a whole run.
const badProbeLife = 3 * time.Minute

// probeTimeout is for a driver that hangs: the others must not wait for it for ever.
const probeTimeout = 30 * time.Second

// probed is what a driver said of itself, and when.
type probed struct {
	info driver.Info
	at   time.Time
	took time.Duration
	kept bool // by an earlier call or process: it was not tried now
}

// stale reports whether the driver must be tried again.
func (p probed) stale(now time.Time) bool {
	age := now.Sub(p.at)
	return !p.info.Healthy() && (age < 0 || age > badProbeLife)
}

// probes returns what the drivers of this host can do, in the order of their names in the set. Those that fresh names are
// tried now, the others only if nothing is known of them from this boot.
func (m *Manager) probes(ctx context.Context, fresh func(name string) bool) ([]probed, error) {
	names := m.cfg.Drivers.Names()
	all, errs := make([]probed, len(names)), make([]error, len(names))
	if m.allKnown(names, fresh, all) {
		return all, ctx.Err()
	}
	m.trying.Lock() // who waited here finds what the other has found
	defer m.trying.Unlock()
	var wg sync.WaitGroup
	for i, name := range names {
		if p, ok := m.known(name); ok && !fresh(name) {
			all[i] = p
			continue
		}
		wg.Go(func() { all[i], errs[i] = m.probe(ctx, name) })
	}
	wg.Wait()
	for _, err := range errs {
		if err != nil {
			return nil, err
		}
	}
	return all, ctx.Err()
}

func (m *Manager) allKnown(names []string, fresh func(string) bool, into []probed) bool {
	for i, name := range names {
		var ok bool
		if into[i], ok = m.known(name); !ok || fresh(name) {
			return false
		}
	}
	return true
}

func none(string) bool { return false }

// known returns what an earlier probe of this boot found.
func (m *Manager) known(name string) (probed, bool) {
	m.probing.Lock()
	defer m.probing.Unlock()
	p, ok := m.infos[name]
	if !ok {
		if p, ok = m.readProbe(name); !ok {
			return p, false
		}
		m.infos[name] = p
	}
	p.kept = true
	return p, !p.stale(time.Now())
}

// probe tries a driver now. That it cannot serve, for whatever reason, is no error.
func (m *Manager) probe(ctx context.Context, name string) (probed, error) {
	d, err := m.cfg.Drivers.Maker(ctx, name)
	if err != nil {
		return probed{}, err
	}
	start := time.Now()
	bounded, cancel := context.WithTimeout(ctx, probeTimeout)
	defer cancel()
	info, err := d.Probe(bounded)
	p := probed{info: info, at: time.Now(), took: time.Since(start)}
	if ctx.Err() != nil {
		return p, ctx.Err()
	}
	p.info.Name = name
	if err != nil {
		p.info.Problems = append(p.info.Problems, driver.Problem{Text: fmt.Sprintf("it could not be tried: %v", err), Mend: "run firebreak doctor --fresh"})
	}
	m.probing.Lock()
	defer m.probing.Unlock()
	m.infos[name] = p
	m.keepProbe(name, p)
	return p, nil
}

func infosOf(all []probed) []driver.Info {
	infos := make([]driver.Info, len(all))
	for i, p := range all {
		infos[i] = p.info
	}
	return infos
}

// infoOf finds the driver that a decision chose among what it was chosen from.
func infoOf(infos []driver.Info, name string) (driver.Info, error) {
	i := slices.IndexFunc(infos, func(info driver.Info) bool { return info.Name == name })
	if i < 0 {
		return driver.Info{}, fmt.Errorf("driver %q was chosen and is not there", name)
	}
	return infos[i], nil
}
