package host

import (
	"errors"
	"fmt"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// lsms reads the list that securityfs shows. Where that is not mounted the kernel is asked, which answers since 6.8.
func (l *looker) lsms() {
	text, err := os.ReadFile(l.path("sys/kernel/security/lsm"))
	if err == nil {
		l.facts.LSMs = parseLSMs(string(text))
		return
	}
	ids, asked := listLSMs()
	if asked != nil {
		l.problem("read the security modules", errors.Join(err, asked), "mount -t securityfs securityfs /sys/kernel/security")
		return
	}
	for _, id := range ids {
		l.facts.LSMs = append(l.facts.LSMs, lsmName(id))
	}
}

// parseLSMs reads names with commas between them; see Documentation/admin-guide/LSM/index.rst.
func parseLSMs(text string) []string {
	return strings.FieldsFunc(text, func(r rune) bool { return r == ',' || r == '\n' || r == ' ' })
}

// listLSMs asks with lsm_list_modules(2); see Documentation/userspace-api/lsm.rst.
func listLSMs() ([]uint64, error) {
	var ids [64]uint64
	size := uint32(unsafe.Sizeof(ids))
	n, _, errno := unix.Syscall(unix.SYS_LSM_LIST_MODULES, uintptr(unsafe.Pointer(&ids)), uintptr(unsafe.Pointer(&size)), 0)
	if errno != 0 {
		return nil, os.NewSyscallError("lsm_list_modules", errno)
	}
	return ids[:min(int(n), len(ids))], nil
}

// lsmName names a number of include/uapi/linux/lsm.h; the numbers follow one another from 100 on.
func lsmName(id uint64) string {
	const first = 100
	names := [...]string{
		"capability", "selinux", "smack", "tomoyo", "apparmor", "yama", "loadpin", "safesetid", "lockdown", "bpf",
		"landlock", "ima", "evm", "ipe",
	}
	if id < first || id-first >= uint64(len(names)) {
		return fmt.Sprintf("lsm-%d", id)
	}
	return names[id-first]
}
