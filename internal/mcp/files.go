package mcp

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"net/http"
	"slices"
	"strings"
	"unicode/utf8"

	"connectrpc.com/connect"
	sdk "github.com/modelcontextprotocol/go-sdk/mcp"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/api"
	"github.com/firebreak-dev/firebreak/internal/api/filesystem"
	"github.com/firebreak-dev/firebreak/internal/guest"
)

const (
	maxPath    = 4096
	maxID      = 100
	maxLines   = 2000     // that read_file gives at once
	maxText    = 48 << 10 // bytes of them
	maxSeek    = 64 << 20 // bytes of a file that are looked through for a line
	maxBinary  = 1 << 20  // bytes that read_file gives in base64
	maxContent = 2 << 20  // bytes that write_file takes
	maxEdit    = 4 << 20  // bytes of a file that edit_file changes
	maxEdits   = 50
	maxList    = 1000 // entries that list_files gives
)

type readFileIn struct {
	Path     string `json:"path" jsonschema:"absolute, or below the sandbox's home"`
	Line     int    `json:"line,omitempty" jsonschema:"first line to return, counted from 1"`
	Lines    int    `json:"lines,omitempty" jsonschema:"how many lines; default and most: 2000"`
	Encoding string `json:"encoding,omitempty" jsonschema:"text (default), or base64 for bytes as they are, 1 MiB at most"`
	Offset   int64  `json:"offset,omitempty" jsonschema:"with base64: byte to begin with"`
	Sandbox  string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type readFileOut struct {
	Sandbox    string `json:"sandbox"`
	Path       string `json:"path"`
	Size       int64  `json:"size" jsonschema:"bytes; -1 if that is not known"`
	Text       string `json:"text,omitempty"`
	Base64     string `json:"base64,omitempty"`
	Image      string `json:"image,omitempty" jsonschema:"media type of a picture, which is in the content"`
	Line       int    `json:"line,omitempty" jsonschema:"number of the first line of text"`
	NextLine   int    `json:"next_line,omitempty" jsonschema:"where to go on, if there is more"`
	NextOffset int64  `json:"next_offset,omitempty" jsonschema:"where to go on, if there is more"`
}

type writeFileIn struct {
	Path     string `json:"path" jsonschema:"absolute, or below the sandbox's home; directories above it are made"`
	Content  string `json:"content" jsonschema:"all of the file"`
	Encoding string `json:"encoding,omitempty" jsonschema:"text (default) or base64"`
	Sandbox  string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type fileOut struct {
	Sandbox string `json:"sandbox"`
	Path    string `json:"path"`
	Size    int    `json:"size"`
}

type edit struct {
	Old string `json:"old" jsonschema:"text that is there, exactly, with its white space"`
	New string `json:"new" jsonschema:"what it becomes"`
	All bool   `json:"all,omitempty" jsonschema:"replace every place; else old must be there exactly once"`
}

type editFileIn struct {
	Path    string `json:"path" jsonschema:"absolute, or below the sandbox's home"`
	Edits   []edit `json:"edits" jsonschema:"done one after the other; if one fails, none is done"`
	Sandbox string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type editFileOut struct {
	Sandbox  string `json:"sandbox"`
	Path     string `json:"path"`
	Size     int    `json:"size"`
	Replaced int    `json:"replaced"`
}

type listFilesIn struct {
	Path    string `json:"path,omitempty" jsonschema:"directory; default: the sandbox's home, or /workspace if one is shared"`
	Depth   int    `json:"depth,omitempty" jsonschema:"how deep; default 1: the directory only"`
	Sandbox string `json:"sandbox,omitempty" jsonschema:"id of another sandbox of this session; default: the session's own"`
}

type fileInfo struct {
	Path   string `json:"path"`
	Type   string `json:"type" jsonschema:"file, directory, symlink or other"`
	Size   int64  `json:"size,omitempty"`
	Target string `json:"target,omitempty"`
}

type listFilesOut struct {
	Sandbox   string     `json:"sandbox"`
	Files     []fileInfo `json:"files"`
	Truncated bool       `json:"truncated,omitempty"`
}

func (d *Door) addFileTools() {
	path, id := longest(maxPath), longest(maxID)
	add(d, tool{name: "read_file", title: "Read a file", readOnly: true,
		about: "Read a file of the sandbox: text by lines (2000 or 48 KiB at once; next_line says where to go on), pictures as pictures, and anything as base64.",
		limits: limits{"path": path, "sandbox": id, "line": between(1, 1<<31), "lines": between(1, maxLines), "encoding": oneOf("text", "base64"),
			"offset": between(0, 1<<50)}},
		(*call).readFile)
	add(d, tool{name: "write_file", title: "Write a file", destructive: true, idempotent: true,
		about:  "Make a file in the sandbox, or replace all of it. For a change within a file, edit_file is shorter and safer.",
		limits: limits{"path": path, "sandbox": id, "content": longest(maxContent), "encoding": oneOf("text", "base64")}},
		(*call).writeFile)
	add(d, tool{name: "edit_file", title: "Edit a file", destructive: true,
		about:  "Replace text in a file of the sandbox. Each old text must be in the file exactly once, unless all is set; give enough of its surroundings.",
		limits: limits{"path": path, "sandbox": id}},
		(*call).editFile)
	add(d, tool{name: "list_files", title: "List files", readOnly: true,
		about:  "List a directory of the sandbox, 1000 entries at most.",
		limits: limits{"path": path, "sandbox": id, "depth": between(1, 10)}},
		(*call).listFiles)
}

func (c *call) readFile(in readFileIn) (result, readFileOut, error) {
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, readFileOut{}, err
	}
	out := readFileOut{Sandbox: b.id, Path: in.Path}
	if in.Encoding == "base64" {
		return c.readBytes(g, in, out)
	}
	body, size, err := g.ReadFile(c.ctx, in.Path, "", 0, -1)
	if err != nil {
		return result{}, out, fileError(err)
	}
	defer body.Close() //nolint:errcheck // read as far as we want it
	out.Size = size
	r := bufio.NewReaderSize(body, 64<<10)
	head, err := r.Peek(512)
	if err != nil && !errors.Is(err, io.EOF) {
		return result{}, out, broken(in.Path, err)
	}
	if kind := http.DetectContentType(head); isPicture(kind) {
		return readPicture(r, kind, out)
	}
	if bytes.IndexByte(head, 0) >= 0 {
		return result{}, out, invalid("read it with encoding base64, or look at it with a program (file, hexdump) by run_command",
			"%s is no text: it has %d bytes of something else", in.Path, size)
	}
	return readLines(r, in, out)
}

func broken(path string, err error) error {
	return &firebreak.Error{Kind: firebreak.KindUnavailable, Op: "read " + path, Err: err}
}

func fileError(err error) error {
	if firebreak.KindOf(err) == firebreak.KindNotFound {
		return &firebreak.Error{Kind: firebreak.KindNotFound, Err: err, Mend: "see what is there with list_files"}
	}
	return err
}

func isPicture(kind string) bool {
	return slices.Contains([]string{"image/png", "image/jpeg", "image/gif", "image/webp"}, kind)
}

func readPicture(r io.Reader, kind string, out readFileOut) (result, readFileOut, error) {
	data, err := io.ReadAll(io.LimitReader(r, maxImage+1))
	if err != nil {
		return result{}, out, broken(out.Path, err)
	}
	if len(data) > maxImage {
		return result{}, out, invalid("make it smaller with a program first", "%s is a picture of more than %d bytes", out.Path, maxImage)
	}
	out.Image = kind
	return result{content: []sdk.Content{&sdk.TextContent{Text: fmt.Sprintf("%s: %s, %d bytes", out.Path, kind, len(data))},
		&sdk.ImageContent{Data: data, MIMEType: kind}}}, out, nil
}

func (c *call) readBytes(g *guest.Guest, in readFileIn, out readFileOut) (result, readFileOut, error) {
	body, size, err := g.ReadFile(c.ctx, in.Path, "", in.Offset, maxBinary)
	if err != nil {
		return result{}, out, fileError(err)
	}
	defer body.Close() //nolint:errcheck // read as far as we want it
	data, err := io.ReadAll(io.LimitReader(body, maxBinary))
	if err != nil {
		return result{}, out, broken(in.Path, err)
	}
	out.Size, out.Base64 = size, base64.StdEncoding.EncodeToString(data)
	said := fmt.Sprintf("bytes %d to %d of %d of %s, in base64", in.Offset, in.Offset+int64(len(data)), size, in.Path)
	if next := in.Offset + int64(len(data)); next < size && len(data) > 0 {
		out.NextOffset = next
		said += fmt.Sprintf("; go on with offset %d", next)
	}
	return result{content: []sdk.Content{&sdk.TextContent{Text: said + ":\n" + out.Base64}}}, out, nil
}

// readLines skips to the first line that is wanted, and gives as many as fit.
func readLines(r *bufio.Reader, in readFileIn, out readFileOut) (result, readFileOut, error) {
	first, most := max(in.Line, 1), cmp.Or(in.Lines, maxLines)
	var b strings.Builder
	line, seen, more := 1, 0, false
	for given := 0; ; {
		piece, err := r.ReadSlice('\n')
		seen += len(piece)
		if line >= first {
			if len(piece) > 0 && (given == most || b.Len()+len(piece) > maxText) {
				more = true
				break
			}
			b.Write(piece)
		}
		switch {
		case err == nil:
			if line >= first {
				given++
			}
			line++
		case errors.Is(err, io.EOF):
			return linesResult(&b, in, out, line, false)
		case !errors.Is(err, bufio.ErrBufferFull):
			return result{}, out, broken(in.Path, err)
		}
		if seen > maxSeek {
			return result{}, out, invalid("use run_command with sed or tail for what lies so deep in a file", "line %d is not among the first %d bytes of %s", first, maxSeek, in.Path)
		}
	}
	if b.Len() == 0 { // one line that is too long by itself
		return result{}, out, invalid("read it with encoding base64 and offset, or with run_command (cut, head -c)", "line %d of %s has more than %d bytes", line, in.Path, maxText)
	}
	return linesResult(&b, in, out, line, more)
}

func linesResult(b *strings.Builder, in readFileIn, out readFileOut, line int, more bool) (result, readFileOut, error) {
	out.Text, out.Line = valid([]byte(b.String())), max(in.Line, 1)
	if in.Line > line {
		return result{}, out, invalid("begin with a lower line", "%s has %d lines", in.Path, line)
	}
	said := out.Text
	if more {
		out.NextLine = line
		said += fmt.Sprintf("%s[more: go on with line %d]", newline(said), line)
	}
	if said == "" {
		said = "[the file is empty]"
	}
	return result{content: []sdk.Content{&sdk.TextContent{Text: said}}}, out, nil
}

func (c *call) writeFile(in writeFileIn) (result, fileOut, error) {
	content := []byte(in.Content)
	if in.Encoding == "base64" {
		var err error
		if content, err = decodeBase64(in.Content); err != nil {
			return result{}, fileOut{}, invalid("encode it anew", "the content is no base64: %w", err)
		}
	}
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, fileOut{}, err
	}
	if err := g.WriteFile(c.ctx, in.Path, "", bytes.NewReader(content)); err != nil {
		return result{}, fileOut{}, err
	}
	b.log.add("wrote %s, %d bytes", in.Path, len(content))
	return text("Wrote %s, %d bytes.", in.Path, len(content)), fileOut{Sandbox: b.id, Path: in.Path, Size: len(content)}, nil
}

func decodeBase64(s string) ([]byte, error) {
	clean := strings.Map(func(r rune) rune {
		if r == '\n' || r == '\r' || r == ' ' {
			return -1
		}
		return r
	}, s)
	return base64.StdEncoding.DecodeString(clean)
}

func (c *call) editFile(in editFileIn) (result, editFileOut, error) {
	if len(in.Edits) == 0 || len(in.Edits) > maxEdits {
		return result{}, editFileOut{}, invalid("", "%d edits are not between 1 and %d", len(in.Edits), maxEdits)
	}
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, editFileOut{}, err
	}
	body, _, err := g.ReadFile(c.ctx, in.Path, "", 0, -1)
	if err != nil {
		return result{}, editFileOut{}, fileError(err)
	}
	data, err := io.ReadAll(io.LimitReader(body, maxEdit+1))
	if err = errors.Join(err, body.Close()); err != nil {
		return result{}, editFileOut{}, broken(in.Path, err)
	}
	switch {
	case len(data) > maxEdit:
		return result{}, editFileOut{}, invalid("use a program (sed) by run_command", "%s has more than %d bytes", in.Path, maxEdit)
	case !utf8.Valid(data):
		return result{}, editFileOut{}, invalid("use a program by run_command", "%s is no text in UTF-8", in.Path)
	}
	changed, replaced, err := apply(string(data), in.Edits)
	if err != nil {
		return result{}, editFileOut{}, err
	}
	if err := g.WriteFile(c.ctx, in.Path, "", strings.NewReader(changed)); err != nil {
		return result{}, editFileOut{}, err
	}
	b.log.add("edited %s, %d places", in.Path, replaced)
	return text("Edited %s: %d places replaced.", in.Path, replaced), editFileOut{Sandbox: b.id, Path: in.Path, Size: len(changed), Replaced: replaced}, nil
}

// apply does all edits, or none. The result has a size too.
func apply(content string, edits []edit) (string, int, error) {
	total := 0
	for i, e := range edits {
		n := 0
		if e.Old != "" {
			n = strings.Count(content, e.Old)
		}
		switch {
		case e.Old == "":
			return "", 0, invalid("write_file makes a file", "edit %d has no old text", i+1)
		case n == 0:
			return "", 0, invalid("read the file again: white space counts, and earlier edits of this call are done already", "the old text of edit %d is not in the file", i+1)
		case n > 1 && !e.All:
			return "", 0, invalid("add what is around the place you mean, or set all", "the old text of edit %d is in the file %d times", i+1, n)
		case len(content)+n*(len(e.New)-len(e.Old)) > 2*maxEdit:
			return "", 0, invalid("use a program by run_command", "edit %d makes the file larger than %d bytes", i+1, 2*maxEdit)
		}
		content = strings.ReplaceAll(content, e.Old, e.New)
		total += n
	}
	return content, total, nil
}

func (c *call) listFiles(in listFilesIn) (result, listFilesOut, error) {
	b, g, err := c.box(in.Sandbox)
	if err != nil {
		return result{}, listFilesOut{}, err
	}
	path := cmp.Or(in.Path, c.home())
	entries, err := c.entries(g, path, max(in.Depth, 1))
	if err != nil {
		return result{}, listFilesOut{}, err
	}
	out := listFilesOut{Sandbox: b.id, Files: []fileInfo{}, Truncated: len(entries) > maxList}
	var said strings.Builder
	size := 0
	for _, e := range entries[:min(len(entries), maxList)] {
		f := infoOf(e)
		if size += len(f.Path) + len(f.Target); size > maxText {
			out.Truncated = true
			break
		}
		out.Files = append(out.Files, f)
		said.WriteString(f.line() + "\n")
	}
	if len(entries) == 0 {
		said.WriteString("[the directory is empty]")
	}
	if out.Truncated {
		fmt.Fprintf(&said, "[%d of %d entries; list a directory further down, or look with search_files]", len(out.Files), len(entries))
	}
	return text("%s", said.String()), out, nil
}

// home is where relative paths begin.
func (c *call) home() string { return cmp.Or(c.door.cfg.Request.Workdir, ".") }

func (c *call) entries(g *guest.Guest, path string, depth int) ([]*filesystem.EntryInfo, error) {
	res, err := g.Filesystem().ListDir(c.ctx, connect.NewRequest(&filesystem.ListDirRequest{Path: path, Depth: uint32(depth)}))
	if err != nil {
		return nil, fileError(api.ErrorFromWire(err))
	}
	return res.Msg.GetEntries(), nil
}

func infoOf(e *filesystem.EntryInfo) fileInfo {
	f := fileInfo{Path: valid([]byte(e.GetPath())), Target: valid([]byte(e.GetSymlinkTarget())), Type: "other"}
	switch {
	case e.SymlinkTarget != nil:
		f.Type = "symlink"
	case e.GetType() == filesystem.FileType_FILE_TYPE_DIRECTORY:
		f.Type = "directory"
	case e.GetType() == filesystem.FileType_FILE_TYPE_FILE:
		f.Type, f.Size = "file", e.GetSize()
	}
	return f
}

func (f fileInfo) line() string {
	switch f.Type {
	case "directory":
		return f.Path + "/"
	case "symlink":
		return f.Path + " -> " + f.Target
	case "file":
		return fmt.Sprintf("%s  %d bytes", f.Path, f.Size)
	}
	return f.Path + "  (" + f.Type + ")"
}
