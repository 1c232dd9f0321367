package script

import (
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"

	"github.com/tdewolff/parse/v2/js"
)

// Module is a file of a program, as modules.js takes it.
type Module struct {
	Kind string            `json:"kind"`           // esm, cjs, json or error
	Code string            `json:"code"`           // error: as Node has it
	Name string            `json:"name,omitempty"` // error
	Text string            `json:"text,omitempty"` // error
	From map[string]string `json:"from,omitempty"` // paths of the modules that its own names for them mean

	// Of ES modules.
	Deps    []string   `json:"deps,omitempty"` // what its import statements name, in their order
	Imports []Imported `json:"imports,omitempty"`
	Stars   []int      `json:"stars,omitempty"` // numbers of those of which it exports all
	Async   bool       `json:"async,omitempty"` // await stands at its top

	Named []string `json:"-"` // by import statements, import() and require
}

// Imported is what a module imports: a name of another, or with none all of it.
type Imported struct {
	Of   int    `json:"of"` // its number
	Name string `json:"name"`
}

// MaxNamed bounds the other modules that one module, or code of a context, names.
const MaxNamed = 2000

// maxImported bounds the names of theirs that one imports.
const maxImported = 20_000

// looksES tells ES modules from CommonJS where the parser gave up.
var looksES = sync.OnceValue(func() *regexp.Regexp {
	return regexp.MustCompile(`(?m)^\s*(?:import\b[^(.]|export\b)`)
})

// NewModule makes a module of the JavaScript of a file.
func NewModule(name, code string) *Module {
	if line, ok := strings.CutPrefix(code, "#!"); ok {
		code = "//" + line
	}
	ast, err := parseCode(code)
	isES := slices.Contains([]string{".mjs", ".mts"}, path.Ext(name))
	if err != nil {
		if isES || looksES().MatchString(code) {
			text, _, _ := strings.Cut(err.Error(), "\n")
			return &Module{Kind: "error", Name: "SyntaxError", Text: text}
		}
		return commonJS(code) // for V8 to say what is wrong with it
	}
	m := &Module{Async: awaits(ast)}
	w := &linking{m: m}
	for _, stmt := range ast.List {
		w.statement(stmt)
	}
	js.Walk(w, ast)
	m.Named = w.named
	if len(m.Named) > MaxNamed || len(m.Imports) > maxImported {
		return &Module{Kind: "error", Text: fmt.Sprintf("more than %d modules, or %d names of theirs, are imported", MaxNamed, maxImported)}
	}
	common := slices.Contains([]string{".cjs", ".cts"}, path.Ext(name))
	if !isES && (common || !w.isES && !m.Async) {
		if w.dynamic { // import() finds modules of the program
			code = text(ast)
		}
		c := commonJS(code)
		c.Named = m.Named
		return c
	}
	m.Kind = "esm"
	m.Code = w.write(ast)
	return m
}

// commonJS puts code, whose lines stay where they are, into the function that Node puts it into.
func commonJS(code string) *Module {
	return &Module{Kind: "cjs", Code: "(function (exports, require, module, __filename, __dirname, $import) {" + code + "\n})"}
}

// linking finds what a module imports and exports, and makes the generator of it that modules.js runs: what it imports
// is a getter of $of, asked each time that it is used.
type linking struct {
	m       *Module
	isES    bool
	names   map[string]string  // what is imported, and what is written for it
	vars    map[*js.Var]string // the same, by where the names are
	exports strings.Builder
	naming
	deps map[string]int // numbers of the modules that statements name
}

// dep is the number of a module that a statement names.
func (w *linking) dep(literal []byte) int {
	spec, ok := unquote(literal)
	if !ok {
		spec = string(literal)
	}
	if i, ok := w.deps[spec]; ok || len(w.named) > MaxNamed {
		return i
	}
	if w.deps == nil {
		w.deps = map[string]int{}
	}
	w.note(spec)
	w.deps[spec] = len(w.m.Deps)
	w.m.Deps = append(w.m.Deps, spec)
	return w.deps[spec]
}

// unquote returns what is in a string without escapes.
func unquote(literal []byte) (string, bool) {
	if len(literal) < 2 || strings.ContainsRune(string(literal), '\\') {
		return "", false
	}
	return string(literal[1 : len(literal)-1]), true
}

// statement takes what a statement at the top imports.
func (w *linking) statement(stmt js.IStmt) {
	switch s := stmt.(type) {
	case *js.ImportStmt:
		w.isES = true
		w.imports(s)
	case *js.ExportStmt:
		w.isES = true
		if s.Module != nil {
			w.dep(s.Module)
		}
	}
}

func (w *linking) imports(s *js.ImportStmt) {
	if w.names == nil {
		w.names = map[string]string{}
	}
	i := w.dep(s.Module)
	for _, a := range append([]js.Alias{{Name: []byte("default"), Binding: s.Default}}, s.List...) {
		switch {
		case len(a.Binding) == 0:
		case string(a.Name) == "*":
			w.names[string(a.Binding)] = w.member(i, nil)
		case len(a.Name) > 0:
			w.names[string(a.Binding)] = w.member(i, a.Name)
		default:
			w.names[string(a.Binding)] = w.member(i, a.Binding)
		}
	}
}

// member is an expression for what another module exports, or for all of it. It is short, however long the name is and
// however often it is used, and its call has no this.
func (w *linking) member(of int, name []byte) string {
	text := string(name)
	if plain, ok := unquote(name); ok && (name[0] == '"' || name[0] == '\'') {
		text = plain
	}
	if len(w.m.Imports) <= maxImported {
		w.m.Imports = append(w.m.Imports, Imported{of, text})
	}
	return fmt.Sprintf("(0,$of[%d])", len(w.m.Imports)-1)
}

// Enter implements js.IVisitor: it writes anew what an expression has of modules, and notes what it names.
func (w *linking) Enter(n js.INode) js.IVisitor {
	switch n := n.(type) {
	case *js.AST:
		w.vars = map[*js.Var]string{}
		for _, v := range n.Undeclared {
			if as, ok := w.names[string(v.Data)]; ok {
				w.vars[last(v)] = as
			}
		}
	case *js.Var:
		if as, ok := w.vars[last(n)]; ok {
			last(n).Data, n.Data = []byte(as), []byte(as)
		}
	case *js.DotExpr:
		if _, ok := n.X.(*js.ImportMetaExpr); ok {
			w.isES = true
			n.X = &js.Var{Data: []byte("$meta")}
		}
	case *js.CallExpr:
		w.call(n)
	}
	return w
}

// Exit implements js.IVisitor.
func (*linking) Exit(js.INode) {}

func last(v *js.Var) *js.Var {
	for v.Link != nil {
		v = v.Link
	}
	return v
}

// write writes the generator.
func (w *linking) write(ast *js.AST) string {
	var body strings.Builder
	for _, stmt := range ast.List {
		switch s := stmt.(type) {
		case *js.ImportStmt:
		case *js.ExportStmt:
			w.export(s, &body)
		default:
			body.WriteString(text(stmt) + ";\n")
		}
	}
	kind := "function*"
	if w.m.Async {
		kind = "async function*"
	}
	return "(" + kind + " (require, $import, $meta, $of, $export) { 'use strict'; $export({" + w.exports.String() + "}); yield;\n" + body.String() + "})"
}

// exported adds a name, and the expression that is it.
func (w *linking) exported(name []byte, as string) {
	key := string(name)
	if name[0] != '"' && name[0] != '\'' {
		key = strconv.Quote(key)
	}
	fmt.Fprintf(&w.exports, "[%s]: () => %s, ", key, as)
}

func (w *linking) export(s *js.ExportStmt, body *strings.Builder) {
	switch d := s.Decl.(type) {
	case nil:
		w.exportList(s)
	case *js.VarDecl:
		for _, e := range d.List {
			for _, name := range bound(e.Binding) {
				w.exported([]byte(name), name)
			}
		}
		body.WriteString(text(d) + ";\n")
	case *js.FuncDecl:
		w.exportNamed(s, d.Name, text(d), body)
	case *js.ClassDecl:
		w.exportNamed(s, d.Name, text(d), body)
	default:
		w.exportNamed(s, nil, "("+text(d)+")", body)
	}
}

// exportNamed exports a function or a class by its name, or what has none as the default.
func (w *linking) exportNamed(s *js.ExportStmt, v *js.Var, code string, body *strings.Builder) {
	name := "$default"
	if v != nil {
		name = string(v.Name())
		body.WriteString(code + ";\n")
	} else {
		body.WriteString("const $default = " + code + ";\n")
	}
	if s.Default {
		w.exported([]byte("default"), name)
	} else {
		w.exported([]byte(name), name)
	}
}

// exportList exports what is there already, or another module has.
func (w *linking) exportList(s *js.ExportStmt) {
	from := -1
	if s.Module != nil {
		from = w.dep(s.Module)
	}
	for _, a := range s.List {
		local := a.Name
		if len(local) == 0 {
			local = a.Binding
		}
		switch {
		case len(a.Binding) == 0:
		case from >= 0 && string(a.Binding) == "*":
			w.m.Stars = append(w.m.Stars, from)
		case from >= 0 && string(a.Name) == "*":
			w.exported(a.Binding, w.member(from, nil))
		case from >= 0:
			w.exported(a.Binding, w.member(from, local))
		case w.names[string(local)] != "":
			w.exported(a.Binding, w.names[string(local)])
		default:
			w.exported(a.Binding, string(local))
		}
	}
}
