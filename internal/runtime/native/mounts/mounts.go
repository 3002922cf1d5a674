// Package mounts reads the options of mounts as the OCI runtime specification has
// them (config.md, "Mounts"; config-linux.md), into what the kernel's calls take.
package mounts

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

// Parsed is what a mount's options say.
type Parsed struct {
	Bind, Recursive, Again bool
	Set, Clear             uint64 // MOUNT_ATTR_*
	RecSet, RecClear       uint64
	Propagation            []uintptr // MS_*, as in mount(2)
	Params                 []plan.Param
	CopyUp                 bool
	MapIDs, MapIDsBelow    bool
}

// attribute is of a mount; off takes it away.
type attribute struct {
	bit uint64
	off bool
}

var attributes = map[string]attribute{
	"ro": {unix.MOUNT_ATTR_RDONLY, false}, "rw": {unix.MOUNT_ATTR_RDONLY, true},
	"nosuid": {unix.MOUNT_ATTR_NOSUID, false}, "suid": {unix.MOUNT_ATTR_NOSUID, true},
	"nodev": {unix.MOUNT_ATTR_NODEV, false}, "dev": {unix.MOUNT_ATTR_NODEV, true},
	"noexec": {unix.MOUNT_ATTR_NOEXEC, false}, "exec": {unix.MOUNT_ATTR_NOEXEC, true},
	"nodiratime": {unix.MOUNT_ATTR_NODIRATIME, false}, "diratime": {unix.MOUNT_ATTR_NODIRATIME, true},
	"nosymfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, false}, "symfollow": {unix.MOUNT_ATTR_NOSYMFOLLOW, true},
	"noatime": {unix.MOUNT_ATTR_NOATIME, false}, "atime": {unix.MOUNT_ATTR_NOATIME, true},
	"strictatime": {unix.MOUNT_ATTR_STRICTATIME, false}, "nostrictatime": {unix.MOUNT_ATTR_STRICTATIME, true},
	"relatime": {unix.MOUNT_ATTR_RELATIME, false}, "norelatime": {unix.MOUNT_ATTR_RELATIME, true},
}

// propagations by name; with r before it, of the whole tree.
var propagations = map[string]uintptr{"private": unix.MS_PRIVATE, "slave": unix.MS_SLAVE, "shared": unix.MS_SHARED, "unbindable": unix.MS_UNBINDABLE}

// Propagation is that of linux.rootfsPropagation or of an option. 0 and no error: none is asked for.
func Propagation(name string) (uintptr, error) {
	if name == "" {
		return 0, nil
	}
	if p, ok := propagations[name]; ok {
		return p, nil
	}
	if below, ok := strings.CutPrefix(name, "r"); ok && propagations[below] != 0 {
		return propagations[below] | unix.MS_REC, nil
	}
	return 0, fmt.Errorf("rootfsPropagation=%s is not supported", name)
}

// superblock are the options of a file system as a whole, which fsconfig(2) knows
// by these names; what is on by default has none.
var superblock = map[string]string{"sync": "sync", "dirsync": "dirsync", "lazytime": "lazytime", "mand": "mand",
	"acl": "", "noacl": "", "async": "", "nolazytime": "", "nomand": "", "defaults": "", "silent": "", "loud": "", "iversion": "", "noiversion": ""}

// Names are the options that are not a file system's own, sorted.
func Names() []string {
	list := []string{"bind", "rbind", "remount", "tmpcopyup", "idmap", "ridmap"}
	for name := range maps.Keys(attributes) {
		list = append(list, name, "r"+name)
	}
	for name := range maps.Keys(propagations) {
		list = append(list, name, "r"+name)
	}
	for name := range maps.Keys(superblock) {
		list = append(list, name)
	}
	slices.Sort(list)
	return list
}

// Parse reads a mount's options. What it does not know is a parameter of the file system.
func Parse(options []string) Parsed {
	var p Parsed
	for _, o := range options {
		a, plain := attributes[o]
		name, below := strings.CutPrefix(o, "r")
		sub, recursive := attributes[name]
		sb, whole := superblock[o]
		prop, _ := Propagation(o)
		switch {
		case o == "bind":
			p.Bind = true
		case o == "rbind":
			p.Bind, p.Recursive = true, true
		case o == "remount":
			p.Again = true
		case o == "tmpcopyup":
			p.CopyUp = true
		case o == "idmap":
			p.MapIDs = true
		case o == "ridmap":
			p.MapIDs, p.MapIDsBelow = true, true
		case plain:
			apply(a, &p.Set, &p.Clear)
		case below && recursive:
			apply(sub, &p.RecSet, &p.RecClear)
		case prop != 0:
			p.Propagation = append(p.Propagation, prop)
		case whole:
			if sb != "" {
				p.Params = append(p.Params, plan.Param{Key: sb})
			}
		case o != "":
			key, value, _ := strings.Cut(o, "=")
			p.Params = append(p.Params, plan.Param{Key: key, Value: value})
		}
	}
	p.Clear, p.RecClear = times(p.Set, p.Clear), times(p.RecSet, p.RecClear)
	return p
}

// apply takes one more option in: the last of several wins.
func apply(a attribute, set, clear *uint64) {
	mask := a.bit
	if mask&unix.MOUNT_ATTR__ATIME != 0 || mask == unix.MOUNT_ATTR_RELATIME {
		// One setting of several values, of which relatime is zero.
		*set &^= unix.MOUNT_ATTR__ATIME
		*clear |= unix.MOUNT_ATTR__ATIME
		if !a.off {
			*set |= a.bit
		}
		return
	}
	if a.off {
		*set &^= mask
		*clear |= mask
		return
	}
	*set |= mask
	*clear &^= mask
}

// times: who sets the one of access times must clear the field (mount_setattr(2)).
func times(set, clear uint64) uint64 {
	if set&unix.MOUNT_ATTR__ATIME != 0 {
		clear |= unix.MOUNT_ATTR__ATIME
	}
	return clear
}

// IsBind says whether a mount shows a part of the host's tree.
func IsBind(m *specs.Mount) bool {
	return m.Type == "bind" || slices.Contains(m.Options, "bind") || slices.Contains(m.Options, "rbind")
}

// IsDev says whether a mount brings the container another's /dev, in which nothing
// is to be made.
func IsDev(m *specs.Mount) bool { return IsBind(m) && path.Clean(m.Destination) == "/dev" }
