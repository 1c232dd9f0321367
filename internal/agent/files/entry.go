package files

import (
	"errors"
	"io/fs"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
	"google.golang.org/protobuf/types/known/timestamppb"

	filesystemv1 "github.com/firebreak-dev/firebreak/internal/api/filesystem"
)

// entry describes what is at path. Of a link it describes the target, and names it; a link that leads nowhere is shown
// as a link.
func (s *Service) entry(path string) (*filesystemv1.EntryInfo, error) {
	info, err := s.system.Lstat(path)
	if err != nil {
		return nil, err
	}
	e := &filesystemv1.EntryInfo{Name: filepath.Base(path), Path: path}
	if info.Mode().Type() == fs.ModeSymlink {
		target, err := s.system.Resolve(path)
		switch {
		case err == nil:
			if shown, err := s.system.Stat(target); err == nil {
				info = shown
			}
		case s.isCycle(path):
			return nil, &fs.PathError{Op: "stat", Path: path, Err: unix.ELOOP}
		default:
			if target, err = s.system.Readlink(path); err != nil {
				return nil, err
			}
		}
		e.SymlinkTarget = &target
	}
	e.Type, e.Size = typeOf(info.Mode()), info.Size()
	e.Mode, e.Permissions = modeOf(info.Mode()), info.Mode().String()
	e.ModifiedTime = timestamppb.New(info.ModTime())
	if st, ok := info.Sys().(*syscall.Stat_t); ok {
		e.Owner, e.Group = s.session.Names(st.Uid, st.Gid)
	}
	if info.Mode().IsRegular() || info.IsDir() {
		e.Metadata = s.system.Metadata(path)
	}
	return e, nil
}

func (s *Service) isCycle(path string) bool {
	_, err := s.system.Stat(path)
	return errors.Is(err, unix.ELOOP)
}

func typeOf(m fs.FileMode) filesystemv1.FileType {
	switch {
	case m.IsDir():
		return filesystemv1.FileType_FILE_TYPE_DIRECTORY
	case m.IsRegular():
		return filesystemv1.FileType_FILE_TYPE_FILE
	case m.Type() == fs.ModeSymlink:
		return filesystemv1.FileType_FILE_TYPE_SYMLINK
	}
	return filesystemv1.FileType_FILE_TYPE_UNSPECIFIED
}

func modeOf(m fs.FileMode) uint32 { return uint32(m.Perm()) }
