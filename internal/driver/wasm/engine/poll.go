package engine

import (
	"context"
	"encoding/binary"
	"math"

	"github.com/tetratelabs/wazero/api"
)

// The parts of poll_oneoff's subscriptions and events, as WASI preview 1 lays them out.
const (
	maxSubscriptions = 1024
	subscriptionSize = 48
	eventSize        = 32
	kindClock        = 0
	absolute         = 1 // a flag of a clock's subscription
	errnoSuccess     = 0
	errnoFault       = 21
	errnoInvalid     = 28
	clockRealtime    = 0
)

// poll is poll_oneoff: wazero's own knows no absolute times, which CPython sleeps by, and of files none but stdin. Here
// a file is always ready, since reading one in memory never waits, and otherwise the earliest clock is waited for.
func poll(ctx context.Context, m api.Module, stack []uint64) {
	in, out, n, result := uint32(stack[0]), uint32(stack[1]), uint32(stack[2]), uint32(stack[3])
	stack[0] = uint64(ctx.Value(bound{}).(*Instance).poll(m.Memory(), in, out, n, result))
}

func (i *Instance) poll(memory api.Memory, in, out, n, result uint32) uint32 {
	if n == 0 || n > maxSubscriptions {
		return errnoInvalid
	}
	subscriptions, ok := memory.Read(in, n*subscriptionSize)
	if !ok {
		return errnoFault
	}
	var ready [][]byte
	wait := int64(math.MaxInt64)
	for s := subscriptions; len(s) > 0; s = s[subscriptionSize:] {
		if s[8] != kindClock {
			wait = 0
			ready = append(ready, s[:subscriptionSize])
			continue
		}
		wait = min(wait, max(i.until(s), 0))
	}
	if len(ready) == 0 {
		for s := subscriptions; len(s) > 0; s = s[subscriptionSize:] {
			if i.until(s) <= wait {
				ready = append(ready, s[:subscriptionSize])
			}
		}
		i.sleep(wait)
	}
	events := make([]byte, 0, len(ready)*eventSize)
	for _, s := range ready {
		event := make([]byte, eventSize)
		copy(event, s[:8]) // the caller's own
		event[10] = s[8]
		if s[8] != kindClock {
			binary.LittleEndian.PutUint64(event[16:], 1) // bytes that wait, at least
		}
		events = append(events, event...)
	}
	if !memory.Write(out, events) || !memory.WriteUint32Le(result, uint32(len(ready))) {
		return errnoFault
	}
	return errnoSuccess
}

// until is how long a clock's subscription waits, in nanoseconds.
func (i *Instance) until(s []byte) int64 {
	timeout := binary.LittleEndian.Uint64(s[24:])
	if timeout > math.MaxInt64 {
		timeout = math.MaxInt64
	}
	if s[40]&absolute == 0 {
		return int64(timeout)
	}
	now := i.nano()
	if s[16] == clockRealtime {
		seconds, ns := i.wall()
		now = seconds*1e9 + int64(ns)
	}
	return int64(timeout) - now
}
