package daemon

import (
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime"
)

// ownRuntime is the name of the OCI runtime that is part of the project, ownProgram
// the program; runc stands beside it.
const (
	ownRuntime = "native"
	ownProgram = "escale-runtime"
	runc       = "runc"
)

// chooseRuntime settles the default that nobody named: our own where kernel and program
// are there for it, else runc, with the reason for tellRuntime. A program that the
// configuration gives the name is taken as it is.
func (c *Config) chooseRuntime(kernel func() error, find func(program string) (string, error)) {
	c.Runtime, c.notNative = ownRuntime, ""
	if c.Runtimes[ownRuntime] != "" {
		return
	}
	err := kernel()
	if err == nil {
		_, err = find(ownProgram)
	}
	if err != nil {
		c.Runtime, c.notNative = runc, err.Error()
	}
}

// tellRuntime logs why containers get runc though nobody asked for it.
func (c *Config) tellRuntime(log *slog.Logger) {
	if c.notNative != "" {
		log.Warn("containers are run by runc unless they say otherwise", "why", c.notNative)
	}
}

// newMounts tells why the kernel has not all that our own runtime needs: of the calls it
// makes mount_setattr(2) came last, with 5.12. Without a mount to change the call answers
// EINVAL where it exists.
func newMounts() error {
	_, _, errno := unix.Syscall6(unix.SYS_MOUNT_SETATTR, 0, 0, 0, 0, 0, 0)
	if errno == unix.ENOSYS || errno == unix.EPERM {
		return fmt.Errorf("the kernel has no mount_setattr, which came with 5.12: %w", errno)
	}
	return nil
}

// defaultBinary is what runs whatever names no runtime.
func (d *Daemon) defaultBinary() runtime.Binary {
	now := d.now()
	return now.runtimes[now.cfg.Runtime]
}

// runtimes are the OCI runtimes by name; runc and our own are those installed
// beside the engine unless the configuration names others. One of the two may be
// missing, unless it is the default.
func (c *Config) runtimes() (map[string]runtime.Binary, error) {
	out := map[string]runtime.Binary{}
	for name, path := range c.Runtimes {
		out[name] = runtime.Binary{Path: path, Args: c.RuntimeArgs[name]}
	}
	for _, r := range []struct {
		name, program string
		args          []string
	}{
		{runc, runc, nil},
		{ownRuntime, ownProgram, []string{"--cache", filepath.Join(c.ExecRoot, "filters")}},
	} {
		if _, ok := out[r.name]; ok {
			continue
		}
		if path, err := beside(r.program); err == nil {
			out[r.name] = runtime.Binary{Path: path, Args: r.args}
		} else if c.Runtime == r.name && c.notNative != "" {
			return nil, fmt.Errorf("%s; and %w", c.notNative, err)
		} else if c.Runtime == r.name {
			return nil, err
		}
	}
	for name, r := range out {
		if c.driver == driverSystemd {
			r.Args = append(slices.Clone(r.Args), "--systemd-cgroup")
			out[name] = r
		}
		if !filepath.IsAbs(r.Path) {
			return nil, fmt.Errorf("runtime %q: path %q is not absolute", name, r.Path)
		}
	}
	return out, nil
}
