package archive

import (
	"bytes"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// xattrs reads those extended attributes that mean something in another file system too. What cannot be read, or be
// written into an archive, is left out: many file systems have none at all.
func xattrs(f *os.File) map[string]string {
	fd := int(f.Fd())
	size, err := unix.Flistxattr(fd, nil)
	if err != nil || size <= 0 {
		return nil
	}
	names := make([]byte, min(size, xattrBytes))
	if size, err = unix.Flistxattr(fd, names); err != nil {
		return nil
	}
	var found map[string]string
	for name := range bytes.SplitSeq(names[:size], []byte{0}) {
		key := string(name)
		if !strings.HasPrefix(key, "user.") && key != "security.capability" || strings.Contains(key, "=") {
			continue
		}
		n, err := unix.Fgetxattr(fd, key, nil)
		if err != nil || n > xattrBytes {
			continue
		}
		value := make([]byte, n)
		if n, err = unix.Fgetxattr(fd, key, value); err != nil {
			continue
		}
		if found == nil {
			found = map[string]string{}
		}
		found[key] = string(value[:n])
	}
	return found
}
