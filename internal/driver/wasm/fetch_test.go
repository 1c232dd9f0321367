package wasm

import (
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"strings"
	"testing"
)

func TestFetch(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		switch r.URL.Path {
		case "/away":
			http.Redirect(w, r, "http://169.254.169.254/", http.StatusFound)
		case "/large":
			_, _ = w.Write(make([]byte, maxAnswer+1))
		default:
			body, _ := io.ReadAll(r.Body)
			fmt.Fprintf(w, "%s %s %s", r.Method, r.Header.Get("X-Mine"), body)
		}
	}))
	defer srv.Close()
	host := strings.TrimPrefix(srv.URL, "http://")
	here := newFetcher([]string{host}, func(netip.Addr) bool { return true })
	for _, test := range []struct{ name, request, want string }{
		{"a request", `{"method":"POST","url":"` + srv.URL + `/","headers":{"X-Mine":"yes"},"body":"aGk="}`, "200 POST yes hi"},
		{"a redirect is not followed", `{"url":"` + srv.URL + `/away"}`, "302"},
		{"too much", `{"url":"` + srv.URL + `/large"}`, "more than"},
		{"another host", `{"url":"https://example.com/"}`, "not among the hosts"},
		{"another port", `{"url":"http://127.0.0.1:1/"}`, "not among the hosts"},
		{"a name with a password", `{"url":"http://` + host + `@example.com/"}`, "no plain address"},
		{"a file", `{"url":"file:///etc/passwd"}`, "no plain address"},
		{"another Host", `{"url":"` + srv.URL + `","headers":{"host":"inside"}}`, "not to be given"},
		{"no JSON", `fetch`, "read the request"},
		{"more than is known", `{"url":"` + srv.URL + `","proxy":"x"}`, "unknown field"},
	} {
		out, err := here(t.Context(), []byte(test.request))
		got := fmt.Sprint(err)
		if err == nil {
			var a answer
			if err := json.Unmarshal(out, &a); err != nil {
				t.Fatal(err)
			}
			got = fmt.Sprintf("%d %s", a.Status, a.Body)
		}
		if !strings.Contains(got, test.want) {
			t.Errorf("%s: %s, want %s", test.name, got, test.want)
		}
	}
	// The same host is out of reach for a real sandbox, although it is on the list.
	if _, err := newFetcher([]string{host}, public)(t.Context(), []byte(`{"url":"`+srv.URL+`"}`)); err == nil || !strings.Contains(err.Error(), "no address of the public internet") {
		t.Errorf("this host: %v", err)
	}
}

func TestHosts(t *testing.T) {
	for value, good := range map[string]bool{
		"api.example.com": true, "api.example.com,example.org:8443": true, "": false, "*.example.com": false, "https://example.com": false,
		"example.com/path": false, "a@example.com": false, "example.com, b": false, ":443": false,
	} {
		if _, err := parseOptions(map[string]string{"fetch": value}); (err == nil) != good {
			t.Errorf("%q: %v", value, err)
		}
	}
}
