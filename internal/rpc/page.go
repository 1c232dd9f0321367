package rpc

import (
	"encoding/base64"
	"errors"
	"slices"
	"strconv"
	"strings"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/store"
)

// page is which sandboxes a list asks for.
type page struct {
	states   []string
	metadata map[string]string
	size     int   // 0: no bound
	created  int64 // those after this millisecond, or of it with a later id
	id       string
}

const maxToken = 200 // bytes of a page's token

func pageOf(msg *firebreakv1.ListSandboxesRequest) (page, error) {
	p := page{states: msg.GetStates(), metadata: msg.GetMetadata(), size: int(msg.GetPageSize())}
	known := []string{string(firebreak.StateCreating), string(firebreak.StateRunning), string(firebreak.StatePaused), string(firebreak.StateStopping), string(firebreak.StateEnded)}
	for _, state := range p.states {
		if !slices.Contains(known, state) {
			return p, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "list sandboxes", Err: errors.New(strconv.Quote(state[:min(len(state), 40)]) + " is no state"),
				Mend: "choose of " + strings.Join(known, ", ")}
		}
	}
	if p.size < 0 {
		return p, invalidPage("the page size is negative")
	}
	if msg.GetPageToken() == "" {
		return p, nil
	}
	text, err := base64.RawURLEncoding.DecodeString(msg.GetPageToken())
	moment, id, found := strings.Cut(string(text), " ")
	millis, numErr := strconv.ParseInt(moment, 10, 64)
	if err != nil || numErr != nil || !found || len(text) > maxToken {
		return p, invalidPage("the page token is none of this server's")
	}
	p.created, p.id = millis, id
	return p, nil
}

func invalidPage(text string) error {
	return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "list sandboxes", Err: errors.New(text)}
}

func (p page) full(n int) bool { return p.size > 0 && n == p.size }

// wants reports whether a sandbox is of this page or one after it.
func (p page) wants(r store.Record) bool {
	if len(p.states) > 0 && !slices.Contains(p.states, string(r.State)) {
		return false
	}
	for name, value := range p.metadata {
		if have, ok := r.Metadata[name]; !ok || have != value {
			return false
		}
	}
	if p.id == "" {
		return true
	}
	created := r.Created.UnixMilli()
	return created > p.created || created == p.created && string(r.ID) > p.id
}

// token says where the page after this sandbox begins. The store's order is by millisecond of creation, then by id.
func (p page) token(last *firebreakv1.Sandbox) string {
	moment := strconv.FormatInt(last.GetCreatedAt().AsTime().UnixMilli(), 10)
	return base64.RawURLEncoding.EncodeToString([]byte(moment + " " + last.GetId()))
}
