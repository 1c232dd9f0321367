package main

import (
	"fmt"
	"net"
	"os"
	"os/exec"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"time"
)

// memoryBomb takes memory and touches every page of it. It never takes more than n bytes, so that a driver without a
// limit costs the host no more than that.
func memoryBomb(n int64) {
	const step = 1 << 20
	var kept [][]byte
	for taken := int64(0); taken < n; taken += step {
		block := make([]byte, step)
		for i := 0; i < step; i += 4096 {
			block[i] = 1
		}
		kept = append(kept, block)
	}
	fmt.Println("survived", len(kept))
}

// Count is what a bomb reports.
type Count struct {
	Made int64  `json:"made"`
	Err  string `json:"err,omitempty"`
}

// forkBomb holds up to n sleeping processes at once, then ends them.
func forkBomb(n int) (c Count) {
	var all []*exec.Cmd
	for range n {
		cmd := exec.Command("/proc/self/exe", "sleep")
		if err := cmd.Start(); err != nil {
			c.Err = err.Error()
			break
		}
		all = append(all, cmd)
	}
	c.Made = int64(len(all))
	for _, cmd := range all {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	}
	return c
}

func diskFill(path string, n int64) (c Count) {
	f, err := os.Create(path)
	if err != nil {
		return Count{Err: err.Error()}
	}
	defer os.Remove(path)
	defer f.Close()
	block := []byte(strings.Repeat("firebreak", 1<<17))
	for c.Made < n {
		wrote, err := f.Write(block)
		c.Made += int64(wrote)
		if err != nil {
			c.Err = err.Error()
			return c
		}
	}
	if err := f.Sync(); err != nil {
		c.Err = err.Error()
	}
	return c
}

func fdBomb(n int) (c Count) {
	limit := syscall.Rlimit{}
	if err := syscall.Getrlimit(syscall.RLIMIT_NOFILE, &limit); err == nil {
		limit.Cur = limit.Max
		_ = syscall.Setrlimit(syscall.RLIMIT_NOFILE, &limit)
	}
	for range n {
		if _, err := syscall.Open("/dev/null", syscall.O_RDONLY, 0); err != nil {
			c.Err = err.Error()
			break
		}
		c.Made++
	}
	return c
}

// Spun is how much processor time a span of wall time gave.
type Spun struct {
	WallMS int64 `json:"wall_ms"`
	CPUMS  int64 `json:"cpu_ms"`
}

func spin(wall time.Duration) Spun {
	runtime.GOMAXPROCS(4)
	begin := time.Now()
	var all sync.WaitGroup
	for range 4 {
		all.Go(func() {
			for time.Since(begin) < wall {
			}
		})
	}
	all.Wait()
	var ru syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &ru); err != nil {
		fail(err.Error())
	}
	cpu := time.Duration(ru.Utime.Nano() + ru.Stime.Nano())
	return Spun{WallMS: time.Since(begin).Milliseconds(), CPUMS: cpu.Milliseconds()}
}

func spew(n int64) {
	block := []byte(strings.Repeat("0123456789abcdef", 1<<12))
	for n > 0 {
		k, err := os.Stdout.Write(block[:min(n, int64(len(block)))])
		if err != nil {
			fail(err.Error())
		}
		n -= int64(k)
	}
}

// zombies leaves n children that have ended and that nobody waits for, and ends.
func zombies(n int) (c Count) {
	for range n {
		cmd := exec.Command("/proc/self/exe", "exit", "0")
		if err := cmd.Start(); err != nil {
			c.Err = err.Error()
			break
		}
		c.Made++
	}
	time.Sleep(200 * time.Millisecond)
	return c
}

// orphans leaves n sleepers in sessions of their own, without their parent's environment, and ends.
func orphans(n int) {
	for range n {
		cmd := exec.Command("/proc/self/exe", "sleep")
		cmd.Env = []string{}
		cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
		if err := cmd.Start(); err != nil {
			fail(err.Error())
		}
		fmt.Println(cmd.Process.Pid)
	}
}

// dial tries each "network|address" and reports the error of each, "" for those that answered.
func dial(args []string) map[string]string {
	out := map[string]string{}
	for _, arg := range args {
		network, address, _ := strings.Cut(arg, "|")
		conn, err := net.DialTimeout(network, address, 3*time.Second)
		out[arg] = ""
		if err != nil {
			out[arg] = err.Error()
			continue
		}
		conn.Close()
	}
	return out
}

// listen opens a port of the sandbox's loopback, prints it and echoes one line to each caller.
func listen() {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		fail(err.Error())
	}
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	for {
		conn, err := l.Accept()
		if err != nil {
			fail(err.Error())
		}
		buf := make([]byte, 256)
		n, _ := conn.Read(buf)
		_, _ = conn.Write(append([]byte("echo "), buf[:n]...))
		conn.Close()
	}
}

// serve answers each line of its input with the same line, until the input ends.
func serve() {
	buf := make([]byte, 4096)
	for {
		n, err := os.Stdin.Read(buf)
		if n > 0 {
			_, _ = os.Stdout.Write(buf[:n])
		}
		if err != nil {
			return
		}
	}
}
