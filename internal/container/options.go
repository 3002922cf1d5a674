package container

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"escale.dev/escale/internal/runtime/oci"
	"escale.dev/escale/internal/sys/pin"
	"github.com/moby/moby/api/types/mount"
	"golang.org/x/sys/unix"
)

// newCgroup is the cgroup of a container that is about to be started, as the specification has it.
func (m *core) newCgroup(rec *Record) string {
	d := m.defaults()
	parent := d.CgroupParent
	if rec.HostConfig != nil && rec.HostConfig.CgroupParent != "" {
		parent = rec.HostConfig.CgroupParent
	}
	return oci.CgroupsPath(parent, string(rec.ID), d.Scopes)
}

// specCgroup is the cgroup of the last start as the specification has it: an engine of another
// configuration may have made it.
func (m *core) specCgroup(rec *Record) string {
	if rec.State.Cgroup != "" {
		return rec.State.Cgroup
	}
	return m.newCgroup(rec)
}

// cgroupPath is the cgroup of the last start as a path below the mount points.
func (m *core) cgroupPath(rec *Record) string { return oci.CgroupDir(m.specCgroup(rec)) }

// options gathers what the specification of a start is made from.
func (s *start) options() (oci.Options, error) {
	d := s.m.defaults()
	files, err := s.writeHostFiles()
	if err != nil {
		return oci.Options{}, err
	}
	o := oci.Options{
		ID: string(s.e.id), Rootfs: s.rootfs(), Config: s.rec.Config, HostConfig: s.rec.HostConfig,
		Path: s.rec.Path, Args: s.rec.Args,
		HostnamePath: files.hostname, HostsPath: files.hosts, ResolvConfPath: files.resolv,
		NetNS: s.netns, CgroupsPath: s.m.specCgroup(&s.rec),
		InitPath: d.InitPath, InitByDefault: d.Init, DefaultUlimits: d.Ulimits, AppArmorProfile: d.AppArmorProfile,
		NoNewPrivileges: d.NoNewPrivileges, SeccompProfile: d.SeccompProfile,
	}
	wanted := d.Init
	if own := s.rec.HostConfig.Init; own != nil {
		wanted = *own
	}
	if wanted && d.InitPath == "" {
		return o, kindf(errInvalid, "--init needs docker-init, which is not installed beside the engine: make build brings it, or name one with --init-path")
	}
	if o.LinkEnv, err = s.m.linkEnv(&s.rec, true); err != nil {
		return o, err
	}
	if o.Mounts, err = s.mounts(); err != nil {
		return o, err
	}
	return o, s.namespaces(&o)
}

// tmpfsOptions writes the options of --mount type=tmpfs as --tmpfs has them.
func tmpfsOptions(mt *mount.Mount) string {
	if mt == nil || mt.TmpfsOptions == nil {
		return ""
	}
	var out []string
	if n := mt.TmpfsOptions.SizeBytes; n > 0 {
		out = append(out, fmt.Sprintf("size=%d", n))
	}
	if mode := mt.TmpfsOptions.Mode; mode != 0 {
		out = append(out, fmt.Sprintf("mode=%o", mode))
	}
	for _, kv := range mt.TmpfsOptions.Options {
		out = append(out, strings.Join(kv, "="))
	}
	return strings.Join(out, ",")
}

// namespaces resolves the modes that name another container, and makes the
// shared memory that others may join.
func (s *start) namespaces(o *oci.Options) error {
	h := s.rec.HostConfig
	if ipc := h.IpcMode; ipc.IsContainer() {
		other, st, err := s.joined(ipc.Container())
		if err != nil {
			return err
		}
		shm := s.m.shmPath(other.id, st.Generation)
		if _, err := os.Stat(shm); err != nil {
			return kindf(errInvalid, "can't join IPC of container %s: non-shareable IPC (hint: use IpcMode:shareable for the donor container)", other.id)
		}
		o.IPCNS, o.ShmPath = fmt.Sprintf("/proc/%d/ns/ipc", st.Pid), shm
	} else if ipc.IsShareable() {
		if err := s.mountShm(); err != nil {
			return err
		}
		o.ShmPath = s.m.shmPath(s.e.id, s.run.generation)
	}
	if pid := h.PidMode; pid.IsContainer() {
		_, st, err := s.joined(pid.Container())
		if err != nil {
			return err
		}
		o.PIDNS = fmt.Sprintf("/proc/%d/ns/pid", st.Pid)
	}
	return nil
}

// joined finds a running container whose namespace is to be shared.
func (s *start) joined(ref string) (*entry, State, error) {
	other, err := s.m.store.find(ref)
	if err != nil {
		return nil, State{}, err
	}
	st := other.state()
	if !st.Running() {
		return nil, st, kindf(errConflict, "cannot join namespace of a non running container: %s", other.id)
	}
	return other, st, nil
}

func (m *core) shmPath(id ID, generation uint64) string {
	return filepath.Join(m.runDir(id, generation), "shm")
}

// mountShm makes the shared memory of a shareable IPC namespace on the host, so
// that other containers can have it too.
func (s *start) mountShm() error {
	path := s.m.shmPath(s.e.id, s.run.generation)
	if err := os.Mkdir(path, 0o700); err != nil && !errors.Is(err, os.ErrExist) {
		return err
	}
	opts := fmt.Sprintf("mode=1777,size=%d", s.rec.HostConfig.ShmSize)
	if err := unix.Mount("shm", path, "tmpfs", unix.MS_NOEXEC|unix.MS_NOSUID|unix.MS_NODEV, opts); err != nil {
		return fmt.Errorf("shared memory: %w", err)
	}
	s.undo.add(func() { s.m.unmountRun(s.e.id, s.run.generation) })
	return nil
}

// unmountRun takes down the mounts of a run's directory.
func (m *core) unmountRun(id ID, generation uint64) error {
	err := m.cfg.Rootfs.Unmount(filepath.Join(m.runDir(id, generation), "rootfs"))
	if e := unix.Unmount(m.shmPath(id, generation), unix.MNT_DETACH); e != nil && e != unix.EINVAL && e != unix.ENOENT {
		err = errors.Join(err, fmt.Errorf("shared memory: %w", e))
	}
	return errors.Join(err, pin.Clear(m.pinDir(id, generation)))
}
