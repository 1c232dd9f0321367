package drivertest

import (
	"errors"
	"fmt"
	"os"

	"github.com/firebreak-dev/firebreak"
	"github.com/firebreak-dev/firebreak/internal/driver"
)

func capsChecks() []check {
	return []check{
		{name: "caps-tell-the-interfaces", run: checkCapsInterfaces},
		{name: "caps-within-what-is-known", run: checkCapsKnown},
		{name: "limits-without-bit-refused", run: checkLimitsRefused},
		{name: "limits-with-bit-accepted", run: checkLimitsAccepted},
		{name: "mounts-without-bit-refused", run: checkMountsRefused},
		{name: "unknown-options-refused", run: checkOptionsRefused},
		{name: "wrong-form-refused", run: checkFormRefused},
	}
}

func checkCapsInterfaces(c *C) {
	sb := c.create(c.spec())
	_, err := driver.As[driver.Pauser](sb)
	if can, says := err == nil, c.info.Caps.Has(driver.CapPause); can != says {
		c.Errorf("Caps say pause: %v; the sandbox is a Pauser: %v (%v)", says, can, err)
	}
	if err != nil && !errors.Is(err, errors.ErrUnsupported) {
		c.Errorf("As: %v, want errors.ErrUnsupported", err)
	}
}

func checkCapsKnown(c *C) {
	if extra := driver.Missing(c.Caps, c.info.Caps); extra != 0 && c.Caps != 0 {
		c.Errorf("Probe offers %v, which the suite was not told of", extra.Names())
	}
	if missing := driver.Missing(c.info.Caps, c.Caps); missing != 0 {
		c.skip(c, fmt.Sprintf("this host has no %v", missing.Names()))
	}
}

// limitCases are the inputs that need a bit each.
func limitCases() map[driver.Caps]firebreak.Limits {
	return map[driver.Caps]firebreak.Limits{
		driver.CapLimitCPU:    {CPUs: 0.5},
		driver.CapLimitMemory: {Memory: 256 << 20},
		driver.CapLimitDisk:   {Disk: 64 << 20},
		driver.CapLimitPIDs:   {PIDs: 200},
	}
}

func checkLimitsRefused(c *C) {
	tried := 0
	for bit, limits := range limitCases() {
		if c.info.Caps.Has(bit) {
			continue
		}
		tried++
		spec := c.spec()
		spec.Limits = limits
		if err := c.refuses(c.place, spec); !errors.Is(err, errors.ErrUnsupported) {
			c.Errorf("Create with %+v without %v: %v, want errors.ErrUnsupported", limits, bit.Names(), err)
		}
	}
	if tried == 0 {
		c.Skip("the driver has every limit, so that there is none to refuse")
	}
}

func checkLimitsAccepted(c *C) {
	tried := 0
	for bit, limits := range limitCases() {
		if !c.info.Caps.Has(bit) {
			continue
		}
		tried++
		spec := c.spec()
		spec.Limits = limits
		c.answers(c.create(spec))
	}
	if tried == 0 {
		c.Skip("the driver has no limit that it could accept")
	}
}

func checkMountsRefused(c *C) {
	if c.info.Caps.Has(driver.CapMounts) {
		c.Skip("the driver has mounts")
	}
	spec := c.spec()
	spec.Mounts = []driver.Mount{{Source: c.base, Target: "/mnt"}}
	if err := c.refuses(c.place, spec); !errors.Is(err, errors.ErrUnsupported) {
		c.Errorf("Create with a mount: %v, want errors.ErrUnsupported", err)
	}
}

func checkOptionsRefused(c *C) {
	spec := c.spec()
	spec.Options = map[string]string{"no-such-option": "1"}
	if err := c.refuses(c.place, spec); err != nil && firebreak.KindOf(err) != firebreak.KindInvalid {
		c.Errorf("Create with an unknown option: %v, want an error of kind invalid", err)
	}
}

// checkFormRefused: a root that the driver does not take is refused, and so is one that is not there.
func checkFormRefused(c *C) {
	if c.Root == nil {
		c.Skip("the driver needs no root")
	}
	takes := map[driver.Form]bool{}
	for _, f := range c.info.Forms {
		takes[f] = true
	}
	for _, form := range []driver.Form{driver.FormDirectory, driver.FormDisk, driver.FormModule} {
		spec := c.spec()
		spec.Root = driver.Root{Form: form, Path: c.path("no-such-root")}
		if err := c.refuses(c.place, spec); !takes[form] && !errors.Is(err, errors.ErrUnsupported) {
			c.Errorf("Create with a %v root: %v, want errors.ErrUnsupported", form, err)
		}
	}
	if _, err := os.Stat(c.path("no-such-root")); err == nil {
		c.Error("Create made the root that it was to start from")
	}
}
