package config

import (
	"errors"
	"math"
	"strconv"
	"strings"
	"time"

	"github.com/firebreak-dev/firebreak"
)

const (
	sizeMend     = "write it like 512m, 1g or 1.5g"
	durationMend = "write it like 30s, 5m or 1h30m"
)

func invalid(text, mend string) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Err: errors.New(text), Mend: mend}
}

// ParseSize reads a number of bytes with an optional binary unit; an error is of firebreak.KindInvalid.
func ParseSize(s string) (int64, error) {
	number := strings.TrimRight(strings.ToLower(strings.TrimSpace(s)), "kmgtib")
	unit := strings.ToLower(strings.TrimSpace(s))[len(number):]
	shift := map[string]uint{"": 0, "b": 0, "k": 10, "m": 20, "g": 30, "t": 40}
	bits, ok := shift[strings.TrimSuffix(strings.TrimSuffix(unit, "ib"), "b")]
	value, err := strconv.ParseFloat(strings.TrimSpace(number), 64)
	if !ok || err != nil || strings.ContainsAny(number, "xXpPnN_") || unit == "ib" {
		return 0, invalid("not a size", sizeMend)
	}
	bytes := value * float64(uint64(1)<<bits)
	if bytes < 1 || bytes >= math.MaxInt64 {
		return 0, invalid("out of range", sizeMend)
	}
	return int64(bytes), nil
}

// ParseDuration reads a length of time above zero; a number without a unit is seconds. An error is of
// firebreak.KindInvalid.
func ParseDuration(s string) (time.Duration, error) {
	d, err := time.ParseDuration(s)
	if seconds, numErr := strconv.ParseFloat(s, 64); err != nil && numErr == nil && math.Abs(seconds) < 1e9 {
		d, err = time.Duration(seconds*float64(time.Second)), nil
	}
	if err != nil || d <= 0 {
		return 0, invalid("not a length of time", durationMend)
	}
	return d, nil
}
