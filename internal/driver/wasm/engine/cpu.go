package engine

import (
	"io"
	"sync"
	"time"
)

// CPU counts the time in which the runs of a sandbox execute, and do not wait for the host. The zero value is ready.
type CPU struct {
	mu      sync.Mutex
	first   time.Time     // from which the moments below are counted
	running time.Duration // how many there are
	begun   time.Duration // all moments at which one began, added up
	ended   time.Duration
}

func (c *CPU) now() time.Duration {
	if c.first.IsZero() {
		c.first = time.Now()
	}
	return time.Since(c.first)
}

func (c *CPU) begin() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running++
	c.begun += c.now()
}

func (c *CPU) end() {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.running--
	c.ended += c.now()
}

// Time is how much was spent up to now.
func (c *CPU) Time() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ended - c.begun + c.running*c.now()
}

// Waits returns a reader in which the time does not count.
func (c *CPU) Waits(r io.Reader) io.Reader { return waits{r, c} }

type waits struct {
	io.Reader
	cpu *CPU
}

func (w waits) Read(p []byte) (int, error) {
	w.cpu.end()
	defer w.cpu.begin()
	return w.Reader.Read(p)
}
