//lint:file-ignore SA1019 roots are given up by the newest version of the protocol, and used by the clients that people have

package mcp_test

import (
	"context"
	"os"
	"path/filepath"
	"strings"
	"testing"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak/internal/mcp"
)

// asked is a client whose user answers all questions alike.
func asked(w *world, action string, allow bool, roots ...string) (*client, *[]string) {
	var questions []string
	opts := &sdk.ClientOptions{ElicitationHandler: func(_ context.Context, req *sdk.ElicitRequest) (*sdk.ElicitResult, error) {
		questions = append(questions, req.Params.Message)
		res := &sdk.ElicitResult{Action: action}
		if action == "accept" {
			res.Content = map[string]any{"allow": allow}
		}
		return res, nil
	}}
	cl := sdk.NewClient(&sdk.Implementation{Name: "test", Version: "1"}, opts)
	for _, r := range roots {
		cl.AddRoots(&sdk.Root{URI: "file://" + r})
	}
	return w.connectClient(cl), &questions
}

// careful is a world where a plain process is weaker than the policy accepts.
func careful(t *testing.T) *world {
	return newWorldOf(t, nothing, func(cfg *mcp.Config) { cfg.Request.Driver, cfg.Request.AcceptWeaker = "process", "a test" })
}

func TestWeakerBoundaryNeedsTheUser(t *testing.T) {
	w := careful(t)
	args := object{"isolation": "process", "reason": "it is faster"}
	c, questions := asked(w, "accept", true)
	var out struct{ Sandbox, Driver string }
	c.call("create_sandbox", args, &out)
	if len(*questions) != 1 || out.Driver != "process" {
		t.Errorf("%q %+v", *questions, out)
	}
	wantParts(t, "the question", strings.Join(*questions, ""), "weaker", "it is faster", "process")
	rec, err := w.manager.Get(operator(t.Context()), out.Sandbox)
	if err != nil || rec.Decision.Override == nil || !strings.Contains(rec.Decision.Override.Why, "it is faster") {
		t.Errorf("the record does not say why: %+v, %v", rec.Decision, err)
	}
	c.refused("create_sandbox", object{"isolation": "process"}, "give a reason")
	for _, no := range []struct {
		action string
		allow  bool
	}{{"accept", false}, {"decline", true}, {"cancel", true}} {
		c, questions := asked(w, no.action, no.allow)
		c.refused("create_sandbox", args, "the user said no", "do not try to get around it")
		if len(*questions) != 1 {
			t.Errorf("%v: %q", no, *questions)
		}
	}
	w.connect(nil).refused("create_sandbox", args, "cannot ask", "elicitation")
	w.connect(nil).refused("create_sandbox", object{"network": true}, "cannot ask")
}

func TestTransfer(t *testing.T) {
	w := newWorld(t, nil)
	root, inside, outside := t.TempDir(), t.TempDir(), t.TempDir()
	put := func(path, text string) {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	put(root+"/a.txt", "from the host")
	put(outside+"/secret", "secret")
	if err := os.Symlink(outside, root+"/link"); err != nil {
		t.Fatal(err)
	}
	c, questions := asked(w, "accept", true, root)
	c.call("upload_file", object{"source": root + "/a.txt", "path": inside + "/b.txt"}, nil)
	if got, _ := os.ReadFile(inside + "/b.txt"); string(got) != "from the host" {
		t.Errorf("%q", got)
	}
	wantParts(t, "the question", strings.Join(*questions, ""), root+"/a.txt", inside+"/b.txt")
	for source, word := range map[string]string{outside + "/secret": "none of the directories", root + "/../x": "none of the directories",
		root + "/link/secret": "escapes", root + "/nope": "no such file", root: "none of the directories", "link/secret": "escapes"} {
		c.refused("upload_file", object{"source": source, "path": inside + "/x"}, word)
	}
	put(inside+"/out", "from the sandbox")
	c.call("download_file", object{"path": inside + "/out", "target": "new.txt"}, nil)
	if got, _ := os.ReadFile(root + "/new.txt"); string(got) != "from the sandbox" {
		t.Errorf("%q", got)
	}
	c.refused("download_file", object{"path": inside + "/out", "target": root + "/a.txt"}, "is there already", "overwrite")
	c.call("download_file", object{"path": inside + "/out", "target": root + "/a.txt", "overwrite": true}, nil)
	c.refused("download_file", object{"path": inside + "/out", "target": root + "/link/x", "overwrite": true}, "escapes")
	c.refused("download_file", object{"path": inside + "/nope", "target": root + "/y"}, "no such file")
	left, err := filepath.Glob(root + "/.firebreak*")
	if got, _ := os.ReadFile(root + "/a.txt"); string(got) != "from the sandbox" || len(left) != 0 || err != nil {
		t.Errorf("%q, %q, %v", got, left, err)
	}
	no, _ := asked(w, "decline", false, root)
	no.refused("upload_file", object{"source": root + "/a.txt", "path": inside + "/no"}, "the user said no")
	if _, err := os.Stat(inside + "/no"); err == nil {
		t.Error("it was copied all the same")
	}
	w.connect(nil).refused("upload_file", object{"source": root + "/a.txt", "path": "x"}, "What to do")
}
