package dataplane

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"
)

func request(method, host, target string, header http.Header) *http.Request {
	r := httptest.NewRequest(method, target, nil)
	r.Host = host
	if header != nil {
		r.Header = header
	}
	return r
}

func TestRoute(t *testing.T) {
	box, any := New(Config{Domain: "Box.test:7070"}), New(Config{})
	sandbox := func(id, port string) http.Header { return http.Header{headerSandbox: {id}, headerPort: {port}} }
	for name, c := range map[string]struct {
		plane        *Plane
		method, host string
		target       string
		header       http.Header
		want         address
		wrong        bool
	}{
		"the API":                  {box, "POST", "127.0.0.1:7070", "/v2/sandboxes", nil, address{}, false},
		"health of the API":        {box, "GET", "127.0.0.1:7070", "/health", nil, address{}, false},
		"headers":                  {box, "GET", "127.0.0.1:7070", "/x", sandbox("abc1", "8080"), address{wayHeader, "abc1", 8080}, false},
		"headers, no port":         {box, "GET", "localhost", "/x", http.Header{headerSandbox: {"abc1"}}, address{wayHeader, "abc1", 49983}, false},
		"headers, sandbox.":        {box, "GET", "sandbox.box.test", "/x", sandbox("abc1", "8080"), address{wayHeader, "abc1", 8080}, false},
		"headers, IPv6":            {box, "GET", "[::1]:7070", "/x", sandbox("abc1", "8080"), address{wayHeader, "abc1", 8080}, false},
		"headers, a plain name":    {box, "GET", "firebreak", "/x", sandbox("abc1", "8080"), address{wayHeader, "abc1", 8080}, false},
		"headers, other domain":    {box, "GET", "8080-abc.other.test", "/x", sandbox("abc1", "80"), address{wayHeader, "abc1", 80}, false},
		"a label beats headers":    {box, "GET", "8080-abc.box.test", "/x", sandbox("other", "22"), address{wayHost, "abc", 8080}, false},
		"a label, upper case":      {box, "GET", "8080-ABC.BOX.test.:7070", "/x", nil, address{wayHost, "abc", 8080}, false},
		"a label below localhost":  {box, "GET", "8080-abc.localhost:7070", "/x", nil, address{wayHost, "abc", 8080}, false},
		"a label, other domain":    {box, "GET", "8080-abc.other.test", "/x", nil, address{}, false},
		"a label, any domain":      {any, "GET", "8080-abc.other.test", "/x", nil, address{wayHost, "abc", 8080}, false},
		"a label, no domain":       {any, "GET", "8080-abc", "/x", nil, address{}, false},
		"a label of another form":  {any, "GET", "my-host.lan", "/x", nil, address{}, false},
		"an address":               {any, "GET", "10.0.0.1", "/x", nil, address{}, false},
		"a label with no id":       {box, "GET", "8080-.box.test", "/x", nil, address{}, true},
		"a label with a bad id":    {box, "GET", "8080-a_b.box.test", "/x", nil, address{}, true},
		"a label with two":         {box, "GET", "8080-a-b.box.test", "/x", nil, address{}, true},
		"a label with a bad port":  {box, "GET", "65536-abc.box.test", "/x", nil, address{}, true},
		"a label with port 0":      {box, "GET", "0-abc.box.test", "/x", nil, address{}, true},
		"headers with no id":       {box, "GET", "localhost", "/x", sandbox("", "80"), address{}, true},
		"headers with a bad id":    {box, "GET", "localhost", "/x", sandbox("../x", "80"), address{}, true},
		"headers with a long id":   {box, "GET", "localhost", "/x", sandbox(strings.Repeat("a", 64), "80"), address{}, true},
		"headers with a bad port":  {box, "GET", "localhost", "/x", sandbox("abc", "http"), address{}, true},
		"headers with port 0":      {box, "GET", "localhost", "/x", sandbox("abc", "0"), address{}, true},
		"headers with port +80":    {box, "GET", "localhost", "/x", sandbox("abc", "+80"), address{}, true},
		"a token":                  {box, "GET", "localhost", "/health", http.Header{headerToken: {"x"}}, address{wayToken, "", 49983}, false},
		"a token for RPC":          {box, "POST", "localhost", "/process.Process/Start", http.Header{headerToken: {"x"}}, address{wayToken, "", 49983}, false},
		"a token for the API":      {box, "GET", "localhost", "/sandboxes", http.Header{headerToken: {"x"}}, address{}, false},
		"a signature":              {box, "GET", "localhost", "/files?path=/a&signature=v1_x", nil, address{waySignature, "", 49983}, false},
		"a signature, elsewhere":   {box, "GET", "localhost", "/files/compose?signature=v1_x", nil, address{}, false},
		"files without signature":  {box, "GET", "localhost", "/files?path=/a", nil, address{}, false},
		"a preflight":              {box, "OPTIONS", "localhost", "/files", http.Header{"Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"content-type, e2b-sandbox-id"}}, address{wayPreflight, "", 49983}, false},
		"a preflight for a token":  {box, "OPTIONS", "localhost", "/files", http.Header{"Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"x-access-token"}}, address{wayPreflight, "", 49983}, false},
		"a preflight for the API":  {box, "OPTIONS", "localhost", "/sandboxes", http.Header{"Access-Control-Request-Method": {"GET"}, "Access-Control-Request-Headers": {"x-api-key"}}, address{}, false},
		"options, but no question": {box, "OPTIONS", "localhost", "/files", http.Header{"Access-Control-Request-Headers": {"e2b-sandbox-id"}}, address{}, false},
	} {
		r := request(c.method, c.host, c.target, c.header)
		got, err := c.plane.route(r)
		if (err != nil) != c.wrong || err == nil && got != c.want {
			t.Errorf("%s: %+v, %v", name, got, err)
		}
		if addressed := c.plane.Addressed(r); addressed != (c.wrong || c.want.way != wayNone) {
			t.Errorf("%s: addressed %t", name, addressed)
		}
	}
}

// FuzzHost holds that what is read out of a host is exactly what stands there, and within its bounds.
func FuzzHost(f *testing.F) {
	for _, host := range []string{"8080-abc.box.test", "8080-abc.box.test:7070", "8080-abc.localhost", "65536-abc.box.test", "8080--.box.test", "[::1]:80", "."} {
		f.Add(host)
	}
	p := New(Config{Domain: "box.test"})
	f.Fuzz(func(t *testing.T, host string) {
		to, err := p.route(&http.Request{Method: http.MethodGet, Host: host, Header: http.Header{headerSandbox: {"other"}}, URL: request("GET", "x", "/", nil).URL})
		if err != nil || to.way != wayHost {
			return
		}
		label, _, _ := strings.Cut(strings.ToLower(host), ".")
		port, id, _ := strings.Cut(label, "-")
		n, ok := parsePort(port)
		if !ok || n != to.port || id != to.id || !isID(to.id) || to.port == 0 {
			t.Errorf("%q is read as %+v", host, to)
		}
	})
}
