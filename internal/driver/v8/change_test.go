package v8

import (
	"errors"
	"fmt"
	"strings"
	"syscall"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/driver/v8/script"
	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// shape is what there is in a file system.
func shape(t *testing.T, files *memfs.FS) string {
	t.Helper()
	made, err := newTree(t.Context(), files)
	if err != nil || made.Refused != "" {
		t.Fatal(made, err)
	}
	return fmt.Sprintf("%s %s %s", made.Directories, made.Files, made.Links)
}

// TestChange: whatever an isolate says of its files, it stays within the sandbox's own and their limits.
func TestChange(t *testing.T) {
	files := memfs.New(memfs.Options{Limits: memfs.Limits{Bytes: 1 << 20, Files: 100, Open: 10}})
	for _, c := range []struct {
		line string
		fail error
		want string
	}{
		{`{"kind":"directory","path":"/a/b"}`, nil, "[/a /a/b] map[] map[]"},
		{`{"kind":"file","path":"/a/b/f","data":"eHg="}`, nil, "[/a /a/b] map[/a/b/f:xx] map[]"},
		{`{"kind":"file","path":"/a/b/f","at":2,"data":"eQ=="}`, nil, "[/a /a/b] map[/a/b/f:xxy] map[]"},
		{`{"kind":"file","path":"/a/b/f","at":0,"data":"eg=="}`, nil, "[/a /a/b] map[/a/b/f:z] map[]"},
		{`{"kind":"link","path":"/l","target":"a/b/f"}`, nil, "[/a /a/b] map[/a/b/f:z] map[/l:a/b/f]"},
		{`{"kind":"link","path":"/l","target":"/etc"}`, nil, "[/a /a/b] map[/a/b/f:z] map[/l:/etc]"},
		{`{"kind":"file","path":"/l/passwd","data":"eg=="}`, syscall.ENOENT, "[/a /a/b] map[/a/b/f:z] map[/l:/etc]"},
		{`{"kind":"file","path":"/../../a/g","data":"eg=="}`, nil, "[/a /a/b] map[/a/b/f:z /a/g:z] map[/l:/etc]"},
		{`{"kind":"file","path":"/a/h","at":1099511627776,"data":"eg=="}`, syscall.ENOSPC, "[/a /a/b] map[/a/b/f:z /a/g:z /a/h:] map[/l:/etc]"},
		{`{"kind":"file","path":"/a/b","data":"eg=="}`, syscall.EISDIR, "[/a /a/b] map[/a/b/f:z /a/g:z /a/h:] map[/l:/etc]"},
		{`{"kind":"directory","path":"/a/g"}`, syscall.ENOTDIR, "[/a /a/b] map[/a/b/f:z /a/g:z /a/h:] map[/l:/etc]"},
		{`{"kind":"gone","path":"/a/b"}`, nil, "[/a] map[/a/g:z /a/h:] map[/l:/etc]"},
		{`{"kind":"gone","path":"/"}`, nil, "[/a] map[/a/g:z /a/h:] map[/l:/etc]"},
		{`{"kind":"gone","path":"/nowhere/x"}`, nil, "[/a] map[/a/g:z /a/h:] map[/l:/etc]"},
		{`{"kind":"file","path":"/dev/null","data":"eg=="}`, nil, "[/a] map[/a/g:z /a/h:] map[/l:/etc]"},
		{`{"kind":"file","path":"/` + strings.Repeat("n", 300) + `","data":"eg=="}`, syscall.ENAMETOOLONG, "[/a] map[/a/g:z /a/h:] map[/l:/etc]"},
	} {
		f, err := script.ParseFrame([]byte(strings.Replace(c.line, "{", `{"type":"file",`, 1)))
		if err != nil {
			t.Fatalf("%s: %v", c.line, err)
		}
		if err := change(files, f); !errors.Is(err, c.fail) {
			t.Errorf("%.80s: %v, want %v", c.line, err, c.fail)
		}
		if got := shape(t, files); got != c.want {
			t.Errorf("%.80s: %s, want %s", c.line, got, c.want)
		}
	}
	// Of what fits in part, the rest is not lost in silence.
	if err := change(files, script.Frame{Kind: script.KindFile, Path: "/large", Data: make([]byte, 2<<20)}); !errors.Is(err, syscall.ENOSPC) {
		t.Errorf("more than there is room for: %v", err)
	}
	for _, line := range []string{`{"kind":"file","path":"x"}`, `{"kind":"device","path":"/x"}`, `{"path":"/x"}`, `{"kind":"file","path":"/x\u0000"}`,
		`{"kind":"link","path":"/x","target":"\u0000"}`, `{"kind":"file","path":"/x","at":-1}`, `{"kind":"file","path":"/x","data":"!"}`} {
		if f, err := script.ParseFrame([]byte(strings.Replace(line, "{", `{"type":"file",`, 1))); err == nil {
			t.Errorf("%s is %+v", line, f)
		}
	}
}
