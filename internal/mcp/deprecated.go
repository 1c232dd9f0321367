//lint:file-ignore SA1019 the newest version of the protocol gives these up, and the clients that people have use them

package mcp

import (
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"
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
