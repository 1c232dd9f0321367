package host

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
)

// ProbeKVM finds out whether a virtual machine runs here, by running one.
func ProbeKVM(ctx context.Context) KVM {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return KVM{Detail: "there is no /dev/kvm", Mend: mendHardware}
	case errors.Is(err, fs.ErrPermission):
		return KVM{Present: true, Detail: "this user may not open /dev/kvm", Mend: "add the user to group kvm"}
	case err != nil:
		return KVM{Present: true, Detail: fmt.Sprintf("open /dev/kvm: %v", err), Mend: mendHardware}
	}
	defer f.Close()
	return KVM{Present: true, Detail: "/dev/kvm opens; no guest was tried", Mend: mendHardware}
}

const mendHardware = "use a host with hardware virtualization (VMX or SVM) that is exposed to this machine, or bare metal"
