package engine

import (
	"io"
	"io/fs"
	"slices"

	"github.com/tetratelabs/wazero/experimental/sysfs"

	experimentalsys "github.com/tetratelabs/wazero/experimental/sys"
	"github.com/tetratelabs/wazero/sys"
)

// ReadOnly gives a module a tree of which it can change nothing.
func ReadOnly(tree fs.FS) experimentalsys.FS { return &sysfs.ReadFS{FS: &sysfs.AdaptFS{FS: tree}} }

// Pipes gives a module a directory of streams: what is in sources can be read, what is in sinks can be written. A read
// waits until there is something; whoever ends the instance must end the source, too.
func Pipes(sources map[string]io.Reader, sinks map[string]io.Writer) experimentalsys.FS {
	return pipes{sources: sources, sinks: sinks}
}

type pipes struct {
	experimentalsys.UnimplementedFS
	sources map[string]io.Reader
	sinks   map[string]io.Writer
}

func (p pipes) OpenFile(name string, flag experimentalsys.Oflag, _ fs.FileMode) (experimentalsys.File, experimentalsys.Errno) {
	writes := flag&(experimentalsys.O_RDWR|experimentalsys.O_WRONLY) != 0
	source, sink := p.sources[name], p.sinks[name]
	switch {
	case name == "." || name == "":
		if writes {
			return nil, experimentalsys.EISDIR
		}
		return &pipeDir{names: p.names()}, 0
	case source == nil && sink == nil:
		return nil, experimentalsys.ENOENT
	case flag&experimentalsys.O_DIRECTORY != 0:
		return nil, experimentalsys.ENOTDIR
	case writes && sink == nil, !writes && source == nil:
		return nil, experimentalsys.EACCES
	}
	return &pipe{source: source, sink: sink}, 0
}

func (p pipes) names() (names []string) {
	for name := range p.sources {
		names = append(names, name)
	}
	for name := range p.sinks {
		names = append(names, name)
	}
	slices.Sort(names)
	return slices.Compact(names)
}

func (p pipes) Stat(name string) (sys.Stat_t, experimentalsys.Errno) {
	switch {
	case name == "." || name == "":
		return sys.Stat_t{Dev: 2, Ino: 1, Mode: fs.ModeDir | 0o700, Nlink: 1}, 0
	case p.sources[name] == nil && p.sinks[name] == nil:
		return sys.Stat_t{}, experimentalsys.ENOENT
	}
	return (&pipe{}).Stat()
}

func (p pipes) Lstat(name string) (sys.Stat_t, experimentalsys.Errno) { return p.Stat(name) }

type pipeDir struct {
	experimentalsys.DirFile
	names []string
}

func (d *pipeDir) Dev() (uint64, experimentalsys.Errno)    { return 2, 0 }
func (d *pipeDir) Ino() (sys.Inode, experimentalsys.Errno) { return 1, 0 }
func (d *pipeDir) Seek(position, int) (position, experimentalsys.Errno) {
	return 0, experimentalsys.ENOSYS
}
func (d *pipeDir) Sync() experimentalsys.Errno                { return 0 }
func (d *pipeDir) Datasync() experimentalsys.Errno            { return 0 }
func (d *pipeDir) Utimens(int64, int64) experimentalsys.Errno { return experimentalsys.EPERM }
func (d *pipeDir) Close() experimentalsys.Errno               { return 0 }
func (d *pipeDir) Stat() (sys.Stat_t, experimentalsys.Errno)  { return pipes{}.Stat(".") }

func (d *pipeDir) Readdir(n int) (list []experimentalsys.Dirent, _ experimentalsys.Errno) {
	if n < 0 || n > len(d.names) {
		n = len(d.names)
	}
	for _, name := range d.names[:n] {
		list = append(list, experimentalsys.Dirent{Ino: 2, Name: name})
	}
	d.names = d.names[n:]
	return list, 0
}

// pipe is one open stream. Closing it leaves the stream as it is.
type pipe struct {
	experimentalsys.UnimplementedFile
	source io.Reader
	sink   io.Writer
}

func (p *pipe) Dev() (uint64, experimentalsys.Errno)    { return 2, 0 }
func (p *pipe) Ino() (sys.Inode, experimentalsys.Errno) { return 2, 0 }
func (p *pipe) IsDir() (bool, experimentalsys.Errno)    { return false, 0 }
func (p *pipe) Close() experimentalsys.Errno            { return 0 }

// Stat says that it is a device: programs take those for streams, and do not seek.
func (p *pipe) Stat() (sys.Stat_t, experimentalsys.Errno) {
	return sys.Stat_t{Dev: 2, Ino: 2, Mode: fs.ModeDevice | fs.ModeCharDevice | 0o600, Nlink: 1}, 0
}

func (p *pipe) Read(buf []byte) (int, experimentalsys.Errno) {
	if p.source == nil {
		return 0, experimentalsys.EBADF
	}
	return count(p.source.Read(buf))
}

func (p *pipe) Write(buf []byte) (int, experimentalsys.Errno) {
	if p.sink == nil {
		return 0, experimentalsys.EBADF
	}
	return count(p.sink.Write(buf))
}
