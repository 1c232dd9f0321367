package v8

import "context"

// group is the sandboxes that share a process: those of one tenant, or one sandbox with a process of its own.
type group struct {
	d      *Driver
	key    string
	memory int64         // that the process may have, in bytes
	turn   chan struct{} // holds a token while somebody looks at proc
	proc   *proc         // nil: none yet, or no more
	refs   int           // guarded by d.mu: sandboxes
}

// process returns the group's process, a new one if there is none that lives.
func (g *group) process(ctx context.Context) (*proc, error) {
	select {
	case g.turn <- struct{}{}:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	defer func() { <-g.turn }()
	if g.proc != nil {
		select {
		case <-g.proc.dead:
			g.proc = nil
		default:
			return g.proc, nil
		}
	}
	p, err := g.d.boot(ctx, g.memory)
	if err != nil {
		return nil, err
	}
	g.proc = p
	return p, nil
}

// join returns the group of a key, with one more sandbox in it.
func (d *Driver) join(key string, memory int64) *group {
	d.mu.Lock()
	defer d.mu.Unlock()
	g := d.groups[key]
	if g == nil {
		g = &group{d: d, key: key, memory: memory, turn: make(chan struct{}, 1)}
		d.groups[key] = g
	}
	g.refs++
	return g
}

// leave takes a sandbox out. The last one ends the process, and leave returns when nothing of that is left.
func (g *group) leave() {
	g.d.mu.Lock()
	g.refs--
	last := g.refs == 0
	if last {
		delete(g.d.groups, g.key)
	}
	g.d.mu.Unlock()
	if !last {
		return
	}
	g.turn <- struct{}{}
	defer func() { <-g.turn }()
	if g.proc != nil {
		g.proc.end("its last sandbox was destroyed")
		<-g.proc.cleared
	}
}
