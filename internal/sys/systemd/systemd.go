// Package systemd knows where systemd puts the cgroups of its units, and asks it, over
// D-Bus, to make, change and end them (org.freedesktop.systemd1(5)). It is small on
// purpose: an OCI runtime links it, which starts within a millisecond.
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
	path := "/"
	if base := strings.TrimSuffix(slice, ".slice"); base != "-" {
		for i, c := range base + "-" {
			if c == '-' {
				path = filepath.Join(path, base[:i]+".slice")
			}
		}
	}
	return filepath.Join(path, Unit(prefix, name))
}

// Unit is the unit that Cgroup's is the cgroup of.
func Unit(prefix, name string) string {
	switch {
	case strings.HasSuffix(name, ".slice"):
		return name
	case prefix != "":
		return prefix + "-" + name + ".scope"
	}
	return name + ".scope"
}

// Split takes a linux.cgroupsPath apart that has systemd's form "slice:prefix:name".
func Split(spec string) (slice, prefix, name string, ok bool) {
	parts := strings.Split(spec, ":")
	if len(parts) != 3 || strings.HasPrefix(spec, "/") {
		return "", "", "", false
	}
	return parts[0], parts[1], parts[2], true
}

// Path is the path below the hierarchies' mount points that a linux.cgroupsPath
// stands for, in systemd's form or as a path, which it then is.
func Path(spec string) string {
	if slice, prefix, name, ok := Split(spec); ok {
		return Cgroup(slice, prefix, name)
	}
	return spec
}

// IsSlice says whether a name is that of a slice: components between single dashes, as
// systemd has them lie in each other, or "-.slice", the root.
func IsSlice(name string) bool {
	base, ok := strings.CutSuffix(name, ".slice")
	if !ok || base == "" || strings.ContainsAny(base, "/\x00") {
		return false
	}
	return base == "-" || !strings.HasPrefix(base, "-") && !strings.HasSuffix(base, "-") && !strings.Contains(base, "--")
}
