package drivertest_test

import (
	"context"
	"errors"
	"io/fs"
	"net"
	"net/http"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func findBugs() []bug {
	return []bug{
		{name: "Open finds the dead", check: "lifecycle", says: "Open of what was destroyed", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.open = func(_ context.Context, spec driver.Spec) (driver.Sandbox, error) { return falsePauser{}, nil }
		}},
		{name: "Open misses the living", check: "open-by-second-driver", says: "Open:", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.open = func(context.Context, driver.Spec) (driver.Sandbox, error) { return nil, fs.ErrNotExist }
		}},
		{name: "Open makes a new one", check: "open-by-second-driver", says: "not the same agent", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.open = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				if err := b.Driver.Destroy(ctx, spec); err != nil {
					return nil, err
				}
				sb, err := b.Driver.Create(ctx, spec)
				if err == nil {
					err = claim(ctx, sb, "somebody else's")
				}
				return sb, err
			}
		}},
		{name: "List forgets the half-made", check: "half-made-listed", says: "List does not show", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.list = func(ids []driver.ID) (whole []driver.ID) {
				for _, id := range ids {
					spec := driver.Spec{ID: id}
					if sb, err := b.Driver.Open(context.Background(), spec); err == nil && sb != nil {
						whole = append(whole, id)
					}
				}
				return whole
			}
		}},
		{name: "List forgets all", check: "lifecycle", says: "List = []", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.list = func([]driver.ID) []driver.ID { return nil }
		}},
	}
}

// wrongWait lets Wait tell of another end than there was.
func wrongWait(exit driver.Exit) func(testing.TB, *buggy, <-chan struct{}) {
	return func(_ testing.TB, b *buggy, _ <-chan struct{}) {
		b.handle = func(_ driver.Spec, sb driver.Sandbox) driver.Sandbox {
			return handle{Sandbox: sb, wait: func(ctx context.Context) (driver.Exit, error) {
				_, err := sb.Wait(ctx)
				return exit, err
			}}
		}
	}
}

func waitBugs() []bug {
	return []bug{
		{name: "Wait never returns", check: "id-again", says: "has not returned", plant: func(_ testing.TB, b *buggy, release <-chan struct{}) {
			b.handle = func(_ driver.Spec, sb driver.Sandbox) driver.Sandbox {
				return handle{Sandbox: sb, wait: func(context.Context) (driver.Exit, error) { <-release; return driver.Exit{}, nil }}
			}
		}},
		{name: "Wait ignores its context", check: "wait", says: "has not returned", plant: func(_ testing.TB, b *buggy, release <-chan struct{}) {
			b.handle = func(_ driver.Spec, sb driver.Sandbox) driver.Sandbox {
				return handle{Sandbox: sb, wait: func(context.Context) (driver.Exit, error) {
					ctx, cancel := context.WithCancel(context.Background())
					defer cancel()
					go func() { <-release; cancel() }()
					return sb.Wait(ctx)
				}}
			}
		}},
		{name: "Wait has the wrong reason", check: "wait", says: "want reason destroyed", plant: wrongWait(driver.Exit{Reason: firebreak.EndLost})},
		{name: "the deadline is no reason", check: "deadline", says: "want reason deadline", plant: wrongWait(driver.Exit{Reason: firebreak.EndExited, Code: 124})},
	}
}

func dialBugs() []bug {
	return []bug{
		{name: "Dial reaches the wrong sandbox", check: "dial-own", says: "the first init of", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			var last driver.Sandbox
			b.handle = func(_ driver.Spec, sb driver.Sandbox) driver.Sandbox {
				before := last
				last = sb
				if before == nil {
					return sb
				}
				return handle{Sandbox: sb, dial: before.Dial}
			}
		}},
		{name: "Dial of the dead is the wrong error", check: "lifecycle", says: "Dial of what was destroyed", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.handle = func(_ driver.Spec, sb driver.Sandbox) driver.Sandbox {
				return handle{Sandbox: sb, dial: func(ctx context.Context) (net.Conn, error) {
					conn, err := sb.Dial(ctx)
					if err != nil {
						err = errors.New("connection refused")
					}
					return conn, err
				}}
			}
		}},
	}
}

func capsBugs() []bug {
	return []bug{
		{name: "Caps promise what no handle has", check: "caps-tell-the-interfaces", says: "Caps say pause: true", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.handle = func(_ driver.Spec, sb driver.Sandbox) driver.Sandbox { return handle{Sandbox: sb} }
		}},
		{name: "Caps are silent about a handle", check: "caps-tell-the-interfaces", says: "Caps say pause: false", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.probe = func(i driver.Info) driver.Info { i.Caps = 0; return i }
		}},
	}
}

func ignoreBugs() []bug {
	return []bug{
		{name: "a limit is ignored", check: "limits-without-bit-refused", says: "Create succeeded", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				spec.Limits = firebreak.Limits{}
				return b.Driver.Create(ctx, spec)
			}
		}},
		{name: "a mount is ignored", check: "mounts-without-bit-refused", says: "Create succeeded", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				spec.Mounts = nil
				return b.Driver.Create(ctx, spec)
			}
		}},
		{name: "an option is ignored", check: "unknown-options-refused", says: "Create succeeded", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.create = func(ctx context.Context, spec driver.Spec) (driver.Sandbox, error) {
				spec.Options = nil
				return b.Driver.Create(ctx, spec)
			}
		}},
		{name: "Probe wavers", check: "probe-describes", says: "a second Probe says", plant: func(_ testing.TB, b *buggy, _ <-chan struct{}) {
			b.probe = func(i driver.Info) driver.Info {
				if b.place.StateDir != "" && strings.Contains(b.place.StateDir, "/fbt") {
					i.Boundary = firebreak.BoundaryVirtualMachine
				}
				return i
			}
		}},
	}
}

// claim makes somebody else the owner of an agent.
func claim(ctx context.Context, sb driver.Sandbox, token string) error {
	transport := &http.Transport{
		DisableKeepAlives: true,
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return sb.Dial(ctx) },
	}
	defer transport.CloseIdleConnections()
	body := strings.NewReader(`{"accessToken":"` + token + `"}`)
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sandbox/init", body)
	if err != nil {
		return err
	}
	resp, err := transport.RoundTrip(req)
	if err != nil {
		return err
	}
	return resp.Body.Close()
}
