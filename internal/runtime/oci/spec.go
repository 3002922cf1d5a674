package oci

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/sys/capability"
	"github.com/moby/sys/mountinfo"
	"github.com/opencontainers/runtime-spec/specs-go"
)

// Builder makes specifications for one host. It is safe for use by several
// goroutines.
type Builder struct {
	host     Host
	known    map[string]bool // all capabilities there are, by name
	profiles profileCache
	named    DeviceSource // nil: none
	defaults Defaults

	// What is looked up on the host while a specification is made.
	hostDevices func() ([]specs.LinuxDevice, error)
	readMounts  func() ([]*mountinfo.Info, error)
	weighs      func(device string) bool
}

// New makes a Builder for host.
func New(host Host) *Builder {
	b := &Builder{
		host:        host,
		known:       map[string]bool{},
		hostDevices: func() ([]specs.LinuxDevice, error) { return allDevices("/dev") },
		readMounts:  func() ([]*mountinfo.Info, error) { return mountinfo.GetMounts(nil) },
		weighs:      weighsDevice,
	}
	for _, c := range capability.ListKnown() {
		b.known[capabilityName(c)] = true
	}
	return b
}

// Defaults are what a container gets that does not say otherwise; what is zero
// is Docker's.
type Defaults struct {
	ShmSize      int64 // bytes
	IpcMode      container.IpcMode
	CgroupnsMode container.CgroupnsMode
}

// UseDefaults gives the Builder other defaults than Docker's. Called before
// anything is made.
func (b *Builder) UseDefaults(d Defaults) { b.defaults = d }

// Host is what the Builder was made from.
func (b *Builder) Host() Host { return b.host }

// Spec makes the specification of a container, and warnings about what had to
// be given up. Blocks for the reading of the container's passwd and group
// files, and of the host's mounts where a bind asks for propagation. Options
// are not changed and not kept, but parts of the result may be shared with them
// and with other specifications: it is not to be changed below its first level.
//
// Errors of kind ErrInvalidArgument tell of a bad request; others, as of a user
// that the image does not know, have Docker's words and no kind.
func (b *Builder) Spec(ctx context.Context, o Options) (*specs.Spec, []string, error) {
	if err := ctx.Err(); err != nil {
		return nil, nil, err
	}
	if o.Config == nil || o.HostConfig == nil || o.Rootfs == "" || o.Path == "" {
		return nil, nil, fmt.Errorf("container %q: configuration, root or command is missing", o.ID)
	}
	security, err := ParseSecurity(o.HostConfig.SecurityOpt, o.NoNewPrivileges)
	if err != nil {
		return nil, nil, err
	}
	process, warnings, err := b.process(o, security)
	if err != nil {
		return nil, nil, err
	}
	linux, err := b.linux(o, security, process.Capabilities.Bounding)
	if err != nil {
		return nil, nil, err
	}
	spec := &specs.Spec{
		Version:     specs.Version,
		Process:     process,
		Root:        &specs.Root{Path: o.Rootfs, Readonly: o.HostConfig.ReadonlyRootfs},
		Linux:       linux,
		Annotations: maps.Clone(o.HostConfig.Annotations),
	}
	if !o.HostConfig.UTSMode.IsHost() {
		spec.Hostname = o.Config.Hostname
	}
	if spec.Mounts, linux.RootfsPropagation, err = b.mounts(o, security); err != nil {
		return nil, nil, err
	}
	if err := b.request(spec, o.HostConfig.DeviceRequests); err != nil {
		return nil, nil, err
	}
	return spec, warnings, nil
}

// process makes the container's own process.
func (b *Builder) process(o Options, s Security) (*specs.Process, []string, error) {
	hc := o.HostConfig
	caps, err := b.capabilities(hc.CapAdd, hc.CapDrop, hc.Privileged)
	if err != nil {
		return nil, nil, err
	}
	user, err := LookupUser(o.Rootfs, o.Config.User, hc.GroupAdd)
	if err != nil {
		return nil, nil, err
	}
	user.Umask = hc.Umask
	cwd := o.Config.WorkingDir
	if cwd == "" {
		cwd = "/"
	}
	if err := checkWorkingDir(o.Rootfs, cwd); err != nil {
		return nil, nil, err
	}
	args := append([]string{o.Path}, o.Args...)
	if wantsInit(o) {
		if o.InitPath == "" {
			return nil, nil, words(`exec: "docker-init": executable file not found in $PATH`)
		}
		args = append([]string{initInContainer, "--"}, args...)
	}
	p := &specs.Process{
		Terminal:        o.Config.Tty,
		User:            user,
		Args:            args,
		Env:             environment(o.Config, o.Config.Tty, o.LinkEnv),
		Cwd:             cwd,
		Capabilities:    capabilitySets(user.UID, caps),
		NoNewPrivileges: s.NoNewPrivileges,
		ApparmorProfile: b.appArmor(o, s),
	}
	if p.Terminal {
		p.ConsoleSize = consoleSize(hc.ConsoleSize)
	}
	limits, warnings := b.rlimits(o)
	p.Rlimits = limits
	// Always said: else the process would inherit the monitor's.
	score := hc.OomScoreAdj
	if !b.host.RaiseLimits && score < b.host.OOMScoreAdj {
		score = b.host.OOMScoreAdj
		if hc.OomScoreAdj != 0 {
			warnings = append(warnings, fmt.Sprintf("OOM score adjustment %d is below what the engine may set, raised to %d.", hc.OomScoreAdj, score))
		}
	}
	p.OOMScoreAdj = &score
	return p, warnings, nil
}

// linux makes the part that only Linux has.
func (b *Builder) linux(o Options, s Security, bounding []string) (*specs.Linux, error) {
	resources, err := Resources(o.HostConfig.Resources)
	if err != nil {
		return nil, err
	}
	l := &specs.Linux{Resources: resources, Sysctl: b.sysctls(o), CgroupsPath: o.CgroupsPath}
	if l.Devices, resources.Devices, err = b.devices(o.HostConfig); err != nil {
		return nil, err
	}
	if l.Namespaces, err = b.namespaces(o); err != nil {
		return nil, err
	}
	if l.Seccomp, err = b.seccomp(o, s, bounding); err != nil {
		return nil, err
	}
	l.MaskedPaths, l.ReadonlyPaths = b.paths(o.HostConfig, s)
	return l, nil
}

// wantsInit: an init of its own makes sense only where the container's process
// is the first of its PID namespace.
func wantsInit(o Options) bool {
	if !o.HostConfig.PidMode.IsPrivate() {
		return false
	}
	if o.HostConfig.Init != nil {
		return *o.HostConfig.Init
	}
	return o.InitByDefault
}

func consoleSize(size [2]uint) *specs.Box {
	if size[0] == 0 && size[1] == 0 {
		return nil
	}
	return &specs.Box{Height: size[0], Width: size[1]}
}

// Process makes one more process for a container that runs with specification
// spec, of which only the process is looked at. rootfs is the container's root
// on the host, or /proc/<pid>/root. An unknown user is of kind
// ErrInvalidArgument.
func (b *Builder) Process(spec *specs.Spec, rootfs string, e ExecOptions) (*specs.Process, error) {
	if spec.Process == nil || spec.Process.Capabilities == nil || e.Config == nil || e.HostConfig == nil || len(e.Args) == 0 {
		return nil, invalid("No exec command specified")
	}
	p := *spec.Process
	p.Args = e.Args
	p.Env = mergeEnv(environment(e.Config, e.Tty, e.LinkEnv), e.Env)
	p.Terminal = e.Tty
	p.ConsoleSize = nil
	if e.Tty {
		p.ConsoleSize = consoleSize(e.ConsoleSize)
	}
	p.Cwd = "/"
	for _, dir := range []string{e.WorkingDir, e.Config.WorkingDir} {
		if dir != "" {
			p.Cwd = dir
			break
		}
	}
	if e.User != "" {
		user, err := LookupUser(rootfs, e.User, e.HostConfig.GroupAdd)
		if err != nil {
			return nil, invalid("%v", err)
		}
		user.Umask = p.User.Umask
		p.User = user
	}
	caps := p.Capabilities.Bounding
	if e.Privileged {
		caps = slices.Clone(b.host.Capabilities)
	}
	p.Capabilities = capabilitySets(p.User.UID, caps)
	return &p, nil
}

// Complete writes Docker's defaults into what a client left open, so that
// inspect shows what will be: sizes, modes, masked paths. After Validate.
func (b *Builder) Complete(hc *container.HostConfig) {
	if hc.Memory > 0 && hc.MemorySwap == 0 {
		hc.MemorySwap = hc.Memory * 2
	}
	if hc.ShmSize == 0 {
		hc.ShmSize = cmp.Or(b.defaults.ShmSize, defaultShmSize)
	}
	if hc.IpcMode.IsEmpty() {
		hc.IpcMode = cmp.Or(b.defaults.IpcMode, container.IPCModePrivate)
	}
	if hc.CgroupnsMode.IsEmpty() {
		hc.CgroupnsMode = b.defaultCgroupns()
		// With version 1 privileged containers work on the host's cgroups.
		if own := b.defaults.CgroupnsMode; own != "" && (!hc.Privileged || b.host.Cgroup.Version() == "2") {
			hc.CgroupnsMode = own
		}
	}
	if hc.OomKillDisable == nil && b.host.Cgroup.Features.OOMKillDisable {
		no := false
		hc.OomKillDisable = &no
	}
	completeLabels(hc)
	if !hc.Privileged {
		unconfined := slices.Contains(hc.SecurityOpt, "systempaths=unconfined")
		if hc.MaskedPaths == nil && !unconfined {
			hc.MaskedPaths = b.maskedPaths()
		}
		if hc.ReadonlyPaths == nil && !unconfined {
			hc.ReadonlyPaths = readonlyPaths()
		}
	}
}

// completeLabels turns SELinux's confinement off, as Docker does, where the
// container sees processes or memory that have other labels.
func completeLabels(hc *container.HostConfig) {
	asked := slices.ContainsFunc(hc.SecurityOpt, func(o string) bool { return o == "label" || strings.HasPrefix(o, "label=") })
	if !asked && (hc.Privileged || hc.PidMode.IsHost() || hc.IpcMode.IsHost()) {
		hc.SecurityOpt = append(hc.SecurityOpt[:len(hc.SecurityOpt):len(hc.SecurityOpt)], "label=disable")
	}
}

func sortedKeys[V any](m map[string]V) []string { return slices.Sorted(maps.Keys(m)) }

// defaultCgroupns: with version 1 a container's own view of its cgroup was
// never the custom.
func (b *Builder) defaultCgroupns() container.CgroupnsMode {
	if b.host.Cgroup.Version() == "2" && b.host.Cgroup.Namespaces {
		return container.CgroupnsModePrivate
	}
	return container.CgroupnsModeHost
}
