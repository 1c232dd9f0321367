package drivertest

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"math/rand/v2"
	"net/http"
	"os"
	"os/exec"
	"strings"
	"testing"
	"time"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

func reattachChecks() []check {
	return []check{
		{name: "open-by-second-driver", needs: driver.CapDetach, run: checkOpenSecond},
		{name: "open-unknown", run: checkOpenUnknown},
		{name: "creator-killed", needs: driver.CapDetach, run: checkCreatorKilled},
		{name: "creator-killed-at-random", needs: driver.CapDetach, run: checkCreatorKilledAtRandom},
	}
}

// checkOpenSecond: what one driver made, another finds, talks to, waits for and destroys.
func checkOpenSecond(c *C) {
	spec := c.spec()
	sb := c.create(spec)
	c.answers(sb)
	if status := c.initAs(sb, "secret"); status != http.StatusNoContent {
		c.Fatalf("init: status %d", status)
	}
	second := c.open(c.place)
	again, err := second.Open(c.ctx, spec)
	if err != nil {
		c.Fatalf("Open: %v", err)
	}
	if status := c.initAs(again, "secret"); status != http.StatusNoContent {
		c.Errorf("init through the second driver: status %d; it is not the same agent", status)
	}
	if _, err := again.Usage(c.ctx); err != nil {
		c.Errorf("Usage through the second driver: %v", err)
	}
	c.within("Destroy by the second driver", func(ctx context.Context) error { return second.Destroy(ctx, spec) })
	for name, h := range map[string]driver.Sandbox{"first": sb, "second": again} {
		c.within("Wait on the "+name+" handle", func(ctx context.Context) error {
			_, err := h.Wait(ctx)
			return err
		})
	}
	c.gone(spec, sb)
	c.gone(spec, again)
}

func checkOpenUnknown(c *C) {
	spec := c.spec()
	err := c.try(c.ctx, "Open", func(ctx context.Context) error {
		_, err := c.drv.Open(ctx, spec)
		return err
	})
	if !errors.Is(err, fs.ErrNotExist) {
		c.Errorf("Open of the unknown: %v, want fs.ErrNotExist", err)
	}
}

// childVariable tells a re-executed test binary that it is the creator that will be killed; its value is an order.
const childVariable = "FIREBREAK_DRIVERTEST_CHILD"

// order is what the creator is told.
type order struct {
	Place Place         `json:"place"`
	Specs []driver.Spec `json:"specs"`
	Loop  bool          `json:"loop"`  // create and destroy for ever, rather than create all and wait
	Pause bool          `json:"pause"` // pause what was created
}

// child plays the creator if this process was started to be one.
func (s Suite) child(t *testing.T) bool {
	text := os.Getenv(childVariable)
	if text == "" {
		return false
	}
	var o order
	if err := json.Unmarshal([]byte(text), &o); err != nil {
		t.Fatal(err)
	}
	o.Place.Log = slog.New(slog.DiscardHandler)
	d := s.New(t, o.Place)
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Minute)
	defer cancel()
	for first := true; first || o.Loop; first = false {
		for _, spec := range o.Specs {
			if err := o.create(ctx, d, spec); err != nil {
				fmt.Printf("CHILD failed: create: %v\n", err)
				return true
			}
			if !o.Loop {
				continue
			}
			if err := d.Destroy(ctx, spec); err != nil {
				fmt.Printf("CHILD failed: destroy: %v\n", err)
				return true
			}
		}
		fmt.Println("CHILD ready")
	}
	<-ctx.Done()
	return true
}

func (o order) create(ctx context.Context, d driver.Driver, spec driver.Spec) error {
	sb, err := d.Create(ctx, spec)
	if err != nil || !o.Pause {
		return err
	}
	p, err := driver.As[driver.Pauser](sb)
	if err != nil {
		return err
	}
	return p.Pause(ctx)
}

// creator starts the test binary again as a creator. The caller kills it.
func (c *C) creator(o order) (*exec.Cmd, *bufio.Scanner) {
	c.Helper()
	if c.InMemory {
		c.Skip("its sandboxes live in the memory of their creator, and die with it")
	}
	text, err := json.Marshal(o)
	if err != nil {
		c.Fatal(err)
	}
	test, _, _ := strings.Cut(c.Name(), "/")
	cmd := exec.Command(os.Args[0], "-test.run=^"+test+"$", "-test.count=1")
	// What it would remove at its end stays behind when it is killed, so that goes with the check's own directory.
	temp := c.path("temp")
	if err := os.MkdirAll(temp, 0o755); err != nil {
		c.Fatal(err)
	}
	cmd.Env = append(os.Environ(), childVariable+"="+string(text), programsVariable+"="+c.bin.dir, "TMPDIR="+temp)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		c.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		c.Fatalf("start the creator: %v", err)
	}
	return cmd, bufio.NewScanner(out)
}

// kill ends the creator as a crash would.
func (c *C) kill(cmd *exec.Cmd) {
	_ = cmd.Process.Kill()
	_ = cmd.Wait() // it was killed, so this is an error
}

// checkCreatorKilled: the creator dies by SIGKILL; its sandboxes live on, and another process takes them over.
func checkCreatorKilled(c *C) {
	specs := []driver.Spec{c.spec(), c.spec()}
	for _, spec := range specs {
		c.destroyLater(spec)
	}
	cmd, out := c.creator(order{Place: c.place, Specs: specs})
	for out.Scan() && !strings.HasPrefix(out.Text(), "CHILD ") {
	}
	said := out.Text()
	c.kill(cmd)
	if said != "CHILD ready" {
		c.Fatalf("the creator said %q", said)
	}
	for _, spec := range specs {
		var sb driver.Sandbox
		c.within("Open after the creator's death", func(ctx context.Context) (err error) {
			sb, err = c.drv.Open(ctx, spec)
			return err
		})
		c.answers(sb)
		ctx, cancel := context.WithTimeout(c.ctx, 50*time.Millisecond)
		_, err := sb.Wait(ctx)
		cancel()
		if !errors.Is(err, context.DeadlineExceeded) {
			c.Errorf("Wait on a sandbox whose creator died: %v, want its context's error", err)
		}
		c.destroy(spec)
		c.within("Wait after Destroy", func(ctx context.Context) error {
			_, err := sb.Wait(ctx)
			return err
		})
		c.gone(spec, sb)
	}
}

// checkCreatorKilledAtRandom: at whatever moment the creator dies, what List then shows either opens and answers or is
// a wreck, and Destroy clears both.
func checkCreatorKilledAtRandom(c *C) {
	rounds := 20
	if shortRun() {
		rounds = 5
	}
	found, wrecks := 0, 0
	for range rounds {
		specs := []driver.Spec{c.spec(), c.spec(), c.spec()}
		for _, spec := range specs {
			c.destroyLater(spec)
		}
		cmd, out := c.creator(order{Place: c.place, Specs: specs, Loop: true})
		for out.Scan() && !strings.HasPrefix(out.Text(), "CHILD ") {
		}
		if said := out.Text(); said != "CHILD ready" {
			c.kill(cmd)
			c.Fatalf("the creator said %q", said)
		}
		time.Sleep(time.Duration(rand.IntN(400)) * time.Millisecond)
		c.kill(cmd)
		for _, spec := range specs {
			if c.listed(spec.ID) {
				found++
			}
			var sb driver.Sandbox
			err := c.try(c.ctx, "Open", func(ctx context.Context) (err error) {
				sb, err = c.drv.Open(ctx, spec)
				return err
			})
			switch {
			case err == nil:
				c.answers(sb)
			case !errors.Is(err, fs.ErrNotExist):
				c.Errorf("Open after the creator's death: %v, want it to work or fs.ErrNotExist", err)
			case c.listed(spec.ID):
				wrecks++
			}
			c.destroy(spec)
			c.gone(spec, sb)
		}
	}
	c.Logf("%d deaths left %d sandboxes, %d of them wrecks", rounds, found, wrecks)
}
