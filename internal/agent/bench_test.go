package agent_test

import (
	"os/exec"
	"testing"

	processv1 "github.com/firebreak-dev/firebreak/internal/api/process"
)

// BenchmarkRun is a whole command through the agent that is shipped; beside it the same command without one.
func BenchmarkRun(b *testing.B) {
	box, _ := program(b, realAgent(b))
	no := false
	for b.Loop() {
		if _, err := box.run(&processv1.StartRequest{Process: &processv1.ProcessConfig{Cmd: "/bin/true"}, Stdin: &no}); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkRunBare(b *testing.B) {
	for b.Loop() {
		if err := exec.Command("/bin/true").Run(); err != nil {
			b.Fatal(err)
		}
	}
}
