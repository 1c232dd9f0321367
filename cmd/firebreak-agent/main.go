// Command firebreak-agent is the program inside every sandbox.
package main

import (
	"os"

	"github.com/firebreak-dev/firebreak/internal/agent"
)

func main() { os.Exit(agent.Main(os.Args[1:], os.Stderr)) }
