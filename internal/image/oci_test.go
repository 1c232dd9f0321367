package image

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/empty"
	"github.com/google/go-containerregistry/pkg/v1/layout"
	"github.com/google/go-containerregistry/pkg/v1/mutate"
	"github.com/google/go-containerregistry/pkg/v1/tarball"
	"github.com/klauspost/compress/zstd"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func gz(t testing.TB, data []byte) []byte {
	var b bytes.Buffer
	w := gzip.NewWriter(&b)
	_, err := w.Write(data)
	must(t, err, w.Close())
	return b.Bytes()
}

func zst(t testing.TB, data []byte) []byte {
	w, err := zstd.NewWriter(nil)
	must(t, err)
	defer w.Close()
	return w.EncodeAll(data, nil)
}

func digestOf(data []byte) string {
	sum := sha256.Sum256(data)
	return "sha256:" + hex.EncodeToString(sum[:])
}

// files makes an archive of names and contents; a name that ends in / is a directory, a content that begins with ->
// a link.
func files(t testing.TB, pairs ...string) []byte {
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	for i := 0; i < len(pairs); i += 2 {
		h := &tar.Header{Typeflag: tar.TypeReg, Name: pairs[i], Mode: 0o644, Size: int64(len(pairs[i+1]))}
		if target, ok := strings.CutPrefix(pairs[i+1], "->"); ok {
			h.Typeflag, h.Linkname, h.Size = tar.TypeSymlink, target, 0
		}
		if strings.HasSuffix(pairs[i], "/") {
			h.Typeflag, h.Mode = tar.TypeDir, 0o755
		}
		must(t, w.WriteHeader(h))
		if h.Size > 0 {
			_, err := io.WriteString(w, pairs[i+1])
			must(t, err)
		}
	}
	must(t, w.Close())
	return b.Bytes()
}

func imageOf(t testing.TB, layers ...[]byte) v1.Image {
	t.Helper()
	img, err := mutate.Config(empty.Image, v1.Config{Env: []string{"PATH=/bin", "EMPTY=", "broken"}, User: "nobody", WorkingDir: "/srv",
		Entrypoint: []string{"/e"}, Cmd: []string{"a", "b"}})
	must(t, err)
	for _, data := range layers {
		l, err := tarball.LayerFromOpener(func() (io.ReadCloser, error) { return io.NopCloser(bytes.NewReader(data)), nil })
		must(t, err)
		img, err = mutate.AppendLayers(img, l)
		must(t, err)
	}
	config, err := img.ConfigFile()
	must(t, err)
	config = config.DeepCopy()
	config.OS, config.Architecture = "linux", runtime.GOARCH
	img, err = mutate.ConfigFile(img, config)
	must(t, err)
	return img
}

// twoLayers is an image whose second layer changes the first.
func twoLayers(t testing.TB) v1.Image {
	return imageOf(t, files(t, "etc/", "", "etc/gone", "1", "etc/stays", "2"), files(t, "etc/.wh.gone", "", "new", "3"))
}

func checkTwoLayers(t testing.TB, s *Store, made Template) {
	t.Helper()
	root, err := s.Root(t.Context(), made.Name, []driver.Form{driver.FormDirectory})
	must(t, err)
	for file, want := range map[string]string{"etc/stays": "2", "new": "3", "etc/gone": ""} {
		if data, err := os.ReadFile(filepath.Join(root.Path, file)); string(data) != want || (want == "") != os.IsNotExist(err) {
			t.Errorf("%s is %q, %v; want %q", file, data, err, want)
		}
	}
	if made.User != "nobody" || made.Workdir != "/srv" || !slices.Equal(made.Entrypoint, []string{"/e"}) ||
		!slices.Equal(made.Command, []string{"a", "b"}) || !maps.Equal(made.Envs, map[string]string{"PATH": "/bin", "EMPTY": ""}) {
		t.Errorf("configuration %+v", made)
	}
}

func ociLayout(t testing.TB, images ...v1.Image) string {
	t.Helper()
	dir := t.TempDir()
	p, err := layout.Write(dir, empty.Index)
	must(t, err)
	for _, img := range images {
		must(t, p.AppendImage(img))
	}
	return dir
}

func TestOCILayout(t *testing.T) {
	s, dir := openStore(t, t.TempDir()), ociLayout(t, twoLayers(t))
	made := make1(t, s, Source{Path: dir}, MakeOptions{Name: "layout"})
	checkTwoLayers(t, s, made)
	for kind, data := range map[string][]byte{"tar": tarOf(t, dir), "gz": gz(t, tarOf(t, dir))} {
		file := filepath.Join(t.TempDir(), "layout."+kind)
		must(t, os.WriteFile(file, data, 0o600))
		if packed := make1(t, s, Source{Path: file}, MakeOptions{Name: kind}); packed.Digest != made.Digest {
			t.Errorf("%s: other digest", kind)
		}
	}
}

func TestOCILayoutChoosesThePlatform(t *testing.T) {
	s, dir := openStore(t, t.TempDir()), t.TempDir()
	other := imageOf(t, files(t, "other", "x"))
	index := mutate.AppendManifests(empty.Index,
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: "none"}}},
		mutate.IndexAddendum{Add: other, Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "unknown", Architecture: "unknown"}}},
		mutate.IndexAddendum{Add: twoLayers(t), Descriptor: v1.Descriptor{Platform: &v1.Platform{OS: "linux", Architecture: runtime.GOARCH}}})
	p, err := layout.Write(dir, empty.Index)
	must(t, err, p.AppendIndex(index))
	checkTwoLayers(t, s, make1(t, s, Source{Path: dir}, MakeOptions{Name: "nested"}))
}

// TestDamagedLayouts changes one thing in a good layout.
func TestDamagedLayouts(t *testing.T) {
	s := openStore(t, t.TempDir())
	blobOf := func(dir string, h v1.Hash) string { return filepath.Join(dir, "blobs", h.Algorithm, h.Hex) }
	for what, damage := range map[string]func(dir string, m *v1.Manifest) error{
		"layer changed": func(dir string, m *v1.Manifest) error {
			return os.WriteFile(blobOf(dir, m.Layers[1].Digest), gz(t, files(t, "evil", "x")), 0o600)
		},
		"layer gone": func(dir string, m *v1.Manifest) error { return os.Remove(blobOf(dir, m.Layers[0].Digest)) },
		"layer a link out": func(dir string, m *v1.Manifest) error {
			p := blobOf(dir, m.Layers[0].Digest)
			return errJoin(os.Remove(p), os.Symlink("/etc/passwd", p))
		},
		"configuration changed": func(dir string, m *v1.Manifest) error {
			return os.WriteFile(blobOf(dir, m.Config.Digest), []byte(`{"os":"linux"}`), 0o600)
		},
		"configuration huge": func(dir string, m *v1.Manifest) error {
			return os.Truncate(blobOf(dir, m.Config.Digest), 1<<30)
		},
		"no index":  func(dir string, _ *v1.Manifest) error { return os.Remove(dir + "/index.json") },
		"bad index": func(dir string, _ *v1.Manifest) error { return os.WriteFile(dir+"/index.json", []byte("["), 0o600) },
		"digest climbs": func(dir string, _ *v1.Manifest) error {
			return os.WriteFile(dir+"/index.json", []byte(`{"manifests":[{"mediaType":"application/vnd.oci.image.manifest.v1+json",`+
				`"size":1,"digest":"sha256:../../../../../../etc/passwd"}]}`), 0o600)
		},
		"empty index": func(dir string, _ *v1.Manifest) error {
			return os.WriteFile(dir+"/index.json", []byte(`{"manifests":[]}`), 0o600)
		},
	} {
		img := twoLayers(t)
		dir := ociLayout(t, img)
		m, err := img.Manifest()
		must(t, err, damage(dir, m))
		if _, err := s.Make(t.Context(), Source{Path: dir}, MakeOptions{Name: "x"}); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", what, err)
		}
	}
	two := ociLayout(t, twoLayers(t), imageOf(t, files(t, "x", "y")))
	if _, err := s.Make(t.Context(), Source{Path: two}, MakeOptions{Name: "x"}); err == nil || !strings.Contains(err.Error(), "2 images") {
		t.Errorf("two images: %v", err)
	}
	nothingLeft(t, s)
}

func errJoin(errs ...error) error {
	for _, err := range errs {
		if err != nil {
			return err
		}
	}
	return nil
}

func TestForeignMachine(t *testing.T) {
	config, err := twoLayers(t).ConfigFile()
	must(t, err)
	config = config.DeepCopy()
	config.Architecture = "none"
	img, err := mutate.ConfigFile(twoLayers(t), config)
	must(t, err)
	s := openStore(t, t.TempDir())
	_, err = s.Make(t.Context(), Source{Path: ociLayout(t, img)}, MakeOptions{Name: "x"})
	if firebreak.KindOf(err) != firebreak.KindInvalid || !strings.Contains(err.Error(), "linux/"+runtime.GOARCH) {
		t.Error(err)
	}
}

func TestDockerSave(t *testing.T) {
	s, img := openStore(t, t.TempDir()), twoLayers(t)
	file := filepath.Join(t.TempDir(), "saved.tar")
	tag, err := name.NewTag("example.test/x:1")
	must(t, err, tarball.WriteToFile(file, tag, img))
	checkTwoLayers(t, s, make1(t, s, Source{Path: file}, MakeOptions{Name: "saved"}))
	data, err := os.ReadFile(file)
	must(t, err, os.WriteFile(file+".gz", gz(t, data), 0o600))
	checkTwoLayers(t, s, make1(t, s, Source{Path: file + ".gz"}, MakeOptions{Name: "packed"}))
}

// TestOldDockerSave is the form in which a repeated layer is a link to its first place.
func TestOldDockerSave(t *testing.T) {
	layer := files(t, "new", "3", "etc/stays", "2")
	config, err := json.Marshal(map[string]any{"os": "linux", "architecture": runtime.GOARCH,
		"rootfs": map[string]any{"type": "layers", "diff_ids": []string{digestOf(layer), digestOf(layer)}}})
	must(t, err)
	file := filepath.Join(t.TempDir(), "old.tar")
	old := func(second string) []byte {
		return files(t, "aa/", "", "aa/layer.tar", string(layer), "bb/", "", "bb/layer.tar", second, "c.json", string(config),
			"manifest.json", `[{"Config":"c.json","RepoTags":null,"Layers":["aa/layer.tar","bb/layer.tar"]}]`)
	}
	s := openStore(t, t.TempDir())
	must(t, os.WriteFile(file, old("->../aa/layer.tar"), 0o600))
	make1(t, s, Source{Path: file}, MakeOptions{Name: "old"})
	for _, target := range []string{"->../../../../etc/passwd", "->/etc/passwd", "->nowhere"} {
		must(t, os.WriteFile(file, old(target), 0o600))
		if _, err := s.Make(t.Context(), Source{Path: file}, MakeOptions{Name: "x"}); firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("layer %s: %v", target, err)
		}
	}
}

// TestRootWithManifest is a root file system that only looks like an image.
func TestRootWithManifest(t *testing.T) {
	s := openStore(t, t.TempDir())
	for i, content := range []string{"{}", "[]", `[{"x":1}]`, "noise"} {
		file := filepath.Join(t.TempDir(), "root.tar")
		must(t, os.WriteFile(file, files(t, "manifest.json", content, "etc/", ""), 0o600))
		name := fmt.Sprint("m", i)
		make1(t, s, Source{Path: file}, MakeOptions{Name: name})
		root, err := s.Root(t.Context(), name, []driver.Form{driver.FormDirectory})
		must(t, err)
		if data, err := os.ReadFile(root.Path + "/manifest.json"); err != nil || string(data) != content {
			t.Errorf("%q, %v", data, err)
		}
	}
}
