package code

// What interpreters within the agent's own process need to run the kernels of this package.

// Frame is what a kernel says.
type Frame = frame

// MaxFrame is the most that a frame may have, in bytes.
const MaxFrame = maxFrame

// ParseFrame reads the body of a frame; code that runs in a kernel can write one, so everything is checked.
func ParseFrame(text []byte) (Frame, error) { return parseFrame(text) }

// AppendFrame frames text for a kernel.
func AppendFrame(to, text []byte) []byte { return appendFrame(to, text) }

// AppendRequest frames what a kernel is asked to run.
func AppendRequest(to []byte, id uint64, language, code string, env map[string]string) []byte {
	return append(to, request{ID: id, Language: language, Code: code, Env: env}.frame()...)
}

// Preamble is the kernel of a language, framed, as its interpreter reads it first.
func Preamble(name string) ([]byte, error) {
	l, err := languageOf(name)
	if err != nil {
		return nil, err
	}
	return l.preamble(), nil
}
