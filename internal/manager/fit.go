package manager

import (
	"fmt"
	"slices"
	"strings"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/image"
	"github.com/firebreak-dev/firebreak/internal/setup"
)

// fitting is what the drivers of this host can do for one question.
type fitting struct {
	question Question
	infos    []driver.Info   // with a problem for each that cannot serve this question
	named    *image.Template // the template that the question names; nil: none, or host
}

// fit says of each driver whether it could start the sandbox that is asked for. That the policy accepts a technology does
// not make a program of it: what a driver of a language starts from must be there, in the form that it takes. For a
// question about no language it reads no file.
func (m *Manager) fit(q Question, all []probed) (fitting, error) {
	f := fitting{question: q, infos: infosOf(all)}
	if q.Template != "" && q.Template != image.HostName {
		t, err := m.cfg.Images.Get(q.Template)
		if err != nil {
			return f, err
		}
		f.named = &t
		if t.Form != image.FormRoot && q.Workload.Needs == 0 {
			f.question.Workload.Needs = firebreak.NeedCompute // it can do nothing else
		}
	}
	for i := range f.infos {
		if p := m.unfit(f, f.infos[i]); p != nil {
			f.infos[i].Problems = append([]driver.Problem{*p}, f.infos[i].Problems...)
		}
	}
	return f, nil
}

// unfit returns why a driver cannot serve a question, nil if nothing but its own problems is in the way.
func (m *Manager) unfit(f fitting, info driver.Info) *driver.Problem {
	q := f.question
	switch {
	case q.Fetches && !slices.Contains(info.Forms, driver.FormModule):
		return &driver.Problem{Text: "it cannot allow fetch", Mend: "in this version only a WebAssembly module can fetch: firebreak run MODULE.wasm --allow fetch=HOST"}
	case q.Alone && slices.Contains(info.Forms, driver.FormModule):
		return &driver.Problem{Text: "its sandboxes are all in Firebreak's own process", Mend: "leave out --exclusive, or name another isolation"}
	case f.named != nil:
		if p := otherForm(*f.named, info); p != nil {
			return p
		}
	case !ofLanguage(info):
	case q.Template == image.HostName:
		return &driver.Problem{Text: fmt.Sprintf("template host has programs of Linux, and %s runs %s", info.Name, whatRuns(info)),
			Mend: "name the language of the code instead of a template"}
	case q.Language == "":
		return &driver.Problem{Text: fmt.Sprintf("it runs %s, and nobody says what is to run", whatRuns(info)),
			Mend: "name the language of the code (--lang) or a template with a module (--template)"}
	case !m.cfg.Images.Has(languageTemplate(info, q.Language)):
		return noLanguage(info, q.Language)
	}
	if missing := driver.Missing(info.Caps, q.Needs); missing != 0 && ofLanguage(info) {
		return &driver.Problem{Text: fmt.Sprintf("%s has no %s", info.Name, strings.Join(missing.Names(), ", ")), Mend: "leave it out"}
	}
	if q.Writes && ofLanguage(info) {
		return &driver.Problem{Text: info.Name + " only reads what is mounted", Mend: "mount it read-only: --volume HOST:GUEST:ro"}
	}
	if q.Detached && !m.cfg.Adopt && !info.Caps.Has(driver.CapDetach) {
		return &driver.Problem{Text: "its sandboxes end with the program that makes them, and this one is to live on", Mend: "start firebreak serve, and ask it with --server"}
	}
	return nil
}

// ofLanguage reports whether a driver runs code of languages and no programs of Linux.
func ofLanguage(info driver.Info) bool {
	takes := func(form driver.Form) bool { return slices.Contains(info.Forms, form) }
	return (takes(driver.FormModule) || takes(driver.FormScript)) && !takes(driver.FormDirectory) && !takes(driver.FormDisk)
}

// otherForm returns the problem of a driver that cannot have the template in any form that it takes.
func otherForm(t image.Template, info driver.Info) *driver.Problem {
	forms := t.Forms()
	if !ofLanguage(info) && t.Form == image.FormRoot || slices.ContainsFunc(info.Forms, func(form driver.Form) bool { return slices.Contains(forms, form) }) {
		return nil
	}
	is, mend := "holds programs of Linux", "name a template with a module, or the language of the code and no template"
	switch t.Form {
	case image.FormModule:
		is, mend = "is a WebAssembly module", "leave the choice to the policy, or run it with --isolation wasm"
	case image.FormScript:
		is, mend = "holds JavaScript modules", "leave the choice to the policy, or run it with --isolation v8"
	}
	return &driver.Problem{Text: fmt.Sprintf("template %s %s, and %s runs %s", t.Name, is, info.Name, whatRuns(info)), Mend: mend}
}

func whatRuns(info driver.Info) string {
	switch {
	case !ofLanguage(info):
		return "programs of Linux"
	case slices.Contains(info.Forms, driver.FormModule):
		return "WebAssembly modules"
	}
	return "JavaScript modules"
}

// languageTemplate is the name of the template with which a driver runs a language.
func languageTemplate(info driver.Info, language string) string { return info.Name + "-" + language }

// languagesOf are those that firebreak setup has for a driver.
func languagesOf(info driver.Info) []string {
	var all []string
	for _, tool := range setup.Tools() {
		if tool.Driver == info.Name {
			all = append(all, tool.Language)
		}
	}
	return all
}

func noLanguage(info driver.Info, language string) *driver.Problem {
	name := languageTemplate(info, language)
	switch {
	case slices.Contains(languagesOf(info), language):
		return &driver.Problem{Text: "there is no template " + name, Mend: "firebreak setup " + info.Name}
	case slices.Contains(info.Forms, driver.FormModule):
		return &driver.Problem{Text: "there is no template " + name,
			Mend: fmt.Sprintf("firebreak template import FILE.wasm --name %s --language %s", name, language)}
	}
	return &driver.Problem{Text: fmt.Sprintf("it runs %s, and not %s", strings.Join(languagesOf(info), " and "), language)}
}

// template returns the name of the template from which the driver's sandbox starts.
func (f fitting) template(info driver.Info) string {
	switch {
	case f.question.Template != "":
		return f.question.Template
	case ofLanguage(info):
		return languageTemplate(info, f.question.Language)
	}
	return image.HostName
}

// unfitness is all that fit changed in what the drivers say, for who compares.
func (f fitting) unfitness(all []probed) string {
	var text strings.Builder
	for i, info := range f.infos {
		if len(info.Problems) > len(all[i].info.Problems) {
			fmt.Fprintf(&text, " %s %q", info.Name, info.Problems[0])
		}
	}
	return text.String()
}
