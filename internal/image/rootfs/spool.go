package rootfs

import (
	"bytes"
	"context"
	"io"
	"os"

	"github.com/firebreak-dev/firebreak/internal/image/erofs"
)

// SparseWriter writes a file from Offset on and leaves holes where the data is zero, so that a bomb of zeros costs no
// disk. Finish it.
type SparseWriter struct {
	File   *os.File
	Offset int64
}

const sparsePiece = 16 << 10

// Write implements io.Writer.
func (w *SparseWriter) Write(p []byte) (int, error) {
	done := 0
	for done < len(p) {
		n := run(p[done:], true)
		w.Offset += int64(n)
		done += n
		if n = run(p[done:], false); n > 0 {
			if _, err := w.File.WriteAt(p[done:done+n], w.Offset); err != nil {
				return done, err
			}
		}
		w.Offset += int64(n)
		done += n
	}
	return done, nil
}

// run returns how many bytes at the start of p are in pieces that are all zero, or that are not.
func run(p []byte, zero bool) int {
	var zeros [sparsePiece]byte
	n := 0
	for n < len(p) {
		piece := p[n:min(n+sparsePiece, len(p))]
		if bytes.Equal(piece, zeros[:len(piece)]) != zero {
			break
		}
		n += len(piece)
	}
	return n
}

// Finish gives the file its length, also if it ends in a hole.
func (w *SparseWriter) Finish() error { return w.File.Truncate(w.Offset) }

// spool keeps the data of files one behind the other.
type spool struct {
	file *os.File
	end  int64
	buf  []byte
}

// add copies size bytes of r into the spool and makes them the data of n.
func (s *spool) add(ctx context.Context, n *erofs.Node, r io.Reader, size int64) error {
	if s.buf == nil {
		s.buf = make([]byte, 256<<10)
	}
	w := SparseWriter{File: s.file, Offset: s.end}
	for left := size; left > 0; {
		if err := ctx.Err(); err != nil {
			return err
		}
		part := s.buf[:min(int64(len(s.buf)), left)]
		got, err := io.ReadFull(r, part)
		if err != nil {
			return err
		}
		if _, err := w.Write(part[:got]); err != nil {
			return err
		}
		left -= int64(got)
	}
	if err := w.Finish(); err != nil {
		return err
	}
	at := s.end
	s.end = w.Offset
	n.Size = size
	n.Open = func() (io.ReadCloser, error) { return io.NopCloser(io.NewSectionReader(s.file, at, size)), nil }
	return nil
}
