package agent

import (
	"log/slog"
	"net/http"
	"testing"
	"testing/synctest"
	"time"

	"github.com/firebreak-dev/firebreak/internal/agent/account"
)

// TestInitReplacesTheDeadline runs on a clock of its own, so that hours pass at once.
func TestInitReplacesTheDeadline(t *testing.T) {
	const never = -1
	for name, tc := range map[string]struct {
		deadlines []time.Duration // of one init after the other, from its moment on; never for none
		ends      time.Duration   // after the last
	}{
		"one":               {[]time.Duration{time.Hour}, time.Hour},
		"none":              {[]time.Duration{never}, never},
		"later":             {[]time.Duration{time.Hour, 3 * time.Hour}, 3 * time.Hour},
		"sooner":            {[]time.Duration{3 * time.Hour, time.Hour}, time.Hour},
		"cleared":           {[]time.Duration{time.Hour, never}, never},
		"cleared and again": {[]time.Duration{time.Hour, never, 2 * time.Hour}, 2 * time.Hour},
		"past":              {[]time.Duration{time.Hour, -2}, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				a := &Agent{log: slog.New(slog.DiscardHandler), session: account.NewSession(account.Open("/"), true), due: make(chan struct{})}
				defer a.claim.close()
				for i, d := range tc.deadlines {
					if i > 0 {
						time.Sleep(time.Hour - time.Nanosecond)
					}
					req := initRequest{AccessToken: "t"}
					if d != never {
						req.Deadline = time.Now().Add(d)
					}
					if err := a.init(req, &http.Request{Header: http.Header{http.CanonicalHeaderKey(tokenHeader): {"t"}}}); err != nil {
						t.Fatal(err)
					}
				}
				if tc.ends == never {
					tc.ends = 1000 * time.Hour
					select {
					case <-a.due:
						t.Error("it ends without a deadline")
					case <-time.After(tc.ends):
					}
					return
				}
				begun := time.Now()
				<-a.due
				if got := time.Since(begun); got != tc.ends {
					t.Errorf("it ends after %v, want %v", got, tc.ends)
				}
			})
		})
	}
}
