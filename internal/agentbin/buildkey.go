package agentbin

import (
	"debug/elf"
	"errors"
	"fmt"
)

// buildKey returns a digest of the Go build ID of an executable, which differs whenever the program does.
func buildKey(exe string) (string, error) {
	f, err := elf.Open(exe)
	if err != nil {
		return "", fmt.Errorf("read the running program: %w", err)
	}
	defer f.Close()
	section := f.Section(".note.go.buildid")
	if section == nil {
		return "", errors.New("the running program has no Go build ID")
	}
	note, err := section.Data()
	if err != nil {
		return "", fmt.Errorf("read the build ID: %w", err)
	}
	return digest(note), nil
}
