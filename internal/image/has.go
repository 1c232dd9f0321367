package image

import (
	"os"
	"path/filepath"
)

// Has reports whether there is a template called name. Unlike Get it does not look for what else may have been meant.
func (s *Store) Has(name string) bool {
	if name == HostName {
		return true
	}
	if CheckName(name) != nil {
		return false
	}
	_, err := os.Stat(filepath.Join(s.dir, templatesDir, fileName(name)+".json"))
	return err == nil
}
