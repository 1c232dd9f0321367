package metrics

import (
	"context"
	"os"
	"regexp"
	"strings"
	"testing"
)

// TestDocs holds the page for users to what there is.
func TestDocs(t *testing.T) {
	page, err := os.ReadFile("../../docs/observability.md")
	if err != nil {
		t.Fatal(err)
	}
	m := New(Config{Tenants: true, Connections: func() int { return 0 }, Pools: func() []Pool { return []Pool{{Name: "p"}} },
		Sandboxes: func(context.Context) ([]Sandbox, error) { return []Sandbox{{Driver: "d", State: "s"}}, nil }})
	m.Created("d", false, 1, Phases{Image: 1}, nil)
	m.Ended("d", "r", 0)
	m.Refused(nil)
	m.Exec("d", 0)
	m.Webhook("sent")
	m.requests.WithLabelValues("d", "r", "m", "c").Observe(0)
	m.inFlight.WithLabelValues("d").Set(0)
	families, err := m.registry.Gather()
	if err != nil {
		t.Fatal(err)
	}
	served := map[string]bool{}
	for _, f := range families {
		if !strings.HasPrefix(f.GetName(), namespace+"_") {
			continue
		}
		served[f.GetName()] = true
		var labels []string
		for _, l := range f.GetMetric()[0].GetLabel() {
			labels = append(labels, l.GetName())
		}
		line := regexp.MustCompile("(?m)^\\|.*`" + f.GetName() + "`[^|]*\\|([^|]*)\\|").FindSubmatch(page)
		if line == nil {
			t.Errorf("the page lacks %s", f.GetName())
			continue
		}
		for _, l := range labels {
			if !strings.Contains(" "+string(line[1])+",", " "+l+",") && !strings.Contains(string(line[1]), " "+l+" ") {
				t.Errorf("%s: the page lacks the label %s", f.GetName(), l)
			}
		}
	}
	for _, name := range regexp.MustCompile("`("+namespace+"_[a-z_]+)`").FindAllSubmatch(page, -1) {
		if !served[string(name[1])] {
			t.Errorf("the page has %s, and nobody serves it", name[1])
		}
	}
}
