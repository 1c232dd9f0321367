package engine

import "crypto/rand"

// random is the kernel's randomness.
type random struct{}

func (random) Read(p []byte) (int, error) { return rand.Read(p) }
