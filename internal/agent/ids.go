package agent

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
)

// The variables, and files in e2b under /run, in which programs that are made for E2B look for where they are.
const (
	sandboxVariable  = "E2B_SANDBOX"
	sandboxIDName    = "E2B_SANDBOX_ID"
	templateIDName   = "E2B_TEMPLATE_ID"
	idsDirectory     = "e2b"
	idsDirectoryMode = 0o755
	idFileMode       = 0o644
)

func (r initRequest) ids() map[string]string {
	ids := map[string]string{}
	for name, id := range map[string]string{sandboxIDName: r.SandboxID, templateIDName: r.TemplateID} {
		if id != "" {
			ids[name] = id
		}
	}
	return ids
}

// environ is the environment of the whole sandbox: what the request names wins over the ids.
func (r initRequest) environ() map[string]string {
	envs := r.ids()
	if len(envs) > 0 {
		envs[sandboxVariable] = "true"
	}
	maps.Copy(envs, r.EnvVars)
	return envs
}

// writeIDs writes the ids into files in run/e2b. What the sandbox's code has put in their place, a link or a FIFO, is
// replaced: it leads nowhere, and nobody waits for it.
func (r initRequest) writeIDs(run string) error {
	ids := r.ids()
	if len(ids) == 0 {
		return nil
	}
	root, err := os.OpenRoot(run)
	if err != nil {
		return err
	}
	defer root.Close()
	if err := root.Mkdir(idsDirectory, idsDirectoryMode); err != nil && !errors.Is(err, fs.ErrExist) {
		return err
	}
	var errs []error
	for name, id := range ids {
		errs = append(errs, replaceFile(root, path.Join(idsDirectory, "."+name), id))
	}
	return errors.Join(errs...)
}

func replaceFile(root *os.Root, name, text string) error {
	fresh := name + ".new"
	if err := root.Remove(fresh); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	f, err := root.OpenFile(fresh, os.O_WRONLY|os.O_CREATE|os.O_EXCL, idFileMode)
	if err != nil {
		return err
	}
	_, err = f.WriteString(text)
	if err = errors.Join(err, f.Close()); err != nil {
		return fmt.Errorf("write %s: %w", name, err)
	}
	return root.Rename(fresh, name)
}
