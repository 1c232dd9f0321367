package gvisor

import (
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
	"gvisor.dev/gvisor/runsc/boot"
	"gvisor.dev/gvisor/runsc/config"
	"gvisor.dev/gvisor/runsc/container"
	"gvisor.dev/gvisor/runsc/sandbox"
	"gvisor.dev/gvisor/runsc/specutils"

	"github.com/firebreak-dev/firebreak/internal/driver"
)

// boot starts gVisor with the agent as its first program, and returns the ids of the sandbox's process and of its file
// server's, 0 if it needs none.
func (r request) boot() (sandboxPID, goferPID int, err error) {
	conf, err := r.config()
	if err != nil {
		return 0, 0, err
	}
	spec := r.ociSpec()
	if err := r.saveSpec(spec); err != nil {
		return 0, 0, err
	}
	// The agent is handed in as a descriptor: it is visible nowhere inside, and needs no mount.
	agent, err := os.Open(r.Agent)
	if err != nil {
		return 0, 0, fmt.Errorf("open agent: %w", err)
	}
	defer agent.Close()
	socket, err := r.listenForAgent()
	if err != nil {
		return 0, 0, err
	}
	defer socket.Close()
	passed := map[int]*os.File{agentFD: socket}
	if r.Spec.Root.Form == driver.FormDisk && len(r.Spec.Mounts) == 0 {
		sandboxPID, err = r.bootDisk(conf, spec, agent, passed)
		return sandboxPID, 0, err
	}
	c, err := container.New(conf, container.Args{
		ID: string(r.Spec.ID), Spec: spec, BundleDir: r.bundlePath(), ExecFile: agent, PassFiles: passed,
	})
	if err != nil {
		return 0, 0, err
	}
	if err := c.Start(conf); err != nil {
		return 0, 0, err
	}
	return c.Sandbox.Getpid(), c.GoferPid.Load(), nil
}

// bootDisk starts a sandbox that needs no file server: gVisor reads the image itself and keeps the writable layer in a
// file. Package container would keep that layer in memory.
func (r request) bootDisk(conf *config.Config, spec *specs.Spec, agent *os.File, passed map[int]*os.File) (int, error) {
	image, err := os.Open(r.Spec.Root.Path)
	if err != nil {
		return 0, fmt.Errorf("open image: %w", err)
	}
	layer, err := unnamedFile(r.layerPath())
	if err != nil {
		return 0, fmt.Errorf("make writable layer: %w", err)
	}
	// No part of the host is served, so the sandbox needs no access to files, and can be nobody.
	conf.DirectFS = false
	hint, err := boot.NewRootfsHint(spec)
	if err != nil {
		return 0, err
	}
	sb, err := sandbox.New(conf, &sandbox.Args{
		ID: string(r.Spec.ID), Spec: spec, BundleDir: r.bundlePath(), ExecFile: agent, PassFiles: passed,
		IOFiles: []*os.File{image}, GoferFilestoreFiles: []*os.File{layer},
		GoferMountConfs: []specutils.GoferMountConf{{Lower: specutils.Erofs, Upper: specutils.AnonOverlay, Size: hint.Size}},
		MountHints:      &boot.PodMountHints{},
	})
	if err != nil {
		return 0, err
	}
	if err := sb.StartRoot(conf, spec); err != nil {
		return 0, err
	}
	return sb.Getpid(), nil
}

// unnamedFile makes a file in dir that ends with its last descriptor.
func unnamedFile(dir string) (*os.File, error) {
	fd, err := unix.Open(dir, unix.O_TMPFILE|unix.O_RDWR|unix.O_CLOEXEC, 0o600)
	if err == nil {
		return os.NewFile(uintptr(fd), "layer"), nil
	}
	file, err := os.CreateTemp(dir, "layer")
	if err != nil {
		return nil, err
	}
	return file, os.Remove(file.Name())
}
