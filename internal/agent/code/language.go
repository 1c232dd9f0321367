package code

import (
	"embed"
	"net/http"
	"slices"

	"github.com/firebreak-dev/firebreak/internal/agent/proc"
)

//go:embed kernel
var sources embed.FS

// language is how code of one is run.
type language struct {
	name     string
	aliases  []string
	programs []string // the interpreter; the first that is installed
	args     []string
	channels proc.Channels
	sources  []string // files that are sent first: the kernel itself, framed unless it is a shell's
	shell    bool     // it reads commands, not frames
}

// The interpreters read our program from the pipe. On the command line it would be all that ps shows, and a file would
// have to lie somewhere that is writable.
const (
	bootPython = `import os;f=os.fdopen(3,"rb");exec(compile(f.read(int(f.readline())),"<kernel>","exec"),` +
		`{"__name__":"firebreak_kernel","__file__":"<kernel>","source":f})`
	bootNode = `{const fs=require("fs"),c=Buffer.alloc(1);let n="";while(fs.readSync(3,c)&&c[0]!==10)n+=c;` +
		`const b=Buffer.alloc(+n);for(let i=0,m=1;m&&i<b.length;i+=m)m=fs.readSync(3,b,i,b.length-i,null);` +
		`new Function("require","importFrom",b+"\n//# sourceURL=firebreak.js")(require,s=>import(s))}`
)

// languages lists what can be run.
func languages() []language {
	framed := proc.Channels{Requests: 3, Answers: 4}
	node := language{programs: []string{"node", "nodejs"}, args: []string{"-e", bootNode}, channels: framed, sources: []string{"kernel.js"}}
	javascript, typescript := node, node
	javascript.name, javascript.aliases = "javascript", []string{"js"}
	typescript.name, typescript.aliases = "typescript", []string{"ts"}
	return []language{
		{name: "python", aliases: []string{""}, programs: []string{"python3", "python"}, args: []string{"-c", bootPython},
			channels: framed, sources: []string{"kernel.py", "charts.py"}},
		javascript, typescript,
		{name: "bash", programs: []string{"bash"}, args: []string{"--norc", "--noprofile", "--noediting", "-i"},
			channels: proc.Channels{Requests: 0, Answers: 4}, sources: []string{"kernel.sh"}, shell: true},
	}
}

func languageOf(name string) (language, error) {
	for _, l := range languages() {
		if l.name == name || slices.Contains(l.aliases, name) {
			return l, nil
		}
	}
	return language{}, fail(http.StatusBadRequest, "language %q cannot be run here: the languages are python, javascript, typescript and bash", name)
}

// preamble is what a new kernel reads first.
func (l language) preamble() []byte {
	var all []byte
	for _, name := range l.sources {
		text, err := sources.ReadFile("kernel/" + name)
		if err != nil {
			panic(err) // it is in the binary
		}
		if l.shell {
			all = append(all, text...)
		} else {
			all = appendFrame(all, text)
		}
	}
	return all
}
