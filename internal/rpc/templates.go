package rpc

import (
	"cmp"
	"context"
	"errors"
	"slices"
	"strings"
	"time"

	"connectrpc.com/connect"
	"google.golang.org/protobuf/types/known/timestamppb"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/auth"
	"github.com/firebreak-dev/firebreak/internal/image"
)

// progressInterval is how often the progress of one step is told.
const progressInterval = 50 * time.Millisecond

type templateService struct {
	templates Templates
	guests    Guests
}

func (s *templateService) MakeTemplate(ctx context.Context, req *connect.Request[firebreakv1.MakeTemplateRequest], stream *connect.ServerStream[firebreakv1.MakeTemplateResponse]) error {
	if err := onlyOperator(ctx, "make template"); err != nil { // its sources are the host's files and network
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	if req.Msg.GetModule() == nil && req.Msg.GetScripts() == "" && req.Msg.GetLanguage()+strings.Join(req.Msg.GetCommand(), "") != "" {
		return &firebreak.Error{Kind: firebreak.KindInvalid, Op: "make template", Err: errors.New("only modules and scripts have a language and the names of their program"),
			Mend: "leave them out, or import a file .wasm"}
	}
	src := image.Source{Path: req.Msg.GetPath(), Reference: req.Msg.GetReference(), Recipe: req.Msg.GetRecipe(), Scripts: req.Msg.GetScripts(),
		Module: image.Module{Path: req.Msg.GetModule().GetPath(), Library: req.Msg.GetModule().GetLibrary(),
			ByContent: req.Msg.GetModule().GetByContent()}}
	var told image.Progress
	var at time.Time
	progress := func(p image.Progress) {
		if p.Step == told.Step && p.Done < p.Total && time.Since(at) < progressInterval {
			return
		}
		told, at = p, time.Now()
		event := &firebreakv1.MakeTemplateResponse_Progress{Progress: &firebreakv1.Progress{Step: p.Step, Done: p.Done, Total: p.Total}}
		if err := stream.Send(&firebreakv1.MakeTemplateResponse{Event: event}); err != nil {
			cancel(err) // nobody listens any more
		}
	}
	tpl, err := s.templates.Make(ctx, src, image.MakeOptions{Name: req.Msg.GetName(), IfMissing: req.Msg.GetIfMissing(), Progress: progress,
		Edit: func(t *image.Template) {
			t.Language = cmp.Or(req.Msg.GetLanguage(), t.Language)
			if command := req.Msg.GetCommand(); len(command) > 0 {
				t.Command = command
			}
		}})
	if err != nil {
		return err
	}
	return stream.Send(&firebreakv1.MakeTemplateResponse{Event: &firebreakv1.MakeTemplateResponse_Template{Template: templateMessage(tpl)}})
}

func (s *templateService) GetTemplate(ctx context.Context, req *connect.Request[firebreakv1.GetTemplateRequest]) (*connect.Response[firebreakv1.GetTemplateResponse], error) {
	name, err := visibleName(ctx, req.Msg.GetName())
	if err != nil {
		return nil, err
	}
	tpl, err := s.templates.Get(name)
	if err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.GetTemplateResponse{Template: templateMessage(tpl)}), nil
}

func (s *templateService) ListTemplates(ctx context.Context, _ *connect.Request[firebreakv1.ListTemplatesRequest]) (*connect.Response[firebreakv1.ListTemplatesResponse], error) {
	c, err := auth.CallerOf(ctx)
	if err != nil {
		return nil, err
	}
	all, err := s.templates.List()
	if err != nil {
		return nil, err
	}
	all = slices.DeleteFunc(all, func(t image.Template) bool { return !visible(c, t.Name) })
	resp := &firebreakv1.ListTemplatesResponse{}
	for _, tpl := range all {
		resp.Templates = append(resp.Templates, templateMessage(tpl))
	}
	return connect.NewResponse(resp), nil
}

func (s *templateService) DeleteTemplate(ctx context.Context, req *connect.Request[firebreakv1.DeleteTemplateRequest]) (*connect.Response[firebreakv1.DeleteTemplateResponse], error) {
	if err := onlyOperator(ctx, "delete template"); err != nil {
		return nil, err
	}
	if err := s.templates.Delete(req.Msg.GetName()); err != nil {
		return nil, err
	}
	return connect.NewResponse(&firebreakv1.DeleteTemplateResponse{}), nil
}

func (s *templateService) CollectGarbage(ctx context.Context, _ *connect.Request[firebreakv1.CollectGarbageRequest]) (*connect.Response[firebreakv1.CollectGarbageResponse], error) {
	if err := onlyOperator(ctx, "collect garbage"); err != nil {
		return nil, err
	}
	var unknown error
	// The records are read when an image is judged: a sandbox may have started from it since the collection began.
	inUse := func(digest string) bool {
		used, err := s.guests.Digests(ctx)
		if err != nil {
			unknown = err
			return true
		}
		return used[digest]
	}
	freed, removed, err := s.templates.Collect(ctx, inUse)
	if err := errors.Join(err, unknown); err != nil {
		return nil, &firebreak.Error{Kind: firebreak.KindOf(err), Op: "collect garbage", Err: err}
	}
	return connect.NewResponse(&firebreakv1.CollectGarbageResponse{FreedBytes: freed, Removed: int32(removed)}), nil
}

// visibleName returns the name of a template, or one that no template has where the caller may not see it.
func visibleName(ctx context.Context, name string) (string, error) {
	c, err := auth.CallerOf(ctx)
	if err == nil && !visible(c, name) {
		name = c.Tenant.ID + "/" + name
	}
	return name, err
}

// visible reports whether a caller may see a template: one that all share, or his own.
func visible(c auth.Caller, name string) bool {
	owner := auth.OwnerOf(name)
	return owner == "" || c.May(owner)
}

func templateMessage(t image.Template) *firebreakv1.Template {
	msg := &firebreakv1.Template{Name: t.Name, Digest: t.Digest, SizeBytes: t.Size, Source: t.Source, Envs: t.Envs,
		Workdir: t.Workdir, User: t.User, Entrypoint: t.Entrypoint, Command: t.Command,
		Form: t.Form, Language: t.Language}
	if !t.Created.IsZero() {
		msg.CreatedAt = timestamppb.New(t.Created)
	}
	return msg
}
