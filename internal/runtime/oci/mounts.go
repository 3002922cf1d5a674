package oci

import (
	"fmt"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// initInContainer is where the init binary appears.
const initInContainer = "/sbin/docker-init"

// defaultShmSize is that of /dev/shm where nothing is asked, in bytes.
const defaultShmSize = 64 << 20

func defaultMounts() []specs.Mount {
	return []specs.Mount{
		{Destination: "/proc", Type: "proc", Source: "proc", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev", Type: "tmpfs", Source: "tmpfs", Options: []string{"nosuid", "strictatime", "mode=755", "size=65536k"}},
		{Destination: "/dev/pts", Type: "devpts", Source: "devpts", Options: []string{"nosuid", "noexec", "newinstance", "ptmxmode=0666", "mode=0620", "gid=5"}},
		{Destination: "/sys", Type: "sysfs", Source: "sysfs", Options: []string{"nosuid", "noexec", "nodev", "ro"}},
		{Destination: "/sys/fs/cgroup", Type: "cgroup", Source: "cgroup", Options: []string{"ro", "nosuid", "noexec", "nodev"}},
		{Destination: "/dev/mqueue", Type: "mqueue", Source: "mqueue", Options: []string{"nosuid", "noexec", "nodev"}},
		{Destination: "/dev/shm", Type: "tmpfs", Source: "shm", Options: []string{"nosuid", "noexec", "nodev", "mode=1777"}},
	}
}

// mounts are all mounts of a container in the order in which they are made,
// and the propagation of its root ("" is the runtime's default).
func (b *Builder) mounts(o Options, s Security) (mounts []specs.Mount, propagation string, err error) {
	user := userMounts(o)
	at := map[string]bool{}
	for _, m := range user {
		at[m.Destination] = true
	}
	for _, m := range defaultMounts() {
		switch {
		case at[m.Destination]: // the user's own instead
			continue
		case at["/dev"] && strings.HasPrefix(m.Destination, "/dev/"):
			continue
		case m.Destination == "/dev/shm":
			if o.HostConfig.IpcMode.IsNone() {
				continue
			}
			size := o.HostConfig.ShmSize
			if size == 0 {
				size = defaultShmSize
			}
			m.Options = append(m.Options, "size="+strconv.FormatInt(size, 10))
		}
		mounts = append(mounts, m)
	}
	if wantsInit(o) {
		mounts = append(mounts, specs.Mount{Destination: initInContainer, Type: "bind", Source: o.InitPath, Options: []string{"bind", "ro"}})
	}
	b.setWritable(mounts, o, s)

	table := mountTable{read: b.readMounts}
	for _, m := range user {
		if m.Type == Tmpfs {
			t, err := tmpfs(m)
			if err != nil {
				return nil, "", err
			}
			mounts = append(mounts, t)
			continue
		}
		bind, root, err := b.bind(m, o, &table)
		if err != nil {
			return nil, "", err
		}
		mounts = append(mounts, bind)
		propagation = wider(propagation, root)
	}
	return mounts, propagation, nil
}

// setWritable adapts the default mounts to a read-only root, privileged and
// writable-cgroups.
func (b *Builder) setWritable(mounts []specs.Mount, o Options, s Security) {
	cgroups := o.HostConfig.Privileged
	if s.WritableCgroups != nil {
		cgroups = *s.WritableCgroups
	}
	for i := range mounts {
		m := &mounts[i]
		if o.HostConfig.ReadonlyRootfs && !slices.Contains(m.Options, "ro") {
			switch m.Destination {
			case "/proc", "/dev", "/dev/pts", "/dev/shm", "/dev/mqueue":
			default:
				m.Options = append(m.Options, "ro")
			}
		}
		if m.Destination == "/sys" && o.HostConfig.Privileged || m.Type == "cgroup" && cgroups {
			m.Options = slices.DeleteFunc(m.Options, func(opt string) bool { return opt == "ro" })
		}
	}
}

// userMounts are the mounts over the default ones: the user's, tmpfs, and the
// engine's files at /etc, parents before what lies below them.
func userMounts(o Options) []Mount {
	mounts := slices.Clone(o.Mounts)
	at := map[string]bool{}
	for i := range mounts {
		mounts[i].Destination = filepath.Clean(mounts[i].Destination)
		at[mounts[i].Destination] = true
	}
	for dest, options := range o.HostConfig.Tmpfs {
		if dest = filepath.Clean(dest); !at[dest] {
			at[dest] = true
			mounts = append(mounts, Mount{Type: Tmpfs, Destination: dest, Options: options})
		}
	}
	shm := o.ShmPath
	if shm == "" && o.HostConfig.IpcMode.IsHost() {
		shm = "/dev/shm"
	}
	for _, f := range []struct {
		source, dest string
		readOnly     bool
	}{
		{o.ResolvConfPath, "/etc/resolv.conf", o.HostConfig.ReadonlyRootfs},
		{o.HostnamePath, "/etc/hostname", o.HostConfig.ReadonlyRootfs},
		{o.HostsPath, "/etc/hosts", o.HostConfig.ReadonlyRootfs},
		{shm, "/dev/shm", false},
	} {
		if f.source != "" && !at[f.dest] {
			mounts = append(mounts, Mount{Type: Bind, Source: f.source, Destination: f.dest, ReadOnly: f.readOnly})
		}
	}
	slices.SortStableFunc(mounts, func(a, b Mount) int {
		if d := depth(a.Destination) - depth(b.Destination); d != 0 {
			return d
		}
		return strings.Compare(a.Destination, b.Destination)
	})
	return mounts
}

// depth counts the elements of a clean absolute path.
func depth(path string) int {
	if path == "/" {
		return 0
	}
	return strings.Count(path, "/")
}

// tmpfs makes a mount of its own memory; options override the safe defaults.
func tmpfs(m Mount) (specs.Mount, error) {
	options := []string{"noexec", "nosuid", "nodev", "rprivate"}
	if m.Options != "" {
		options = append(options, strings.Split(m.Options, ",")...)
	}
	if m.ReadOnly {
		options = append(options, "ro")
	}
	merged, err := mount.MergeTmpfsOptions(options)
	if err != nil {
		return specs.Mount{}, invalid("%v", err)
	}
	return specs.Mount{Destination: m.Destination, Type: "tmpfs", Source: "tmpfs", Options: merged}, nil
}

// bind makes a bind mount and says what propagation it asks of the root.
func (b *Builder) bind(m Mount, o Options, table *mountTable) (specs.Mount, string, error) {
	propagation, root, err := propagate(m, table)
	if err != nil {
		return specs.Mount{}, "", err
	}
	options := []string{"rbind"}
	if m.NonRecursive {
		options[0] = "bind"
	}
	if m.ReadOnly {
		recursive := !m.ReadOnlyNonRecursive
		if m.ReadOnlyNonRecursive && m.ReadOnlyForceRecursive {
			return specs.Mount{}, "", invalid("mount options conflict: ReadOnlyNonRecursive && ReadOnlyForceRecursive")
		}
		if !b.host.RecursiveReadOnly || o.PlainReadOnly {
			if m.ReadOnlyForceRecursive {
				return specs.Mount{}, "", invalid("rro is not supported by runtime %q", o.HostConfig.Runtime)
			}
			recursive = false
		}
		if recursive {
			options = append(options, "rro")
		} else {
			options = append(options, "ro")
		}
	}
	options = append(options, propagation)
	source := m.Source
	if m.From != "" {
		source = m.From
	}
	return specs.Mount{Destination: m.Destination, Type: "bind", Source: source, Options: options}, root, nil
}

// propagate checks that the source's mount can give the propagation asked for.
// To let mounts through, the container's root must let them through as well.
func propagate(m Mount, table *mountTable) (propagation, root string, err error) {
	const private = "rprivate"
	switch m.Propagation {
	case "":
		return private, "", nil
	case "private", private:
		return m.Propagation, "", nil
	case "shared", "rshared":
		point, _, shared, err := table.of(m.Source)
		if err != nil {
			return "", "", err
		}
		if !shared {
			if m.PropagationImplied {
				return private, "", nil
			}
			return "", "", words("path %s is mounted on %s but it is not a shared mount", m.Source, point)
		}
		return m.Propagation, "shared", nil
	case "slave", "rslave":
		point, slave, shared, err := table.of(m.Source)
		if err != nil {
			return "", "", err
		}
		if !shared && !slave {
			if m.PropagationImplied {
				return private, "", nil
			}
			return "", "", words("path %s is mounted on %s but it is not a shared or slave mount", m.Source, point)
		}
		return m.Propagation, "rslave", nil
	}
	return "", "", invalid("invalid propagation mode: %q", m.Propagation)
}

// wider is the propagation of a root that has to serve both.
func wider(a, b string) string {
	if a == "shared" || b == "" {
		return a
	}
	return b
}

// mountTable is the host's mounts, read when first asked for.
type mountTable struct {
	read   func() ([]*mountinfo.Info, error)
	mounts []*mountinfo.Info
}

// of finds the mount on which path lies and whether it is a slave or shared.
func (t *mountTable) of(path string) (point string, slave, shared bool, err error) {
	resolved, err := filepath.EvalSymlinks(path)
	if err != nil {
		return "", false, false, err
	}
	if t.mounts == nil {
		if t.mounts, err = t.read(); err != nil {
			return "", false, false, fmt.Errorf("mounts of the host: %w", err)
		}
	}
	var best *mountinfo.Info
	for _, m := range t.mounts {
		inside := m.Mountpoint == "/" || resolved == m.Mountpoint || strings.HasPrefix(resolved, m.Mountpoint+"/")
		// Of several at one place the last covers the others.
		if inside && (best == nil || len(m.Mountpoint) >= len(best.Mountpoint)) {
			best = m
		}
	}
	if best == nil {
		return "", false, false, words("Can't find mount point of %s", path)
	}
	for opt := range strings.FieldsSeq(best.Optional) {
		slave = slave || strings.HasPrefix(opt, "master:")
		shared = shared || strings.HasPrefix(opt, "shared:")
	}
	return best.Mountpoint, slave, shared, nil
}
