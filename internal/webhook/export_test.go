package webhook

import (
	"context"
	"net/netip"
	"time"
)

// Pace is how often something is tried in a test, which waits for nothing.
type Pace struct {
	Timeout, Patience time.Duration
	Refusals          int
}

// NewPaced is New with a pace.
func NewPaced(ctx context.Context, cfg Config, p Pace) (*Webhooks, error) {
	return newWebhooks(ctx, cfg, pace{timeout: p.Timeout, patience: p.Patience, refusals: p.Refusals,
		pause: func(int) time.Duration { return time.Millisecond }})
}

// CheckURL and CheckAddr are what is refused.
func CheckURL(text string, private bool) error { return checkURL(text, private) }

// CheckAddr is for tests.
func CheckAddr(addr netip.Addr, private bool) error { return checkAddr(addr, private) }
