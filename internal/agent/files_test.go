package agent_test

import (
	"bytes"
	"compress/gzip"
	"crypto/sha256"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"mime/multipart"
	"net/http"
	"net/textproto"
	"net/url"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"connectrpc.com/connect"
	"golang.org/x/sys/unix"

	"github.com/firebreak-dev/firebreak/internal/agent"
	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

func filesURL(path string, more ...string) string {
	q := url.Values{"path": {path}}
	for i := 0; i < len(more); i += 2 {
		q.Set(more[i], more[i+1])
	}
	return "/files?" + q.Encode()
}

// maybe is a header, or none.
func maybe(name, value string) option {
	if name == "" {
		return func(http.Header) {}
	}
	return header(name, value)
}

func (b *box) put(path string, content string, options ...option) {
	b.t.Helper()
	options = append([]option{header("Content-Type", "application/octet-stream")}, options...)
	if res, body := b.do("POST", filesURL(path), strings.NewReader(content), options...); res.StatusCode != 200 {
		b.t.Fatalf("upload %s: %d %s", path, res.StatusCode, body)
	}
}

// form makes an upload as the SDKs do: the whole path is the file's name.
func form(files ...string) (io.Reader, option) {
	var body bytes.Buffer
	w := multipart.NewWriter(&body)
	for i := 0; i < len(files); i += 2 {
		part, _ := w.CreatePart(textproto.MIMEHeader{
			"Content-Disposition": {fmt.Sprintf(`form-data; name="file"; filename="%s"`, files[i])},
			"Content-Type":        {"application/octet-stream"}})
		_, _ = io.WriteString(part, files[i+1])
	}
	_ = w.Close()
	return &body, header("Content-Type", w.FormDataContentType())
}

func TestDownload(t *testing.T) {
	b := inProcess(t, agent.Config{})
	dir := t.TempDir()
	text := strings.Repeat("0123456789", 1000)
	for name, content := range map[string]string{"text.txt": text, "empty": "", "page": "<!DOCTYPE html><p>", "ünï côde": "x"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := syscall.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, test := range []struct {
		name, header, value, body string
		status                    int
		want                      map[string]string
	}{
		{"text.txt", "", "", text, 200, map[string]string{"Content-Type": "text/plain; charset=utf-8", "Content-Length": "10000", "Content-Disposition": "inline; filename=text.txt", "Content-Encoding": ""}},
		{"empty", "", "", "", 200, map[string]string{"Content-Length": "0"}},
		{"page", "", "", "<!DOCTYPE html><p>", 200, map[string]string{"Content-Type": "text/html; charset=utf-8"}},
		{"ünï côde", "", "", "x", 200, map[string]string{"Content-Disposition": "inline; filename*=utf-8''%C3%BCn%C3%AF%20c%C3%B4de"}},
		{"text.txt", "Range", "bytes=5-9", "56789", 206, map[string]string{"Content-Range": "bytes 5-9/10000"}},
		{"text.txt", "Range", "bytes=-3", "789", 206, nil},
		{"text.txt", "Range", "bytes=20000-", "", 416, nil},
		{"text.txt", "If-Modified-Since", time.Now().Add(time.Hour).UTC().Format(http.TimeFormat), "", 304, nil},
		{"text.txt", "Accept-Encoding", "identity;q=0, br", "", 406, nil},
		{"missing", "", "", "", 404, nil},
		{".", "", "", "", 400, nil},
		{"fifo", "", "", "", 400, nil},
		{"text.txt/x", "", "", "", 400, nil},
		{"nul\x00", "", "", "", 400, nil},
	} {
		res, body := b.do("GET", filesURL(filepath.Join(dir, test.name)), nil, maybe(test.header, test.value))
		if res.StatusCode != test.status || test.status < 300 && string(body) != test.body {
			t.Errorf("%s %s: %s: %d, %d bytes", test.name, test.header, test.value, res.StatusCode, len(body))
		}
		for name, want := range test.want {
			if got := res.Header.Get(name); got != want {
				t.Errorf("%s: %s is %q, want %q", test.name, name, got, want)
			}
		}
		if res.StatusCode >= 400 && res.StatusCode != 416 {
			var e struct{ Code int }
			if err := json.Unmarshal(body, &e); err != nil || e.Code != res.StatusCode {
				t.Errorf("%s: error body %s", test.name, body)
			}
		}
	}
	if res, _ := b.do("GET", "/files", nil); res.StatusCode != 400 {
		t.Errorf("no path: %d", res.StatusCode)
	}
	if res, body := b.do("GET", filesURL("/proc/self/status"), nil); res.StatusCode != 200 || !strings.Contains(string(body), "Pid:") {
		t.Errorf("a file of /proc: %d %q", res.StatusCode, body)
	}
}

func TestDownloadCompressed(t *testing.T) {
	b := inProcess(t, agent.Config{})
	path := filepath.Join(t.TempDir(), "f")
	text := strings.Repeat("compress me ", 100_000)
	b.put(path, text)
	res, body := b.do("GET", filesURL(path), nil, header("Accept-Encoding", "br, gzip;q=0.5"))
	z, err := gzip.NewReader(bytes.NewReader(body))
	if err != nil || res.Header.Get("Content-Encoding") != "gzip" || len(body) > len(text)/10 {
		t.Fatalf("%v %v, %d bytes", err, res.Header, len(body))
	}
	if plain, err := io.ReadAll(z); err != nil || string(plain) != text {
		t.Errorf("%d bytes, %v", len(plain), err)
	}
	res, _ = b.do("GET", filesURL(path), nil, header("Accept-Encoding", "gzip"), header("Range", "bytes=0-0"))
	if res.StatusCode != 206 || res.Header.Get("Content-Encoding") != "" {
		t.Errorf("a range came as %v", res.Header)
	}

	// What does not get smaller comes as it is, unless the client takes nothing else.
	noise := make([]byte, 100_000)
	_, _ = rand.NewChaCha8([32]byte{}).Read(noise) // it has no errors
	b.put(path, string(noise))
	for accept, want := range map[string]string{"gzip, deflate": "", "gzip, identity;q=0": "gzip"} {
		res, body = b.do("GET", filesURL(path), nil, header("Accept-Encoding", accept))
		if got := res.Header.Get("Content-Encoding"); got != want || want == "" && !bytes.Equal(body, noise) {
			t.Errorf("noise came as %q to who accepts %q", got, accept)
		}
	}
}

func TestUpload(t *testing.T) {
	b := inProcess(t, agent.Config{})
	dir := t.TempDir()
	one, two := filepath.Join(dir, "new", "dir", "one"), filepath.Join(dir, "two")
	var packed bytes.Buffer
	z := gzip.NewWriter(&packed)
	_, _ = io.WriteString(z, "unpacked")
	_ = z.Close()
	single, singleType := form("ignored", "of the query")
	many, manyType := form(one, "first", two, "second")
	for _, test := range []struct {
		name, url string
		body      io.Reader
		options   []option
		files     map[string]string
	}{
		{"raw", filesURL(one), io.MultiReader(strings.NewReader("chun"), strings.NewReader("ked")), []option{header("Content-Type", "application/octet-stream")}, map[string]string{one: "chunked"}},
		{"gzip", filesURL(one), &packed, []option{header("Content-Type", "application/octet-stream"), header("Content-Encoding", "gzip")}, map[string]string{one: "unpacked"}},
		{"shorter than before", filesURL(one), strings.NewReader("s"), []option{header("Content-Type", "application/octet-stream")}, map[string]string{one: "s"}},
		{"one part", filesURL(one), single, []option{singleType}, map[string]string{one: "of the query"}},
		{"two parts", "/files", many, []option{manyType}, map[string]string{one: "first", two: "second"}},
	} {
		res, body := b.do("POST", test.url, test.body, test.options...)
		var answer []struct{ Path, Name, Type string }
		if err := json.Unmarshal(body, &answer); err != nil || res.StatusCode != 200 || len(answer) != len(test.files) {
			t.Fatalf("%s: %d %s, %v", test.name, res.StatusCode, body, err)
		}
		for _, a := range answer {
			content, err := os.ReadFile(a.Path)
			if err != nil || string(content) != test.files[a.Path] || a.Name != filepath.Base(a.Path) || a.Type != "file" {
				t.Errorf("%s: %v holds %q, %v", test.name, a, content, err)
			}
		}
	}
}

func TestUploadRefusals(t *testing.T) {
	b := inProcess(t, agent.Config{})
	dir := t.TempDir()
	octets := header("Content-Type", "application/octet-stream")
	several, severalType := form("a", "1", "b", "2")
	escape, escapeType := form("dir/", "1")
	for _, test := range []struct {
		name, url string
		body      io.Reader
		options   []option
		status    int
	}{
		{"a directory", filesURL(dir), strings.NewReader("x"), []option{octets}, 400},
		{"below a file", filesURL("/etc/passwd/x"), strings.NewReader("x"), []option{octets}, 400},
		{"no path", "/files", strings.NewReader("x"), []option{octets}, 400},
		{"another type", filesURL(dir + "/x"), strings.NewReader("x"), []option{header("Content-Type", "text/plain")}, 400},
		{"no type", filesURL(dir + "/x"), strings.NewReader("x"), nil, 400},
		{"no gzip", filesURL(dir + "/x"), strings.NewReader("x"), []option{octets, header("Content-Encoding", "gzip")}, 400},
		{"another encoding", filesURL(dir + "/x"), strings.NewReader("x"), []option{octets, header("Content-Encoding", "br")}, 400},
		{"no multipart", filesURL(dir + "/x"), strings.NewReader("x"), []option{header("Content-Type", "multipart/form-data; boundary=b")}, 400},
		{"one path for two", filesURL(dir + "/x"), several, []option{severalType}, 400},
		{"a part without a name", "/files", escape, []option{escapeType}, 400},
		{"an unknown user", filesURL(dir+"/x", "username", "nobody-of-that-name"), strings.NewReader("x"), []option{octets}, 401},
		{"metadata of bytes", filesURL(dir + "/x"), strings.NewReader("x"), []option{octets, header("X-Metadata-k", "\xff")}, 400},
		{"much metadata", filesURL(dir + "/x"), strings.NewReader("x"), []option{octets, header("X-Metadata-k", strings.Repeat("v", 5000))}, 400},
		{"no space", filesURL("/dev/full"), strings.NewReader("x"), []option{octets}, 507},
	} {
		if res, body := b.do("POST", test.url, test.body, test.options...); res.StatusCode != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, res.StatusCode, body, test.status)
		}
	}
	_ = os.Remove(dir + "/x") // the first of two parts, which was written before the second was seen
	if left, _ := filepath.Glob(dir + "/*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestUploadIntoAFullFileSystem(t *testing.T) {
	needRoot(t)
	dir := t.TempDir()
	if err := unix.Mount("none", dir, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("no mounts here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(dir, unix.MNT_DETACH) })
	b := inProcess(t, agent.Config{})
	res, body := b.do("POST", filesURL(dir+"/big"), bytes.NewReader(make([]byte, 4<<20)), header("Content-Type", "application/octet-stream"))
	if res.StatusCode != 507 {
		t.Errorf("%d %s", res.StatusCode, body)
	}
	if _, err := os.Stat(dir + "/big"); err == nil {
		t.Error("half of a file is left")
	}
}

func TestMetadataIsKept(t *testing.T) {
	b := inProcess(t, agent.Config{})
	path := filepath.Join(t.TempDir(), "f")
	if err := os.WriteFile(path, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := unix.Setxattr(path, "user.e2b.probe", []byte("x"), 0); err != nil {
		t.Skip("the file system keeps no extended attributes: ", err)
	}
	b.put(path, "x", header("X-Metadata-Author", "me"), header("X-Metadata-Note", "a b"))
	e, err := b.stat(path)
	if err != nil || len(e.GetMetadata()) != 2 || e.GetMetadata()["author"] != "me" || e.GetMetadata()["note"] != "a b" {
		t.Errorf("metadata %v, %v", e.GetMetadata(), err)
	}
	b.put(path, "y")
	if e, err = b.stat(path); err != nil || len(e.GetMetadata()) != 0 {
		t.Errorf("metadata %v, %v after an upload without", e.GetMetadata(), err)
	}
}

func TestSignedURLs(t *testing.T) {
	b := inProcess(t, agent.Config{})
	path := filepath.Join(t.TempDir(), "f")
	b.put(path, "signed")
	sign := func(path, operation, user, expires string) string {
		text := path + ":" + operation + ":" + user + ":the token"
		if expires != "" {
			text += ":" + expires
		}
		sum := sha256.Sum256([]byte(text))
		return "v1_" + strings.TrimRight(base64.StdEncoding.EncodeToString(sum[:]), "=")
	}
	future, past := strconv.FormatInt(time.Now().Add(time.Hour).Unix(), 10), strconv.FormatInt(time.Now().Add(-time.Second).Unix(), 10)
	self := me(t)
	for _, test := range []struct {
		name, url string
		status    int
	}{
		{"good", filesURL(path, "signature", sign(path, "read", "", "")), 200},
		{"for a user", filesURL(path, "signature", sign(path, "read", self, ""), "username", self), 200},
		{"until later", filesURL(path, "signature", sign(path, "read", "", future), "signature_expiration", future), 200},
		{"none", filesURL(path), 401},
		{"expired", filesURL(path, "signature", sign(path, "read", "", past), "signature_expiration", past), 401},
		{"without its expiration", filesURL(path, "signature", sign(path, "read", "", future)), 401},
		{"longer than signed", filesURL(path, "signature", sign(path, "read", "", past), "signature_expiration", future), 401},
		{"of another path", filesURL("/etc/passwd", "signature", sign(path, "read", "", "")), 401},
		{"of a write", filesURL(path, "signature", sign(path, "write", "", "")), 401},
		{"of another user", filesURL(path, "signature", sign(path, "read", "", ""), "username", self), 401},
	} {
		if res, body := b.do("GET", test.url, nil, header("X-Access-Token", "")); res.StatusCode != test.status {
			t.Errorf("%s: %d %s, want %d", test.name, res.StatusCode, body, test.status)
		}
	}
	res, body := b.do("POST", filesURL(path, "signature", sign(path, "write", "", "")), strings.NewReader("new"),
		header("X-Access-Token", ""), header("Content-Type", "application/octet-stream"))
	if res.StatusCode != 200 {
		t.Errorf("a signed write: %d %s", res.StatusCode, body)
	}
}

func TestCompose(t *testing.T) {
	b := inProcess(t, agent.Config{})
	dir := t.TempDir()
	body := func(sources []string, destination string) io.Reader {
		text, _ := json.Marshal(map[string]any{"source_paths": sources, "destination": destination})
		return bytes.NewReader(text)
	}
	parts := []string{dir + "/p1", dir + "/p2", dir + "/p3"}
	for i, p := range parts {
		b.put(p, strconv.Itoa(i))
	}
	res, answer := b.do("POST", "/files/compose", body(parts, dir+"/deep/whole"))
	whole, err := os.ReadFile(dir + "/deep/whole")
	if res.StatusCode != 200 || err != nil || string(whole) != "012" || !strings.Contains(string(answer), `"path":"`+dir+`/deep/whole"`) {
		t.Errorf("%d %s: %q, %v", res.StatusCode, answer, whole, err)
	}
	if left, _ := filepath.Glob(dir + "/p*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
	b.put(parts[0], "x")
	for name, test := range map[string]struct {
		sources     []string
		destination string
		status      int
	}{
		"missing source": {[]string{parts[0], dir + "/no"}, dir + "/out", 404}, "nothing": {nil, dir + "/out", 400},
		"onto a directory": {parts[:1], dir + "/deep", 400}, "of a directory": {[]string{dir + "/deep"}, dir + "/out", 400},
	} {
		if res, answer := b.do("POST", "/files/compose", body(test.sources, test.destination)); res.StatusCode != test.status {
			t.Errorf("%s: %d %s, want %d", name, res.StatusCode, answer, test.status)
		}
	}
	if got, err := os.ReadFile(parts[0]); err != nil || string(got) != "x" {
		t.Errorf("a source of a failed compose: %q, %v", got, err)
	}
	if left, _ := filepath.Glob(dir + "/.compose*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}

func TestFilesystem(t *testing.T) {
	b := inProcess(t, agent.Config{})
	fs, dir := b.Filesystem(), t.TempDir()
	sub := filepath.Join(dir, "a", "b")
	made, err := fs.MakeDir(t.Context(), request(&filesystemv1.MakeDirRequest{Path: sub}))
	if err != nil || made.Msg.GetEntry().GetType() != filesystemv1.FileType_FILE_TYPE_DIRECTORY || made.Msg.GetEntry().GetPath() != sub {
		t.Fatal(made, err)
	}
	b.put(filepath.Join(sub, "f"), "12345")
	must(t, os.Chmod(filepath.Join(sub, "f"), 0o640))
	must(t, os.Symlink("b/f", filepath.Join(dir, "a", "link")))
	must(t, os.Symlink("nowhere", filepath.Join(dir, "a", "broken")))
	must(t, os.Symlink("loop", filepath.Join(dir, "loop")))
	e, err := b.stat(filepath.Join(sub, "f"))
	if err != nil || e.GetName() != "f" || e.GetType() != filesystemv1.FileType_FILE_TYPE_FILE || e.GetSize() != 5 || e.GetMode() != 0o640 ||
		e.GetPermissions() != "-rw-r-----" || e.GetOwner() != me(t) || time.Since(e.GetModifiedTime().AsTime()) > time.Minute || e.SymlinkTarget != nil {
		t.Errorf("entry %v, %v", e, err)
	}
	e, err = b.stat(filepath.Join(dir, "a", "link"))
	if err != nil || e.GetName() != "link" || e.GetType() != filesystemv1.FileType_FILE_TYPE_FILE || e.GetSymlinkTarget() != filepath.Join(sub, "f") {
		t.Errorf("link %v, %v", e, err)
	}
	for depth, want := range map[uint32]string{0: "b broken link", 1: "b broken link", 2: "b f broken link"} {
		res, err := fs.ListDir(t.Context(), request(&filesystemv1.ListDirRequest{Path: filepath.Join(dir, "a"), Depth: depth}))
		if err != nil {
			t.Fatal(err)
		}
		var names []string
		for _, e := range res.Msg.GetEntries() {
			names = append(names, e.GetName())
		}
		if got := strings.Join(names, " "); got != want {
			t.Errorf("depth %d: %s, want %s", depth, got, want)
		}
	}
	moved, err := fs.Move(t.Context(), request(&filesystemv1.MoveRequest{Source: filepath.Join(sub, "f"), Destination: filepath.Join(dir, "x", "y", "g")}))
	if err != nil || moved.Msg.GetEntry().GetName() != "g" || moved.Msg.GetEntry().GetSize() != 5 {
		t.Errorf("moved %v, %v", moved, err)
	}
	for range 2 {
		if _, err := fs.Remove(t.Context(), request(&filesystemv1.RemoveRequest{Path: filepath.Join(dir, "a")})); err != nil {
			t.Errorf("remove: %v", err)
		}
	}
	if _, err := os.Stat(sub); err == nil {
		t.Error("it is still there")
	}
	refusals(t, b, dir)
}

func must(t testing.TB, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

func refusals(t *testing.T, b *box, dir string) {
	fs, file := b.Filesystem(), filepath.Join(dir, "x", "y", "g")
	_, err := b.stat(filepath.Join(dir, "none"))
	wantCode(t, err, connect.CodeNotFound)
	_, err = b.stat(filepath.Join(dir, "loop"))
	wantCode(t, err, connect.CodeFailedPrecondition)
	_, err = b.stat("a\x00b")
	wantCode(t, err, connect.CodeInvalidArgument)
	_, err = b.stat("/", asUser("nobody-of-that-name"))
	wantCode(t, err, connect.CodeUnauthenticated)
	_, err = fs.MakeDir(t.Context(), request(&filesystemv1.MakeDirRequest{Path: dir}))
	wantCode(t, err, connect.CodeAlreadyExists)
	_, err = fs.MakeDir(t.Context(), request(&filesystemv1.MakeDirRequest{Path: file}))
	wantCode(t, err, connect.CodeInvalidArgument)
	_, err = fs.MakeDir(t.Context(), request(&filesystemv1.MakeDirRequest{Path: filepath.Join(file, "z")}))
	wantCode(t, err, connect.CodeInvalidArgument)
	_, err = fs.ListDir(t.Context(), request(&filesystemv1.ListDirRequest{Path: file}))
	wantCode(t, err, connect.CodeInvalidArgument)
	_, err = fs.ListDir(t.Context(), request(&filesystemv1.ListDirRequest{Path: filepath.Join(dir, "none")}))
	wantCode(t, err, connect.CodeNotFound)
	_, err = fs.Move(t.Context(), request(&filesystemv1.MoveRequest{Source: filepath.Join(dir, "none"), Destination: filepath.Join(dir, "z")}))
	wantCode(t, err, connect.CodeNotFound)
	_, err = fs.Remove(t.Context(), request(&filesystemv1.RemoveRequest{Path: "/"}))
	wantCode(t, err, connect.CodeInvalidArgument)
}

func TestMoveBetweenFileSystems(t *testing.T) {
	needRoot(t)
	from, to := t.TempDir(), t.TempDir()
	if err := unix.Mount("none", to, "tmpfs", 0, "size=1m"); err != nil {
		t.Skip("no mounts here: ", err)
	}
	t.Cleanup(func() { _ = unix.Unmount(to, unix.MNT_DETACH) })
	b := inProcess(t, agent.Config{})
	b.put(from+"/tree/sub/file", "content")
	must(t, os.Symlink("sub/file", from+"/tree/link"))
	_, err := b.Filesystem().Move(t.Context(), request(&filesystemv1.MoveRequest{Source: from + "/tree", Destination: to + "/tree"}))
	got, err2 := os.ReadFile(to + "/tree/link")
	if err != nil || err2 != nil || string(got) != "content" {
		t.Errorf("moved %q, %v, %v", got, err, err2)
	}
	if _, err := os.Stat(from + "/tree"); err == nil {
		t.Error("the source is still there")
	}
	b.put(from+"/big", strings.Repeat("x", 2<<20))
	_, err = b.Filesystem().Move(t.Context(), request(&filesystemv1.MoveRequest{Source: from + "/big", Destination: to + "/big"}))
	wantCode(t, err, connect.CodeResourceExhausted)
	if left, _ := filepath.Glob(to + "/big*"); len(left) > 0 {
		t.Errorf("left: %v", left)
	}
}
