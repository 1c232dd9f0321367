package image

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"runtime"
	"strings"

	v1 "github.com/google/go-containerregistry/pkg/v1"

	"github.com/firebreak-dev/firebreak"
)

const (
	maxJSON   = 8 << 20 // manifests and configurations
	maxLayers = 500
	maxNested = 3 // indexes within indexes
)

// layer is one layer of an image, still compressed.
type layer struct {
	name string // short, for people
	size int64
	open func() (io.ReadCloser, error)
}

// applyImage puts the layers over each other and takes the configuration over. The configuration names the digest of
// each unpacked layer; that they match proves the whole content, however it came here.
func (j *job) applyImage(ctx context.Context, config *v1.ConfigFile, layers []layer, t *Template) error {
	if len(layers) != len(config.RootFS.DiffIDs) || len(layers) > maxLayers {
		return badImage("the image has %d layers and %d digests for them", len(layers), len(config.RootFS.DiffIDs))
	}
	if config.OS != "" && config.OS != "linux" || config.Architecture != "" && config.Architecture != runtime.GOARCH {
		return &firebreak.Error{Kind: firebreak.KindInvalid,
			Err:  fmt.Errorf("the image is for %s/%s", config.OS, config.Architecture),
			Mend: "choose one for linux/" + runtime.GOARCH}
	}
	for i, l := range layers {
		if err := j.applyLayer(ctx, l, config.RootFS.DiffIDs[i]); err != nil {
			return fmt.Errorf("layer %s: %w", l.name, err)
		}
	}
	c := config.Config
	t.User, t.Workdir, t.Entrypoint, t.Command = c.User, c.WorkingDir, c.Entrypoint, c.Cmd
	for _, e := range c.Env {
		if name, value, ok := strings.Cut(e, "="); ok && name != "" {
			if t.Envs == nil {
				t.Envs = map[string]string{}
			}
			t.Envs[name] = value
		}
	}
	return nil
}

func (j *job) applyLayer(ctx context.Context, l layer, want v1.Hash) error {
	raw, err := l.open()
	if err != nil {
		return err
	}
	defer raw.Close()
	plain, err := uncompressed(j.counted(raw, "unpack "+l.name, l.size))
	if err != nil {
		return err
	}
	defer plain.Close()
	sum := sha256.New()
	if err := j.tree.ApplyLayer(ctx, io.TeeReader(plain, sum)); err != nil {
		return badPacking(err)
	}
	return checkDigest("its content", sum, want)
}

func checkDigest(what string, sum hash.Hash, want v1.Hash) error {
	if got := hex.EncodeToString(sum.Sum(nil)); want.Algorithm != "sha256" || got != want.Hex {
		return badImage("%s has the digest sha256:%s and not %s as promised", what, got, want)
	}
	return nil
}

// readJSON decodes a small blob. A non-zero want is its digest.
func readJSON(b blobs, name string, want v1.Hash, into any) error {
	r, size, err := b.open(name)
	if err != nil {
		return badImage("part of the image is missing: %w", err)
	}
	defer r.Close()
	if size > maxJSON {
		return badImage("%s has %d bytes, more than %d", name, size, maxJSON)
	}
	data, err := io.ReadAll(io.LimitReader(r, maxJSON))
	if err != nil {
		return err
	}
	if want != (v1.Hash{}) {
		sum := sha256.New()
		sum.Write(data)
		if err := checkDigest(name, sum, want); err != nil {
			return err
		}
	}
	if err := json.NewDecoder(bytes.NewReader(data)).Decode(into); err != nil {
		return badImage("%s: %w", name, err)
	}
	return nil
}

func blobName(h v1.Hash) string { return "blobs/" + h.Algorithm + "/" + h.Hex }

// fromLayout fills the tree from an OCI image layout.
func (j *job) fromLayout(ctx context.Context, b blobs, t *Template) error {
	var index v1.IndexManifest
	if err := readJSON(b, "index.json", v1.Hash{}, &index); err != nil {
		return err
	}
	found, err := candidates(b, index, 0)
	if err != nil {
		return err
	}
	switch len(found) {
	case 0:
		return &firebreak.Error{Kind: firebreak.KindInvalid, Err: errors.New("the layout holds no image for this machine"),
			Mend: "export one for linux/" + runtime.GOARCH}
	case 1:
	default:
		return &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("the layout holds %d images", len(found)),
			Mend: "export one image into a layout of its own"}
	}
	var manifest v1.Manifest
	if err := readJSON(b, blobName(found[0]), found[0], &manifest); err != nil {
		return err
	}
	var config v1.ConfigFile
	if err := readJSON(b, blobName(manifest.Config.Digest), manifest.Config.Digest, &config); err != nil {
		return err
	}
	var layers []layer
	for _, d := range manifest.Layers {
		if !d.MediaType.IsLayer() {
			return badImage("%s is no image: it holds a %.100q", found[0], d.MediaType)
		}
		layers = append(layers, blobLayer(b, blobName(d.Digest), short(d.Digest)))
	}
	return j.applyImage(ctx, &config, layers, t)
}

func short(h v1.Hash) string { return h.Hex[:min(len(h.Hex), 12)] }

func blobLayer(b blobs, name, shown string) layer {
	l := layer{name: shown, open: func() (io.ReadCloser, error) {
		r, _, err := b.open(name)
		if err != nil {
			return nil, badImage("part of the image is missing: %w", err)
		}
		return r, nil
	}}
	if r, size, err := b.open(name); err == nil {
		l.size = size
		_ = r.Close() // it is opened again to be read
	}
	return l
}

// candidates returns the different images for this machine in an index and the indexes in it.
func candidates(b blobs, index v1.IndexManifest, depth int) ([]v1.Hash, error) {
	if depth > maxNested || len(index.Manifests) > maxLayers {
		return nil, badImage("the index of the layout is too large")
	}
	var found []v1.Hash
	add := func(h v1.Hash) {
		for _, f := range found {
			if f == h {
				return
			}
		}
		found = append(found, h)
	}
	for _, d := range index.Manifests {
		if p := d.Platform; p != nil && (p.OS != "linux" || p.Architecture != runtime.GOARCH) {
			continue
		}
		if !d.MediaType.IsIndex() {
			add(d.Digest)
			continue
		}
		var nested v1.IndexManifest
		if err := readJSON(b, blobName(d.Digest), d.Digest, &nested); err != nil {
			return nil, err
		}
		more, err := candidates(b, nested, depth+1)
		if err != nil {
			return nil, err
		}
		for _, h := range more {
			add(h)
		}
	}
	return found, nil
}

// dockerManifest is an entry of manifest.json in an archive of docker save.
type dockerManifest struct {
	Config string
	Layers []string
}

func (x *tarIndex) docker() (list []dockerManifest, err error) {
	err = readJSON(x, "manifest.json", v1.Hash{}, &list)
	return list, err
}

// isDocker reports whether the archive is one of docker save, and not a root file system with a file of that name.
func (x *tarIndex) isDocker() bool {
	list, err := x.docker()
	return err == nil && len(list) > 0 && list[0].Config != ""
}

func (j *job) fromDockerSave(ctx context.Context, x *tarIndex, t *Template) error {
	list, err := x.docker()
	if err != nil {
		return err
	}
	if len(list) != 1 {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Err: fmt.Errorf("the archive holds %d images", len(list)),
			Mend: "save one image into an archive of its own"}
	}
	var config v1.ConfigFile
	if err := readJSON(x, list[0].Config, v1.Hash{}, &config); err != nil {
		return err
	}
	var layers []layer
	for i, name := range list[0].Layers {
		layers = append(layers, blobLayer(x, name, fmt.Sprintf("%d of %d", i+1, len(list[0].Layers))))
	}
	return j.applyImage(ctx, &config, layers, t)
}
