package daemon

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"

	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/sys/nobind"
	"golang.org/x/sys/unix"
)

// cleanPatience is how long an engine that leaves nothing behind waits for the
// kernel to give back what the last containers had.
const cleanPatience = 20 * time.Second

// leaveNothing takes what the engine made for containers to come out of the
// kernel: bridge, firewall table, folders of namespaces and mounts, cgroups. Where a
// container runs it leaves all as it is. Called when nobody is served any more.
func (d *Daemon) leaveNothing(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), cleanPatience)
	defer cancel()
	if err := d.containers.AwaitReaped(ctx); err != nil {
		return err
	}
	running := 0
	for _, v := range d.containers.List() {
		if v.State.Running() || v.State.Status == container.Starting {
			running++ // a start that took longer than the API was willing to wait ends as a crash would have it
		}
	}
	if running > 0 {
		d.log.Info("containers run: what they need stays", "containers", running)
		return nil
	}
	d.managed.StopAll(ctx)
	errs := []error{d.networks.Destroy(ctx), d.taskFiles().leave()}
	for _, dir := range []string{"containers", "build/mounts"} { // what containers and builds were mounted below
		errs = append(errs, nobind.Release(filepath.Join(d.cfg.ExecRoot, dir)))
	}
	return errors.Join(append(errs, d.monitors.Close(), d.removeCgroups())...)
}

// removeIdle removes a cgroup, for whose last process to be gone it waits 200 ms at most: a runtime
// that waited beside a monitor ends behind it.
func removeIdle(dir string) error {
	end := time.Now().Add(200 * time.Millisecond)
	for {
		err := unix.Rmdir(dir)
		if !errors.Is(err, unix.EBUSY) || time.Now().After(end) {
			return err
		}
		time.Sleep(5 * time.Millisecond)
	}
}

// removeCgroups removes the parent cgroups that bear the engine's own name, in
// all hierarchies, as far as nothing is in them.
func (d *Daemon) removeCgroups() error {
	var errs []error
	for _, name := range []string{d.cfg.cgroupName(), d.cfg.cgroupName() + "-monitors"} {
		dirs := []string{filepath.Join(cgroupRoot, name)}
		more, err := filepath.Glob(filepath.Join(cgroupRoot, "*", name))
		if err != nil {
			return err
		}
		for _, dir := range append(dirs, more...) {
			err := removeIdle(dir)
			switch {
			case err == nil, errors.Is(err, unix.ENOENT), errors.Is(err, unix.ENOTDIR):
			case errors.Is(err, unix.EBUSY), errors.Is(err, unix.ENOTEMPTY):
				d.log.Info("cgroup stays: it is in use", "path", dir)
			default:
				errs = append(errs, fmt.Errorf("cgroup: %w", &os.PathError{Op: "rmdir", Path: dir, Err: err}))
			}
		}
	}
	return errors.Join(errs...)
}
