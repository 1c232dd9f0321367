package oci

import (
	"slices"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func good() driver.Spec {
	return driver.Spec{ID: "abc1", Dir: "/state/abc1", Root: driver.Root{
		Form: driver.FormDirectory, Path: "/tree",
		Binds: []driver.Mount{{Source: "/usr", Target: "/usr", ReadOnly: true}},
	}, Mounts: []driver.Mount{{Source: "/data", Target: "/usr/data"}}}
}

func TestBasePutsMountsOverBinds(t *testing.T) {
	s := Base(good(), []string{AgentPath, "--listen", "tcp:127.0.0.1:1"})
	var targets []string
	for _, m := range s.Mounts {
		targets = append(targets, m.Destination)
		if m.Type == "bind" && (!slices.Contains(m.Options, "nosuid") || !slices.Contains(m.Options, "nodev")) {
			t.Errorf("%s is mounted with %v", m.Destination, m.Options)
		}
	}
	proc, usr, data := slices.Index(targets, "/proc"), slices.Index(targets, "/usr"), slices.Index(targets, "/usr/data")
	if proc < 0 || usr < proc || data < usr {
		t.Errorf("mounts are in the order %v", targets)
	}
	if s.Hostname != driver.Hostname || !s.Process.NoNewPrivileges || s.Process.Args[0] != AgentPath {
		t.Errorf("base is %+v, %+v", s, s.Process)
	}
	if len(s.Process.Capabilities.Bounding) != 0 {
		t.Errorf("the base grants %v", s.Process.Capabilities.Bounding)
	}
}

func TestBindHonoursReadOnly(t *testing.T) {
	if o := Bind(driver.Mount{ReadOnly: true}).Options; !slices.Contains(o, "ro") || slices.Contains(o, "rw") {
		t.Errorf("a read-only mount has %v", o)
	}
	if o := Bind(driver.Mount{}).Options; !slices.Contains(o, "rw") || slices.Contains(o, "ro") {
		t.Errorf("a writable mount has %v", o)
	}
}

func TestCheck(t *testing.T) {
	if err := Check(good()); err != nil {
		t.Fatalf("a good specification: %v", err)
	}
	for name, c := range map[string]struct {
		spoil func(*driver.Spec)
		want  string
	}{
		"id":              {func(s *driver.Spec) { s.ID = "../x" }, "1 to 40"},
		"relative dir":    {func(s *driver.Spec) { s.Dir = "x" }, "directory of the sandbox"},
		"unclean root":    {func(s *driver.Spec) { s.Root.Path = "/a/../b" }, "root file system"},
		"unclean target":  {func(s *driver.Spec) { s.Mounts[0].Target = "/a/../../b" }, "target of a mount"},
		"relative source": {func(s *driver.Spec) { s.Mounts[0].Source = "a" }, "source of a mount"},
		"zero byte":       {func(s *driver.Spec) { s.Mounts[0].Source = "/a\x00b" }, "source of a mount"},
		"over root":       {func(s *driver.Spec) { s.Mounts[0].Target = "/" }, "cannot cover /"},
		"over proc":       {func(s *driver.Spec) { s.Mounts[0].Target = "/proc" }, "cannot cover /proc"},
		"below sys":       {func(s *driver.Spec) { s.Mounts[0].Target = "/sys/fs" }, "cannot cover /sys/fs"},
		"over the agent":  {func(s *driver.Spec) { s.Mounts[0].Target = AgentPath }, "cannot cover"},
		"unknown option":  {func(s *driver.Spec) { s.Options = map[string]string{"z": "1"} }, `option "z"`},
		"negative limit":  {func(s *driver.Spec) { s.Limits.Memory = -1 }, "negative"},
		"disk with binds": {func(s *driver.Spec) { s.Root.Form = driver.FormDisk }, "takes no binds"},
	} {
		s := good()
		c.spoil(&s)
		err := Check(s, "known")
		if err == nil || !strings.Contains(err.Error(), c.want) || firebreak.KindOf(err) != firebreak.KindInvalid {
			t.Errorf("%s: %v", name, err)
		}
	}
	s := good()
	s.Mounts[0].Target = "/process" // a sibling whose name only begins like a reserved one
	s.Options = map[string]string{"known": "1"}
	if err := Check(s, "known"); err != nil {
		t.Errorf("a known option and an innocent target: %v", err)
	}
}

func TestSeccompDeniesByDefault(t *testing.T) {
	p, err := Seccomp()
	if err != nil {
		t.Fatal(err)
	}
	if p.DefaultAction != specs.ActErrno {
		t.Fatalf("what is not listed gets %s", p.DefaultAction)
	}
	allowed := map[string]bool{}
	for _, rule := range p.Syscalls {
		for _, name := range rule.Names {
			if rule.Action == specs.ActAllow && len(rule.Args) == 0 {
				allowed[name] = true
			}
		}
	}
	for _, name := range []string{"mount", "bpf", "unshare", "setns", "io_uring_setup", "keyctl", "kexec_load", "userfaultfd",
		"open_by_handle_at", "init_module", "perf_event_open", "chroot", "reboot", "fsopen", "move_mount"} {
		if allowed[name] {
			t.Errorf("%s is permitted", name)
		}
	}
	for _, name := range []string{"read", "execve", "openat", "futex", "epoll_wait"} {
		if !allowed[name] {
			t.Errorf("%s is refused", name)
		}
	}
}
