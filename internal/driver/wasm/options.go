package wasm

import (
	"fmt"
	"strconv"
	"time"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

// options are the driver's own, of a sandbox.
type options struct {
	timeout time.Duration // of one command; 0: until the sandbox ends
	fuel    int64         // instructions of one command; 0: as many as it likes
	output  int64         // bytes that one command may write; 0: as many as it likes
	fixed   *engine.Fixed
	given   map[string]engine.Given // what of the host's functions it may call
}

// parseOptions reads what a spec says.
func parseOptions(given map[string]string) (o options, err error) {
	for key, value := range given {
		switch key {
		case "timeout":
			o.timeout, err = time.ParseDuration(value)
		case "fuel":
			o.fuel, err = strconv.ParseInt(value, 10, 64)
		case "output":
			o.output, err = strconv.ParseInt(value, 10, 64)
		case "deterministic":
			o.fixed, err = parseFixed(value)
		case "fetch":
			o.given, err = parseHosts(value)
		default:
			err = fmt.Errorf("there are timeout, fuel, output, deterministic and fetch")
		}
		if err == nil && (o.timeout < 0 || o.fuel < 0 || o.output < 0) {
			err = fmt.Errorf("it is negative")
		}
		if err != nil {
			return o, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read options", Err: fmt.Errorf("the wasm driver's option %s=%q: %w", key, value, err)}
		}
	}
	return o, nil
}

// parseFixed reads a seed, a number: each run of a program in a world of the same seed comes out the same.
func parseFixed(value string) (*engine.Fixed, error) {
	seed, err := strconv.ParseUint(value, 10, 64)
	if err != nil {
		return nil, fmt.Errorf("the seed is no number: %w", err)
	}
	f := &engine.Fixed{Start: time.Date(2000, 1, 1, 0, 0, 0, 0, time.UTC)}
	for i := range 8 {
		f.Seed[i] = byte(seed >> (8 * i))
	}
	return f, nil
}
