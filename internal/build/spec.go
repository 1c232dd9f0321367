package build

import (
	"fmt"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/build/step"
)

// Spec says what to build.
type Spec struct {
	FromImage    string // an image in a registry, or a template of that name that the operator made
	FromTemplate string // a template's name or ID; one of the two is set
	Username     string // for the image's registry
	Password     string
	Force        bool   // use nothing that an earlier build kept
	Steps        []Step // see package step
	Start        string // what is to run in the background of every sandbox; for bash
	Ready        string // succeeds once Start is at work; for bash
}

// Step is a step as the client sent it.
type Step = step.Raw

const (
	maxCommand = 64 << 10 // bytes of the start and of the ready command
	maxLogin   = 256      // bytes of a registry's user
)

func invalid(format string, args ...any) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read the build", Err: fmt.Errorf(format, args...)}
}

// check refuses what cannot be built, and returns the steps.
func (s Spec) check() ([]step.Step, error) {
	switch {
	case (s.FromImage == "") == (s.FromTemplate == ""):
		return nil, invalid("one of an image and a template to begin with is needed, and only one")
	case len(s.Start) > maxCommand || len(s.Ready) > maxCommand:
		return nil, invalid("the start or the ready command is longer than %d bytes", maxCommand)
	case !step.Plain(s.Start) || !step.Plain(s.Ready):
		return nil, invalid("the start or the ready command is no text")
	}
	return step.ParseAll(s.Steps)
}
