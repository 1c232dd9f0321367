package host

import (
	"os"
	"path/filepath"
	"slices"
	"testing"
)

// pci makes a device of the bus below a false root.
func pci(t *testing.T, root, slot, class, vendor, device string) {
	t.Helper()
	dir := "sys/bus/pci/devices/" + slot
	write(t, root, dir+"/class", class+"\n")
	write(t, root, dir+"/vendor", vendor+"\n")
	write(t, root, dir+"/device", device+"\n")
}

// link makes a symbolic link below a false root.
func link(t *testing.T, root, name, target string) {
	t.Helper()
	path := filepath.Join(root, name)
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(target, path); err != nil {
		t.Fatal(err)
	}
}

func TestGPUs(t *testing.T) {
	for _, test := range []struct {
		name string
		make func(t *testing.T, root string)
		want []string
	}{
		{"none", func(t *testing.T, root string) {
			pci(t, root, "0000:00:01.0", "0x018000", "0x1af4", "0x1042")
			write(t, root, "sys/class/drm/version", "drm 1.1.0 20060810\n")
		}, nil},
		{"on the bus, seen by a driver too", func(t *testing.T, root string) {
			pci(t, root, "0000:00:02.0", "0x030000", "0x8086", "0x3e92")
			for _, name := range []string{"card0", "renderD128"} {
				link(t, root, "sys/class/drm/"+name+"/device", filepath.Join(root, "sys/bus/pci/devices/0000:00:02.0"))
			}
			write(t, root, "sys/class/drm/card0-HDMI-A-1/status", "connected\n")
		}, []string{"Intel 3e92 at 0000:00:02.0"}},
		{"NVIDIA with its driver", func(t *testing.T, root string) {
			pci(t, root, "0000:65:00.0", "0x030200", "0x10de", "0x2330")
			write(t, root, "proc/driver/nvidia/gpus/0000:65:00.0/information", "Model: \t\t NVIDIA H100 80GB HBM3\nIRQ:   \t\t 18\n")
			write(t, root, "dev/nvidia0", "")
		}, []string{"NVIDIA H100 80GB HBM3 at 0000:65:00.0"}},
		{"NVIDIA without a bus", func(t *testing.T, root string) {
			for _, name := range []string{"nvidia0", "nvidia1", "nvidiactl", "nvidia-uvm"} {
				write(t, root, "dev/"+name, "")
			}
		}, []string{"NVIDIA at /dev/nvidia0", "NVIDIA at /dev/nvidia1"}},
		{"an accelerator and a maker that nobody knows", func(t *testing.T, root string) {
			pci(t, root, "0000:01:00.0", "0x120000", "0x1002", "0x740c")
			pci(t, root, "0000:02:00.0", "0x038000", "0xabcd", "0x0001")
		}, []string{"AMD 740c at 0000:01:00.0", "vendor abcd 0001 at 0000:02:00.0"}},
		{"on a chip", func(t *testing.T, root string) {
			soc := filepath.Join(root, "sys/devices/platform/soc/gpu")
			link(t, root, "sys/devices/platform/soc/gpu/driver", "../../../../bus/platform/drivers/panfrost")
			link(t, root, "sys/class/drm/card0/device", soc)
			link(t, root, "sys/class/drm/renderD128/device", soc)
		}, []string{"panfrost at /dev/dri/card0"}},
	} {
		t.Run(test.name, func(t *testing.T) {
			l := looker{root: t.TempDir()}
			test.make(t, l.root)
			l.gpus()
			if !slices.Equal(l.facts.GPUs, test.want) {
				t.Errorf("%q, want %q", l.facts.GPUs, test.want)
			}
			for _, vendor := range []string{"0x1022", "0x1d0f", "0x1ae0", "0x1a03", "0x1af4", "0x1234", "0x15ad", "0x1414"} {
				if name := vendorName(vendor); name == "" || name == "vendor "+vendor[2:] {
					t.Errorf("%s is %q", vendor, name)
				}
			}
		})
	}
}
