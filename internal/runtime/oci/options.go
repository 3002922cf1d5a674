package oci

import (
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// Options is everything a specification is made from.
type Options struct {
	ID     string
	Rootfs string // the container's root, mounted; absolute

	// As a client asked, after Builder.Validate and Builder.Complete.
	Config     *container.Config
	HostConfig *container.HostConfig

	LinkEnv []string // variables of linked containers

	Path string // the command that runs, entrypoint and command joined
	Args []string

	// Mounts are the container's volumes, binds and tmpfs mounts, in any
	// order. HostConfig's Binds, Mounts and Tmpfs are not looked at but for
	// Tmpfs, which is always mounted.
	Mounts []Mount

	// Files bound in at /etc/…, unless Mounts has something there; empty: none.
	HostnamePath, HostsPath, ResolvConfPath string

	// ShmPath is bound in at /dev/shm: of an IPC namespace that others share.
	// Empty: a tmpfs of the container's own, or the host's where it shares the
	// host's namespace.
	ShmPath string

	// NetNS is the path of the network namespace. Empty: the runtime makes a
	// new one with nothing in it. Not looked at when HostConfig shares the host's.
	NetNS string

	// IPCNS and PIDNS are the namespaces that modes "container:…" name.
	IPCNS, PIDNS string

	// CgroupsPath is the container's cgroup as the specification has it;
	// CgroupsPath makes it.
	CgroupsPath string

	InitPath      string // init binary on the host, for HostConfig.Init
	InitByDefault bool   // use it where HostConfig.Init is not set

	DefaultUlimits  map[string]*units.Ulimit // where HostConfig has none of that name
	NoNewPrivileges bool                     // where no security option says otherwise
	SeccompProfile  string                   // engine's profile: "" or "builtin", "unconfined", or JSON
	AppArmorProfile string                   // profile for containers that name none; empty: unconfined
	PlainReadOnly   bool                     // the runtime knows no recursive read-only mounts
}

// Mount types.
const (
	Bind  = "bind"
	Tmpfs = "tmpfs"
)

// Mount is a mount point asked for by a user.
type Mount struct {
	Type        string // Bind or Tmpfs
	Source      string // of a bind: absolute path on the host
	From        string // where the runtime finds it, when that is another path
	Destination string // absolute path in the container
	ReadOnly    bool

	Propagation string // private, rprivate, shared, rshared, slave, rslave; empty: rprivate
	// PropagationImplied: the engine chose Propagation, the user did not. Where
	// the source cannot give it, the bind is made private instead of refused.
	PropagationImplied bool

	NonRecursive           bool // bind the mount itself, not what is mounted below
	ReadOnlyNonRecursive   bool // what is mounted below stays writable
	ReadOnlyForceRecursive bool // refuse where that cannot be prevented

	Options string // of a tmpfs, as in --tmpfs: "size=64m,mode=1777"
}

// ExecOptions is what one more process in a container is made from.
type ExecOptions struct {
	Config     *container.Config // of the container
	HostConfig *container.HostConfig

	Args        []string
	LinkEnv     []string // variables of linked containers
	Env         []string // over the container's
	WorkingDir  string   // empty: the container's
	User        string   // empty: the container's
	Tty         bool
	ConsoleSize [2]uint // rows, columns
	Privileged  bool
}
