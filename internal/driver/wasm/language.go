package wasm

import (
	_ "embed"
	"fmt"
	"net/http"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/agent/code"
)

//go:embed kernels/kernel.py
var kernelPython string

//go:embed kernels/kernel.js
var kernelJavaScript string

// language is what a template's interpreter runs.
type language struct {
	name    string
	aliases []string
	program string // what its own messages call it
	args    []string
	framed  bool // the kernel of package code is the first frame
}

// languages lists those in which code contexts keep their state. Others have commands only.
func languages() []language {
	return []language{
		{name: "python", program: "python", args: []string{"-c", kernelPython}, framed: true},
		{name: "javascript", aliases: []string{"js"}, program: "qjs", args: []string{"--std", "-I", preludeDir + "/prelude.js", "-e", kernelJavaScript}},
	}
}

// find returns the language of a template by what a client calls it; "" is whatever the template has.
func find(template, name string) (language, error) {
	for _, l := range languages() {
		if l.name != template {
			continue
		}
		if name == "" || name == l.name || slices.Contains(l.aliases, name) {
			return l, nil
		}
		return language{}, code.Fail(http.StatusBadRequest, fmt.Errorf("language %q cannot be run here: this sandbox has an interpreter of %s only", name, l.name))
	}
	what := "runs one WebAssembly module and no interpreter"
	if template != "" {
		what = "has an interpreter of " + template + ", which keeps no contexts: run its commands"
	}
	return language{}, code.Fail(http.StatusBadRequest, fmt.Errorf("code cannot be run here: this sandbox %s", what))
}
