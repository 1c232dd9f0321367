package host

import (
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
)

// gpus lists graphics adapters and accelerators: what the PCI bus has, then what has only a device file, because the
// bus is hidden (in a container) or there is none (on a system on a chip).
func (l *looker) gpus() {
	var vendors []string
	for _, dir := range l.glob("sys/bus/pci/devices/*") {
		class, vendor := word(dir, "class"), word(dir, "vendor")
		if !isGPU(class) {
			continue
		}
		vendors = append(vendors, vendor)
		l.facts.GPUs = append(l.facts.GPUs, l.pciName(filepath.Base(dir), vendor, word(dir, "device")))
	}
	if !slices.Contains(vendors, nvidia) {
		for _, device := range l.glob("dev/nvidia[0-9]*") {
			l.facts.GPUs = append(l.facts.GPUs, "NVIDIA at /dev/"+filepath.Base(device))
		}
	}
	card := regexp.MustCompile(`^(card|renderD)[0-9]+$`) // not card0-HDMI-A-1, which is an output
	var seen []string                                    // a GPU may have a card and a renderD
	for _, dir := range l.glob("sys/class/drm/*") {
		device, err := filepath.EvalSymlinks(filepath.Join(dir, "device"))
		if err != nil || !card.MatchString(filepath.Base(dir)) || slices.Contains(seen, device) || isGPU(word(device, "class")) {
			continue
		}
		seen = append(seen, device)
		l.facts.GPUs = append(l.facts.GPUs, fmt.Sprintf("%s at /dev/dri/%s", driverName(device), filepath.Base(dir)))
	}
}

const nvidia = "0x10de"

// isGPU knows the base classes 03 (display controller) and 12 (processing accelerator) of the PCI Code and ID
// Assignment Specification; sysfs shows a class as 0x and six digits.
func isGPU(class string) bool {
	return strings.HasPrefix(class, "0x03") || strings.HasPrefix(class, "0x12")
}

// pciName names a device of the bus: by its model where NVIDIA's driver tells it, else by its numbers.
func (l *looker) pciName(slot, vendor, device string) string {
	name := strings.TrimPrefix(device, "0x")
	text, _ := os.ReadFile(l.path("proc/driver/nvidia/gpus/" + slot + "/information"))
	for line := range strings.Lines(string(text)) {
		if model, ok := strings.CutPrefix(line, "Model:"); ok {
			name = strings.TrimPrefix(strings.TrimSpace(model), "NVIDIA ")
		}
	}
	return fmt.Sprintf("%s %s at %s", vendorName(vendor), name, slot)
}

func vendorName(vendor string) string {
	switch vendor {
	case nvidia:
		return "NVIDIA"
	case "0x1002", "0x1022":
		return "AMD"
	case "0x8086":
		return "Intel"
	case "0x1d0f":
		return "Amazon"
	case "0x1ae0":
		return "Google"
	case "0x1a03":
		return "ASPEED"
	case "0x1af4":
		return "virtio"
	case "0x1234":
		return "QEMU"
	case "0x15ad":
		return "VMware"
	case "0x1414":
		return "Microsoft"
	}
	return "vendor " + strings.TrimPrefix(vendor, "0x")
}

// driverName is the name of the kernel's driver of a device that has no numbers.
func driverName(device string) string {
	target, err := os.Readlink(filepath.Join(device, "driver"))
	if err != nil {
		return filepath.Base(device)
	}
	return filepath.Base(target)
}

// glob finds files below the root, sorted.
func (l *looker) glob(pattern string) []string {
	names, _ := filepath.Glob(l.path(pattern)) // fails only on a malformed pattern
	return names
}

// word reads a file of one word; "" if there is none.
func word(dir, name string) string {
	text, _ := os.ReadFile(filepath.Join(dir, name))
	return strings.TrimSpace(string(text))
}
