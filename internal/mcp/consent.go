package mcp

import (
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"maps"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
)

// consent asks the user, through the client, before something is done that is not the model's to decide. It returns nil
// once the user has said yes, or what the tool must return so that he is asked: the client calls the tool once more with
// the answer, which counts only for the same arguments. A client that cannot ask is refused.
//
// What the client is to tell besides, it is asked for at the same time.
//
// It guards against the model, not against the client: that one speaks for the user.
func (c *call) consent(key, question string, args any, besides sdk.InputRequestMap) (*sdk.CallToolResult, error) {
	caps := c.req.ClientCapabilities()
	if caps == nil || caps.Elicitation == nil || caps.Elicitation.Form == nil && caps.Elicitation.URL != nil {
		return nil, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("that needs the user's word, and this client cannot ask for it (it lacks elicitation)"),
			Mend: "do without, or have the user start firebreak mcp with the flags that allow it (firebreak mcp --help)"}
	}
	state, err := c.door.stateOf(key, c.req.Params.Name, args)
	if err != nil {
		return nil, err
	}
	answer, answered := c.req.Params.InputResponses[key].(*sdk.ElicitResult)
	if !answered {
		asks := sdk.InputRequestMap{key: questionOf(question)}
		maps.Copy(asks, besides)
		return &sdk.CallToolResult{RequestState: state, InputRequests: asks}, nil
	}
	if !hmac.Equal([]byte(c.req.Params.RequestState), []byte(state)) {
		return nil, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("the user's answer was given to another question"), Mend: "call the tool anew"}
	}
	if allowed, _ := answer.Content["allow"].(bool); answer.Action != "accept" || !allowed {
		return nil, &firebreak.Error{Kind: firebreak.KindDenied, Err: errors.New("the user said no")}
	}
	return nil, nil
}

func questionOf(text string) *sdk.ElicitParams {
	return &sdk.ElicitParams{Mode: "form", Message: text, RequestedSchema: &jsonschema.Schema{Type: "object", Required: []string{"allow"},
		Properties: map[string]*jsonschema.Schema{"allow": {Type: "boolean", Title: "Allow", Description: "yes: allow it this once"}}}}
}

// stateOf binds an answer to what was asked.
func (d *Door) stateOf(parts ...any) (string, error) {
	data, err := json.Marshal(parts)
	if err != nil {
		return "", err
	}
	mac := hmac.New(sha256.New, d.seal)
	mac.Write(data) // never fails
	return hex.EncodeToString(mac.Sum(nil)), nil
}
