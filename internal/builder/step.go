package builder

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/sys/pin"
	"github.com/containerd/containerd/v2/core/mount"
	"github.com/docker/go-units"
	bkexec "github.com/moby/buildkit/executor"
	bkoci "github.com/moby/buildkit/executor/oci"
	"github.com/moby/buildkit/solver/pb"
	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// step is a step that runs, or is about to. Its directory is the journal: it is
// made first and removed last, and names all else.
type step struct {
	e         *executor
	id        string // 64 hexadecimal digits
	meta      bkexec.Meta
	rootMount bkexec.Mount
	mounts    []bkexec.Mount

	binary  runtime.Binary // the OCI runtime, to the end
	dir     string
	netns   string
	spec    *specs.Spec
	hc      *container.HostConfig
	task    runtime.Task
	stream  runtime.Stream
	pid     int
	ready   chan struct{} // closed when the process runs
	undoing []func(context.Context) error
}

func (s *step) onUndo(f func(context.Context) error) { s.undoing = append(s.undoing, f) }

// undo takes back, last things first, what the step has made. It blocks until
// the kernel is done.
func (s *step) undo() error {
	// detached: it is undone also when nobody waits for the step any more
	ctx := context.Background()
	var errs []error
	for _, f := range slices.Backward(s.undoing) {
		errs = append(errs, f(ctx))
	}
	s.undoing = nil
	if err := errors.Join(errs...); err != nil {
		return fmt.Errorf("build step: cleaning up: %w", err)
	}
	return nil
}

// abandon lets go of the monitor.
func (s *step) abandon() {
	if s.stream != nil {
		s.stream.Close()
	}
	if s.task != nil {
		s.task.Close()
	}
}

// points is the directory of the step's mount points.
func (s *step) points() string { return filepath.Join(s.e.cfg.RunDir, mountPool, s.id) }

func (s *step) rootfs() string { return filepath.Join(s.points(), "rootfs") }

// prepare makes all that the process needs.
func (s *step) prepare(ctx context.Context) error {
	s.dir = filepath.Join(s.e.cfg.RunDir, s.id)
	for _, d := range []string{s.rootfs(), filepath.Join(s.dir, stateDir)} {
		if err := os.MkdirAll(d, 0o711); err != nil {
			return err
		}
	}
	s.onUndo(func(context.Context) error { return errors.Join(os.RemoveAll(s.points()), os.RemoveAll(s.dir)) })
	if err := s.mountRoot(ctx); err != nil {
		return err
	}
	mounts, err := s.mountAll(ctx)
	if err != nil {
		return err
	}
	if err := s.setupNetwork(ctx); err != nil {
		return err
	}
	return s.specify(ctx, mounts)
}

// materialize gives the mounts of a BuildKit reference, which are released with
// the step.
func (s *step) materialize(ctx context.Context, m bkexec.Mount) ([]mount.Mount, error) {
	ref, err := m.Src.Mount(ctx, m.Readonly)
	if err != nil {
		return nil, err
	}
	list, release, err := ref.Mount()
	if err != nil {
		return nil, err
	}
	if release != nil {
		s.onUndo(func(context.Context) error { return release() })
	}
	return list, nil
}

// mountOn mounts on a directory of the step's.
func (s *step) mountOn(list []mount.Mount, dir string) error {
	s.onUndo(func(context.Context) error { return mount.UnmountAll(dir, 0) })
	return mount.All(list, dir)
}

func (s *step) mountRoot(ctx context.Context) error {
	root := s.rootMount
	root.Readonly = false // of the specification, not of the mount: mount points may be missing
	list, err := s.materialize(ctx, root)
	if err != nil {
		return err
	}
	if err := s.mountOn(list, s.rootfs()); err != nil {
		return err
	}
	clean := bkexec.MountStubsCleaner(context.WithoutCancel(ctx), s.rootfs(), s.mounts, s.meta.RemoveMountStubsRecursive)
	s.onUndo(func(context.Context) error { clean(); return nil })
	return nil
}

// mountAll makes the mounts of RUN --mount.
func (s *step) mountAll(ctx context.Context) ([]oci.Mount, error) {
	var out []oci.Mount
	for i, m := range s.mounts {
		list, err := s.materialize(ctx, m)
		if err != nil {
			return nil, err
		}
		one, err := s.mountOne(list, m, filepath.Join(s.points(), strconv.Itoa(i)))
		if err != nil {
			return nil, fmt.Errorf("mount %s: %w", m.Dest, err)
		}
		out = append(out, one)
	}
	return out, nil
}

func (s *step) mountOne(list []mount.Mount, m bkexec.Mount, dir string) (oci.Mount, error) {
	out := oci.Mount{Type: oci.Bind, Destination: filepath.Join("/", m.Dest), ReadOnly: m.Readonly}
	if len(list) == 1 && list[0].Type == "tmpfs" && m.Selector == "" {
		// What a step has for itself alone may hold programs, as /tmp does.
		out.Type, out.Options = oci.Tmpfs, strings.Join(append([]string{"exec"}, tmpfsOptions(list[0].Options)...), ",")
		return out, nil
	}
	source := ""
	if len(list) == 1 && (list[0].Type == "bind" || list[0].Type == "rbind") {
		source = list[0].Source
		out.ReadOnly = out.ReadOnly || slices.Contains(list[0].Options, "ro")
	} else {
		if err := os.MkdirAll(dir, 0o711); err != nil {
			return out, err
		}
		if err := s.mountOn(list, dir); err != nil {
			return out, err
		}
		source = dir
	}
	if m.Selector == "" || m.Selector == "/" {
		out.Source = source
		return out, nil
	}
	// What is selected lies in a tree that steps write: it is found and held
	// with no link leading out of the tree.
	root, err := pin.Open(source)
	if err != nil {
		return out, err
	}
	defer root.Close()
	held, err := pin.Below(root, m.Selector)
	if err != nil {
		return out, err
	}
	defer held.Close()
	if err := os.MkdirAll(filepath.Dir(dir), 0o711); err != nil {
		return out, err
	}
	point := dir + ".selected"
	if err := pin.Bind(held, point, pin.How{}); err != nil {
		return out, err
	}
	s.onUndo(func(context.Context) error { return mount.UnmountAll(point, 0) })
	out.Source = point
	return out, nil
}

// tmpfsOptions leaves out what the runtime's own way of mounting has no use for.
func tmpfsOptions(options []string) []string {
	return slices.DeleteFunc(slices.Clone(options), func(o string) bool { return o == "rbind" || o == "bind" })
}

// networkFile and stateDir are in a step's directory.
const (
	networkFile = "network.json"
	stateDir    = "state"
)

// setupNetwork makes the step's network namespace, but for the host's.
func (s *step) setupNetwork(ctx context.Context) error {
	name := network.Bridge
	switch s.meta.NetMode {
	case pb.NetMode_HOST:
		return nil
	case pb.NetMode_NONE:
		name = network.None
	}
	box, err := s.e.cfg.Networks.Setup(ctx, network.Request{
		ContainerID: s.id, Name: "build-" + s.id[:12], Hostname: s.hostname(),
		Networks: map[string]*apinetwork.EndpointSettings{name: nil},
	})
	if err != nil {
		return fmt.Errorf("network of a build step: %w", err)
	}
	s.netns = box.Path
	s.onUndo(func(ctx context.Context) error { return s.e.cfg.Networks.Teardown(ctx, s.id, box.Endpoints) })
	b, err := json.Marshal(box.Endpoints)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, networkFile), b, 0o600)
}

// hostname is the same in every build, so that results are.
func (s *step) hostname() string {
	if s.meta.Hostname != "" {
		return s.meta.Hostname
	}
	return "buildkitsandbox"
}

// specify writes config.json and the files of /etc.
func (s *step) specify(ctx context.Context, mounts []oci.Mount) error {
	if len(s.meta.Args) == 0 {
		return errors.New("build step: no command")
	}
	if len(s.meta.CDIDevices) > 0 {
		return fmt.Errorf("RUN --device=%s: the engine knows no such device", s.meta.CDIDevices[0].Name)
	}
	s.hc = s.hostConfig()
	config := s.config(s.meta)
	if _, err := s.e.cfg.Specs.Validate(s.hc, config); err != nil {
		return err
	}
	s.e.cfg.Specs.Complete(s.hc)
	o := oci.Options{
		ID: s.id, Rootfs: s.rootfs(), Config: config, HostConfig: s.hc, Path: s.meta.Args[0], Args: s.meta.Args[1:],
		Mounts: mounts, NetNS: s.netns, CgroupsPath: s.cgroup(), AppArmorProfile: s.e.cfg.AppArmorProfile,
	}
	if err := s.etc(ctx, &o); err != nil {
		return err
	}
	var err error
	if s.spec, _, err = s.e.cfg.Specs.Spec(ctx, o); err != nil {
		return err
	}
	b, err := json.Marshal(s.spec)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(s.dir, "config.json"), b, 0o600)
}

// etc makes the files bound in at /etc.
func (s *step) etc(ctx context.Context, o *oci.Options) error {
	root, err := os.OpenRoot(s.dir)
	if err != nil {
		return err
	}
	defer root.Close()
	d := s.e.cfg.DNS
	resolv, err := bkoci.GetResolvConf(ctx, root, nil, &bkoci.DNSConfig{Nameservers: d.Servers, SearchDomains: d.Search, Options: d.Options}, s.meta.NetMode)
	if err != nil {
		return err
	}
	// BuildKit's own way to write hosts keeps the directory open for ever.
	const hosts = "hosts"
	if err := root.WriteFile(hosts, s.hosts(), 0o644); err != nil {
		return err
	}
	o.ResolvConfPath, o.HostsPath = filepath.Join(s.dir, resolv), filepath.Join(s.dir, hosts)
	return nil
}

// hosts is the step's /etc/hosts.
func (s *step) hosts() []byte {
	b := fmt.Appendf(nil, "127.0.0.1\tlocalhost %s\n::1\tlocalhost ip6-localhost ip6-loopback\n", s.hostname())
	for _, h := range s.meta.ExtraHosts {
		b = fmt.Appendf(b, "%s\t%s\n", h.IP, h.Host)
	}
	return b
}

func (s *step) config(m bkexec.Meta) *container.Config {
	return &container.Config{Hostname: s.hostname(), User: m.User, Env: m.Env, WorkingDir: m.Cwd, Tty: m.Tty, Cmd: m.Args}
}

// hostConfig is what the step may use of the host.
func (s *step) hostConfig() *container.HostConfig {
	hc := &container.HostConfig{NetworkMode: "bridge", ReadonlyRootfs: s.meta.ReadonlyRootFS || s.rootMount.Readonly}
	switch s.meta.NetMode {
	case pb.NetMode_HOST:
		hc.NetworkMode = "host"
	case pb.NetMode_NONE:
		hc.NetworkMode = "none"
	}
	hc.Privileged = s.meta.SecurityMode == pb.SecurityMode_INSECURE
	hc.CgroupParent = s.meta.CgroupParent
	for _, u := range s.meta.Ulimit {
		hc.Ulimits = append(hc.Ulimits, &units.Ulimit{Name: u.Name, Soft: u.Soft, Hard: u.Hard})
	}
	if r := s.meta.LinuxResources; r != nil {
		hc.Memory, hc.MemorySwap = r.Memory, r.MemorySwap
		hc.CPUShares, hc.CPUPeriod, hc.CPUQuota = int64(r.CpuShares), int64(r.CpuPeriod), r.CpuQuota
		hc.CpusetCpus, hc.CpusetMems = r.CpusetCpus, r.CpusetMems
	}
	return hc
}

// process is one more process, for Exec.
func (s *step) process(m bkexec.Meta) ([]byte, error) {
	p, err := s.e.cfg.Specs.Process(s.spec, fmt.Sprintf("/proc/%d/root", s.pid), oci.ExecOptions{
		Config: s.config(s.meta), HostConfig: s.hc, Args: m.Args, Env: m.Env, WorkingDir: m.Cwd, User: m.User, Tty: m.Tty,
		Privileged: m.SecurityMode == pb.SecurityMode_INSECURE,
	})
	if err != nil {
		return nil, err
	}
	return json.Marshal(p)
}

// launch starts the monitor and connects to the process' streams.
func (s *step) launch(ctx context.Context, stdin bool) error {
	s.onUndo(func(ctx context.Context) error { return s.e.cfg.Runtime.Cleanup(ctx, s.cleanup()) })
	var err error
	s.task, err = s.e.cfg.Runtime.Launch(ctx, runtime.Launch{
		ID: s.id, Generation: 1, Bundle: s.dir, RunDir: s.dir, StateDir: filepath.Join(s.dir, stateDir),
		Runtime: s.binary, Terminal: s.meta.Tty, OpenStdin: stdin, StdinOnce: stdin, CgroupPath: s.spec.Linux.CgroupsPath,
	})
	if err != nil {
		return fmt.Errorf("monitor of a build step: %w", err)
	}
	s.stream, err = s.task.Attach(ctx, "", runtime.Attach{Stdin: stdin, Stdout: true, Stderr: true})
	return err
}

func (s *step) cleanup() runtime.Cleanup {
	return runtime.Cleanup{ID: s.id, RunDir: s.dir, Runtime: s.binary, CgroupPath: s.cgroup()}
}
