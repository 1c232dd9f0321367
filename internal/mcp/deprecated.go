//lint:file-ignore SA1019 the newest version of the protocol gives these up, and the clients that people have use them

package mcp

import (
	"errors"
	"net/url"
	"path/filepath"

	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
)

// level is how much a message to the client matters.
type level = sdk.LoggingLevel

func withLogging() *sdk.ServerCapabilities {
	return &sdk.ServerCapabilities{Logging: &sdk.LoggingCapabilities{}}
}

// log tells the client, if it wants to know.
func (c *call) log(l level, data any) {
	_ = c.req.Session.Log(c.ctx, &sdk.LoggingMessageParams{Logger: "firebreak", Level: l, Data: data}) // it may have gone
}

const rootsKey = "roots"

// askRoots is the question which directories the client's user works in. A client that knows none is refused.
func (c *call) askRoots() (sdk.InputRequestMap, error) {
	if caps := c.req.ClientCapabilities(); caps == nil || caps.RootsV2 == nil {
		return nil, &firebreak.Error{Kind: firebreak.KindUnsupported, Err: errors.New("this client does not say which directories may be used (it lacks roots)"),
			Mend: "have the user start firebreak mcp with --workspace DIR, which shares one"}
	}
	return sdk.InputRequestMap{rootsKey: &sdk.ListRootsParams{}}, nil
}

// roots are the directories that the client answered with.
func (c *call) roots() []string {
	answer, _ := c.req.Params.InputResponses[rootsKey].(*sdk.ListRootsResult)
	if answer == nil {
		return nil
	}
	var dirs []string
	for _, r := range answer.Roots {
		if u, err := url.Parse(r.URI); err == nil && u.Scheme == "file" && (u.Host == "" || u.Host == "localhost") && filepath.IsAbs(u.Path) {
			dirs = append(dirs, filepath.Clean(u.Path))
		}
	}
	return dirs
}
