// Command inside is what the conformance suite runs in sandboxes: a probe that reports what it can see and reach, bombs
// of bounded size, and, when built with a mode, agents that misbehave.
package main

import (
	"encoding/json"
	"fmt"
	"os"
	"os/signal"
	"strconv"
	"syscall"
	"time"
)

// mode is set by the linker: the way in which this program is a bad agent, or "" for the probe.
var mode string

func main() {
	if len(os.Args) > 1 && os.Args[1] == "sleep" {
		time.Sleep(24 * time.Hour)
		return
	}
	if mode != "" {
		badAgent(os.Args[1:])
		return
	}
	if len(os.Args) < 2 {
		fail("no command")
	}
	args := os.Args[2:]
	switch os.Args[1] {
	case "facts":
		report(facts(args))
	case "memory":
		memoryBomb(number(args))
	case "forks":
		report(forkBomb(int(number(args))))
	case "disk":
		report(diskFill(args[0], number(args[1:])))
	case "fds":
		report(fdBomb(int(number(args))))
	case "spin":
		report(spin(time.Duration(number(args)) * time.Millisecond))
	case "spew":
		spew(number(args))
	case "stubborn":
		stubborn()
	case "zombies":
		report(zombies(int(number(args))))
	case "orphans":
		orphans(int(number(args)))
	case "dial":
		report(dial(args))
	case "listen":
		listen()
	case "serve":
		serve()
	case "exit":
		os.Exit(int(number(args)))
	default:
		fail("no command " + os.Args[1])
	}
}

func fail(text string) {
	fmt.Fprintln(os.Stderr, "inside: "+text)
	os.Exit(64)
}

func number(args []string) int64 {
	if len(args) == 0 {
		fail("a number is missing")
	}
	n, err := strconv.ParseInt(args[0], 10, 64)
	if err != nil {
		fail(err.Error())
	}
	return n
}

func report(v any) {
	if err := json.NewEncoder(os.Stdout).Encode(v); err != nil {
		fail(err.Error())
	}
}

func stubborn() {
	signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP, syscall.SIGQUIT)
	fmt.Println("ready")
	time.Sleep(24 * time.Hour)
}
