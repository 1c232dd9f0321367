package cli

import (
	"cmp"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"github.com/spf13/cobra"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
)

// The capabilities that code can be allowed by name.
const (
	allowFetch = "fetch" // to ask a host over the public internet
	allowRead  = "read"  // to read a directory of this host
)

// allowFlag is a pflag.Value: all that --allow names. It has no other capability.
type allowFlag struct{ hosts, reads []string }

func (f *allowFlag) Set(s string) error {
	name, value, _ := strings.Cut(s, "=")
	known := []string{allowFetch, allowRead}
	switch {
	case !contains(known, name):
		mend := "there are fetch=HOST and read=DIR"
		if near := nearest(name, known); near != "" {
			mend = "did you mean " + near + "?"
		}
		return invalid("", fmt.Errorf("there is no capability %q", name), mend)
	case value == "" && name == allowFetch:
		return invalid("", errors.New("it names no host"), "write it like --allow fetch=api.example.com")
	case value == "":
		return invalid("", errors.New("it names no directory"), "write it like --allow read=/data")
	case name == allowFetch:
		f.hosts = append(f.hosts, value)
	default:
		f.reads = append(f.reads, value)
	}
	return nil
}

func (f *allowFlag) Type() string   { return "capability" }
func (f *allowFlag) String() string { return "" }

// apply adds to a request what is allowed: hosts to the driver's option, directories to the mounts.
func (f *allowFlag) apply(req *firebreakv1.CreateSandboxRequest, dir string) error {
	hosts := f.hosts
	if more := req.Options[allowFetch]; more != "" {
		hosts = append([]string{more}, hosts...)
	}
	if len(hosts) > 0 {
		req.Options[allowFetch] = strings.Join(hosts, ",")
	}
	for _, read := range f.reads {
		m, err := parseRead(read, dir)
		if err != nil {
			return err
		}
		req.Mounts = append(req.Mounts, m)
	}
	return nil
}

// parseRead reads DIR, which is seen at its own path, or DIR:GUEST; dir is as for hostPath.
func parseRead(s, dir string) (*firebreakv1.Mount, error) {
	source, target, moved := strings.Cut(s, ":")
	source, err := hostPath(source, dir)
	if err == nil && !moved {
		target = source
	}
	m := &firebreakv1.Mount{Source: source, Target: filepath.Clean(target), ReadOnly: true}
	if err == nil && (!filepath.IsAbs(m.Target) || m.Target == "/" || strings.ContainsAny(target, ":\x00")) {
		err = fmt.Errorf("%q is no absolute path below / in the sandbox", target)
	}
	if err != nil {
		return nil, invalid("", fmt.Errorf("--allow \"read=%s\": %w", s, err), "write it like --allow read=/data or --allow read=./data:/data")
	}
	return m, nil
}

// completeAllow offers the capabilities, and directories of this host to read.
func completeAllow(_ *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
	typed, reads := strings.CutPrefix(word, allowRead+"=")
	if !reads {
		return []string{allowFetch + "=", allowRead + "="}, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
	}
	parent, _ := filepath.Split(typed)
	entries, _ := os.ReadDir(cmp.Or(parent, ".")) // what cannot be listed completes nothing
	var found []string
	for _, e := range entries {
		if e.IsDir() {
			found = append(found, allowRead+"="+parent+e.Name()+"/")
		}
	}
	return found, cobra.ShellCompDirectiveNoSpace | cobra.ShellCompDirectiveNoFileComp
}
