package policy

import (
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak"
)

const (
	maxFile  = 1 << 20
	maxRules = 500
)

// Default returns the built-in policy. An error would be a bug of ours, which the tests would have found.
func Default() (*Policy, error) { return Load(defaultYAML, "default.yaml") }

// DefaultYAML returns the text of the built-in policy.
func DefaultYAML() []byte { return slices.Clone(defaultYAML) }

// ReadFile reads the text of a policy, for Load. It reads no more than a policy may have.
func ReadFile(name string) ([]byte, error) {
	f, err := os.Open(name)
	if err != nil {
		return nil, err
	}
	text, err := io.ReadAll(io.LimitReader(f, maxFile+1))
	if err = errors.Join(err, f.Close()); err == nil && len(text) > maxFile {
		err = fmt.Errorf("%s is larger than %d bytes", name, maxFile)
	}
	return text, err
}

// Load reads a policy; name is the file's, for messages. With `extends: default` its rules are added to the built-in
// ones, and as rules only take technologies away it cannot accept more; without, it replaces them. Whatever is wrong is
// an error of KindInvalid with file, line and rule.
func Load(data []byte, name string) (*Policy, error) {
	p, err := load(data)
	if err == nil {
		return p, nil
	}
	where := name
	if f := (*fault)(nil); errors.As(err, &f) {
		where = fmt.Sprintf("%s:%d", name, f.line)
		if f.rule != "" {
			where += ": rule " + f.rule
		}
		err = unplaced(err, f)
	}
	return nil, &firebreak.Error{Kind: firebreak.KindInvalid, Op: "read policy", Err: fmt.Errorf("%s: %w", where, err)}
}

// unplaced drops the rule from a fault's text, which the caller puts before it.
func unplaced(err error, f *fault) error {
	if err == error(f) {
		return f.err
	}
	return err
}

func load(data []byte) (*Policy, error) {
	if len(data) > maxFile {
		return nil, faultAt(1, "it has %d bytes, more than %d", len(data), maxFile)
	}
	root, err := parse(data)
	if err != nil {
		return nil, err
	}
	var extends string
	p, nodes := &Policy{}, map[string]*yaml.Node{}
	keep := func(key string) field { return func(n *yaml.Node) error { nodes[key] = n; return nil } }
	if err := readMap(root, "the policy", map[string]field{
		"name": text(&p.name), "extends": text(&extends), "technologies": keep("technologies"), "rules": keep("rules"),
		"table": keep("table"), "tree": keep("tree"), "tests": keep("tests"),
	}); err != nil {
		return nil, err
	}
	if p.name == "" {
		return nil, faultAt(root.Line, "it has no name")
	}
	sum := sha256.Sum256(data)
	if extends != "" {
		if sum, err = p.extend(root, extends, nodes, data); err != nil {
			return nil, err
		}
	}
	p.version = hex.EncodeToString(sum[:6])
	return p, p.read(root, nodes)
}

// extend starts p with what the built-in policy has. Its order of preference, its table of technologies and its pages
// stay as they are: changing them could make a weaker choice.
func (p *Policy) extend(root *yaml.Node, what string, nodes map[string]*yaml.Node, data []byte) ([sha256.Size]byte, error) {
	none := [sha256.Size]byte{}
	if what != "default" {
		return none, faultAt(root.Line, "extends: %q is unknown, only default can be extended", what)
	}
	for _, key := range []string{"technologies", "table", "tree"} {
		if n := nodes[key]; n != nil {
			return none, faultAt(n.Line, "%s: an extension may only tighten, by rules; replace the whole policy to change this", key)
		}
	}
	base, err := load(defaultYAML)
	if err != nil {
		return none, fmt.Errorf("the built-in policy: %w", err)
	}
	p.extends = true
	p.technologies, p.rules, p.table, p.tree = base.technologies, base.rules, base.table, base.tree
	return sha256.Sum256(slices.Concat(defaultYAML, data)), nil
}

// read fills p from the sections of a file.
func (p *Policy) read(root *yaml.Node, nodes map[string]*yaml.Node) error {
	if n := nodes["technologies"]; n != nil {
		if err := readList(n, p.readTechnology); err != nil {
			return fmt.Errorf("technologies: %w", err)
		}
	}
	if len(p.technologies) == 0 || len(p.technologies) > maxTechnologies {
		return faultAt(root.Line, "it has %d technologies: 1 to %d are possible", len(p.technologies), maxTechnologies)
	}
	c, err := newCompiler(p.names(indices(len(p.technologies))))
	if err != nil {
		return err
	}
	if n := nodes["rules"]; n != nil {
		if err := readList(n, func(n *yaml.Node) error { return p.readRule(c, n) }); err != nil {
			return err
		}
	}
	if len(p.rules) == 0 {
		return faultAt(root.Line, "it has no rules, so it would refuse everything")
	}
	if n := nodes["table"]; n != nil {
		if err := readList(n, p.readRow); err != nil {
			return fmt.Errorf("table: %w", err)
		}
	}
	if n := nodes["tree"]; n != nil {
		if p.tree, err = p.readNode(c, n); err != nil {
			return fmt.Errorf("tree: %w", err)
		}
	}
	if n := nodes["tests"]; n != nil {
		if err := readList(n, p.readCase); err != nil {
			return fmt.Errorf("tests: %w", err)
		}
	}
	return nil
}

func indices(n int) []int {
	list := make([]int, n)
	for i := range list {
		list[i] = i
	}
	return list
}

// checkID keeps names of rules and technologies to words that need no quotes anywhere.
func checkID(id string, line int) error {
	const letters = "abcdefghijklmnopqrstuvwxyz"
	if len(id) > 40 || strings.Trim(id, letters+"0123456789-") != "" || !strings.ContainsAny(id[:1], letters) {
		return faultAt(line, "%q is no name: use a-z, 0-9 and hyphens, a letter first, 40 at most", id)
	}
	return nil
}

func (p *Policy) readTechnology(n *yaml.Node) error {
	t := Technology{line: n.Line}
	if err := readMap(n, "a technology", map[string]field{
		"name": text(&t.Name), "title": text(&t.Title), "boundary": word(&t.Boundary), "hardware": boolean(&t.Hardware), "linux": boolean(&t.Linux),
		"gpu": boolean(&t.GPU), "snapshot": boolean(&t.Snapshot), "kubernetes": boolean(&t.Kubernetes), "start": word(&t.Start), "warm": word(&t.Warm),
		"note": text(&t.Note), "get": text(&t.Get),
	}); err != nil {
		return err
	}
	if err := checkID(t.Name, n.Line); err != nil {
		return err
	}
	switch {
	case p.technology(t.Name) >= 0:
		return faultAt(n.Line, "%s stands twice", t.Name)
	case t.Boundary == firebreak.BoundaryInvalid:
		return faultAt(n.Line, "%s has no boundary", t.Name)
	case t.Hardware && t.Boundary != firebreak.BoundaryVirtualMachine:
		return faultAt(n.Line, "%s cannot have a hardware boundary: it is no virtual machine", t.Name)
	case t.Start <= 0 || t.Warm <= 0:
		return faultAt(n.Line, "%s has no start or no warm time", t.Name)
	case t.Get == "":
		return faultAt(n.Line, "%s does not say how to get it", t.Name)
	}
	if t.Title == "" {
		t.Title = t.Name
	}
	t.facts = newTechFacts(t)
	p.technologies = append(p.technologies, t)
	return nil
}

func (p *Policy) readRule(c *compiler, n *yaml.Node) error {
	r := rule{line: n.Line}
	lines := map[string]int{}
	line := func(key string, read field) field {
		return func(n *yaml.Node) error { lines[key] = n.Line; return read(n) }
	}
	err := readMap(n, "a rule", map[string]field{
		"id": text(&r.ID), "rule": number(&r.Number), "asks": text(&r.Asks), "when": line("when", text(&r.When)),
		"boundaries": boundaries(&r.Boundaries), "require": line("require", text(&r.Require)), "prefer": line("prefer", text(&r.Prefer)),
		"duties": duties(&r.Duties), "reason": text(&r.Reason), "corrects": text(&r.Corrects), "source": text(&r.Source),
	})
	if err == nil {
		err = p.checkRule(&r)
	}
	if err != nil {
		return inRule(r.ID, n.Line, err)
	}
	if r.when, err = c.compile(c.workload, r.When); err != nil {
		return inRule(r.ID, lines["when"], fmt.Errorf("when: %w", err))
	}
	if r.Require != "" {
		if r.require, err = c.choice(r.Require, p.technologies); err != nil {
			return inRule(r.ID, lines["require"], fmt.Errorf("require: %w", err))
		}
	}
	if r.Prefer != "" {
		if r.prefer, err = c.choice(r.Prefer, p.technologies); err != nil {
			return inRule(r.ID, lines["prefer"], fmt.Errorf("prefer: %w", err))
		}
	}
	for i, t := range p.technologies {
		if slices.Contains(r.Boundaries, t.Boundary) {
			r.boundaries |= 1 << i
		}
	}
	p.rules = append(p.rules, r)
	return nil
}

// checkRule refuses what would make no sense, and in an extension what could make a weaker choice.
func (p *Policy) checkRule(r *rule) error {
	switch {
	case r.ID == "":
		return faultAt(r.line, "a rule has no id")
	case len(p.rules) == maxRules:
		return faultAt(r.line, "there are more than %d rules", maxRules)
	case slices.ContainsFunc(p.rules, func(other rule) bool { return other.ID == r.ID }):
		return faultAt(r.line, "there is another rule with this id")
	case r.When == "":
		return faultAt(r.line, "it has no when; write `when: true` if it always holds")
	case r.Reason == "" || r.Source == "":
		return faultAt(r.line, "it has no reason or no source")
	case len(r.Boundaries) == 0 && r.Require == "" && r.Prefer == "" && len(r.Duties) == 0:
		return faultAt(r.line, "it demands nothing: it has no boundaries, require, prefer or duties")
	case p.extends && r.Prefer != "":
		return faultAt(r.line, "prefer: an extension may only tighten, and another order could bring a weaker boundary first; use require")
	case p.extends && slices.Contains(r.Boundaries, firebreak.BoundaryNone):
		return faultAt(r.line, "boundaries: an extension may only tighten, so it cannot accept none")
	}
	return checkID(r.ID, r.line)
}

func (p *Policy) readRow(n *yaml.Node) error {
	r := row{line: n.Line}
	err := readMap(n, "a row", map[string]field{
		"capability": text(&r.capability), "workload": workload(&r.workload), "boundaries": boundaries(&r.boundaries),
		"first": text(&r.first), "never": texts(&r.never), "duties": duties(&r.duties),
	})
	if err != nil {
		return err
	}
	if r.capability == "" || len(r.boundaries) == 0 {
		return faultAt(n.Line, "a row has no capability or no boundaries")
	}
	for _, name := range append([]string{r.first}, r.never...) {
		if name != "" && p.technology(name) < 0 {
			return faultAt(n.Line, "%q is no technology", name)
		}
	}
	p.table = append(p.table, r)
	return nil
}

func (p *Policy) readNode(c *compiler, n *yaml.Node) (*node, error) {
	made := &node{line: n.Line}
	branch := func(into **node) field {
		return func(n *yaml.Node) (err error) { *into, err = p.readNode(c, n); return err }
	}
	err := readMap(n, "the tree", map[string]field{
		"ask": text(&made.ask), "when": text(&made.whenText), "yes": branch(&made.yes), "no": branch(&made.no),
		"leaf": text(&made.leaf), "workload": workload(&made.workload), "boundaries": boundaries(&made.boundaries),
	})
	if err != nil {
		return nil, err
	}
	question := made.ask != "" && made.whenText != "" && made.yes != nil && made.no != nil
	leaf := made.leaf != "" && len(made.boundaries) > 0
	if question == leaf || leaf && (made.ask != "" || made.whenText != "" || made.yes != nil || made.no != nil) {
		return nil, faultAt(n.Line, "it is neither a question (ask, when, yes, no) nor a leaf (leaf, workload, boundaries)")
	}
	if question {
		if made.when, err = c.compile(c.workload, made.whenText); err != nil {
			return nil, at(n.Line, err)
		}
	}
	return made, nil
}
