package cli

import (
	"os"
	"syscall"
	"testing"
	"time"

	"google.golang.org/protobuf/proto"
	"google.golang.org/protobuf/types/known/durationpb"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// asked starts advise on a terminal, questions and all.
func (p *typist) asked(s *server, signals chan os.Signal, args ...string) func() int {
	done := make(chan int, 1)
	go func() {
		done <- run{s: s, stdin: p.tty, out: p.tty, errOut: p.tty, signals: signals, env: map[string]string{"TERM": "dumb"}}.do(p.t, args...).code
	}()
	return func() int {
		select {
		case code := <-done:
			return code
		case <-time.After(time.Minute):
			p.t.Fatal("it never ends")
			return 0
		}
	}
}

func TestAdviseAsksOnATerminal(t *testing.T) {
	s, p := newServer(t), newTypist(t)
	wait := p.asked(s, nil, "advise")
	for _, say := range [][2]string{
		{"Who wrote the code? none, trusted, model, untrusted [model] ", "turstd"}, {"did you mean trusted?", "trusted"},
		{"Who shares the host?", ""}, {"What may the code see?", "public"}, {"Who places sandboxes", ""}, {"Where does it run?", ""},
		{"Is it a module", "perhaps"}, {"answer yes or no", "n"}, {"Does it need a GPU?", "YES"}, {"an auditor", ""},
		{"What does it need", "linux, compute"}, {"Within what time", "10ms"},
	} {
		p.awaits(say[0])
		p.types(say[1] + "\r")
	}
	p.awaits("gvisor (user-kernel)")
	if code := wait(); code != 0 {
		t.Errorf("exit status %d", code)
	}
	want := &firebreakv1.Workload{Origin: "trusted", Data: "public", Gpu: true, Needs: []string{"linux", "compute"}, StartWithin: durationpb.New(10 * time.Millisecond)}
	if !proto.Equal(s.asked[0].Workload, want) {
		t.Errorf("asked %v", s.asked[0].Workload)
	}
}

func TestAdviseAsksNothingThatFlagsSay(t *testing.T) {
	for _, args := range [][]string{{"advise", "--origin", "trusted"}, {"advise", "--json"}} {
		s, p := newServer(t), newTypist(t)
		if code := p.asked(s, nil, args...)(); code != 0 || len(s.asked) != 1 {
			t.Errorf("%v: exit status %d", args, code)
		}
	}
}

func TestAdviseAbandoned(t *testing.T) {
	s, p, signals := newServer(t), newTypist(t), make(chan os.Signal)
	wait := p.asked(s, signals, "advise")
	p.awaits("Who wrote")
	signals <- syscall.SIGINT
	if code := wait(); code != 130 {
		t.Errorf("interrupted: exit status %d", code)
	}
	p = newTypist(t)
	wait = p.asked(s, nil, "advise")
	p.awaits("Who wrote")
	p.types("\x04")
	if code := wait(); code != 125 || len(s.asked) > 0 {
		t.Errorf("no more answers: exit status %d", code)
	}
}
