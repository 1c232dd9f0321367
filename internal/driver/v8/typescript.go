package v8

import (
	"archive/tar"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"os"
	"path"
	"strings"

	"github.com/klauspost/compress/gzip"

	"github.com/firebreak-dev/firebreak/internal/driver/v8/script"
)

// Limits of the package of Sucrase, which is much smaller.
const (
	maxPackage = 8 << 20 // bytes
	maxFiles   = 1000
)

// maxTypeScript bounds a source, in bytes: its tokens must find room in one isolate.
const maxTypeScript = 1 << 20

// typeScriptModules returns, as JSON, the modules of the isolate that makes JavaScript of TypeScript, by their names: those
// of Sucrase. Nothing: {}.
func typeScriptModules(archive string) ([]byte, error) {
	if archive == "" {
		return []byte("{}"), nil
	}
	modules, err := readPackage(archive)
	if err != nil {
		return nil, fmt.Errorf("read %s: %w", archive, err)
	}
	// What it needs other packages for, and nobody here.
	modules["Options"] = "export function validateOptions () {}"
	modules["computeSourceMap"] = "export default function () {}"
	modules["util/formatTokens"] = "export default function () {}"
	all := map[string]map[string]string{}
	for name, text := range modules {
		all[name] = map[string]string{"js": text}
		if dir := path.Dir(name); path.Base(name) == "index" && dir != "." {
			all[dir] = map[string]string{"js": fmt.Sprintf("export * from './%s/index'", path.Base(dir))}
		}
	}
	return json.Marshal(all)
}

// readPackage returns the modules in an archive of Sucrase, under the names by which they import each other.
func readPackage(archive string) (map[string]string, error) {
	f, err := os.Open(archive)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	z, err := gzip.NewReader(f)
	if err != nil {
		return nil, err
	}
	defer z.Close()
	modules := map[string]string{}
	r := tar.NewReader(io.LimitReader(z, maxPackage))
	for n := 0; ; n++ {
		h, err := r.Next()
		if errors.Is(err, io.EOF) {
			break
		}
		if err != nil {
			return nil, err
		}
		name, ok := strings.CutPrefix(h.Name, "package/dist/esm/")
		name, isModule := strings.CutSuffix(name, ".js")
		if n > maxFiles || !ok || !isModule || h.Typeflag != tar.TypeReg {
			continue
		}
		text, err := io.ReadAll(r)
		if err != nil {
			return nil, err
		}
		modules[name] = string(text)
	}
	if modules["index"] == "" {
		return nil, errors.New("it is not the package of Sucrase")
	}
	return modules, nil
}

// codeError is an error in code, which its author gets as one that the code threw.
type codeError struct{ name, text string }

func (e *codeError) Error() string { return e.name + ": " + e.text }

// noTypeScript is why there is none.
const noTypeScript = "TypeScript cannot be run in " + placeName + " until it is set up: firebreak setup v8"

// plain makes JavaScript of TypeScript, in an isolate of the tenant's process, so that whatever the code does to its
// parser, it does it there. Keep all imports, also those that nothing uses but as types.
func (p *proc) plain(ctx context.Context, source string, keep bool) (string, error) {
	if !p.typeScript {
		return "", &codeError{"Unsupported", noTypeScript + ", and make a new sandbox"}
	}
	if len(source) > maxTypeScript {
		return "", &codeError{"Unsupported", fmt.Sprintf("TypeScript of more than %d MiB cannot be run in %s", maxTypeScript>>20, placeName)}
	}
	body, err := json.Marshal(map[string]any{"code": source, "keep": keep})
	if err != nil {
		return "", err
	}
	req, err := http.NewRequestWithContext(ctx, http.MethodPost, "http://v8/typescript/strip", bytes.NewReader(body))
	if err != nil {
		return "", err
	}
	res, err := p.client.Do(req)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	text, err := io.ReadAll(io.LimitReader(res.Body, script.MaxCode+1))
	if err != nil {
		return "", err
	}
	if len(text) > script.MaxCode {
		return "", &codeError{"SyntaxError", fmt.Sprintf("its JavaScript has more than %d MiB", script.MaxCode>>20)}
	}
	var answer struct{ Code, Error string }
	if res.StatusCode != http.StatusOK {
		return "", fmt.Errorf("workerd answered %d: %.300q", res.StatusCode, text)
	}
	if err := json.Unmarshal(text, &answer); err != nil {
		return "", fmt.Errorf("%w: %w", errHostile, err)
	}
	if answer.Error != "" {
		// A line, whatever the text is.
		return "", &codeError{"SyntaxError", strings.Join(strings.Fields(answer.Error), " ")}
	}
	return answer.Code, nil
}
