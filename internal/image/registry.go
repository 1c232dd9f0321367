package image

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"math"
	"net"
	"net/http"
	"os"
	"runtime"
	"slices"
	"time"

	"github.com/google/go-containerregistry/pkg/authn"
	"github.com/google/go-containerregistry/pkg/name"
	v1 "github.com/google/go-containerregistry/pkg/v1"
	"github.com/google/go-containerregistry/pkg/v1/remote"
	"github.com/google/go-containerregistry/pkg/v1/remote/transport"
	"golang.org/x/sync/errgroup"

	"github.com/firebreak-dev/firebreak"
)

const (
	pullsAtOnce  = 3
	pullAttempts = 3
)

// fromRegistry fills the tree from an image in a registry. A reference with a digest gets exactly that image.
func (j *job) fromRegistry(ctx context.Context, reference string) (Template, error) {
	ref, err := name.ParseReference(reference)
	if err != nil {
		return Template{}, badImage("%q is no image reference: %w", reference, err)
	}
	j.report("look up "+ref.Name(), 0, 0)
	img, digest, err := j.pull.lookUp(ctx, ref)
	if err != nil {
		return Template{}, blameRegistry(ref, err)
	}
	t := Template{Source: ref.Context().Name() + "@" + digest.String()}
	config, layers, err := j.fetch(ctx, img)
	if err != nil {
		return t, blameRegistry(ref, err)
	}
	return t, j.applyImage(ctx, config, layers, &t)
}

// Pull is on whose behalf an image is got from a registry. The zero value is whoever runs this program.
type Pull struct {
	Username string // empty: as Docker's configuration says
	Password string
	Stranger bool     // somebody who is lent nothing of this host: neither its logins nor the networks that only it reaches
	Trusted  []string // registries, host or host:port, that a stranger may name although they are on such a network
}

func (p Pull) lookUp(ctx context.Context, ref name.Reference) (v1.Image, v1.Hash, error) {
	options := []remote.Option{remote.WithContext(ctx), remote.WithPlatform(v1.Platform{OS: "linux", Architecture: runtime.GOARCH})}
	switch {
	case p.Username != "":
		options = append(options, remote.WithAuth(&authn.Basic{Username: p.Username, Password: p.Password}))
	case !p.Stranger:
		options = append(options, remote.WithAuthFromKeychain(authn.DefaultKeychain))
	}
	if p.Stranger && !slices.Contains(p.Trusted, ref.Context().RegistryStr()) {
		options = append(options, remote.WithTransport(publicOnly{}))
	}
	desc, err := remote.Get(ref, options...)
	if err != nil {
		return nil, v1.Hash{}, err
	}
	img, err := desc.Image()
	if err != nil {
		return nil, v1.Hash{}, fmt.Errorf("no image for linux/%s: %w", runtime.GOARCH, err)
	}
	return img, desc.Digest, nil
}

// fetch gets the configuration, and the layers into the work directory.
func (j *job) fetch(ctx context.Context, img v1.Image) (*v1.ConfigFile, []layer, error) {
	manifest, err := img.Manifest()
	if err != nil {
		return nil, nil, err
	}
	if manifest.Config.Size > maxJSON || len(manifest.Layers) > maxLayers {
		return nil, nil, badImage("the image has a configuration of %d bytes and %d layers, which is too much",
			manifest.Config.Size, len(manifest.Layers))
	}
	for _, d := range manifest.Layers {
		if !d.MediaType.IsLayer() {
			return nil, nil, badImage("it is no image of a file system: it holds a %.100q", d.MediaType)
		}
	}
	if err := j.checkSize(manifest); err != nil {
		return nil, nil, err
	}
	config, err := img.ConfigFile()
	if err != nil {
		return nil, nil, err
	}
	remotes, err := img.Layers()
	if err != nil {
		return nil, nil, err
	}
	layers := make([]layer, len(remotes))
	group, ctx := errgroup.WithContext(ctx)
	group.SetLimit(pullsAtOnce)
	for i, l := range remotes {
		group.Go(func() (err error) {
			layers[i], err = j.pullLayer(ctx, i, l)
			return err
		})
	}
	return config, layers, group.Wait()
}

// checkSize refuses what cannot unpack to less than the limit, before it is downloaded.
func (j *job) checkSize(m *v1.Manifest) error {
	limit, sum := j.limits.Bytes, int64(0)
	for _, d := range m.Layers {
		if d.Size < 0 || sum > math.MaxInt64-d.Size {
			return badImage("a layer of %d bytes", d.Size)
		}
		sum += d.Size
	}
	if limit > 0 && sum > limit {
		return &firebreak.Error{Kind: firebreak.KindExhausted, Err: fmt.Errorf("its layers of %d bytes are more than the limit of %d", sum, limit),
			Mend: "use a smaller image"}
	}
	return nil
}

// pullLayer downloads a layer, again if the connection breaks.
func (j *job) pullLayer(ctx context.Context, number int, l v1.Layer) (layer, error) {
	digest, err := l.Digest()
	if err != nil {
		return layer{}, err
	}
	size, err := l.Size()
	if err != nil {
		return layer{}, err
	}
	file := j.work.path(fmt.Sprintf("layer-%d", number))
	out := layer{name: short(digest), size: size, open: func() (io.ReadCloser, error) { return os.Open(file) }}
	for attempt := 1; ; attempt++ {
		err := j.download(ctx, l, file, "pull "+out.name, size)
		if err == nil || attempt == pullAttempts || !worthAnother(err) {
			return out, err
		}
		j.store.log.Debug("pull again", "layer", digest, "error", err)
		select {
		case <-ctx.Done():
			return layer{}, ctx.Err()
		case <-time.After(time.Duration(attempt) * 200 * time.Millisecond):
		}
	}
}

func (j *job) download(ctx context.Context, l v1.Layer, file, step string, size int64) (err error) {
	f, err := os.OpenFile(file, os.O_WRONLY|os.O_CREATE|os.O_TRUNC, 0o600)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, f.Close()) }()
	r, err := l.Compressed() // verifies size and digest while we read
	if err != nil {
		return err
	}
	defer r.Close()
	return copyLimited(ctx, f, j.counted(r, step, size), size+1)
}

// worthAnother reports whether a pull failed by accident: the connection, not the answer, was bad.
func worthAnother(err error) bool {
	var network net.Error
	return errors.Is(err, io.ErrUnexpectedEOF) || errors.As(err, &network)
}

// blameRegistry says what an error of a registry means for its user.
func blameRegistry(ref name.Reference, err error) error {
	op := "pull " + ref.Name()
	var known *firebreak.Error
	var answer *transport.Error
	var network net.Error
	switch {
	case errors.As(err, &known), errors.Is(err, context.Canceled), errors.Is(err, context.DeadlineExceeded):
		return fmt.Errorf("%s: %w", op, err)
	case errors.As(err, &answer):
		return blameAnswer(ref, op, answer)
	case errors.As(err, &network), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF):
		return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: op, Err: err,
			Mend: "check that this machine reaches " + ref.Context().RegistryStr() + ", then try again"}
	}
	var path *fs.PathError
	if errors.As(err, &path) {
		return err // our own disk
	}
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: op, Err: err}
}

func blameAnswer(ref name.Reference, op string, answer *transport.Error) error {
	registry := ref.Context().RegistryStr()
	switch answer.StatusCode {
	case http.StatusUnauthorized, http.StatusForbidden:
		return &firebreak.Error{Kind: firebreak.KindDenied, Op: op, Err: answer,
			Mend: "log in with docker login " + registry + " (firebreak reads Docker's configuration), and check the name"}
	case http.StatusNotFound:
		return &firebreak.Error{Kind: firebreak.KindNotFound, Op: op, Err: fmt.Errorf("%w: %w", fs.ErrNotExist, answer),
			Mend: "check the image's name and tag"}
	case http.StatusTooManyRequests:
		return &firebreak.Error{Kind: firebreak.KindExhausted, Op: op, Err: answer,
			Mend: "wait, or log in with docker login " + registry}
	}
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: op, Err: answer, Mend: "try again later"}
}
