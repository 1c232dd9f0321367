package cli

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"

	firebreakv1 "github.com/firebreak-dev/firebreak/internal/api/firebreak/v1"
	"github.com/firebreak-dev/firebreak/internal/config"
)

// maxEnvFile bounds an --env-file: what does not fit into a program's environment is no such file.
const maxEnvFile = 1 << 20

// parseSize reads a number of bytes with an optional binary unit.
func parseSize(s string) (int64, error) { return config.ParseSize(s) }

// formatSize is the inverse for people: "512 MiB".
func formatSize(n int64) string {
	units := []string{"B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"}
	value, i := float64(n), 0
	for value >= 1024 && i < len(units)-1 {
		value, i = value/1024, i+1
	}
	text := strconv.FormatFloat(value, 'f', 1, 64)
	return strings.TrimSuffix(text, ".0") + " " + units[i]
}

// sizeFlag is a pflag.Value.
type sizeFlag int64

func (f *sizeFlag) Set(s string) (err error) {
	n, err := parseSize(s)
	*f = sizeFlag(n)
	return err
}

func (f *sizeFlag) Type() string { return "size" }

func (f *sizeFlag) String() string {
	if *f == 0 {
		return ""
	}
	return formatSize(int64(*f))
}

// durationFlag is a pflag.Value; a number without a unit is seconds.
type durationFlag time.Duration

func (f *durationFlag) Set(s string) error {
	d, err := config.ParseDuration(s)
	if err == nil {
		*f = durationFlag(d)
	}
	return err
}

func (f *durationFlag) Type() string { return "duration" }

func (f *durationFlag) String() string {
	if *f == 0 {
		return ""
	}
	return time.Duration(*f).String()
}

// parseVolume reads host:guest[:ro]; dir is as for hostPath.
func parseVolume(s, dir string) (*firebreakv1.Mount, error) {
	const mend = "write it like --volume ./data:/data or --volume ./data:/data:ro"
	parts := strings.Split(s, ":")
	m := &firebreakv1.Mount{}
	if last := parts[len(parts)-1]; len(parts) == 3 && (last == "ro" || last == "rw") {
		m.ReadOnly, parts = last == "ro", parts[:2]
	}
	if len(parts) != 2 || parts[0] == "" || strings.ContainsRune(s, 0) {
		return nil, invalid("", fmt.Errorf("--volume %q is not host:guest[:ro]", s), mend)
	}
	m.Target = filepath.Clean(parts[1])
	if !filepath.IsAbs(m.Target) || m.Target == "/" {
		return nil, invalid("", fmt.Errorf("--volume %q: %q is no absolute path below / in the sandbox", s, parts[1]), mend)
	}
	var err error
	if m.Source, err = hostPath(parts[0], dir); err != nil {
		return nil, invalid("", fmt.Errorf("--volume %q: %w", s, err), mend)
	}
	return m, nil
}

// hostPath makes a path of the host absolute. It may be relative to dir; dir "" forbids that, because the host is another
// machine.
func hostPath(path, dir string) (string, error) {
	if path == "" || strings.ContainsRune(path, 0) {
		return "", errors.New("it names no path of the host")
	}
	if rest, home := strings.CutPrefix(path, "~/"); home && dir != "" {
		base, err := os.UserHomeDir()
		if err != nil {
			return "", err
		}
		path = filepath.Join(base, rest)
	}
	if !filepath.IsAbs(path) {
		if dir == "" {
			return "", errors.New("the path must be absolute, it is one of the server's host")
		}
		path = filepath.Join(dir, path)
	}
	return filepath.Clean(path), nil
}

// environment collects --env-file and then --env, so that the latter win.
func (a *app) environment(pairs, files []string) (map[string]string, error) {
	env := map[string]string{}
	for _, name := range files {
		f, err := os.Open(name)
		if err != nil {
			return nil, invalid("", fmt.Errorf("--env-file: %w", err), "")
		}
		lines, err := readEnvFile(f)
		_ = f.Close() // opened for reading only
		if err != nil {
			return nil, invalid("", fmt.Errorf("--env-file %s: %w", name, err), "")
		}
		if err := a.addEnvironment(env, lines); err != nil {
			return nil, err
		}
	}
	return env, a.addEnvironment(env, pairs)
}

func (a *app) addEnvironment(env map[string]string, pairs []string) error {
	for _, pair := range pairs {
		name, value, given := strings.Cut(pair, "=")
		if name == "" || strings.ContainsRune(pair, 0) || strings.ContainsAny(name, " \t") {
			return invalid("", fmt.Errorf("environment variable %q has no valid name", pair), "write it like -e NAME=value or -e NAME")
		}
		if !given {
			if value, given = a.lookupEnv(name); !given {
				a.warn("environment variable %s is not set here, so the sandbox does not get it", name)
				continue
			}
		}
		env[name] = value
	}
	return nil
}

// readEnvFile returns the lines that are neither empty nor comments. As docker run has it, a value is taken as it
// stands: quotes are part of it.
func readEnvFile(r io.Reader) ([]string, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxEnvFile+1))
	if err != nil {
		return nil, err
	}
	if len(data) > maxEnvFile {
		return nil, fmt.Errorf("is larger than %s", formatSize(maxEnvFile))
	}
	var lines []string
	scanner := bufio.NewScanner(strings.NewReader(strings.TrimPrefix(string(data), "\ufeff")))
	scanner.Buffer(nil, maxEnvFile+1)
	for scanner.Scan() {
		line := strings.TrimLeft(scanner.Text(), " \t")
		if line != "" && !strings.HasPrefix(line, "#") {
			lines = append(lines, line)
		}
	}
	return lines, scanner.Err()
}
