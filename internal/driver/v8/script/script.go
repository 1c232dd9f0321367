// Package script makes JavaScript ready for the isolates of the driver v8, and reads what they tell. It is given the code
// of strangers and what that says, and takes both for hostile.
package script

import (
	"fmt"
	"regexp"
	"strings"
	"sync"

	"github.com/tdewolff/parse/v2"
	"github.com/tdewolff/parse/v2/js"
)

// MaxCode bounds what is evaluated at once, a program with all of its modules, in bytes.
const MaxCode = 8 << 20

// Script is code made ready for an isolate's eval, which keeps only what var and function declare.
type Script struct {
	Code  string
	Boxed bool     // it is a promise of [value]
	Named []string // modules, by import statements, import() and require; MaxNamed and one, if there are more
}

// Prepare makes code ready, so that what it declares at its top is there in the next run, whose last expression is its
// value, and in which await and import may stand at the top. Code that is not JavaScript is left as it is, for V8 to
// say what is wrong with it; the parser refuses what is nested too deep, and so cannot be made to overflow.
func Prepare(code string) Script {
	if len(code) > MaxCode {
		return Script{Code: code}
	}
	ast, err := parseCode(code)
	if err != nil {
		return Script{Code: code}
	}
	r := rewriter{async: waits(ast)}
	js.Walk(&r.naming, ast)
	for i, stmt := range ast.List {
		r.statement(stmt, i == len(ast.List)-1)
	}
	s := r.script()
	s.Named = r.named
	return s
}

// attributes are those of import statements, which the parser does not know: with { type: 'json' }.
var attributes = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^([ \t]*(?:import|export)\b[^;'"\n]*(?:['"][^'"\n]*['"]))[ \t]*(?:with|assert)[ \t]*\{[^{}]*\}`)
})

// parseCode parses a script or a module.
func parseCode(code string) (*js.AST, error) {
	ast, err := parseEither(code)
	if err != nil {
		if plain := attributes().ReplaceAllString(code, "$1"); plain != code {
			return parseEither(plain)
		}
	}
	return ast, err
}

func parseEither(code string) (*js.AST, error) {
	ast, err := js.Parse(parse.NewInputString(code), js.Options{})
	if err != nil {
		// The parser knows await at the top of modules only, and takes a program for one at its first import.
		ast, err = js.Parse(parse.NewInputString("import ''\n"+code), js.Options{})
		if err != nil {
			return nil, err
		}
		ast.List = ast.List[1:]
	}
	return ast, nil
}

// naming notes the modules that code names, and has modules.js do its import().
type naming struct {
	named   []string // one more than there may be, if there are more
	known   map[string]bool
	dynamic bool // there is import()
}

func (n *naming) note(spec string) {
	if n.known[spec] || len(n.named) > MaxNamed {
		return
	}
	if n.known == nil {
		n.known = map[string]bool{}
	}
	n.known[spec] = true
	n.named = append(n.named, spec)
}

// noteLiteral notes what stands in quotes. With escapes, which nobody needs for a file, it is not looked for.
func (n *naming) noteLiteral(literal []byte) {
	if spec, ok := unquote(literal); ok {
		n.note(spec)
	}
}

// Enter implements js.IVisitor.
func (n *naming) Enter(node js.INode) js.IVisitor {
	switch node := node.(type) {
	case *js.ImportStmt:
		n.noteLiteral(node.Module)
	case *js.CallExpr:
		n.call(node)
	}
	return n
}

// Exit implements js.IVisitor.
func (*naming) Exit(js.INode) {}

// call notes what import() and require name.
func (n *naming) call(c *js.CallExpr) {
	literal, isImport := c.X.(*js.LiteralExpr)
	isImport = isImport && literal.TokenType == js.ImportToken
	v, isVar := c.X.(*js.Var)
	if isImport {
		n.dynamic = true
		literal.Data = []byte("$import")
	} else if !isVar || string(v.Data) != "require" {
		return
	}
	if len(c.Args.List) == 0 {
		return
	}
	if arg, ok := c.Args.List[0].Value.(*js.LiteralExpr); ok && arg.TokenType == js.StringToken {
		n.noteLiteral(arg.Data)
	}
}

// waits reports whether await or import stands at the top of code, outside of its functions.
func waits(ast *js.AST) bool {
	w := &awaiting{}
	js.Walk(w, ast)
	return w.found || w.modules
}

// awaits reports whether await does.
func awaits(ast *js.AST) bool {
	w := &awaiting{}
	js.Walk(w, ast)
	return w.found
}

type awaiting struct{ found, modules bool }

func (w *awaiting) Enter(n js.INode) js.IVisitor {
	switch n := n.(type) {
	case *js.FuncDecl, *js.ArrowFunc, *js.MethodDecl:
		return nil
	case *js.UnaryExpr:
		w.found = w.found || n.Op == js.AwaitToken
	case *js.ForOfStmt:
		w.found = w.found || n.Await
	case *js.ImportStmt, *js.ExportStmt:
		w.modules = true
	}
	return w
}

func (w *awaiting) Exit(js.INode) {}

// rewriter writes statements of the top anew.
type rewriter struct {
	naming
	async bool
	outer strings.Builder // declarations, before all else
	body  strings.Builder
}

func (r *rewriter) script() Script {
	if !r.async {
		return Script{Code: r.outer.String() + r.body.String()}
	}
	return Script{Code: r.outer.String() + "(async () => {\n" + r.body.String() + "\nreturn [undefined]\n})()", Boxed: true}
}

func (r *rewriter) statement(stmt js.IStmt, last bool) {
	switch s := stmt.(type) {
	case *js.VarDecl:
		r.variables(s)
	case *js.ClassDecl:
		if s.Name == nil { // export default class {}
			fmt.Fprintf(&r.body, "void (%s);\n", text(s))
			return
		}
		fmt.Fprintf(&r.outer, "var %s;\n", s.Name.Data)
		fmt.Fprintf(&r.body, "void (%s = %s);\n", s.Name.Data, text(s))
	case *js.FuncDecl:
		if s.Name != nil {
			r.outer.WriteString(text(s) + "\n")
		}
	case *js.ImportStmt:
		r.imports(s)
	case *js.ExportStmt:
		r.exports(s, last)
	case *js.ExprStmt:
		if last && r.async {
			fmt.Fprintf(&r.body, "return [(%s)];\n", text(s.Value))
			return
		}
		// A value that begins like a function or a block is none.
		fmt.Fprintf(&r.body, "(%s);\n", text(s.Value))
	default:
		r.body.WriteString(text(stmt) + "\n")
	}
}

// variables declares at the outside, and assigns where the declaration was.
func (r *rewriter) variables(d *js.VarDecl) {
	for _, e := range d.List {
		if e.Binding == nil {
			continue
		}
		for _, name := range bound(e.Binding) {
			fmt.Fprintf(&r.outer, "var %s;\n", name)
		}
		switch {
		case e.Default != nil:
			// Statements that have no value leave that of the one before, so void is not it.
			fmt.Fprintf(&r.body, "void (%s = %s);\n", text(e.Binding), text(e.Default))
		case d.TokenType != js.VarToken:
			fmt.Fprintf(&r.body, "void (%s = undefined);\n", text(e.Binding))
		}
	}
}

// bound returns the names that a pattern binds, in their order.
func bound(b js.IBinding) (names []string) {
	switch b := b.(type) {
	case *js.Var:
		return []string{string(b.Data)}
	case *js.BindingArray:
		for _, e := range b.List {
			names = append(names, bound(e.Binding)...)
		}
		return append(names, bound(b.Rest)...)
	case *js.BindingObject:
		for _, item := range b.List {
			names = append(names, bound(item.Value.Binding)...)
		}
		if b.Rest != nil {
			names = append(names, string(b.Rest.Data))
		}
	}
	return names
}

// imports makes import() of an import statement, as modules.js does it.
func (r *rewriter) imports(s *js.ImportStmt) {
	from := fmt.Sprintf("await $import(%s)", s.Module)
	declare := func(name []byte) { fmt.Fprintf(&r.outer, "var %s;\n", name) }
	if len(s.Default) > 0 {
		declare(s.Default)
		fmt.Fprintf(&r.body, "%s = (%s).default;\n", s.Default, from)
	}
	for _, a := range s.List {
		if len(a.Binding) == 0 {
			continue
		}
		declare(a.Binding)
		switch {
		case string(a.Name) == "*":
			fmt.Fprintf(&r.body, "%s = %s;\n", a.Binding, from)
		case len(a.Name) > 0:
			fmt.Fprintf(&r.body, "%s = (%s).%s;\n", a.Binding, from, a.Name)
		default:
			fmt.Fprintf(&r.body, "%s = (%s).%s;\n", a.Binding, from, a.Binding)
		}
	}
	if len(s.Default) == 0 && len(s.List) == 0 {
		r.body.WriteString(from + ";\n")
	}
}

// exports keeps what is declared; nobody imports it.
func (r *rewriter) exports(s *js.ExportStmt, last bool) {
	switch d := s.Decl.(type) {
	case nil:
	case js.IStmt:
		r.statement(d, last)
	default:
		fmt.Fprintf(&r.body, "(%s);\n", text(d))
	}
}

func text(n js.INode) string {
	var w flush
	n.JS(&w)
	return w.String()
}

// flush keeps what is written but for indentation. That would make a line in a thousand blocks a thousand times as long,
// and would get into strings that go on in the next line. It comes in writes of its own: what else begins with two spaces
// is the rest of such a string, and ends in a quote or a line's end.
type flush struct{ strings.Builder }

func (f *flush) Write(p []byte) (int, error) {
	if len(p) > 1 && p[0] == ' ' && p[1] == ' ' && p[len(p)-1] == ' ' {
		return len(p), nil
	}
	return f.Builder.Write(p)
}
