package config

import (
	"encoding/json"
	"fmt"
	"strconv"
	"strings"

	"go.yaml.in/yaml/v3"
)

// YAML returns the settings as a file that Load reads, with a comment on each that is not built in: where it comes from.
func (c Config) YAML() string {
	var b strings.Builder
	section := ""
	for _, s := range Settings() {
		name, indent := s.Key, ""
		if head, tail, found := strings.Cut(s.Key, "."); found {
			if head != section {
				fmt.Fprintf(&b, "%s:\n", head)
			}
			section, name, indent = head, tail, "  "
		} else {
			section = ""
		}
		comment := ""
		if source := c.sources[s.Key]; source != "" {
			comment = "  # " + source
		}
		fmt.Fprintf(&b, "%s%s: %s%s\n", indent, name, c.value(s), comment)
	}
	b.WriteString(c.poolsYAML())
	return b.String()
}

// value is a setting's value as YAML on one line.
func (c Config) value(s Setting) string {
	text := s.get(&c)
	switch {
	case s.Key == "cors_origins":
		return flow(split(text), "[", "]")
	case s.Key == "aliases":
		var pairs []string
		for _, pair := range split(text) {
			name, target, _ := strings.Cut(pair, "=")
			pairs = append(pairs, scalar(name)+": "+scalar(target))
		}
		return "{" + strings.Join(pairs, ", ") + "}"
	}
	return scalar(text)
}

func flow(items []string, open, end string) string {
	quoted := make([]string, len(items))
	for i, item := range items {
		quoted[i] = scalar(item)
	}
	return open + strings.Join(quoted, ", ") + end
}

// scalar writes a text so that it is read back as it is; quoted unless it is a plain word.
func scalar(text string) string {
	plain := text != "" && !strings.EqualFold(text, "null") // which says that there is no value
	for i, r := range text {
		letter := r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9'
		plain = plain && (letter || i > 0 && strings.ContainsRune("._-/", r))
	}
	if plain {
		return text
	}
	node := yaml.Node{Kind: yaml.ScalarNode, Style: yaml.DoubleQuotedStyle, Value: text}
	out, err := yaml.Marshal(&node)
	if err != nil {
		return strconv.Quote(text)
	}
	return strings.TrimSuffix(string(out), "\n")
}

// poolYAML is a pool as YAML writes it, field by field as the reader knows them.
type poolYAML struct {
	Name     string         `yaml:"name,omitempty"`
	Template string         `yaml:"template,omitempty"`
	Driver   string         `yaml:"driver,omitempty"`
	Workload map[string]any `yaml:"workload,omitempty"`
	Limits   limitsYAML     `yaml:"limits,omitempty"`
	Warm     []string       `yaml:"warm,omitempty"`
	Min      int            `yaml:"min"`
	Max      int            `yaml:"max"`
}

type limitsYAML struct {
	CPUs   float64 `yaml:"cpus,omitempty"`
	Memory int64   `yaml:"memory,omitempty"`
	Disk   int64   `yaml:"disk,omitempty"`
	PIDs   int64   `yaml:"pids,omitempty"`
}

func (c Config) poolsYAML() string {
	all := make([]poolYAML, len(c.Pools))
	for i, p := range c.Pools {
		all[i] = poolYAML{Name: p.Name, Template: p.Template, Driver: p.Driver, Limits: limitsYAML(p.Limits), Warm: p.Warm, Min: p.Min, Max: p.Max}
		text, err := json.Marshal(p.Workload)
		if err == nil {
			err = json.Unmarshal(text, &all[i].Workload)
		}
		if err != nil { // which a workload that was read cannot cause
			return fmt.Sprintf("# %v\n", err)
		}
		if needs, ok := all[i].Workload["needs"].([]any); ok && len(needs) == 0 {
			delete(all[i].Workload, "needs")
		}
	}
	text, err := yaml.Marshal(map[string]any{"pools": all})
	if err != nil {
		return fmt.Sprintf("# %v\n", err)
	}
	return string(text)
}
