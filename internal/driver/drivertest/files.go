package drivertest

import (
	"bytes"
	"context"
	"net/http"
	"path"
	"slices"
	"strings"

	"connectrpc.com/connect"

	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func fileChecks() []check {
	const runs = driver.CapProcesses
	return []check{
		{name: "files-round-trip", needs: runs, run: checkFilesRoundTrip},
		{name: "files-table", needs: runs, run: checkFilesTable},
		{name: "files-errors", agent: true, run: checkFilesErrors},
		{name: "files-watch", agent: true, run: checkFilesWatch},
		{name: "files-stay-inside", agent: true, run: checkFilesStayInside},
		{name: "template-untouched", needs: runs | driver.CapPrivateRoot | driver.CapRootUser, run: checkTemplateUntouched},
		{name: "mounts", needs: runs | driver.CapMounts, run: checkMounts},
	}
}

func checkFilesRoundTrip(c *C) {
	b := c.box(c.spec())
	dir := c.Work(b.spec)
	for name, data := range map[string][]byte{
		"empty":           {},
		"small":           []byte("hello\n"),
		"all bytes":       allBytes(),
		"large":           bytes.Repeat(allBytes(), 16_385),
		"new/dirs/deep":   []byte("deep"),
		"ünï code; $(x)&": []byte("named"),
	} {
		at := path.Join(dir, "files", name)
		b.put(at, data)
		if status, got := b.files(http.MethodGet, at, nil); status != http.StatusOK || got != string(data) {
			c.Errorf("%s: status %d, %d bytes, want 200 and the %d that were written", name, status, len(got), len(data))
		}
		if got := b.must(program{cmd: "/bin/cat", args: []string{at}}).stdout; got != string(data) {
			c.Errorf("%s: a program reads %d bytes, want %d", name, len(got), len(data))
		}
	}
	at := path.Join(dir, "shrinks")
	b.put(at, []byte("a long text"))
	b.put(at, []byte("short"))
	if _, got := b.files(http.MethodGet, at, nil); got != "short" {
		c.Errorf("a file that was written over holds %q", got)
	}
}

func allBytes() []byte {
	all := make([]byte, 256)
	for i := range all {
		all[i] = byte(i)
	}
	return all
}

func checkFilesTable(c *C) {
	b := c.box(c.spec())
	fs, dir := b.guest.Filesystem(), path.Join(c.Work(b.spec), "table")
	if _, err := fs.MakeDir(c.ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: dir + "/a/b"})); err != nil {
		c.Fatalf("make directory: %v", err)
	}
	b.put(dir+"/a/file", []byte("12345"))
	b.must(sh("ln -s file " + dir + "/a/link && chmod 640 " + dir + "/a/file"))
	stat, err := fs.Stat(c.ctx, connect.NewRequest(&filesystem.StatRequest{Path: dir + "/a/file"}))
	if err != nil {
		c.Fatalf("stat: %v", err)
	}
	if e := stat.Msg.GetEntry(); e.GetSize() != 5 || e.GetName() != "file" || e.GetType() != filesystem.FileType_FILE_TYPE_FILE ||
		e.GetMode()&0o777 != 0o640 || e.GetPath() != dir+"/a/file" {
		c.Errorf("stat says %v", e)
	}
	for depth, want := range map[uint32][]string{1: {"a"}, 2: {"a", "b", "file", "link"}} {
		list, err := fs.ListDir(c.ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: dir, Depth: depth}))
		if err != nil {
			c.Fatalf("list: %v", err)
		}
		var got []string
		for _, e := range list.Msg.GetEntries() {
			got = append(got, e.GetName())
		}
		slices.Sort(got)
		if !slices.Equal(got, want) {
			c.Errorf("list to depth %d = %v, want %v", depth, got, want)
		}
	}
	if _, err := fs.Move(c.ctx, connect.NewRequest(&filesystem.MoveRequest{Source: dir + "/a/file", Destination: dir + "/moved"})); err != nil {
		c.Errorf("move: %v", err)
	}
	if got := b.must(program{cmd: "/bin/cat", args: []string{dir + "/moved"}}).stdout; got != "12345" {
		c.Errorf("what was moved holds %q", got)
	}
	for range 2 { // what is not there is removed well
		if _, err := fs.Remove(c.ctx, connect.NewRequest(&filesystem.RemoveRequest{Path: dir})); err != nil {
			c.Errorf("remove: %v", err)
		}
	}
	b.must(sh("test ! -e " + dir))
}

func checkFilesErrors(c *C) {
	b := c.box(c.spec())
	fs, dir := b.guest.Filesystem(), c.Work(b.spec)
	b.put(dir+"/plain", []byte("x"))
	calls := map[string]struct {
		do   func() error
		want connect.Code
	}{
		"stat of nothing": {func() error {
			_, err := fs.Stat(c.ctx, connect.NewRequest(&filesystem.StatRequest{Path: dir + "/none"}))
			return err
		}, connect.CodeNotFound},
		"list of nothing": {func() error {
			_, err := fs.ListDir(c.ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: dir + "/none"}))
			return err
		}, connect.CodeNotFound},
		"list of a file": {func() error {
			_, err := fs.ListDir(c.ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: dir + "/plain"}))
			return err
		}, connect.CodeInvalidArgument},
		"make what is there": {func() error {
			_, err := fs.MakeDir(c.ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: dir}))
			return err
		}, connect.CodeAlreadyExists},
		"move of nothing": {func() error {
			_, err := fs.Move(c.ctx, connect.NewRequest(&filesystem.MoveRequest{Source: dir + "/none", Destination: dir + "/x"}))
			return err
		}, connect.CodeNotFound},
	}
	for name, call := range calls {
		if err := call.do(); !codeIs(err, call.want) {
			c.Errorf("%s: %v, want %v", name, err, call.want)
		}
	}
	if status, _ := b.files(http.MethodGet, dir+"/none", nil); status != http.StatusNotFound {
		c.Errorf("download of nothing: status %d, want 404", status)
	}
	if status, _ := b.files(http.MethodGet, dir, nil); status != http.StatusBadRequest {
		c.Errorf("download of a directory: status %d, want 400", status)
	}
}

func checkFilesWatch(c *C) {
	b := c.box(c.spec())
	dir := path.Join(c.Work(b.spec), "watched")
	if _, err := b.guest.Filesystem().MakeDir(c.ctx, connect.NewRequest(&filesystem.MakeDirRequest{Path: dir})); err != nil {
		c.Fatalf("make directory: %v", err)
	}
	ctx, cancel := context.WithCancel(c.ctx)
	defer cancel()
	stream, err := b.guest.Filesystem().WatchDir(ctx, connect.NewRequest(&filesystem.WatchDirRequest{Path: dir}))
	if err != nil {
		c.Fatalf("watch: %v", err)
	}
	defer stream.Close()
	defer cancel() // before Close, which would wait for the stream's end
	if !stream.Receive() || stream.Msg().GetStart() == nil {
		c.Fatalf("the first event of a watch is %v, %v", stream.Msg(), stream.Err())
	}
	b.put(dir+"/new", []byte("x"))
	for stream.Receive() {
		if ev := stream.Msg().GetFilesystem(); ev.GetName() == "new" && ev.GetType() == filesystem.EventType_EVENT_TYPE_CREATE {
			return
		}
	}
	c.Errorf("the watch did not tell of a new file: %v", stream.Err())
}

// checkFilesStayInside: what one sandbox writes, no other has.
func checkFilesStayInside(c *C) {
	one, two := c.box(c.spec()), c.box(c.spec())
	name := path.Join(c.Work(one.spec), "of-one-"+c.tag)
	one.put(name, []byte("one"))
	rest := strings.TrimPrefix(name, c.Work(one.spec))
	if status, got := two.files(http.MethodGet, c.Work(two.spec)+rest, nil); status != http.StatusNotFound {
		c.Errorf("a neighbour reads %q, status %d, want 404", got, status)
	}
}

// checkTemplateUntouched: the sandbox's root may change all of its system, and the next sandbox sees none of it.
func checkTemplateUntouched(c *C) {
	one := c.box(c.spec())
	for _, dir := range []string{"/usr/bin", "/etc", "/"} {
		p := sh("echo changed >" + path.Join(dir, "by-"+c.tag))
		p.user = "root"
		one.must(p)
	}
	two := c.box(c.spec())
	for _, dir := range []string{"/usr/bin", "/etc", "/"} {
		two.must(sh("test ! -e " + path.Join(dir, "by-"+c.tag)))
	}
}
