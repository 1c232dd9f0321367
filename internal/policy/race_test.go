//go:build race

package policy

// raced is whether the race detector is on: it makes CEL ten times slower, and the enumeration has no goroutines.
const raced = true
