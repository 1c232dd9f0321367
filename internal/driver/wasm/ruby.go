package wasm

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"strings"

	"github.com/tetratelabs/wazero/sys"

	"github.com/firebreak-dev/firebreak/internal/driver/wasm/engine"
)

// The functions of ruby.wasm, which is no command but a library, with the names that its bindings give them.
const (
	rubyInit = "ruby-init: func(args: list<string>) -> ()"
	rubyEval = "rb-eval-string-protect: func(str: string) -> tuple<handle<rb-abi-value>, s32>"
)

// rubyMain does what the program ruby does with its arguments: ruby FILE ARGUMENTS, or ruby -e CODE ARGUMENTS.
const rubyMain = `
status = begin
  Dir.chdir(ENV["PWD"])
  given = %s
  if given[0] == "-e"
    $0 = "-e"
    ARGV.replace(given[2..])
    eval(given[1], TOPLEVEL_BINDING, "-e")
  else
    $0 = given[0]
    ARGV.replace(given[1..])
    load File.expand_path(given[0])
  end
  0
rescue SystemExit => e
  e.status
rescue Exception => e
  $stderr.puts e.full_message(highlight: false)
  1
end
begin
  $stdout.flush
  $stderr.flush
rescue SystemCallError
  status = 1
end
Process.exit!(status)
`

// ruby runs a command line of Ruby.
func (w *world) ruby(ctx context.Context, c engine.Config) (int, error) {
	if len(c.Args) < 2 || strings.HasPrefix(c.Args[1], "-") && (c.Args[1] != "-e" || len(c.Args) < 3) {
		fmt.Fprintln(c.Stderr, "ruby: this Ruby takes ruby FILE ARGUMENTS and ruby -e CODE ARGUMENTS")
		return 2, nil
	}
	inst, err := w.module.Instantiate(ctx, c)
	if err != nil {
		return 0, err
	}
	defer inst.Close()
	if err := inst.Initialize(ctx); err != nil {
		return 0, err
	}
	list, err := passList(ctx, inst, "ruby\x00", "-EUTF-8\x00", "-e_=0\x00")
	if err != nil {
		return 0, err
	}
	if _, err := inst.Call(ctx, rubyInit, list...); err != nil {
		return exited(err)
	}
	text, err := pass(ctx, inst, []byte(fmt.Sprintf(rubyMain, rubyStrings(c.Args[1:]))), 1)
	if err != nil {
		return 0, err
	}
	if _, err = inst.Call(ctx, rubyEval, text...); err == nil {
		return 0, errors.New("ruby came back without an exit status")
	}
	return exited(err)
}

// exited is the exit status in an error, if that is what it is.
func exited(err error) (int, error) {
	var exit *sys.ExitError
	if errors.As(err, &exit) {
		return int(exit.ExitCode()), nil
	}
	return 0, err
}

// pass puts bytes where the module can read them, and returns their address and length.
func pass(ctx context.Context, inst *engine.Instance, data []byte, align uint64) ([]uint64, error) {
	at, err := inst.Call(ctx, "cabi_realloc", 0, 0, align, uint64(len(data)))
	if err != nil {
		return nil, err
	}
	if !inst.Write(uint32(at[0]), data) {
		return nil, errors.New("it has no room for what it is passed")
	}
	return []uint64{at[0], uint64(len(data))}, nil
}

func passList(ctx context.Context, inst *engine.Instance, list ...string) ([]uint64, error) {
	var table []byte
	for _, text := range list {
		at, err := pass(ctx, inst, []byte(text), 1)
		if err != nil {
			return nil, err
		}
		table = binary.LittleEndian.AppendUint32(table, uint32(at[0]))
		table = binary.LittleEndian.AppendUint32(table, uint32(at[1]))
	}
	at, err := pass(ctx, inst, table, 4)
	if err != nil {
		return nil, err
	}
	return []uint64{at[0], uint64(len(list))}, nil
}

// rubyStrings writes strings as an array of Ruby's, byte by byte: nothing of them can mean anything else.
func rubyStrings(list []string) string {
	var b strings.Builder
	for _, text := range list {
		b.WriteString(`"`)
		for i := range len(text) {
			fmt.Fprintf(&b, `\x%02x`, text[i])
		}
		b.WriteString(`".dup.force_encoding("UTF-8"), `)
	}
	return "[" + b.String() + "]"
}
