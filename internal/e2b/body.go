package e2b

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"net/http"
	"strconv"
)

const (
	maxCreate = 2 << 20  // bytes: the environment is the largest part
	maxBody   = 64 << 10 // bytes of other requests
	maxDepth  = 32       // of JSON
)

// readBody reads a request's JSON into v. It may come in chunks, and fields that are not known are left alone. Nothing at
// all is as good as an empty object.
func readBody(w http.ResponseWriter, r *http.Request, limit int64, v any) error {
	body, err := io.ReadAll(http.MaxBytesReader(w, r.Body, limit))
	if large := new(http.MaxBytesError); errors.As(err, &large) {
		return err
	}
	if err != nil {
		return badRequest("read the request: %v", err)
	}
	return decode(body, v)
}

func decode(body []byte, v any) error {
	if len(bytes.TrimSpace(body)) == 0 {
		return nil
	}
	if depthOf(body) > maxDepth {
		return badRequest("the request is nested more than %d deep", maxDepth)
	}
	err := json.Unmarshal(body, v)
	var wrong *json.UnmarshalTypeError
	switch {
	case err == nil:
		return nil
	case errors.As(err, &wrong) && wrong.Field != "":
		return badRequest("%.100s cannot be a %s", wrong.Field, wrong.Value)
	}
	return badRequest("the request is not the JSON that is expected: %v", err)
}

// depthOf returns how deep a text of JSON is nested; of another text, something of no meaning.
func depthOf(text []byte) int {
	depth, deepest, quoted := 0, 0, false
	for i := 0; i < len(text); i++ {
		switch c := text[i]; {
		case quoted && c == '\\':
			i++
		case c == '"':
			quoted = !quoted
		case quoted:
		case c == '{' || c == '[':
			depth++
			deepest = max(deepest, depth)
		case c == '}' || c == ']':
			depth--
		}
	}
	return deepest
}

// queryInt reads a number of the query; absent if it is not there.
func queryInt(r *http.Request, name string, absent, least, most int64) (int64, error) {
	text := r.URL.Query().Get(name)
	if text == "" {
		return absent, nil
	}
	n, err := strconv.ParseInt(text, 10, 64)
	if err != nil || n < least || n > most {
		return 0, badRequest("%s=%.50s is not a number from %d to %d", name, text, least, most)
	}
	return n, nil
}
