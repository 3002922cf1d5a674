package builder

import (
	"context"
	"encoding/json"
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/runtime"
	"github.com/containerd/containerd/v2/core/leases"
	"github.com/containerd/errdefs"
	"github.com/moby/buildkit/cache/metadata"
	"github.com/moby/sys/mountinfo"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// mountPool is the directory, beside those of steps, where all mount points are:
// those that BuildKit's steps share, and each step's own in a directory of its id.
// No recursive bind takes along what is mounted there.
const mountPool = "mounts"

// sweep ends the steps that an engine which was killed has left, and gives back
// what they had in the kernel.
func (e *executor) sweep(ctx context.Context) {
	list, err := os.ReadDir(e.cfg.RunDir)
	if err != nil {
		e.cfg.Logger.Warn("sweeping build steps", "error", err)
		return
	}
	for _, d := range list {
		if d.Name() == mountPool {
			continue
		}
		if err := e.sweepOne(ctx, d.Name()); err != nil {
			e.cfg.Logger.Warn("sweeping build step", "step", d.Name(), "error", err)
		}
	}
	// Nothing runs any more that could hold a mount.
	pool := filepath.Join(e.cfg.RunDir, mountPool)
	points, err := os.ReadDir(pool)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		e.cfg.Logger.Warn("sweeping mounts of builds", "error", err)
	}
	for _, p := range points {
		dir := filepath.Join(pool, p.Name())
		if err := removeMounted(dir); err != nil {
			e.cfg.Logger.Warn("sweeping mount of builds", "path", dir, "error", err)
		}
	}
}

func (e *executor) sweepOne(ctx context.Context, id string) error {
	dir := filepath.Join(e.cfg.RunDir, id)
	e.cfg.Logger.Info("ending a build step that was cut off", "step", id)
	c := runtime.Cleanup{ID: id, RunDir: dir, Runtime: e.cfg.Binary(), CgroupPath: e.cgroupOf(dir, id)}
	if err := e.cfg.Runtime.Cleanup(ctx, c); err != nil {
		return err
	}
	var eps []network.Endpoint
	if b, err := os.ReadFile(filepath.Join(dir, networkFile)); err == nil {
		_ = json.Unmarshal(b, &eps) // else the namespaces are found by the id
	}
	if err := e.cfg.Networks.Teardown(ctx, id, eps); err != nil {
		return err
	}
	return os.RemoveAll(dir)
}

// ofCache is the label by which leases of the cache's records are known.
const ofCache = "containerd.io/gc.flat"

// dropOrphans drops the leases of the cache that no record of it has: BuildKit makes
// a lease first and the record, in another database, last, and between the two the
// engine may have been killed. Nothing may be building.
func dropOrphans(ctx context.Context, held leases.Manager, records *metadata.Store) error {
	items, err := records.All()
	if err != nil {
		return err
	}
	known := map[string]bool{}
	for _, i := range items {
		known[i.ID()] = true
	}
	list, err := held.List(ctx)
	if err != nil {
		return err
	}
	for _, l := range list {
		id := strings.TrimSuffix(strings.TrimSuffix(l.ID, "-view"), "-variants")
		if l.Labels[ofCache] == "" || strings.Contains(l.ID, "/") || known[id] {
			continue
		}
		if err := held.Delete(ctx, leases.Lease{ID: l.ID}); err != nil && !errdefs.IsNotFound(err) {
			return err
		}
	}
	return nil
}

// cgroupOf reads a step's cgroup from its bundle.
func (e *executor) cgroupOf(dir, id string) string {
	var spec specs.Spec
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err == nil && json.Unmarshal(b, &spec) == nil && spec.Linux != nil {
		return spec.Linux.CgroupsPath
	}
	s := step{e: e, id: id}
	return s.cgroup()
}

// mountsBelow lists the mount points at and in a directory, first mounts first.
func mountsBelow(dir string) ([]string, error) {
	dir, err := filepath.EvalSymlinks(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	list, err := mountinfo.GetMounts(func(i *mountinfo.Info) (skip, stop bool) {
		return i.Mountpoint != dir && !strings.HasPrefix(i.Mountpoint, dir+"/"), false
	})
	if err != nil {
		return nil, err
	}
	points := make([]string, 0, len(list))
	for _, i := range list {
		points = append(points, i.Mountpoint)
	}
	return points, nil
}
