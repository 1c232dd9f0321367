package cli

import (
	"fmt"
	"io"
	"time"

	"github.com/vbauerster/mpb/v8"
	"github.com/vbauerster/mpb/v8/decor"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// patience is how long we are silent before we show what we wait for.
const patience = time.Second

// waiting shows what, with the time it takes, on the caller's terminal from one second on, until the returned function
// is called.
func (a *app) waiting(what string) (stop func()) {
	if a.quiet || a.debug || a.terminal.Load() != nil || !isTerminal(a.errOut) {
		return func() {}
	}
	done, ended := make(chan struct{}), make(chan struct{})
	start := time.Now()
	go func() {
		defer close(ended)
		select {
		case <-done:
			return
		case <-time.After(patience):
		}
		tick := time.NewTicker(100 * time.Millisecond)
		defer tick.Stop()
		for i := 0; ; i++ {
			frame := []rune("⠋⠙⠹⠸⠼⠴⠦⠧⠇⠏")[i%10]
			fmt.Fprintf(a.errOut, "\r\x1b[K%c %s… %ds", frame, what, int(time.Since(start).Seconds())) // decoration
			select {
			case <-done:
				fmt.Fprint(a.errOut, "\r\x1b[K")
				return
			case <-tick.C:
			}
		}
	}()
	return func() {
		close(done)
		<-ended
	}
}

// bars shows the progress of several steps: bars on a terminal, elsewhere a line when a step begins.
type bars struct {
	app      *app
	progress *mpb.Progress // nil elsewhere
	steps    map[string]*mpb.Bar
}

// maxBars bounds what a server can make us show.
const maxBars = 256

func (a *app) newBars() *bars {
	b := &bars{app: a, steps: map[string]*mpb.Bar{}}
	if !a.quiet && isTerminal(a.errOut) {
		b.progress = mpb.New(mpb.WithOutput(a.errOut), mpb.WithWidth(40), mpb.WithRefreshRate(100*time.Millisecond))
	}
	return b
}

func (b *bars) show(p *firebreakv1.Progress) {
	step := oneLine(p.GetStep())
	bar, known := b.steps[step]
	if !known && len(b.steps) >= maxBars {
		return
	}
	switch {
	case !known && b.progress != nil:
		bar = b.add(step, p.GetTotal())
		b.steps[step] = bar
	case !known:
		b.steps[step] = nil
		if !b.app.quiet {
			b.app.say(plain, "%s", step)
		}
	}
	if bar == nil {
		return
	}
	if p.GetTotal() > 0 {
		bar.SetTotal(p.GetTotal(), false)
	}
	bar.SetCurrent(p.GetDone())
}

func (b *bars) add(step string, total int64) *mpb.Bar {
	name := mpb.PrependDecorators(decor.Name(step, decor.WCSyncSpaceR))
	if total <= 0 {
		return b.progress.AddSpinner(0, name, mpb.BarRemoveOnComplete())
	}
	return b.progress.AddBar(total, name, mpb.AppendDecorators(decor.CountersKibiByte("% .1f / % .1f")))
}

// close leaves the bars that are complete and removes the others.
func (b *bars) close() {
	if b.progress == nil {
		return
	}
	for _, bar := range b.steps {
		bar.Abort(!bar.Completed())
	}
	b.progress.Wait()
}

// meter shows the bytes of a copy on a terminal from one second on.
type meter struct {
	bar      *mpb.Bar // nil: nothing is shown
	progress *mpb.Progress
	timer    *time.Timer
}

func (a *app) newMeter(what string) *meter {
	m := &meter{}
	if a.quiet || a.terminal.Load() != nil || !isTerminal(a.errOut) {
		return m
	}
	shown := make(chan struct{})
	m.timer = time.AfterFunc(patience, func() { close(shown) })
	m.progress = mpb.New(mpb.WithOutput(a.errOut), mpb.WithRenderDelay(shown))
	m.bar = m.progress.AddSpinner(0, mpb.BarRemoveOnComplete(), mpb.PrependDecorators(
		decor.Name(what+" "), decor.CurrentKibiByte("% .1f")), mpb.AppendDecorators(decor.AverageSpeed(decor.SizeB1024(0), "% .1f")))
	return m
}

func (m *meter) reader(r io.Reader) io.Reader {
	if m.bar == nil {
		return r
	}
	return readerFunc(func(p []byte) (int, error) {
		n, err := r.Read(p)
		m.bar.IncrBy(n)
		return n, err
	})
}

func (m *meter) close() {
	if m.bar != nil {
		m.timer.Stop()
		m.bar.Abort(true)
		m.progress.Wait()
	}
}

type readerFunc func(p []byte) (int, error)

func (f readerFunc) Read(p []byte) (int, error) { return f(p) }
