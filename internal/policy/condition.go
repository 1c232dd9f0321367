package policy

import (
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"cel.dev/cel-go/cel"
	"cel.dev/cel-go/common/ast"
	"cel.dev/cel-go/common/operators"
	"cel.dev/cel-go/common/types"
	"cel.dev/cel-go/common/types/ref"

	"github.com/firebreak-dev/firebreak"
)

// condition is a compiled expression of CEL whose result is true or false. The zero value holds always.
type condition struct {
	program cel.Program
}

func (c condition) holds(f *facts) (bool, error) {
	if c.program == nil {
		return true, nil
	}
	out, _, err := c.program.Eval(f)
	if err != nil {
		return false, err
	}
	holds, ok := out.(types.Bool)
	if !ok {
		return false, fmt.Errorf("it is %v, neither true nor false", out)
	}
	return bool(holds), nil
}

// facts is what conditions may ask, as values of CEL: a workload's, and those of one technology at a time.
type facts struct {
	origin, tenancy, data, orchestrator, place ref.Val
	gpu, plugin, audit, startWithin            ref.Val
	linux, network, fileIO, syscalls, compute  ref.Val
	tech                                       *techFacts
}

type techFacts struct {
	name, boundary, hardware, linux, gpu, snapshot, kubernetes, start, warm ref.Val
}

func newFacts(w firebreak.Workload) *facts {
	return &facts{
		origin: types.String(w.Origin.String()), tenancy: types.String(w.Tenancy.String()), data: types.String(w.Data.Class().String()),
		orchestrator: types.String(w.Orchestrator.String()), place: types.String(w.Place.String()),
		gpu: types.Bool(w.GPU), plugin: types.Bool(w.Plugin), audit: types.Bool(w.Audit),
		startWithin: types.Duration{Duration: time.Duration(w.StartWithin)},
		linux:       types.Bool(w.Needs.Has(firebreak.NeedLinux)), network: types.Bool(w.Needs.Has(firebreak.NeedNetwork)),
		fileIO: types.Bool(w.Needs.Has(firebreak.NeedFileIO)), syscalls: types.Bool(w.Needs.Has(firebreak.NeedSyscalls)),
		compute: types.Bool(w.Needs.Has(firebreak.NeedCompute)),
	}
}

func newTechFacts(t Technology) techFacts {
	return techFacts{
		name: types.String(t.Name), boundary: types.String(t.Boundary.String()), hardware: types.Bool(t.Hardware),
		linux: types.Bool(t.Linux), gpu: types.Bool(t.GPU), snapshot: types.Bool(t.Snapshot), kubernetes: types.Bool(t.Kubernetes),
		start: types.Duration{Duration: time.Duration(t.Start)}, warm: types.Duration{Duration: time.Duration(t.Warm)},
	}
}

// Parent implements cel.Activation.
func (f *facts) Parent() cel.Activation { return nil }

// ResolveName implements cel.Activation. A map would cost more than all conditions together.
func (f *facts) ResolveName(name string) (any, bool) {
	if tech, ok := strings.CutPrefix(name, "tech."); ok {
		return f.tech.resolve(tech)
	}
	switch name {
	case "origin":
		return f.origin, true
	case "tenancy":
		return f.tenancy, true
	case "data":
		return f.data, true
	case "orchestrator":
		return f.orchestrator, true
	case "place":
		return f.place, true
	case "gpu":
		return f.gpu, true
	case "plugin":
		return f.plugin, true
	case "audit":
		return f.audit, true
	case "start_within":
		return f.startWithin, true
	case "needs.linux":
		return f.linux, true
	case "needs.network":
		return f.network, true
	case "needs.file_io":
		return f.fileIO, true
	case "needs.syscalls":
		return f.syscalls, true
	case "needs.compute":
		return f.compute, true
	}
	return nil, false
}

func (t *techFacts) resolve(name string) (any, bool) {
	if t == nil {
		return nil, false
	}
	switch name {
	case "name":
		return t.name, true
	case "boundary":
		return t.boundary, true
	case "hardware":
		return t.hardware, true
	case "linux":
		return t.linux, true
	case "gpu":
		return t.gpu, true
	case "snapshot":
		return t.snapshot, true
	case "kubernetes":
		return t.kubernetes, true
	case "start":
		return t.start, true
	case "warm":
		return t.warm, true
	}
	return nil, false
}

// compiler turns texts into conditions. It refuses words that a fact never has, because a rule with a misspelt word
// would silently never hold.
type compiler struct {
	workload, tech, both *cel.Env // by the facts that a text may ask for
	words                map[string][]string
}

func newCompiler(technologies []string) (*compiler, error) {
	workload := []cel.EnvOption{
		cel.Variable("origin", cel.StringType), cel.Variable("tenancy", cel.StringType), cel.Variable("data", cel.StringType),
		cel.Variable("orchestrator", cel.StringType), cel.Variable("place", cel.StringType),
		cel.Variable("gpu", cel.BoolType), cel.Variable("plugin", cel.BoolType), cel.Variable("audit", cel.BoolType),
		cel.Variable("start_within", cel.DurationType),
		cel.Variable("needs.linux", cel.BoolType), cel.Variable("needs.network", cel.BoolType), cel.Variable("needs.file_io", cel.BoolType),
		cel.Variable("needs.syscalls", cel.BoolType), cel.Variable("needs.compute", cel.BoolType),
	}
	tech := []cel.EnvOption{
		cel.Variable("tech.name", cel.StringType), cel.Variable("tech.boundary", cel.StringType), cel.Variable("tech.hardware", cel.BoolType),
		cel.Variable("tech.linux", cel.BoolType), cel.Variable("tech.gpu", cel.BoolType), cel.Variable("tech.snapshot", cel.BoolType),
		cel.Variable("tech.kubernetes", cel.BoolType), cel.Variable("tech.start", cel.DurationType), cel.Variable("tech.warm", cel.DurationType),
	}
	// Without macros nothing loops, so that a text costs no more than its length.
	limits := []cel.EnvOption{cel.ClearMacros(), cel.ParserRecursionLimit(50), cel.ParserExpressionSizeLimit(4096)}
	c := &compiler{words: vocabulary(technologies)}
	for env, options := range map[**cel.Env][]cel.EnvOption{&c.workload: workload, &c.tech: tech, &c.both: slices.Concat(workload, tech)} {
		made, err := cel.NewEnv(append(options, limits...)...)
		if err != nil {
			return nil, err
		}
		*env = made
	}
	return c, nil
}

// vocabulary lists the words of each fact that is one of a few words.
func vocabulary(technologies []string) map[string][]string {
	words := map[string][]string{
		"tech.name": technologies, "origin": firebreak.OriginWords(), "tenancy": firebreak.TenancyWords(),
		"orchestrator": firebreak.OrchestratorWords(), "place": firebreak.PlaceWords(),
	}
	for d := firebreak.DataPublic; d <= firebreak.DataRegulated; d++ { // conditions see classes
		words["data"] = append(words["data"], d.String())
	}
	for b := firebreak.BoundaryNone; b <= firebreak.BoundaryVirtualMachine; b++ {
		words["tech.boundary"] = append(words["tech.boundary"], b.String())
	}
	return words
}

func (c *compiler) compile(env *cel.Env, text string) (condition, error) {
	if strings.TrimSpace(text) == "" {
		return condition{}, errors.New("the condition is empty")
	}
	checked, issues := env.Compile(text)
	if issues != nil && issues.Err() != nil {
		e := issues.Errors()[0]
		return condition{}, fmt.Errorf("%q, column %d: %s", clip(text), e.Location.Column()+1, strings.Join(strings.Fields(e.Message), " "))
	}
	if !checked.OutputType().IsExactType(cel.BoolType) {
		return condition{}, fmt.Errorf("%q is of type %s and not true or false", clip(text), checked.OutputType())
	}
	if err := c.checkWords(checked.NativeRep()); err != nil {
		return condition{}, fmt.Errorf("%q: %w", clip(text), err)
	}
	program, err := env.Program(checked, cel.EvalOptions(cel.OptOptimize))
	if err != nil {
		return condition{}, fmt.Errorf("%q: %w", clip(text), err)
	}
	return condition{program: program}, nil
}

// clip keeps a message to a line that can be read.
func clip(text string) string {
	if len(text) <= 200 {
		return text
	}
	return text[:200] + "…"
}

// checkWords refuses comparisons of a fact with a word that it never is.
func (c *compiler) checkWords(checked *ast.AST) error {
	var wrong error
	ast.PostOrderVisit(checked.Expr(), ast.NewExprVisitor(func(e ast.Expr) {
		if e.Kind() != ast.CallKind || wrong != nil {
			return
		}
		switch call := e.AsCall(); call.FunctionName() {
		case operators.Equals, operators.NotEquals:
			wrong = errors.Join(c.checkWord(call.Args()[0], call.Args()[1]), c.checkWord(call.Args()[1], call.Args()[0]))
		case operators.In:
			if list := call.Args()[1]; list.Kind() == ast.ListKind {
				for _, word := range list.AsList().Elements() {
					wrong = errors.Join(wrong, c.checkWord(call.Args()[0], word))
				}
			}
		}
	}))
	return wrong
}

func (c *compiler) checkWord(fact, word ast.Expr) error {
	if fact.Kind() != ast.IdentKind || word.Kind() != ast.LiteralKind {
		return nil
	}
	text, ok := word.AsLiteral().(types.String)
	known := c.words[fact.AsIdent()]
	if !ok || known == nil || slices.Contains(known, string(text)) {
		return nil
	}
	return fmt.Errorf("%s is never %q: it is one of %s", fact.AsIdent(), string(text), strings.Join(known, ", "))
}

// choice compiles text into a choice between technologies, and makes it fixed if it asks for no fact of the workload.
func (c *compiler) choice(text string, technologies []Technology) (choice, error) {
	made, err := c.compile(c.both, text)
	if err != nil {
		return choice{}, err
	}
	fixed, err := c.compile(c.tech, text)
	if err != nil {
		return choice{condition: made}, nil
	}
	chosen, err := choice{condition: fixed}.among(technologies, &facts{})
	return choice{fixed: chosen}, err
}

// among returns the technologies for which c holds.
func (c choice) among(technologies []Technology, f *facts) (set, error) {
	if c.program == nil {
		return c.fixed, nil
	}
	var chosen set
	for i := range technologies {
		f.tech = &technologies[i].facts
		holds, err := c.holds(f)
		if err != nil {
			return 0, fmt.Errorf("for %s: %w", technologies[i].Name, err)
		}
		if holds {
			chosen |= 1 << i
		}
	}
	f.tech = nil
	return chosen, nil
}
