package container

import (
	"context"
	"encoding/json"
	"fmt"

	"escale.dev/escale/internal/runtime"
	"escale.dev/escale/internal/runtime/oci"
	"github.com/moby/moby/api/types/container"
	apievents "github.com/moby/moby/api/types/events"
	specs "github.com/opencontainers/runtime-spec/specs-go"
)

// updater changes what a container may use while it is there.
type updater struct{ c *core }

// Update changes a container's limits and restart policy; what is zero in cfg
// stays. A running one gets the limits at once, another at its next start. On
// an error nothing is recorded and the limits are the old ones. Blocks while
// the OCI runtime works, some 40 ms.
func (u updater) Update(ctx context.Context, ref string, cfg container.UpdateConfig) (warnings []string, err error) {
	e, err := u.c.store.find(ref)
	if err != nil {
		return nil, err
	}
	unlimitedSwap := cfg.MemorySwap == -1 // before a check puts that in for want of swap accounting
	if warnings, err = u.c.cfg.Specs.ValidateResources(&cfg.Resources, true); err != nil {
		return warnings, err
	}
	if err := container.ValidateRestartPolicy(cfg.RestartPolicy); err != nil {
		return warnings, kindf(errInvalid, "%v", err)
	}
	if err := e.op.lock(ctx); err != nil {
		return warnings, err
	}
	defer e.op.unlock()
	if err := u.change(ctx, e, &cfg, unlimitedSwap); err != nil {
		return warnings, fmt.Errorf("Cannot update container %s: %w", e.id, err) //nolint:staticcheck // Docker's words.
	}
	u.c.publish(e, apievents.ActionUpdate, nil)
	return warnings, nil
}

// change brings the new limits into the kernel, then into the record.
func (u updater) change(ctx context.Context, e *entry, cfg *container.UpdateConfig, unlimitedSwap bool) error {
	v := e.view()
	if v.State.Status == Removing || v.State.Status == Dead {
		return kindf(errConflict, `container is marked for removal and cannot be "update"`)
	}
	old := v.HostConfig
	next := copyHostConfig(old)
	limits, err := merge(next, cfg)
	if err != nil {
		return err
	}
	if !limits {
		return u.record(e, next)
	}
	back := u.former(&v.Record, &next.Resources)
	if err = u.apply(ctx, e, &next.Resources, unlimitedSwap); err == nil {
		err = u.record(e, next)
	}
	if err != nil {
		// The kernel takes limits one by one: those before the refused one are set.
		if undo := u.apply(ctx, e, &back, back.MemorySwap == -1); undo != nil {
			u.c.log.Warn("putting limits back", "container", e.id.Short(), "error", undo)
		}
	}
	return err
}

// former are the limits of a container before it gets those of next, as they
// have to be said to take next back: no limit is a value of its own then.
func (u updater) former(rec *Record, next *container.Resources) container.Resources {
	r := rec.HostConfig.Resources
	unset(&r.Memory, next.Memory, -1)
	unset(&r.MemorySwap, next.MemorySwap, -1)
	unset(&r.MemoryReservation, next.MemoryReservation, -1)
	unset(&r.CPUShares, next.CPUShares, 1024)
	if next.NanoCPUs != 0 && r.NanoCPUs == 0 {
		unset(&r.CPUQuota, 1, -1)
		unset(&r.CPUPeriod, 1, 100000)
	}
	unset(&r.CPUQuota, next.CPUQuota, -1)
	unset(&r.CPUPeriod, next.CPUPeriod, 100000)
	if r.PidsLimit == nil && next.PidsLimit != nil {
		r.PidsLimit = new(int64)
	}
	if rec.State.Running() {
		cpus, mems := u.c.cfg.Processes.Cpuset(u.c.cgroupPath(rec))
		unset(&r.CpusetCpus, next.CpusetCpus, cpus)
		unset(&r.CpusetMems, next.CpusetMems, mems)
	}
	return r
}

// unset gives a limit that was not set, and is about to be, the word for none.
func unset[T comparable](was *T, next, none T) {
	var zero T
	if *was == zero && next != zero {
		*was = none
	}
}

// record replaces the configuration on disk, or nowhere.
func (u updater) record(e *entry, next *container.HostConfig) error {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.removed {
		return errNoSuch(string(e.id))
	}
	old := e.rec.HostConfig
	e.rec.HostConfig = next
	if err := u.c.store.save(&e.rec, true); err != nil {
		e.rec.HostConfig = old
		return err
	}
	return nil
}

// apply gives a running container its limits, all of them: so the OCI runtime's
// own record stays whole.
func (u updater) apply(ctx context.Context, e *entry, r *container.Resources, unlimitedSwap bool) error {
	if e.live() == nil {
		return nil
	}
	v := e.view()
	all := *r
	// Limits by device cannot be updated, and the device may be gone.
	all.BlkioWeightDevice, all.BlkioDeviceReadBps, all.BlkioDeviceWriteBps = nil, nil, nil
	all.BlkioDeviceReadIOps, all.BlkioDeviceWriteIOps = nil, nil
	spec, err := oci.Resources(all)
	if err != nil {
		return err
	}
	none := int64(-1)
	for _, l := range []struct {
		unlimited bool
		set       func(*specs.LinuxMemory)
	}{
		{unlimitedSwap, func(m *specs.LinuxMemory) { m.Swap = &none }},
		{r.Memory < 0, func(m *specs.LinuxMemory) { m.Limit = &none }},
		{r.MemoryReservation < 0, func(m *specs.LinuxMemory) { m.Reservation = &none }},
	} {
		if l.unlimited {
			if spec.Memory == nil {
				spec.Memory = &specs.LinuxMemory{}
			}
			l.set(spec.Memory)
		}
	}
	b, err := json.Marshal(spec)
	if err != nil {
		return err
	}
	err = u.c.cfg.Runtime.Update(ctx, runtime.Update{
		ID: string(e.id), RunDir: u.c.runDir(e.id, v.State.Generation),
		Runtime: u.c.defaults().Runtimes[v.HostConfig.Runtime], Resources: b,
	})
	if err != nil && e.live() == nil {
		return nil // it ended meanwhile: the next start has the limits
	}
	return err
}

// merge puts what cfg changes into h; limits tells whether the kernel's limits
// are among it.
func merge(h *container.HostConfig, cfg *container.UpdateConfig) (limits bool, err error) {
	to, from := &h.Resources, &cfg.Resources
	if err := conflicts(to, from); err != nil {
		return false, err
	}
	if p := cfg.RestartPolicy; p.Name != "" {
		if h.AutoRemove && !p.IsNone() {
			return false, kindf(errConflict, "Restart policy cannot be updated because AutoRemove is enabled for the container")
		}
		h.RestartPolicy = p
	}
	changed := []bool{
		put(&to.BlkioWeight, from.BlkioWeight), put(&to.CPUShares, from.CPUShares), put(&to.NanoCPUs, from.NanoCPUs),
		put(&to.CPUPeriod, from.CPUPeriod), put(&to.CPUQuota, from.CPUQuota),
		put(&to.CPURealtimePeriod, from.CPURealtimePeriod), put(&to.CPURealtimeRuntime, from.CPURealtimeRuntime),
		put(&to.CpusetCpus, from.CpusetCpus), put(&to.CpusetMems, from.CpusetMems),
		put(&to.Memory, from.Memory), put(&to.MemorySwap, from.MemorySwap), put(&to.MemoryReservation, from.MemoryReservation),
		put(&to.PidsLimit, from.PidsLimit),
	}
	for _, c := range changed {
		limits = limits || c
	}
	return limits, nil
}

// put changes what is not zero.
func put[T comparable](to *T, from T) bool {
	var zero T
	if from == zero {
		return false
	}
	*to = from
	return true
}

// conflicts refuses what does not go with the limits that are there.
func conflicts(have, want *container.Resources) error {
	const already = "Conflicting options: %s cannot be updated as %s has already been set"
	switch {
	case want.NanoCPUs > 0 && have.CPUPeriod > 0:
		return kindf(errConflict, already, "Nano CPUs", "CPU Period")
	case want.NanoCPUs > 0 && have.CPUQuota > 0:
		return kindf(errConflict, already, "Nano CPUs", "CPU Quota")
	case want.CPUPeriod > 0 && have.NanoCPUs > 0:
		return kindf(errConflict, already, "CPU Period", "NanoCPUs")
	case want.CPUQuota > 0 && have.NanoCPUs > 0:
		return kindf(errConflict, already, "CPU Quota", "NanoCPUs")
	case want.Memory > have.MemorySwap && have.MemorySwap != -1 && want.MemorySwap == 0:
		return kindf(errConflict, "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time")
	case want.MemorySwap > 0 && want.Memory == 0 && want.MemorySwap < have.Memory:
		return kindf(errConflict, "Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	return nil
}
