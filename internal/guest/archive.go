package guest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak"
)

// Export streams the sandbox's root file system as a tar archive, for the caller to close. Of changes only, a file that
// is still the template's comes without its data. It is hostile like all that comes from there: neither is anything in it
// true, nor does it have to end before ctx.
func (g *Guest) Export(ctx context.Context, changes bool) (io.ReadCloser, error) {
	address := base + "/export"
	if changes {
		address += "?changes"
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, address, nil)
	if err != nil {
		return nil, err
	}
	res, err := g.do(req, "export the root file system", http.StatusOK)
	if err != nil {
		return nil, err
	}
	return res.Body, nil
}

// Import says where an archive goes in a sandbox.
type Import struct {
	Path   string // a directory; with Single what its only entry becomes, or the directory that it goes to
	Cwd    string // where a relative path begins; empty: User's home
	User   string // of the sandbox; empty: its default
	Owner  string // of all that is made: name, name:group, or numbers; empty: User
	Mode   string // of all that is made, in octal; empty: as in the archive
	Single string // the name of the only entry; empty: there may be any
}

// Import unpacks a tar archive in the sandbox, as its root. An error of firebreak.KindInvalid says what in the archive, or
// in the place for it, is wrong; what was unpacked before stays.
func (g *Guest) Import(ctx context.Context, to Import, archive io.Reader) error {
	q := url.Values{}
	for key, value := range map[string]string{
		"path": to.Path, "cwd": to.Cwd, "user": to.User, "owner": to.Owner, "mode": to.Mode, "single": to.Single,
	} {
		if value != "" {
			q.Set(key, value)
		}
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, base+"/import?"+q.Encode(), io.NopCloser(archive))
	if err != nil {
		return err
	}
	req.Header.Set("Content-Type", "application/x-tar")
	res, err := g.do(req, "copy files into the sandbox", http.StatusNoContent)
	if err != nil {
		return err
	}
	return res.Body.Close()
}

// do returns the answer if it has one of the statuses wanted, and else an error with the agent's own words, shortened.
func (g *Guest) do(req *http.Request, op string, want ...int) (*http.Response, error) {
	res, err := g.client.Do(req)
	if err != nil {
		if ctxErr := req.Context().Err(); ctxErr != nil {
			return nil, fmt.Errorf("%s: %w", op, ctxErr)
		}
		return nil, &firebreak.Error{Kind: firebreak.KindUnavailable, Op: op, Err: err}
	}
	if slices.Contains(want, res.StatusCode) {
		return res, nil
	}
	defer res.Body.Close()                                   //nolint:errcheck // read as far as we want it
	text, _ := io.ReadAll(io.LimitReader(res.Body, maxText)) // what could be read says enough
	var said struct{ Message string }
	if json.Unmarshal(text, &said) != nil || said.Message == "" {
		said.Message = fmt.Sprintf("the agent answered %d: %q", res.StatusCode, text)
	}
	return nil, &firebreak.Error{Kind: kindOf(res.StatusCode), Op: op, Err: errors.New(strings.ToValidUTF8(said.Message, "?"))}
}
