package policy

import "testing"

func loadDefault(t testing.TB) *Policy {
	t.Helper()
	p, err := Default()
	if err != nil {
		t.Fatal(err)
	}
	return p
}

func TestDefaultKeepsItsTableTreeAndTests(t *testing.T) {
	for _, r := range loadDefault(t).Test() {
		t.Run(r.Name, func(t *testing.T) {
			if r.Err != nil {
				t.Errorf("default.yaml:%d: %v", r.Line, r.Err)
			}
		})
	}
}
