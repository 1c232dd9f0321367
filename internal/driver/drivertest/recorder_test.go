package drivertest_test

import (
	"fmt"
	"runtime"
	"strings"
	"sync"
	"testing"
)

// recorder is a test that notes what happens to it. What it does not note is the real test's.
type recorder struct {
	testing.TB

	mu       sync.Mutex
	failed   bool     // guarded by mu
	skipped  bool     // guarded by mu
	text     []string // guarded by mu
	cleanups []func() // guarded by mu
}

// record runs do as a test of its own, with its cleanups, and returns what was noted.
func record(t testing.TB, do func(testing.TB)) *recorder {
	r := &recorder{TB: t}
	apart(func() { do(r) })
	for {
		r.mu.Lock()
		n := len(r.cleanups)
		if n == 0 {
			r.mu.Unlock()
			return r
		}
		last := r.cleanups[n-1]
		r.cleanups = r.cleanups[:n-1]
		r.mu.Unlock()
		apart(last)
	}
}

// apart runs do in a goroutine, which a failure may end.
func apart(do func()) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		do()
	}()
	<-done
}

func (r *recorder) note(failed bool, text string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.failed = r.failed || failed
	r.text = append(r.text, text)
}

func (r *recorder) said() string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return strings.Join(r.text, "\n")
}

func (r *recorder) Cleanup(f func()) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.cleanups = append(r.cleanups, f)
}

func (r *recorder) Helper()                       {}
func (r *recorder) Log(args ...any)               { r.note(false, fmt.Sprintln(args...)) }
func (r *recorder) Logf(form string, args ...any) { r.note(false, fmt.Sprintf(form, args...)) }
func (r *recorder) Fail()                         { r.note(true, "") }
func (r *recorder) Error(args ...any)             { r.note(true, fmt.Sprintln(args...)) }

func (r *recorder) Errorf(form string, args ...any) { r.note(true, fmt.Sprintf(form, args...)) }

func (r *recorder) FailNow() {
	r.note(true, "")
	runtime.Goexit()
}

func (r *recorder) Fatal(args ...any) {
	r.note(true, fmt.Sprintln(args...))
	runtime.Goexit()
}

func (r *recorder) Fatalf(form string, args ...any) {
	r.note(true, fmt.Sprintf(form, args...))
	runtime.Goexit()
}

func (r *recorder) Failed() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.failed
}

func (r *recorder) Skipped() bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.skipped
}

func (r *recorder) SkipNow() {
	r.mu.Lock()
	r.skipped = true
	r.mu.Unlock()
	runtime.Goexit()
}

func (r *recorder) Skip(args ...any) {
	r.note(false, fmt.Sprintln(args...))
	r.SkipNow()
}

func (r *recorder) Skipf(form string, args ...any) {
	r.note(false, fmt.Sprintf(form, args...))
	r.SkipNow()
}
