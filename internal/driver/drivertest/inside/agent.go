package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"syscall"
	"time"
)

// badAgent is started in place of an agent, and is none.
func badAgent(args []string) {
	switch mode {
	case "deaf": // never listens, will not go when asked, and leaves litter
		signal.Ignore(syscall.SIGTERM, syscall.SIGINT, syscall.SIGHUP)
		cmd := exec.Command("/proc/self/exe", "sleep")
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		_ = cmd.Start()
		time.Sleep(24 * time.Hour)
	case "silent": // listens, and never answers
		silent(args)
	case "brief": // ends at once
		fmt.Fprintln(os.Stderr, "the brief agent says goodbye")
		os.Exit(3)
	default:
		fail("no mode " + mode)
	}
}

func silent(args []string) {
	network, address := "tcp", "127.0.0.1:49983"
	for i, arg := range args {
		if arg == "--listen" && i+1 < len(args) {
			network, address, _ = strings.Cut(args[i+1], ":")
		}
	}
	l, err := net.Listen(network, address)
	if err != nil {
		fail(err.Error())
	}
	var kept []net.Conn
	for {
		conn, err := l.Accept()
		if err != nil {
			fail(err.Error())
		}
		kept = append(kept, conn)
		_ = kept
	}
}
