package build

import (
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/store"
)

// TestBuild is the whole way, with each driver that can go it.
func TestBuild(t *testing.T) {
	for _, driver := range []string{"gvisor", "container"} {
		t.Run(driver, func(t *testing.T) {
			l := newLab(t, driver, nil)
			l.small()
			testBuild(t, l)
		})
	}
}

func testBuild(t *testing.T, l *lab) {
	ctx := as(t, "acme")
	tpl, _, err := l.Request(ctx, Request{Name: "app"})
	must(t, err)
	hash := l.upload(ctx, tpl.ID, "src/", "", "src/main.sh", "echo main $KIND\n", "src/lib/", "", "src/lib/a", "a\n", "other", "no")
	spec := Spec{FromTemplate: "small", Steps: []Step{
		{Type: "ENV", Args: []string{"KIND", "big", "PATH", "/opt/bin:$PATH"}},
		{Type: "WORKDIR", Args: []string{"/app"}},
		{Type: "COPY", Args: []string{"src", ".", "", ""}, FilesHash: hash},
		{Type: "RUN", Args: []string{"id -un >/etc/who; echo $PATH >/etc/path; echo out; echo err >&2; rm /usr/bin/touch; echo changed >/etc/changed", "root"}},
		{Type: "RUN", Args: []string{"id -un >mine"}},
		{Type: "USER", Args: []string{"web"}},
	}}
	b := l.mustBuild(ctx, "app", spec)
	for _, line := range []string{"FROM template small", "[4/6] RUN id -un", "out", "err", "Build finished"} {
		if !strings.Contains(b.text(), line) {
			t.Errorf("the log lacks %q:\n%s", line, b.text())
		}
	}
	got := l.inside(ctx, "app", "id -un; pwd; . ./main.sh; cat lib/a /etc/who mine /etc/path /etc/changed; ls -ld lib main.sh /etc/who mine; ls /usr/bin/touch 2>&1") // two streams have no order
	want := "web\n/app\nmain big\na\nroot\nuser\n/opt/bin:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin\nchanged\n"
	if !strings.HasPrefix(got, want) {
		t.Errorf("inside it is\n%s\nwant\n%s", got, want)
	}
	for _, line := range []string{" user user 40 Sep  9  2001 lib", "-rw-r--r-- 1 user user", "-rw-r--r-- 1 root root", "No such file"} {
		if !strings.Contains(got, line) {
			t.Errorf("inside it lacks %q:\n%s", line, got)
		}
	}
	again := l.mustBuild(ctx, "app", spec)
	if strings.Count(again.text(), "CACHED") != 6 || again.template.ID != b.template.ID || again.ID == b.ID {
		t.Errorf("the second time:\n%s", again.text())
	}
	spec.Steps[4].Args = []string{"echo other >mine"}
	third := l.mustBuild(ctx, "app:v2", spec)
	if got := l.inside(ctx, "app:v2", "cat mine /etc/who"); got != "other\nroot" {
		t.Errorf("with another step: %q\n%s", got, third.text())
	}
	if got := l.inside(ctx, "app", "cat mine"); got != "user" {
		t.Errorf("the first tag leads to %q", got)
	}
}

func TestFailures(t *testing.T) {
	l := newLab(t, "gvisor", nil)
	l.small()
	ctx := as(t, "acme")
	for _, c := range []struct {
		about string
		spec  Spec
		step  string
		words []string
	}{
		{"a command", Spec{Steps: []Step{{Type: "RUN", Args: []string{"echo 1"}}, {Type: "RUN", Args: []string{"echo the reason >&2; exit 3"}}}}, "2",
			[]string{"step 2", "exit status 3", "the reason"}},
		{"no network", Spec{Steps: []Step{{Type: "RUN", Args: []string{"echo 'Temporary failure in name resolution'; false"}}}}, "1", []string{"no network"}},
		{"no such user", Spec{Steps: []Step{{Type: "RUN", Args: []string{"true", "ghost"}}}}, "1", []string{"ghost"}},
		{"no such owner", Spec{Steps: []Step{{Type: "COPY", Args: []string{"a", "/a", "ghost"}}}}, "1", []string{"ghost"}},
		{"files that are not there", Spec{Steps: []Step{{Type: "COPY", Args: []string{"missing", "/a"}}}}, "1", []string{"missing"}},
		{"files that were not sent", Spec{Steps: []Step{{Type: "COPY", Args: []string{"a", "/a"}, FilesHash: strings.Repeat("0", 64)}}}, "1", []string{"not uploaded"}},
		{"a start command", Spec{Steps: []Step{{Type: "ENV", Args: []string{"A", "b"}}}, Start: "echo $A is why; exit 7", Ready: "false"}, "finalize",
			[]string{"start command failed", "exit status 7", "b is why"}},
	} {
		tpl, _, err := l.Request(ctx, Request{Name: "app"})
		must(t, err)
		hash := l.upload(ctx, tpl.ID, "a", "text")
		for i := range c.spec.Steps {
			if s := &c.spec.Steps[i]; s.Type == "COPY" && s.FilesHash == "" {
				s.FilesHash = hash
			}
		}
		c.spec.FromTemplate = "small"
		b := l.run(ctx, "app", c.spec)
		if b.State != store.BuildFailed || b.Step != c.step {
			t.Errorf("%s: %s at step %q: %s", c.about, b.State, b.Step, b.Reason)
		}
		for _, word := range c.words {
			if !strings.Contains(b.Reason, word) {
				t.Errorf("%s: the reason lacks %q: %s", c.about, word, b.Reason)
			}
		}
	}
	if _, err := l.Resolve(ctx, "app"); err == nil {
		t.Error("there is a template of builds that failed")
	}
}
