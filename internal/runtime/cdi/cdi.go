// Package cdi gives containers the devices that vendors describe in files, by
// the Container Device Interface (tags.cncf.io/container-device-interface): a
// name stands for device nodes, variables, mounts and hooks.
package cdi

import (
	"errors"
	"fmt"
	"io/fs"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"tags.cncf.io/container-device-interface/pkg/cdi"
)

// Devices are those described in some directories. Safe for use by several
// goroutines.
type Devices struct{ cache *cdi.Cache }

// New reads nothing yet: the files are read anew whenever somebody asks.
func New(dirs []string) (*Devices, error) {
	cache, err := cdi.NewCache(cdi.WithSpecDirs(dirs...), cdi.WithAutoRefresh(false))
	if err != nil {
		return nil, fmt.Errorf("CDI: %w", err)
	}
	return &Devices{cache}, nil
}

// Has tells whether there are devices of a kind, "vendor.com/class".
func (d *Devices) Has(kind string) bool {
	names, _ := d.List()
	return slices.ContainsFunc(names, func(n string) bool { return strings.HasPrefix(n, kind+"=") })
}

// List gives the names of all devices, sorted, and what is wrong with files.
func (d *Devices) List() (names, warnings []string) {
	_ = d.cache.Refresh() // what went wrong is kept by file
	for path, errs := range d.cache.GetErrors() {
		for _, err := range errs {
			if !errors.Is(err, fs.ErrNotExist) {
				warnings = append(warnings, fmt.Sprintf("CDI: Error associated with spec file %s: %v", path, err))
			}
		}
	}
	slices.Sort(warnings)
	return d.cache.ListDevices(), warnings
}

// Inject puts the devices into a specification. One that is not there, or that
// two files describe, is an error.
func (d *Devices) Inject(spec *specs.Spec, names []string) error {
	_ = d.cache.Refresh() // a bad file spoils its own devices only
	_, err := d.cache.InjectDevices(spec, names...)
	return err
}
