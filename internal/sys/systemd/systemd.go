// Package systemd knows where systemd puts the cgroups of its units. It talks to nobody.
package systemd

import (
	"path/filepath"
	"strings"
)

// Cgroup is the cgroup of a unit as the OCI's linux.cgroupsPath names it, "slice:prefix:name", as
// a path below the hierarchies' mount points: a slice "a-b.slice" lies in "a.slice"
// (systemd.slice(5)); "" is the system's, "-.slice" the root. A name that is no slice becomes
// the scope "prefix-name.scope", without a prefix "name.scope".
func Cgroup(slice, prefix, name string) string {
	if slice == "" {
		slice = "system.slice"
	}
	unit := name
	if !strings.HasSuffix(name, ".slice") {
		unit = name + ".scope"
		if prefix != "" {
			unit = prefix + "-" + unit
		}
	}
	path := "/"
	if base := strings.TrimSuffix(slice, ".slice"); base != "-" {
		for i, c := range base + "-" {
			if c == '-' {
				path = filepath.Join(path, base[:i]+".slice")
			}
		}
	}
	return filepath.Join(path, unit)
}
