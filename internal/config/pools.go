package config

import (
	"encoding/json"
	"errors"
	"fmt"
	"strconv"

	"go.yaml.in/yaml/v3"

	"github.com/firebreak-dev/firebreak"
)

func (r *reader) pools(n *yaml.Node) error {
	if n.Kind != yaml.SequenceNode {
		return r.fail(n, "pools is no list")
	}
	for _, item := range n.Content {
		p, err := r.pool(item)
		if err != nil {
			return err
		}
		r.config.Pools = append(r.config.Pools, p)
	}
	return nil
}

// field reads the value of one key.
type field func(n *yaml.Node) error

func (r *reader) pool(n *yaml.Node) (Pool, error) {
	var p Pool
	err := r.fields(n, "a pool", map[string]field{
		"name":     r.word(&p.Name),
		"template": r.word(&p.Template),
		"driver":   r.word(&p.Driver),
		"workload": r.workload(&p.Workload),
		"warm":     r.words(&p.Warm),
		"min":      r.count(&p.Min, 0),
		"max":      r.count(&p.Max, 1),
		"limits":   func(n *yaml.Node) error { return r.limits(n, &p.Limits) },
	})
	switch {
	case err != nil:
		return p, err
	case p.Max == 0:
		return p, r.fail(n, "a pool needs a max")
	case p.Max < p.Min:
		return p, r.fail(n, "a pool has max %d below min %d", p.Max, p.Min)
	}
	return p, nil
}

func (r *reader) limits(n *yaml.Node, l *firebreak.Limits) error {
	return r.fields(n, "limits", map[string]field{
		"cpus": r.scalar(func(s string) (err error) {
			l.CPUs, err = strconv.ParseFloat(s, 64)
			if err != nil || !(l.CPUs >= 0.01 && l.CPUs <= 1<<16) {
				err = errors.New("it is no number of processors, from 0.01 on")
			}
			return err
		}),
		"memory": r.scalar(func(s string) (err error) { l.Memory, err = ParseSize(s); return err }),
		"disk":   r.scalar(func(s string) (err error) { l.Disk, err = ParseSize(s); return err }),
		"pids": r.scalar(func(s string) (err error) {
			l.PIDs, err = strconv.ParseInt(s, 10, 23)
			if err != nil || l.PIDs < 1 {
				err = errors.New("it is no number of processes")
			}
			return err
		}),
	})
}

// fields reads a mapping whose keys are all known.
func (r *reader) fields(n *yaml.Node, what string, fields map[string]field) error {
	return r.each(n, what, func(name string, key, value *yaml.Node) error {
		read, known := fields[name]
		if !known {
			return r.fail(key, "unknown key %q in %s", name, what)
		}
		return read(value)
	})
}

func (r *reader) scalar(set func(string) error) field {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.ScalarNode || n.Tag == "!!null" {
			return r.fail(n, "it is no single value")
		}
		if err := set(n.Value); err != nil {
			return r.fail(n, "%.60q: %w", n.Value, err)
		}
		return nil
	}
}

func (r *reader) word(into *string) field {
	return r.scalar(func(s string) error { *into = s; return nil })
}

func (r *reader) count(into *int, least int) field {
	return r.scalar(func(s string) error {
		n, err := strconv.Atoi(s)
		if err != nil || n < least || n > maxPool {
			return fmt.Errorf("it is no number from %d to %d", least, maxPool)
		}
		*into = n
		return nil
	})
}

// maxPool bounds a pool: more ready sandboxes than these are a slip of the pen.
const maxPool = 10_000

func (r *reader) words(into *[]string) field {
	return func(n *yaml.Node) error {
		if n.Kind != yaml.SequenceNode {
			return r.fail(n, "it is no list")
		}
		for _, item := range n.Content {
			var word string
			if err := r.word(&word)(item); err != nil {
				return err
			}
			*into = append(*into, word)
		}
		return nil
	}
}

// workload reads what package firebreak knows to read from JSON.
func (r *reader) workload(into *firebreak.Workload) field {
	return func(n *yaml.Node) error {
		var facts map[string]any
		err := n.Decode(&facts)
		text, jsonErr := json.Marshal(facts)
		if err = errors.Join(err, jsonErr); err == nil {
			*into, err = firebreak.ReadWorkload(text)
		}
		if err != nil {
			return r.fail(n, "%w", err)
		}
		return nil
	}
}
