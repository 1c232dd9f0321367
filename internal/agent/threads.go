package agent

import (
	"runtime"
	"sync"
)

// keepThreads makes n threads, which the runtime keeps for whatever comes. A Go program that needs a thread and gets none
// dies, and in a sandbox whose programs have used up its processes none is to be had.
func keepThreads(n int) {
	var together sync.WaitGroup
	together.Add(n)
	for range n {
		go func() {
			runtime.LockOSThread() // so that each has a thread to itself while all are here
			defer runtime.UnlockOSThread()
			together.Done()
			together.Wait()
		}()
	}
	together.Wait()
}
