package mcp

import (
	"bufio"
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"path"
	"regexp"
	"strings"
	"sync"

	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

const (
	maxPattern   = 1000
	maxMatches   = 200
	maxMatchLine = 400      // bytes of a line that is shown
	searchFiles  = 5000     // files of one search
	searchFile   = 2 << 20  // bytes of each that are looked at
	searchAll    = 64 << 20 // bytes of all
	searchDepth  = 20
	searchers    = 8
)

type searchIn struct {
	Pattern    string `json:"pattern" jsonschema:"regular expression in RE2's syntax, matched within each line"`
	Path       string `json:"path,omitempty" jsonschema:"file or directory; default: the sandbox's home, or /workspace if one is shared"`
	Glob       string `json:"glob,omitempty" jsonschema:"only files whose name matches, like *.go"`
	IgnoreCase bool   `json:"ignore_case,omitempty"`
	Sandbox    string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type match struct {
	Path string `json:"path"`
	Line int    `json:"line"`
	Text string `json:"text"`
}

type searchOut struct {
	Sandbox   string  `json:"sandbox"`
	Matches   []match `json:"matches"`
	Searched  int     `json:"searched" jsonschema:"how many files"`
	Truncated bool    `json:"truncated,omitempty" jsonschema:"there may be more: narrow the search"`
}

func (d *Door) addSearchTool() {
	add(d, tool{name: "search_files", title: "Search in files", readOnly: true,
		about:  "Find lines that match a regular expression in text files of the sandbox, 200 at most. Hidden directories and node_modules are searched only if path names them.",
		limits: limits{"pattern": longest(maxPattern), "path": longest(maxPath), "glob": longest(maxPattern), "sandbox": longest(maxID)}},
		(*call).search)
}

// search is one search at work.
type search struct {
	call    *call
	guest   *guest.Guest
	pattern *regexp.Regexp

	mu   sync.Mutex
	out  searchOut // guarded by mu
	left int64     // guarded by mu: bytes
	err  error     // guarded by mu: the first one that is not of a single file
}

func (c *call) search(in searchIn) (result, searchOut, error) {
	words := in.Pattern
	if in.IgnoreCase {
		words = "(?i)" + words
	}
	pattern, err := regexp.Compile(words)
	if err != nil {
		return result{}, searchOut{}, invalid("write it in RE2's syntax: no lookaround, no backreferences", "the pattern cannot be read: %w", err)
	}
	if _, err := path.Match(in.Glob, "x"); err != nil {
		return result{}, searchOut{}, invalid("write it like *.go", "the glob cannot be read: %w", err)
	}
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, searchOut{}, err
	}
	s := &search{call: c, guest: g, pattern: pattern, out: searchOut{Sandbox: b.id, Matches: []match{}}, left: searchAll}
	files, err := s.files(cmp.Or(in.Path, c.home()), in.Glob)
	if err != nil {
		return result{}, searchOut{}, err
	}
	s.all(files)
	if err := cmp.Or(c.ctx.Err(), s.err); err != nil {
		return result{}, searchOut{}, err
	}
	return text("%s", s.text()), s.out, nil
}

// files lists what is to be searched.
func (s *search) files(root, glob string) ([]string, error) {
	entries, err := s.call.entries(s.guest, root, searchDepth)
	if err != nil {
		if f, _, readErr := s.guest.ReadFile(s.call.ctx, root, "", 0, 1); readErr == nil { // it is a file
			return []string{root}, f.Close()
		}
		return nil, err
	}
	base := "" // what all paths begin with, so that only what is below it counts as hidden
	if len(entries) > 0 {
		base = path.Dir(entries[0].GetPath())
	}
	var files []string
	for _, e := range entries {
		if e.GetType() != filesystem.FileType_FILE_TYPE_FILE || e.SymlinkTarget != nil || e.GetSize() == 0 || aside(strings.TrimPrefix(e.GetPath(), base)) {
			continue
		}
		if ok, _ := path.Match(glob, e.GetName()); glob != "" && !ok { // the glob was tried
			continue
		}
		if len(files) == searchFiles {
			s.out.Truncated = true
			break
		}
		files = append(files, e.GetPath())
	}
	return files, nil
}

// aside reports whether a path goes through a directory that few mean when they search.
func aside(below string) bool {
	dir, _ := path.Split(below)
	for part := range strings.SplitSeq(dir, "/") {
		if part == "node_modules" || strings.HasPrefix(part, ".") && part != "." && part != ".." {
			return true
		}
	}
	return false
}

// all searches the files, some at a time. Which matches are shown when there are too many is by chance; their order is not.
func (s *search) all(files []string) {
	found, slots := make([][]match, len(files)), make(chan struct{}, searchers)
	var work sync.WaitGroup
	for i, name := range files {
		if s.over() {
			break
		}
		slots <- struct{}{}
		work.Go(func() {
			defer func() { <-slots }()
			found[i] = s.file(name)
		})
	}
	work.Wait()
	for _, list := range found {
		s.out.Matches = append(s.out.Matches, list...)
	}
	if len(s.out.Matches) > maxMatches {
		s.out.Matches, s.out.Truncated = s.out.Matches[:maxMatches], true
	}
}

func (s *search) over() bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.call.ctx.Err() != nil || s.err != nil {
		return true
	}
	if s.left <= 0 {
		s.out.Truncated = true
	}
	return s.left <= 0
}

// file returns the matches in one file. One that cannot be read, or is no text, has none.
func (s *search) file(name string) []match {
	body, _, err := s.guest.ReadFile(s.call.ctx, name, "", 0, searchFile)
	if err != nil {
		s.failed(err)
		return nil
	}
	defer body.Close() //nolint:errcheck // read as far as we want it
	data, err := io.ReadAll(io.LimitReader(body, searchFile))
	s.mu.Lock()
	s.left -= int64(len(data))
	s.out.Searched++
	s.out.Truncated = s.out.Truncated || len(data) == searchFile
	s.mu.Unlock()
	if err != nil || bytes.IndexByte(data[:min(len(data), 8<<10)], 0) >= 0 {
		return nil
	}
	return s.lines(name, data)
}

// failed keeps an error that is of more than one file.
func (s *search) failed(err error) {
	var broken interface{ Timeout() bool }
	if s.call.ctx.Err() == nil && errors.As(err, &broken) {
		s.mu.Lock()
		defer s.mu.Unlock()
		s.err = cmp.Or(s.err, err)
	}
}

func (s *search) lines(name string, data []byte) []match {
	var found []match
	lines := bufio.NewScanner(bytes.NewReader(data))
	lines.Buffer(nil, searchFile+1)
	for n := 1; lines.Scan() && len(found) <= maxMatches; n++ {
		if line := lines.Bytes(); s.pattern.Match(line) {
			shown, _ := cut(string(line), maxMatchLine, "read_file has them")
			found = append(found, match{Path: valid([]byte(name)), Line: n, Text: shown})
		}
	}
	return found
}

func (s *search) text() string {
	var b strings.Builder
	for _, m := range s.out.Matches {
		fmt.Fprintf(&b, "%s:%d: %s\n", m.Path, m.Line, m.Text)
	}
	if len(s.out.Matches) == 0 {
		fmt.Fprintf(&b, "[nothing matches in %d files]", s.out.Searched)
	}
	if s.out.Truncated {
		b.WriteString("[there may be more: narrow it with path, glob or the pattern]")
	}
	shown, _ := cut(b.String(), maxText, "narrow it with path, glob or the pattern")
	return shown
}
