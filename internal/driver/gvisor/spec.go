package gvisor

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/flag"

	"github.com/firebreak-dev/firebreak/internal/driver"
	"github.com/firebreak-dev/firebreak/internal/driver/oci"
)

// capabilities are what root of the sandbox has over gVisor's kernel: Docker's default set. They mean nothing to the
// host. Without SYS_RESOURCE and SYS_ADMIN nobody inside can lift the limit of processes.
var capabilities = [...]string{"CAP_AUDIT_WRITE", "CAP_CHOWN", "CAP_DAC_OVERRIDE", "CAP_FOWNER", "CAP_FSETID", "CAP_KILL",
	"CAP_MKNOD", "CAP_NET_BIND_SERVICE", "CAP_SETFCAP", "CAP_SETGID", "CAP_SETPCAP", "CAP_SETUID", "CAP_SYS_CHROOT"}

// ociSpec is the OCI specification of the sandbox, for mounts as mount made them.
func (r request) ociSpec() *specs.Spec {
	sb := r.Spec
	sb.Root.Binds = nil
	sb.Mounts = slices.Clone(sb.Mounts)
	for i := range sb.Mounts {
		sb.Mounts[i].Source = r.mountPath(i)
	}
	spec := oci.Base(sb, []string{oci.AgentPath, "--listen", fmt.Sprintf("fd:%d", agentFD),
		"--mark", string(sb.ID)})
	spec.Root = &specs.Root{Path: r.rootPath()}
	// gVisor mounts a tmpfs without a limit on an empty /tmp, unless it is told what lies there; it does not know this
	// type, so nothing does, and /tmp is a part of the writable layer like all else.
	spec.Mounts = append(spec.Mounts, specs.Mount{Destination: "/tmp", Type: "firebreak", Source: "none"})
	p := spec.Process
	p.Env = append(p.Env, agentEnv()...)
	p.NoNewPrivileges = false // for sudo; privileges of the sandbox's own kernel only
	caps := capabilities[:]
	p.Capabilities = &specs.LinuxCapabilities{Bounding: caps, Effective: caps, Permitted: caps}
	if n := sb.Limits.PIDs; n > 0 {
		p.Rlimits = append(p.Rlimits, specs.POSIXRlimit{Type: "RLIMIT_NPROC", Hard: uint64(n), Soft: uint64(n)})
	}
	if sb.Root.Form == driver.FormDisk {
		spec.Annotations = map[string]string{
			"dev.gvisor.spec.rootfs.source": sb.Root.Path, "dev.gvisor.spec.rootfs.type": "erofs",
			"dev.gvisor.spec.rootfs.overlay": "dir=" + r.Spec.Dir,
		}
		if sb.Limits.Disk > 0 {
			spec.Annotations["dev.gvisor.spec.rootfs.options"] = "size=" + strconv.FormatInt(sb.Limits.Disk, 10)
		}
	}
	return spec
}

func (r request) bundlePath() string { return filepath.Join(r.Record, bundleName) }

// agentEnv is the agent's own environment, which no program inherits: switches between threads and signals are what
// costs most in gVisor, and the agent needs neither.
func agentEnv() []string { return []string{"GOMAXPROCS=1", "GODEBUG=asyncpreemptoff=1"} }

// config is gVisor's own configuration, made as from its command line, which it hands on to its processes.
func (r request) config() (*config.Config, error) {
	overlay := "root:dir=" + r.Spec.Dir
	if n := r.Spec.Limits.Disk; n > 0 {
		overlay += ",size=" + strconv.FormatInt(n, 10)
	}
	set := flag.NewFlagSet("runsc", flag.ContinueOnError)
	config.RegisterFlags(set)
	for name, value := range map[string]string{
		"root":                    r.Record,
		"platform":                "systrap",
		"network":                 "none", // no interface but loopback
		"gofer-network-namespace": "host", // its own, which has but loopback
		"overlay2":                overlay,
		"ignore-cgroups":          "true", // all is in ours
		"rootless":                strconv.FormatBool(r.Rootless),
		"allow-suid":              "true", // for sudo
		"host-settings":           "ignore",
		"panic-log":               filepath.Join(r.Record, panicName),
		"sidecar-usage-policy":    "LEGACY_DEPRECATED_SLOW_EMBEDDED_FALLBACK",
	} {
		if err := set.Set(name, value); err != nil {
			return nil, fmt.Errorf("configure gVisor: %s=%s: %w", name, value, err)
		}
	}
	conf, err := config.NewFromFlags(set)
	if err != nil {
		return nil, fmt.Errorf("configure gVisor: %w", err)
	}
	return conf, nil
}
