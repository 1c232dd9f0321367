package v8

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"slices"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak/internal/memfs"
)

// gathered returns the paths of the modules of a program whose files these are, and its error. Texts that begin with "->" are links.
func gathered(t *testing.T, main string, files map[string]string) (string, error) {
	t.Helper()
	f := memfs.New(memfs.Options{Limits: memfs.Limits{Bytes: 64 << 20, Files: 1000, Open: 100}})
	for name, text := range files {
		err := f.MkdirAll(path.Dir(name), 0o755)
		if target, ok := strings.CutPrefix(text, "->"); ok && err == nil {
			err = f.Symlink(target, name)
		} else if err == nil {
			var w *memfs.File
			if w, err = f.OpenFile(name, os.O_WRONLY|os.O_CREATE, 0o644); err == nil {
				_, err = w.Write([]byte(text))
				_ = w.Close() // in memory
			}
		}
		if err != nil {
			t.Fatal(err)
		}
	}
	same := func(_ context.Context, source string) (string, error) { return source, nil }
	g := newGathering(f, same)
	first, err := g.start(t.Context(), main, nil)
	return first + ": " + strings.Join(slices.Sorted(maps.Keys(g.modules)), " "), err
}

func TestGather(t *testing.T) {
	for want, files := range map[string]map[string]string{
		"/m.mjs: /m.mjs":                           {"/m.mjs": "import './nowhere.mjs'; import 'fs'; import './dir'; import './lib'", "/dir/index.js": "", "/lib.js": ""},
		"/m.mjs: /d.js /m.mjs":                     {"/m.mjs": "import '/x/y/../../d.js'; import '../../../d.js'; import './d.js'", "/d.js": ""},
		"/m.mjs: /m.mjs /real/own.mjs /real/x.mjs": {"/m.mjs": "import './link/x.mjs'; import './other.mjs'", "/link": "->real", "/other.mjs": "->/real/x.mjs", "/real/x.mjs": "import './own.mjs'", "/real/own.mjs": ""},
		"/real.mjs: /real.mjs":                     {"/m.mjs": "->real.mjs", "/real.mjs": "import './m.mjs'"},
		"/m.cjs: /a.js /b/index.js /c.json /m.cjs": {"/m.cjs": "require('./a'); require('./b'); require('./c'); require('./m.cjs'); require(name)", "/a.js": "", "/b/index.js": "require('..')", "/c.json": "{}"},
		"/m.ts: /a.ts /b/index.ts /m.ts":           {"/m.ts": "import './a.js'; import './b'", "/a.ts": "", "/b/index.ts": ""},
	} {
		main := strings.SplitN(want, ":", 2)[0]
		if files["/m.mjs"] != "" {
			main = "/m.mjs"
		}
		if got, err := gathered(t, main, files); got != want || err != nil {
			t.Errorf("%v is %s, %v, want %s", files, got, err, want)
		}
	}
	// Links lead nowhere but to the sandbox's own files, and round in circles to nothing.
	for _, files := range []map[string]string{
		{"/m.mjs": "import './l.mjs'", "/l.mjs": "->/etc/passwd"},
		{"/m.mjs": "import './l.mjs'", "/l.mjs": "->../../../../../../etc/hostname"},
		{"/m.mjs": "import './l.mjs'", "/l.mjs": "->l.mjs"},
		{"/m.mjs": "import './l.mjs/x'", "/l.mjs": "->/proc/self"},
	} {
		if got, err := gathered(t, "/m.mjs", files); got != "/m.mjs: /m.mjs" || err != nil {
			t.Errorf("%v is %s, %v", files, got, err)
		}
	}
	if _, err := gathered(t, "/x.mjs", map[string]string{"/x.mjs": "->x.mjs"}); err == nil {
		t.Error("a program that is a link to itself runs")
	}
	files := map[string]string{}
	for i := range maxModules + 1 {
		files[fmt.Sprintf("/m%d.mjs", i)] = fmt.Sprintf("import './m%d.mjs'", i+1)
	}
	if _, err := gathered(t, "/m0.mjs", files); err == nil || !strings.Contains(err.Error(), "more than 500 modules") {
		t.Error(err)
	}
	if _, err := gathered(t, "/none.mjs", nil); !os.IsNotExist(err) {
		t.Error(err)
	}
}
