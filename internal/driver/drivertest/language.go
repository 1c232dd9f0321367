package drivertest

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"strings"
	"time"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/api/process"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

// codePort is where the code interpreter answers in every sandbox.
const codePort = 49999

// Language is what sandboxes of the language boundary run. Their agent is the driver's own: all that the protocol promises
// without a program of Linux is checked of it, and that the rest is refused.
type Language struct {
	Program []string // a command that prints "ok" and a newline, and ends with 0; nil: none
	Spin    []string // a command that never ends by itself; nil: none

	Name    string // of the language, as /execute names it; "": sandboxes keep no contexts
	Define  string // code that remembers 42
	Recall  string // code whose last expression is that number
	Print   string // code that prints "ok" and a newline
	Fail    string // code that throws
	Forever string // code that never ends by itself
	Hoard   string // code that takes more memory than any sandbox has
}

func languageChecks() []check {
	return []check{
		{name: "language-files", language: true, run: checkLanguageFiles},
		{name: "language-refusals", language: true, run: checkLanguageRefusals},
		{name: "language-host-invisible", language: true, run: checkLanguageHost},
		{name: "language-limit-disk", language: true, needs: driver.CapLimitDisk, run: checkLanguageDisk},
		{name: "language-program", language: true, run: checkLanguageProgram},
		{name: "language-program-destroyed", language: true, run: checkLanguageDestroyed},
		{name: "language-code", language: true, run: checkLanguageCode},
		{name: "language-code-interrupted", language: true, run: checkLanguageInterrupted},
		{name: "language-code-destroyed", language: true, run: checkLanguageCodeDestroyed},
		{name: "language-limit-memory", language: true, needs: driver.CapLimitMemory, run: checkLanguageMemory},
	}
}

// checkLanguageFiles: what is written is read, in every shape, and what is moved or removed is.
func checkLanguageFiles(c *C) {
	b := c.box(c.spec())
	fs, dir := b.guest.Filesystem(), c.Work(b.spec)+"/files"
	for name, data := range map[string][]byte{
		"empty": {}, "small": []byte("hello\n"), "all bytes": allBytes(), "large": bytes.Repeat(allBytes(), 16_385),
		"new/dirs/deep": []byte("deep"), "ünï code; $(x)&": []byte("named"),
	} {
		b.put(dir+"/"+name, data)
		if status, got := b.files(http.MethodGet, dir+"/"+name, nil); status != http.StatusOK || got != string(data) {
			c.Errorf("%s: status %d, %d bytes, want 200 and the %d that were written", name, status, len(got), len(data))
		}
	}
	b.put(dir+"/small", []byte("hi"))
	stat, err := fs.Stat(c.ctx, connect.NewRequest(&filesystem.StatRequest{Path: dir + "/small"}))
	if e := stat.Msg.GetEntry(); err != nil || e.GetSize() != 2 || e.GetType() != filesystem.FileType_FILE_TYPE_FILE || e.GetPath() != dir+"/small" {
		c.Errorf("stat says %v, %v", e, err)
	}
	if _, err := fs.Move(c.ctx, connect.NewRequest(&filesystem.MoveRequest{Source: dir + "/new", Destination: dir + "/old/place"})); err != nil {
		c.Errorf("move: %v", err)
	}
	if _, got := b.files(http.MethodGet, dir+"/old/place/dirs/deep", nil); got != "deep" {
		c.Errorf("what was moved holds %q", got)
	}
	for range 2 { // what is not there is removed well
		if _, err := fs.Remove(c.ctx, connect.NewRequest(&filesystem.RemoveRequest{Path: dir})); err != nil {
			c.Errorf("remove: %v", err)
		}
	}
	if status, _ := b.files(http.MethodGet, dir+"/small", nil); status != http.StatusNotFound {
		c.Errorf("what was removed is read with status %d", status)
	}
}

// checkLanguageRefusals: what cannot be done is refused in one sentence, and the sandbox lives.
func checkLanguageRefusals(c *C) {
	b := c.box(c.spec())
	for name, p := range map[string]program{
		"a pipe":            {cmd: "/bin/bash", args: []string{"-l", "-c", "echo a | cat"}},
		"a list":            {cmd: "/bin/sh", args: []string{"-c", "cd / && ls"}},
		"a shell":           {cmd: "bash"},
		"a terminal":        {cmd: "x", size: &process.PTY_Size{Rows: 24, Cols: 80}},
		"a Linux program":   {cmd: "/bin/ls"},
		"a package manager": {cmd: "/bin/bash", args: []string{"-l", "-c", "apt-get install -y cowsay"}},
		"another user":      {cmd: "x", user: "root"},
	} {
		res, err := b.run(c.ctx, p)
		var refused *connect.Error
		switch {
		case !errors.As(err, &refused):
			c.Errorf("%s: %v, %+v, want a refusal", name, err, res)
		case refused.Code() != connect.CodeUnimplemented && refused.Code() != connect.CodeInvalidArgument && refused.Code() != connect.CodeUnauthenticated,
			!strings.Contains(refused.Message(), " "), strings.Contains(refused.Message(), "\n"):
			c.Errorf("%s is refused with code %v and %q, want one sentence that says why", name, refused.Code(), refused.Message())
		}
	}
	if conn, err := b.guest.DialPort(c.ctx, 8080); err == nil {
		_ = conn.Close()
		c.Error("port 8080 of a sandbox in which nothing listens was dialled")
	}
	if err := b.guest.Health(c.ctx); err != nil {
		c.Errorf("after all that was refused: %v", err)
	}
}

// checkLanguageHost: no path leads to a file of the host, however it is written.
func checkLanguageHost(c *C) {
	b := c.box(c.spec())
	secret := c.path("secret-" + c.tag)
	if err := os.WriteFile(secret, []byte(c.tag), 0o644); err != nil {
		c.Fatal(err)
	}
	for _, name := range []string{
		"/etc/passwd", "/proc/self/environ", "/proc/1/root/etc/passwd", "/sys/kernel/notes", "/dev/mem", "/dev/null", secret,
		strings.Repeat("../", 40) + "etc/passwd", "/tmp/.." + secret, "//" + secret, "~/../../../.." + secret, b.spec.Dir, c.place.StateDir,
	} {
		if status, got := b.files(http.MethodGet, name, nil); status == http.StatusOK || strings.Contains(got, c.tag) && status != http.StatusNotFound {
			c.Errorf("%s is visible: status %d, %.80q", name, status, got)
		}
	}
	b.put(secret, []byte("changed"))
	if text, err := os.ReadFile(secret); err != nil || string(text) != c.tag {
		c.Errorf("the host's file holds %q, %v: it was written from the sandbox", text, err)
	}
}

// checkLanguageDisk: what is too much is refused, and less is not.
func checkLanguageDisk(c *C) {
	spec := c.spec()
	spec.Limits.Disk = 8 << 20
	b := c.box(spec)
	big, dir := make([]byte, 16<<20), c.Work(spec)
	if status, body := b.files(http.MethodPost, dir+"/big", big); status != http.StatusInsufficientStorage {
		c.Errorf("16 MiB within a limit of 8: status %d, %.80s, want 507", status, body)
	}
	if status, _ := b.files(http.MethodGet, dir+"/big", nil); status != http.StatusNotFound {
		c.Errorf("half of a file is left: status %d", status)
	}
	for i := range 3 { // a file that is written over gives back what it took
		if status, body := b.files(http.MethodPost, dir+"/fits", big[:3<<20]); status != http.StatusOK {
			c.Errorf("3 MiB, time %d: status %d, %.80s", i, status, body)
		}
	}
}

// command is the program of words.
func command(words []string) program { return program{cmd: words[0], args: words[1:]} }

func checkLanguageProgram(c *C) {
	if c.Language.Program == nil {
		c.Skip("the suite has no program for it")
	}
	b := c.box(c.spec())
	quoted := make([]string, len(c.Language.Program))
	for i, word := range c.Language.Program {
		quoted[i] = "'" + strings.ReplaceAll(word, "'", `'\''`) + "'"
	}
	for name, p := range map[string]program{
		"directly": command(c.Language.Program), "through a shell": {cmd: "/bin/bash", args: []string{"-l", "-c", strings.Join(quoted, " ")}},
	} {
		if res := b.must(p); res.stdout != "ok\n" {
			c.Errorf("%s it prints %q", name, res.stdout)
		}
	}
	if c.Language.Spin == nil {
		return
	}
	spin := command(c.Language.Spin)
	spin.started = func(pid uint32) {
		time.Sleep(3 * time.Second) // in which one that is not endless ends
		_, err := b.guest.Process().SendSignal(c.ctx, connect.NewRequest(&process.SendSignalRequest{Signal: process.Signal_SIGNAL_SIGKILL,
			Process: &process.ProcessSelector{Selector: &process.ProcessSelector_Pid{Pid: pid}}}))
		if err != nil {
			c.Errorf("kill an endless program: %v", err)
		}
	}
	if res, err := b.run(c.ctx, spin); err != nil || res.exited || res.status != "signal: killed" {
		c.Errorf("an endless program that was killed: %+v, %v", res, err)
	}
	b.must(command(c.Language.Program))
}

// checkLanguageDestroyed: an endless program ends with its sandbox, and so does the stream of who waits for it.
func checkLanguageDestroyed(c *C) {
	if c.Language.Spin == nil {
		c.Skip("the suite has no endless program for it")
	}
	b := c.box(c.spec())
	spin, begun, ended := command(c.Language.Spin), make(chan struct{}), make(chan error, 1)
	spin.started = func(uint32) { close(begun) }
	go func() {
		res, err := b.run(c.ctx, spin)
		if err == nil && res.exited {
			err = fmt.Errorf("it ended by itself: %+v", res)
		}
		ended <- err
	}()
	select {
	case <-begun:
	case err := <-ended:
		c.Fatalf("start an endless program: %v", err)
	}
	c.destroy(b.spec)
	<-ended // with an error or the signal; leaks are looked for after the check
}

// told is one line of a run of code.
type told struct {
	Type string `json:"type"`
	Text string `json:"text"`
	Name string `json:"name"`
	Main bool   `json:"is_main_result"`
}

// ran is what a run of code gave.
type ran struct {
	status             int
	printed, text, err string
	ended              bool
}

// execute runs code in the default context of the suite's language; begun is called with the first line.
func (b *box) execute(ctx context.Context, code string, begun func()) (got ran, err error) {
	body, err := json.Marshal(map[string]string{"code": code, "language": b.c.Language.Name})
	if err != nil {
		return got, err
	}
	transport := &http.Transport{DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) { return b.guest.DialPort(ctx, codePort) }}
	defer transport.CloseIdleConnections()
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://sandbox/execute", bytes.NewReader(body))
	if err != nil {
		return got, err
	}
	res, err := transport.RoundTrip(req)
	if err != nil {
		return got, err
	}
	defer res.Body.Close() //nolint:errcheck // read to its end, or given up
	got.status = res.StatusCode
	if got.status != http.StatusOK {
		text, err := io.ReadAll(res.Body)
		got.err = string(text)
		return got, err
	}
	lines := bufio.NewScanner(res.Body)
	for lines.Buffer(nil, 16<<20); lines.Scan(); {
		var line told
		if err := json.Unmarshal(lines.Bytes(), &line); err != nil {
			return got, err
		}
		got.add(line)
		if line.Type == "number_of_executions" && begun != nil {
			begun()
		}
	}
	return got, lines.Err()
}

func (r *ran) add(line told) {
	switch line.Type {
	case "stdout":
		r.printed += line.Text
	case "result":
		if line.Main {
			r.text = line.Text
		}
	case "error":
		r.err = line.Name
	case "end_of_execution":
		r.ended = true
	}
}

// coder is a box in which code runs.
func (c *C) coder(spec driver.Spec) *box {
	c.Helper()
	if c.Language.Name == "" {
		c.Skip("its sandboxes keep no contexts")
	}
	return c.box(spec)
}

// checkLanguageCode: a context keeps its state, and tells what is printed, the last value and errors. Another sandbox has
// none of it.
func checkLanguageCode(c *C) {
	b := c.coder(c.spec())
	for _, step := range []struct {
		what, code string
		want       ran
	}{
		{"define", c.Language.Define, ran{}}, {"recall", c.Language.Recall, ran{text: "42"}}, {"print", c.Language.Print, ran{printed: "ok\n"}},
	} {
		step.want.status, step.want.ended = http.StatusOK, true
		got, err := b.execute(c.ctx, step.code, nil)
		if step.what == "define" {
			got.text = ""
		}
		if err != nil || got != step.want {
			c.Errorf("%s: %+v, %v, want %+v", step.what, got, err, step.want)
		}
	}
	if got, err := b.execute(c.ctx, c.Language.Fail, nil); err != nil || got.err == "" || !got.ended {
		c.Errorf("code that throws: %+v, %v, want an error", got, err)
	}
	if got, err := b.execute(c.ctx, c.Language.Recall, nil); err != nil || got.text != "42" {
		c.Errorf("after an error the context holds %+v, %v", got, err)
	}
	if got, err := c.box(c.spec()).execute(c.ctx, c.Language.Recall, nil); err != nil || got.text == "42" {
		c.Errorf("a neighbour's context holds %+v, %v", got, err)
	}
}

// checkLanguageInterrupted: endless code ends with its client, and the next run finds the context or a new one.
func checkLanguageInterrupted(c *C) {
	b := c.coder(c.spec())
	if got, err := b.execute(c.ctx, c.Language.Print, nil); err != nil || !got.ended {
		c.Fatalf("before an endless one: %+v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	// The interpreter is there, so code that is not endless ends in this time.
	got, err := b.execute(ctx, c.Language.Forever, func() { time.AfterFunc(2*time.Second, cancel) })
	cancel()
	if err == nil || got.ended {
		c.Errorf("endless code ended by itself: %+v", got)
	}
	c.eventually("no code runs after an endless one was given up", func() bool {
		got, err := b.execute(c.ctx, c.Language.Print, nil)
		return err == nil && got.printed == "ok\n"
	})
}

// checkLanguageCodeDestroyed: endless code ends with its sandbox.
func checkLanguageCodeDestroyed(c *C) {
	b := c.coder(c.spec())
	begun, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		if got, err := b.execute(c.ctx, c.Language.Forever, func() { close(begun) }); err == nil && got.ended && got.err == "" {
			c.Errorf("endless code ended by itself: %+v", got)
		}
	}()
	select {
	case <-begun:
	case <-ended:
		c.Fatal("endless code did not begin")
	}
	time.Sleep(50 * time.Millisecond) // it is within the interpreter now, not on its way there
	c.destroy(b.spec)
	<-ended
}

// checkLanguageMemory: code that takes more than its sandbox may have ends, and nobody else does.
func checkLanguageMemory(c *C) {
	spec := c.spec()
	spec.Limits.Memory = 128 << 20
	b, neighbour := c.coder(spec), c.box(c.spec())
	if got, err := b.execute(c.ctx, c.Language.Hoard, nil); err == nil && (got.err == "" || !got.ended) {
		c.Errorf("code that takes more memory than 128 MiB: %+v, want an error", got)
	}
	if got, err := neighbour.execute(c.ctx, c.Language.Print, nil); err != nil || got.printed != "ok\n" {
		c.Errorf("then a neighbour's code: %+v, %v", got, err)
	}
}
