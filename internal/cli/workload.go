package cli

import (
	"encoding"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
	"google.golang.org/protobuf/types/known/durationpb"

	"github.com/firebreak-dev/firebreak"
	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/policy"
)

// fact is one word that a caller says about the code, and its words.
type fact struct {
	flag, about, question string
	words                 []string
	check                 encoding.TextUnmarshaler
}

// facts are those with a list of words, in the order in which advise asks for them.
func facts() []fact {
	return []fact{
		{"origin", "who wrote the code", "Who wrote the code?", firebreak.OriginWords(), new(firebreak.Origin)},
		{"tenancy", "who shares the host", "Who shares the host?", firebreak.TenancyWords(), new(firebreak.Tenancy)},
		{"data", "what the code may see", "What may the code see?", firebreak.DataWords(), new(firebreak.Data)},
		{"orchestrator", "who places sandboxes on machines", "Who places sandboxes on machines?", firebreak.OrchestratorWords(), new(firebreak.Orchestrator)},
		{"place", "where the code runs", "Where does it run?", firebreak.PlaceWords(), new(firebreak.Place)},
	}
}

// careful is the word that is taken for the fact where nobody says one.
func (f fact) careful() string {
	_, taken := policy.Complete(firebreak.Workload{})
	i := slices.IndexFunc(taken, func(a policy.Assumption) bool { return a.Fact == f.flag })
	return taken[i].Value
}

func (f fact) usage() string {
	last := len(f.words) - 1
	return fmt.Sprintf("%s: `word` %s or %s (default %s)", f.about, strings.Join(f.words[:last], ", "), f.words[last], f.careful())
}

// wordFlag is a pflag.Value that takes one of a few words.
type wordFlag struct {
	value string
	fact  fact
}

func (f *wordFlag) Set(s string) error {
	if err := f.fact.check.UnmarshalText([]byte(s)); err != nil || s == "" {
		mend := "choose one of " + strings.Join(f.fact.words, ", ")
		if near := nearest(s, f.fact.words); near != "" {
			mend = "did you mean " + near + "?"
		}
		return invalid("", errors.New("unknown word"), mend)
	}
	f.value = s
	return nil
}

func (f *wordFlag) Type() string   { return "word" }
func (f *wordFlag) String() string { return f.value }

// workloadFlags are what run and advise are told about the code.
type workloadFlags struct {
	set                     *pflag.FlagSet
	words                   []*wordFlag
	gpu, plugin, audit      bool
	needs                   []string
	startWithin             durationFlag
	isolation, acceptWeaker string
}

func (f *workloadFlags) add(cmd *cobra.Command) {
	f.addFacts(cmd)
	choice := pflag.NewFlagSet("choice", pflag.ContinueOnError)
	choice.StringVar(&f.isolation, "isolation", "", "`driver`: gvisor, container, wasm, v8 or process (default: the policy chooses)")
	choice.StringVar(&f.acceptWeaker, "accept-weaker", "", "`why` the driver named by --isolation may be weaker than the policy accepts")
	f.set.AddFlagSet(choice)
	cmd.Flags().AddFlagSet(choice)
	complete(cmd, "isolation", drivers())
}

// addFacts adds the flags of what is said about the code itself.
func (f *workloadFlags) addFacts(cmd *cobra.Command) {
	f.set = pflag.NewFlagSet("workload", pflag.ContinueOnError)
	for _, fact := range facts() {
		word := &wordFlag{fact: fact}
		f.words = append(f.words, word)
		f.set.Var(word, fact.flag, fact.usage())
	}
	f.set.BoolVar(&f.gpu, "gpu", false, "the code needs a GPU")
	f.set.BoolVar(&f.plugin, "plugin", false, "the code is a module that can do only what it is handed")
	f.set.BoolVar(&f.audit, "audit", false, "an auditor must be shown how the code is isolated")
	f.set.StringSliceVar(&f.needs, "needs", nil, "what the code needs or does much of: `list` of "+strings.Join(firebreak.NeedWords(), ", "))
	f.set.Var(&f.startWithin, "start-within", "`time` from the request to its first instruction, like 10ms")
	cmd.Flags().AddFlagSet(f.set)
	for _, word := range f.words {
		complete(cmd, word.fact.flag, word.fact.words)
	}
	complete(cmd, "needs", firebreak.NeedWords())
}

// complete offers a flag's words to the shell.
func complete(cmd *cobra.Command, flag string, words []string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(words, cobra.ShellCompDirectiveNoFileComp)) // fails only for a flag that does not exist
}

// check refuses what no server could make sense of.
func (f *workloadFlags) check() error {
	if near := nearest(f.isolation, drivers()); near != "" && near != f.isolation {
		return invalid("", fmt.Errorf("unknown isolation %q", f.isolation), "did you mean "+near+"?")
	}
	if f.acceptWeaker != "" && f.isolation == "" {
		return invalid("", errors.New("--accept-weaker without a driver"), "name it: --isolation NAME")
	}
	if _, err := firebreak.ReadNeeds(f.needs...); err != nil {
		return invalid("", fmt.Errorf("--needs: %w", errors.Unwrap(err)), "")
	}
	return nil
}

// message is what is said.
func (f *workloadFlags) message() *firebreakv1.Workload {
	w := &firebreakv1.Workload{Gpu: f.gpu, Plugin: f.plugin, Audit: f.audit, Needs: f.needs}
	for _, word := range f.words {
		setFact(w, word.fact.flag, word.value)
	}
	if f.startWithin > 0 {
		w.StartWithin = durationpb.New(time.Duration(f.startWithin))
	}
	return w
}

func setFact(w *firebreakv1.Workload, name, word string) {
	switch name {
	case "origin":
		w.Origin = word
	case "tenancy":
		w.Tenancy = word
	case "data":
		w.Data = word
	case "orchestrator":
		w.Orchestrator = word
	case "place":
		w.Place = word
	}
}

// said reports whether any of the flags is there.
func (f *workloadFlags) said() bool {
	found := false
	f.set.VisitAll(func(flag *pflag.Flag) { found = found || flag.Changed })
	return found
}

// chosen says in one line what was chosen and why: by the rules that fired and speak about boundaries or order.
func chosen(d *firebreakv1.Decision) string {
	if d.GetDriver() == "" {
		return "nothing was chosen: " + d.GetRefusal().GetText()
	}
	var rules []string
	for _, s := range d.GetTrace() {
		if s.GetFired() && s.GetWhen() != "true" {
			rules = append(rules, s.GetRule())
		}
	}
	text := fmt.Sprintf("%s (%s) was chosen for %s by policy %s", d.GetDriver(), d.GetBoundary(), saidOf(d.GetWorkload()), d.GetPolicy())
	if len(rules) > 0 {
		text += ", rules " + strings.Join(rules, ", ")
	}
	if o := d.GetOverride(); o != nil {
		text += ", against rule " + strings.Join(o.GetRules(), ", ") + " because: " + o.GetWhy()
	}
	if missing := notEnforced(d); len(missing) > 0 {
		text += "; not enforced: " + strings.Join(missing, ", ")
	}
	return text
}

// toSetUp says which technologies would have come before the chosen one if something that firebreak setup has were there.
func toSetUp(d *firebreakv1.Decision) []string {
	var texts []string
	for _, name := range d.GetDrivers() {
		if name == d.GetDriver() {
			break
		}
		i := slices.IndexFunc(d.GetOthers(), func(o *firebreakv1.Decision_Other) bool { return o.GetDriver() == name })
		if i < 0 {
			continue
		}
		if p := d.GetOthers()[i].GetProblem(); strings.HasPrefix(p.GetMend(), "firebreak setup ") {
			texts = append(texts, fmt.Sprintf("%s would come first, but %s; to have it: %s", name, p.GetText(), p.GetMend()))
		}
	}
	return texts
}

// saidOf lists the facts of a complete workload that matter to most rules.
func saidOf(w *firebreakv1.Workload) string {
	list := []string{"origin " + w.GetOrigin(), "tenancy " + w.GetTenancy(), "data " + w.GetData()}
	for _, f := range []struct {
		set  bool
		text string
	}{
		{w.GetGpu(), "GPU"}, {w.GetPlugin(), "plugin"}, {w.GetAudit(), "audit"},
		{w.GetStartWithin().AsDuration() > 0, "start within " + w.GetStartWithin().AsDuration().String()},
		{w.GetOrchestrator() == "kubernetes", "orchestrator kubernetes"}, {w.GetPlace() == "browser", "place browser"},
	} {
		if f.set {
			list = append(list, f.text)
		}
	}
	if len(w.GetNeeds()) > 0 {
		list = append(list, "needs "+strings.Join(w.GetNeeds(), " "))
	}
	return strings.Join(list, ", ")
}
