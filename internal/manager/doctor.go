package manager

import (
	"context"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/host"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// Report is what this host can do.
type Report struct {
	Drivers []DriverReport
	Host    host.Facts
	KVMKept bool // it was tried earlier, not for this report
	Cases   []Case
}

// DriverReport is what one driver found.
type DriverReport struct {
	Info driver.Info
	At   time.Time
	Took time.Duration
	Kept bool // it was tried earlier, not for this report
}

// Case is a workload that most callers have, and what the built-in policy says to it here.
type Case struct {
	Name     string
	Decision policy.Decision
}

// Doctor tries what there is to try on this host, or tells what is known from this boot unless it is to be fresh. It
// tells what it is about to try, because that may take seconds.
func (m *Manager) Doctor(ctx context.Context, fresh bool, tell func(step string)) (Report, error) {
	ctx, done, err := m.begin(ctx)
	if err != nil {
		return Report{}, err
	}
	defer done()
	tell("try the drivers " + strings.Join(m.cfg.Drivers.Names(), ", "))
	all, err := m.probes(ctx, func(string) bool { return fresh })
	if err != nil {
		return Report{}, err
	}
	var r Report
	for _, p := range all {
		r.Drivers = append(r.Drivers, DriverReport{Info: p.info, At: p.at, Took: p.took, Kept: p.kept})
	}
	tell("look at the host")
	r.Host = host.Look(ctx, m.cfg.StateDir)
	tell("boot a guest through /dev/kvm")
	r.Host.KVM, r.KVMKept = m.kvm(ctx, fresh)
	r.Cases, err = commonCases(infosOf(all))
	return r, err
}

// keptKVM is what is kept of a guest that was booted, or could not be.
type keptKVM struct {
	Key string    `json:"key"`
	At  time.Time `json:"at"`
	KVM host.KVM  `json:"kvm"`
}

// kvm says whether guests boot here, as the drivers do: what is known from this boot, but nothing bad for long.
func (m *Manager) kvm(ctx context.Context, fresh bool) (_ host.KVM, kept bool) {
	key, err := m.key()
	path := m.probePath("host-kvm")
	var k keptKVM
	if !fresh && m.readKept(path, &k) && k.Key == key {
		if age := time.Since(k.At); k.KVM.Usable || age >= 0 && age < badProbeLife {
			return k.KVM, true
		}
	}
	k = keptKVM{Key: key, At: time.Now().UTC(), KVM: host.ProbeKVM(ctx)}
	if err == nil && ctx.Err() == nil {
		err = writeFile(path, k)
	}
	if err != nil {
		m.log.Debug("keep probe of KVM", "err", err)
	}
	return k.KVM, false
}

// commonCases asks the built-in policy, whatever this manager's own one is: they are the same for all hosts.
func commonCases(infos []driver.Info) ([]Case, error) {
	p, err := policy.Default()
	if err != nil {
		return nil, err
	}
	cases := []Case{
		{Name: "code written by a model, one tenant"},
		{Name: "code that people of yours wrote and reviewed"},
	}
	for i, w := range []firebreak.Workload{
		{Origin: firebreak.OriginModel, Tenancy: firebreak.TenancySingle},
		{Origin: firebreak.OriginTrusted, Tenancy: firebreak.TenancySingle},
	} {
		d := policy.Decide(p, w, infos)
		d.RefuseUnmet()
		cases[i].Decision = d
	}
	return cases, nil
}
