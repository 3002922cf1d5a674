package native

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/cgroups"
	"escale.dev/escale/internal/runtime/native/fork"
	"escale.dev/escale/internal/runtime/native/mounts"
	"escale.dev/escale/internal/runtime/native/plan"
	"escale.dev/escale/internal/runtime/native/seccomp"
)

// preparation turns a specification into a plan and the descriptors it names.
type preparation struct {
	spec   *specs.Spec
	bundle string
	layout *cgroups.Layout
	group  *cgroups.Group
	plan   *plan.Plan
	out    *outfit
	flags  int // all namespaces that are not ours
}

// prepare makes the plan of a container. On an error all that was opened is closed.
func (r *runtime) prepare(id, bundle string, spec *specs.Spec, layout *cgroups.Layout, group *cgroups.Group, kept int) (_ *preparation, err error) {
	p := &preparation{spec: spec, bundle: bundle, layout: layout, group: group, out: &outfit{kept: kept}, plan: &plan.Plan{ID: id, Process: *spec.Process, Keyring: "_ses." + id,
		MountNS: plan.NoFD, Hold: plan.NoFD}}
	defer func() {
		if err != nil {
			p.out.close()
		}
	}()
	l := spec.Linux
	p.plan.Process.Capabilities = nil
	if p.plan.Caps, err = capsOf(spec.Process.Capabilities); err != nil {
		return nil, err
	}
	p.plan.Hostname, p.plan.Domainname, p.plan.Sysctl = spec.Hostname, spec.Domainname, l.Sysctl
	p.plan.Masked, p.plan.ReadOnly, p.plan.MountLabel = l.MaskedPaths, l.ReadonlyPaths, l.MountLabel
	p.plan.Personality, p.plan.MemoryPolicy = l.Personality, l.MemoryPolicy
	if h := spec.Hooks; h != nil {
		//lint:ignore SA1019 old bundles have it, and runc runs it
		p.plan.HooksOutside = len(h.Prestart)+len(h.CreateRuntime) > 0
		p.plan.CreateContainer, p.plan.StartContainer = h.CreateContainer, h.StartContainer
	}
	steps := []func() error{p.namespaces, p.root, p.mounts, p.devices, func() error { return r.filter(p.plan, l.Seccomp) }}
	for _, step := range steps {
		if err := step(); err != nil {
			return nil, err
		}
	}
	return p, nil
}

// filter compiles the profile, or takes what was compiled of it before.
func (r *runtime) filter(p *plan.Plan, profile *specs.LinuxSeccomp) error {
	compile := seccomp.Compile
	if r.cache != "" {
		compile = func(s *specs.LinuxSeccomp) (*seccomp.Program, error) { return seccomp.Cached(r.cache, s) }
	}
	prog, err := compile(profile)
	if err != nil || prog == nil {
		return err
	}
	p.Filter, p.SeccompFlags = prog.Filter, uint(prog.Flags)
	return nil
}

// capsOf makes sets of bits, without what we do not have ourselves and thus cannot give.
func capsOf(c *specs.LinuxCapabilities) (*plan.Caps, error) {
	if c == nil {
		c = &specs.LinuxCapabilities{}
	}
	head := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
	var data [2]unix.CapUserData
	if err := unix.Capget(&head, &data[0]); err != nil {
		return nil, os.NewSyscallError("capget", err)
	}
	own := uint64(data[0].Permitted) | uint64(data[1].Permitted)<<32
	return &plan.Caps{Bounding: capSet(c.Bounding) & own, Effective: capSet(c.Effective) & own, Inheritable: capSet(c.Inheritable) & own,
		Permitted: capSet(c.Permitted) & own, Ambient: capSet(c.Ambient) & own}, nil
}

// namespaces opens those to be joined and notes those to be made.
func (p *preparation) namespaces() error {
	flags, err := namespaceFlags(p.spec.Linux.Namespaces)
	if err != nil {
		return err
	}
	// Who is in a user namespace of its own may not go into others' namespaces.
	users := flags&unix.CLONE_NEWUSER != 0
	for _, n := range p.spec.Linux.Namespaces {
		kind := flagOf[n.Type]
		p.flags |= kind
		if n.Path == "" {
			p.out.flags |= kind
			switch kind {
			case unix.CLONE_NEWNET:
				p.plan.Loopback = true
			case unix.CLONE_NEWCGROUP:
				p.plan.CgroupNS = true
			}
			continue
		}
		f, err := openNamespace(n.Path, kind)
		if err != nil {
			return err
		}
		switch {
		case kind == unix.CLONE_NEWNS:
			p.plan.MountNS = p.out.give(f)
		case kind == unix.CLONE_NEWUSER:
			p.out.user = f
		case kind == unix.CLONE_NEWPID:
			p.out.pids = f
		case users || kind == unix.CLONE_NEWTIME:
			p.out.joins = append(p.out.joins, namespace{f, kind})
		default:
			p.plan.Spaces = append(p.plan.Spaces, plan.Space{FD: p.out.give(f), Kind: kind, Path: n.Path})
		}
	}
	p.plan.OwnMounts = p.flags&unix.CLONE_NEWNS != 0
	p.out.clocks = p.spec.Linux.TimeOffsets
	if p.out.flags&unix.CLONE_NEWUSER != 0 {
		l := p.spec.Linux
		if len(l.UIDMappings) == 0 || len(l.GIDMappings) == 0 {
			return errors.New("user namespaces enabled, but no uid or gid mappings found")
		}
		p.out.users = &fork.Maps{UIDs: l.UIDMappings, GIDs: l.GIDMappings}
	}
	return nil
}

// openNamespace opens a namespace by its path and checks that it is one of the kind.
func openNamespace(path string, kind int) (*os.File, error) {
	f, err := os.OpenFile(path, os.O_RDONLY, 0)
	if err != nil {
		return nil, fmt.Errorf("namespace: %w", err)
	}
	got, err := unix.IoctlRetInt(int(f.Fd()), unix.NS_GET_NSTYPE)
	if err != nil || got != kind {
		f.Close()
		return nil, fmt.Errorf("namespace %s: is of another type: %w", path, errors.Join(err, unix.EINVAL))
	}
	return f, nil
}

// root opens a copy of the root file system's mounts.
func (p *preparation) root() error {
	l := p.spec.Linux
	prop, err := mounts.Propagation(l.RootfsPropagation)
	if err != nil {
		return err
	}
	p.plan.Root = plan.Root{Path: p.spec.Root.Path, ReadOnly: p.spec.Root.Readonly, Propagation: prop, Tree: plan.NoFD}
	tree, err := openTree(p.spec.Root.Path, true)
	if err != nil {
		return fmt.Errorf("invalid rootfs: %w", err)
	}
	p.plan.Root.Tree = p.out.giveFD(tree, p.spec.Root.Path)
	// It must hand nothing on to the host, where it may be shared.
	inherit := uint64(unix.MS_SLAVE)
	if prop&unix.MS_SLAVE == 0 && prop != 0 || !p.plan.OwnMounts {
		inherit = unix.MS_PRIVATE
	}
	return setTree(tree, &unix.MountAttr{Propagation: inherit}, true)
}

// openTree copies the mount that a path lies on, from there on, with what is mounted
// below if that is wanted.
func openTree(path string, below bool) (int, error) {
	flags := uint(unix.OPEN_TREE_CLONE | unix.OPEN_TREE_CLOEXEC)
	if below {
		flags |= unix.AT_RECURSIVE
	}
	fd, err := unix.OpenTree(unix.AT_FDCWD, path, flags)
	if err != nil {
		return -1, &os.PathError{Op: "stat", Path: path, Err: err}
	}
	return fd, nil
}

func setTree(fd int, attr *unix.MountAttr, below bool) error {
	flags := uint(unix.AT_EMPTY_PATH)
	if below {
		flags |= unix.AT_RECURSIVE
	}
	return os.NewSyscallError("mount_setattr", unix.MountSetattr(fd, "", flags, attr))
}

// mounts plans the container's mounts.
func (p *preparation) mounts() error {
	for i := range p.spec.Mounts {
		m := &p.spec.Mounts[i]
		made, err := p.mount(m)
		if err != nil {
			return fmt.Errorf("error mounting %q to rootfs at %q: %w", m.Source, m.Destination, err)
		}
		p.plan.Mounts = append(p.plan.Mounts, *made)
	}
	return nil
}

// quiet are file systems that SELinux's label of mounts does not apply to, and that
// have no flag of their own for being read-only.
var quiet = []string{"proc", "sysfs", "tmpfs", "devpts", "mqueue", "cgroup", "cgroup2"}

func (p *preparation) mount(m *specs.Mount) (*plan.Mount, error) {
	o := mounts.Parse(m.Options)
	made := &plan.Mount{Dest: m.Destination, Source: m.Source, FS: m.Type, Tree: plan.NoFD, Fallback: plan.NoFD, Again: o.Again && !o.Bind,
		Set: o.Set, Clear: o.Clear, RecSet: o.RecSet, RecClear: o.RecClear, Propagation: o.Propagation, CopyUp: o.CopyUp, Params: o.Params}
	switch {
	case made.Again && len(o.Params) > 0:
		return nil, fmt.Errorf("remount: %s: parameters of a file system cannot be changed", o.Params[0].Key)
	case made.Again:
		return made, nil
	case mounts.IsBind(m):
		return made, p.bind(m, &o, made)
	case m.Type == "cgroup" || m.Type == "cgroup2":
		return made, p.cgroup(made)
	case m.Type == "":
		return nil, errors.New("type: not given")
	}
	if o.MapIDs || len(m.UIDMappings)+len(m.GIDMappings) > 0 {
		return nil, errors.New("id-mapped mounts are only supported for bind-mounts")
	}
	// Nothing lies below a new one but itself.
	made.Set, made.Clear = made.Set&^o.RecClear|o.RecSet, made.Clear&^o.RecSet|o.RecClear
	if !slices.Contains(quiet, m.Type) && made.Set&unix.MOUNT_ATTR_RDONLY != 0 {
		made.Params = append(made.Params, plan.Param{Key: "ro"})
	}
	if label := p.spec.Linux.MountLabel; label != "" && m.Type != "proc" && m.Type != "sysfs" && m.Type != "mqueue" {
		made.Params = append(made.Params, plan.Param{Key: "context", Value: label})
	}
	return made, nil
}

// bind opens what is to be seen of the host. All that is decided about it is set
// before anybody inside can see it.
func (p *preparation) bind(m *specs.Mount, o *mounts.Parsed, made *plan.Mount) error {
	source := m.Source
	if !filepath.IsAbs(source) {
		source = filepath.Join(p.bundle, source)
	}
	tree, err := openTree(source, o.Recursive)
	if err != nil {
		return err
	}
	made.FS = ""
	made.Tree = p.out.giveFD(tree, source)
	if p.plan.Root.Propagation&unix.MS_SHARED == 0 {
		inherit := uint64(unix.MS_SLAVE)
		if p.plan.Root.Propagation&unix.MS_PRIVATE != 0 {
			inherit = unix.MS_PRIVATE
		}
		// As if it were made in the container's namespace, which gets the host's mounts as slaves.
		if err := setTree(tree, &unix.MountAttr{Propagation: inherit}, true); err != nil {
			return err
		}
	}
	if err := p.mapIDs(m, o, tree); err != nil {
		return err
	}
	if o.Set&unix.MOUNT_ATTR_RDONLY != 0 && p.holdsOthers(m.Destination) {
		made.LateReadOnly = true
		o.Set &^= unix.MOUNT_ATTR_RDONLY
	}
	if o.Set|o.Clear != 0 {
		if err := setTree(tree, &unix.MountAttr{Attr_set: o.Set, Attr_clr: o.Clear}, false); err != nil {
			return err
		}
	}
	if o.RecSet|o.RecClear != 0 {
		return setTree(tree, &unix.MountAttr{Attr_set: o.RecSet, Attr_clr: o.RecClear}, true)
	}
	return nil
}

// holdsOthers: a /dev that is read-only in the end has places of others made in it.
func (p *preparation) holdsOthers(dest string) bool { return filepath.Clean(dest) == "/dev" }

// cgroup plans what is seen of the container's cgroups: all of version 2, or a
// directory with version 1's hierarchies.
func (p *preparation) cgroup(made *plan.Mount) error {
	if p.group.Pure {
		made.FS = "cgroup2"
		source := p.layout.Unified
		if p.plan.CgroupNS {
			source = p.group.Unified
		}
		tree, err := openTree(source, false)
		if err != nil {
			return err
		}
		made.Fallback = p.out.giveFD(tree, source)
		if err := setTree(tree, &unix.MountAttr{Propagation: unix.MS_PRIVATE}, false); err != nil {
			return err
		}
		return setTree(tree, &unix.MountAttr{Attr_set: made.Set, Attr_clr: made.Clear}, false)
	}
	made.FS = "cgroup"
	for i := range p.layout.V1 {
		h := &p.layout.V1[i]
		c := plan.Hierarchy{Name: h.Name(), Tree: plan.NoFD, Data: strings.Join(h.Names, ",")}
		if strings.Contains(c.Name, ",") {
			c.Links = strings.Split(c.Name, ",")
		}
		if !p.plan.CgroupNS {
			dir := p.group.V1[h.Names[0]]
			tree, err := openTree(dir, false)
			if err != nil {
				return err
			}
			c.Tree = p.out.giveFD(tree, dir)
			if err := setTree(tree, &unix.MountAttr{Propagation: unix.MS_PRIVATE}, false); err != nil {
				return err
			}
			const safe = unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC
			if err := setTree(tree, &unix.MountAttr{Attr_set: safe | made.Set&unix.MOUNT_ATTR_RDONLY}, false); err != nil {
				return err
			}
		}
		made.Hierarchies = append(made.Hierarchies, c)
	}
	return nil
}

// isDevice checks that what the host has by the name is what was asked for.
func isDevice(tree int, d *plan.Device) error {
	var st unix.Stat_t
	if err := unix.Fstat(tree, &st); err != nil {
		return &os.PathError{Op: "stat", Path: d.Path, Err: err}
	}
	if st.Mode&unix.S_IFMT != d.Mode&unix.S_IFMT || d.Mode&unix.S_IFMT != unix.S_IFIFO && st.Rdev != unix.Mkdev(d.Major, d.Minor) {
		return fmt.Errorf("device %s: the host has another one by that name, and nobody makes devices in a user namespace", d.Path)
	}
	return nil
}

// defaultDevices are those that every container has (config-linux.md, "Default Devices").
var defaultDevices = []specs.LinuxDevice{
	{Path: "/dev/null", Type: "c", Major: 1, Minor: 3}, {Path: "/dev/zero", Type: "c", Major: 1, Minor: 5}, {Path: "/dev/full", Type: "c", Major: 1, Minor: 7},
	{Path: "/dev/random", Type: "c", Major: 1, Minor: 8}, {Path: "/dev/urandom", Type: "c", Major: 1, Minor: 9}, {Path: "/dev/tty", Type: "c", Major: 5, Minor: 0},
}

// devices plans the nodes, unless the container has a /dev of the host's.
func (p *preparation) devices() error {
	for i := range p.spec.Mounts {
		if mounts.IsDev(&p.spec.Mounts[i]) {
			return nil
		}
	}
	p.plan.SetupDev = true
	list := slices.Clone(p.spec.Linux.Devices)
	for _, d := range defaultDevices {
		if !slices.ContainsFunc(list, func(o specs.LinuxDevice) bool { return filepath.Clean(o.Path) == d.Path }) {
			list = append(list, d)
		}
	}
	for _, d := range list {
		made := plan.Device{Path: d.Path, Mode: 0o666, Major: uint32(d.Major), Minor: uint32(d.Minor), Tree: plan.NoFD}
		if d.FileMode != nil {
			made.Mode = uint32(d.FileMode.Perm())
		}
		kind, ok := map[string]uint32{"c": unix.S_IFCHR, "u": unix.S_IFCHR, "b": unix.S_IFBLK, "p": unix.S_IFIFO}[d.Type]
		if !ok {
			return fmt.Errorf("device %s: type %q: not known", d.Path, d.Type)
		}
		made.Mode |= kind
		if d.UID != nil {
			made.UID = *d.UID
		}
		if d.GID != nil {
			made.GID = *d.GID
		}
		if p.flags&unix.CLONE_NEWUSER != 0 { // nobody makes nodes there
			tree, err := openTree(d.Path, false)
			if err != nil {
				return err
			}
			made.Tree = p.out.giveFD(tree, d.Path)
			if err := isDevice(tree, &made); err != nil {
				return err
			}
		}
		p.plan.Devices = append(p.plan.Devices, made)
	}
	return nil
}
