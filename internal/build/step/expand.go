package step

import "strings"

// maxExpanded bounds a value: each variable in it may be as long as all.
const maxExpanded = 64 << 10

// Expand puts the values of variables into the value of another one, as a Dockerfile does: $name, ${name},
// ${name:-what if it is unset or empty} and ${name:+what if it is not}. A backslash before a dollar keeps it. Nothing else means
// anything, and nothing is run.
func Expand(value string, lookUp func(name string) string) (string, error) {
	var b strings.Builder
	for len(value) > 0 {
		at := strings.IndexAny(value, `\$`)
		if at < 0 {
			b.WriteString(value)
			break
		}
		b.WriteString(value[:at])
		rest := value[at:]
		if strings.HasPrefix(rest, `\$`) {
			b.WriteByte('$')
			value = rest[2:]
			continue
		}
		text, used := variable(rest, lookUp)
		b.WriteString(text)
		value = rest[used:]
		if b.Len()+len(value) > maxExpanded {
			return "", invalid("the value of a variable becomes longer than %d bytes", maxExpanded)
		}
	}
	return b.String(), nil
}

// variable returns what the beginning of text stands for, and how long that beginning is, which is at least 1.
func variable(text string, lookUp func(string) string) (string, int) {
	if text[0] != '$' {
		return text[:1], 1
	}
	if n := nameLength(text[1:]); n > 0 {
		return lookUp(text[1 : 1+n]), 1 + n
	}
	inner, _, closed := strings.Cut(strings.TrimPrefix(text, "${"), "}")
	if !strings.HasPrefix(text, "${") || !closed {
		return "$", 1
	}
	n, used := nameLength(inner), len(inner)+3
	if n == 0 {
		return text[:used], used
	}
	value := lookUp(inner[:n])
	switch operator := inner[n:]; {
	case operator == "":
		return value, used
	case strings.HasPrefix(operator, ":-"):
		if value == "" {
			value = operator[2:]
		}
		return value, used
	case strings.HasPrefix(operator, ":+"):
		if value != "" {
			value = operator[2:]
		}
		return value, used
	}
	return text[:used], used
}

// nameLength is how many bytes at the beginning of text can be a variable's name.
func nameLength(text string) int {
	for i, c := range []byte(text) {
		letter := c == '_' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
		if !letter && (i == 0 || c < '0' || c > '9') {
			return i
		}
	}
	return len(text)
}
