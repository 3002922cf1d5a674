package oci

import (
	"escale.dev/escale/internal/sys/cgroup"

	"github.com/moby/moby/api/types/container"
)

// minMemory is the least that a container can be limited to: below, its start
// itself would fail.
const minMemory = 6 << 20

// ValidateResources checks limits against the kernel's abilities and changes r
// where one is discarded with a warning. update tells that r changes a
// container that is there, of which some limits are not repeated. Errors are of
// kind ErrInvalidArgument, words and warnings Docker's.
func (b *Builder) ValidateResources(r *container.Resources, update bool) (warnings []string, err error) {
	for _, check := range []func(*container.Resources, bool, func(string)) error{
		b.validateMemory, b.validateCPU, b.validateCpuset, b.validateBlkio,
	} {
		if err := check(r, update, func(w string) { warnings = append(warnings, w) }); err != nil {
			return warnings, err
		}
	}
	return warnings, nil
}

func (b *Builder) validateMemory(r *container.Resources, update bool, warn func(string)) error {
	f := b.host.Cgroup.Features
	if r.MemorySwappiness != nil && *r.MemorySwappiness == -1 {
		r.MemorySwappiness = nil // what old clients send for "not set"
	}
	if r.Memory != 0 && r.Memory < minMemory {
		return invalid("Minimum memory limit allowed is 6MB")
	}
	if r.Memory > 0 && !f.MemoryLimit {
		warn("Your kernel does not support memory limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.Memory, r.MemorySwap = 0, -1
	}
	if r.Memory > 0 && r.MemorySwap != -1 && !f.SwapLimit {
		warn("Your kernel does not support swap limit capabilities or the cgroup is not mounted. Memory limited without swap.")
		r.MemorySwap = -1
	}
	if r.Memory > 0 && r.MemorySwap > 0 && r.MemorySwap < r.Memory {
		return invalid("Minimum memoryswap limit should be larger than memory limit, see usage")
	}
	if r.Memory == 0 && r.MemorySwap > 0 && !update {
		return invalid("You should always set the Memory limit when using Memoryswap limit, see usage")
	}
	if r.MemorySwappiness != nil {
		switch n := *r.MemorySwappiness; {
		case !f.MemorySwappiness:
			warn("Your kernel does not support memory swappiness capabilities or the cgroup is not mounted. Memory swappiness discarded.")
			r.MemorySwappiness = nil
		case n < 0 || n > 100:
			return invalid("Invalid value: %v, valid memory swappiness range is 0-100", n)
		}
	}
	if r.MemoryReservation > 0 && !f.MemoryReservation {
		warn("Your kernel does not support memory soft limit capabilities or the cgroup is not mounted. Limitation discarded.")
		r.MemoryReservation = 0
	}
	if r.MemoryReservation > 0 && r.MemoryReservation < minMemory {
		return invalid("Minimum memory reservation allowed is 6MB")
	}
	if r.Memory > 0 && r.MemoryReservation > 0 && r.Memory < r.MemoryReservation {
		return invalid("Minimum memory limit can not be less than memory reservation limit, see usage")
	}
	if r.OomKillDisable != nil && !f.OOMKillDisable {
		if *r.OomKillDisable {
			warn("Your kernel does not support OomKillDisable. OomKillDisable discarded.")
		}
		r.OomKillDisable = nil
	}
	if r.OomKillDisable != nil && *r.OomKillDisable && r.Memory == 0 {
		warn("OOM killer is disabled for the container, but no memory limit is set, this can result in the system running out of resources.")
	}
	if r.PidsLimit != nil && !f.PidsLimit {
		if *r.PidsLimit > 0 {
			warn("Your kernel does not support PIDs limit capabilities or the cgroup is not mounted. PIDs limit discarded.")
		}
		r.PidsLimit = nil
	}
	return nil
}

func (b *Builder) validateCPU(r *container.Resources, _ bool, warn func(string)) error {
	f := b.host.Cgroup.Features
	if (r.CPURealtimePeriod != 0 || r.CPURealtimeRuntime != 0) && !f.CPURealtime {
		return invalid("kernel does not support CPU real-time scheduler")
	}
	if r.CPURealtimePeriod != 0 && r.CPURealtimeRuntime > r.CPURealtimePeriod {
		return invalid("cpu real-time runtime cannot be higher than cpu real-time period")
	}
	if r.NanoCPUs > 0 && r.CPUPeriod > 0 {
		return invalid("Conflicting options: Nano CPUs and CPU Period cannot both be set")
	}
	if r.NanoCPUs > 0 && r.CPUQuota > 0 {
		return invalid("Conflicting options: Nano CPUs and CPU Quota cannot both be set")
	}
	if r.NanoCPUs > 0 && !f.CPUCfs {
		return invalid("NanoCPUs can not be set, as your kernel does not support CPU CFS scheduler or the cgroup is not mounted")
	}
	if n := b.host.CPUs; r.NanoCPUs < 0 || r.NanoCPUs > int64(n)*1e9 {
		return invalid("range of CPUs is from 0.01 to %[1]d.00, as there are only %[1]d CPUs available", n)
	}
	if r.CPUShares < 0 {
		return invalid("invalid CPU shares (%d): value must be a positive integer", r.CPUShares)
	}
	if r.CPUShares > 0 && !f.CPUShares {
		warn("Your kernel does not support CPU shares or the cgroup is not mounted. Shares discarded.")
		r.CPUShares = 0
	}
	if (r.CPUPeriod != 0 || r.CPUQuota != 0) && !f.CPUCfs {
		warn("Your kernel does not support CPU CFS scheduler. CPU period/quota discarded.")
		r.CPUPeriod, r.CPUQuota = 0, 0
	}
	if r.CPUPeriod != 0 && (r.CPUPeriod < 1000 || r.CPUPeriod > 1000000) {
		return invalid("CPU cfs period can not be less than 1ms (i.e. 1000) or larger than 1s (i.e. 1000000)")
	}
	if r.CPUQuota > 0 && r.CPUQuota < 1000 {
		return invalid("CPU cfs quota can not be less than 1ms (i.e. 1000)")
	}
	if r.CPUPercent > 0 {
		warn("linux does not support CPU percent. Percent discarded.")
		r.CPUPercent = 0
	}
	return nil
}

func (b *Builder) validateCpuset(r *container.Resources, _ bool, warn func(string)) error {
	f := b.host.Cgroup.Features
	if (r.CpusetCpus != "" || r.CpusetMems != "") && !f.Cpuset {
		warn("Your kernel does not support cpuset or the cgroup is not mounted. Cpuset discarded.")
		r.CpusetCpus, r.CpusetMems = "", ""
	}
	switch ok, err := cgroup.Available(r.CpusetCpus, f.Cpus); {
	case err != nil:
		return invalid("Invalid value %s for cpuset cpus: %v", r.CpusetCpus, err)
	case !ok:
		return invalid("Requested CPUs are not available - requested %s, available: %s", r.CpusetCpus, f.Cpus)
	}
	switch ok, err := cgroup.Available(r.CpusetMems, f.Mems); {
	case err != nil:
		return invalid("Invalid value %s for cpuset mems: %v", r.CpusetMems, err)
	case !ok:
		return invalid("Requested memory nodes are not available - requested %s, available: %s", r.CpusetMems, f.Mems)
	}
	return nil
}

func (b *Builder) validateBlkio(r *container.Resources, _ bool, warn func(string)) error {
	f := b.host.Cgroup.Features
	if r.BlkioWeight > 0 && !f.BlkioWeight {
		warn("Your kernel does not support Block I/O weight or the cgroup is not mounted. Weight discarded.")
		r.BlkioWeight = 0
	}
	if r.BlkioWeight > 0 && (r.BlkioWeight < 10 || r.BlkioWeight > 1000) {
		return invalid("Range of blkio weight is from 10 to 1000")
	}
	if r.IOMaximumBandwidth != 0 || r.IOMaximumIOps != 0 {
		return invalid("Invalid QoS settings: linux does not support Maximum IO Bandwidth or Maximum IO IOps")
	}
	weighs := f.BlkioWeightDevice
	for _, w := range r.BlkioWeightDevice {
		weighs = weighs && (w == nil || b.weighs(w.Path))
	}
	if len(r.BlkioWeightDevice) > 0 && !weighs {
		warn("Your kernel does not support Block I/O weight_device or the cgroup is not mounted. Weight-device discarded.")
		r.BlkioWeightDevice = nil
	}
	if len(r.BlkioDeviceReadBps) > 0 && !f.BlkioReadBps {
		warn("Your kernel does not support BPS Block I/O read limit or the cgroup is not mounted. Block I/O BPS read limit discarded.")
		r.BlkioDeviceReadBps = nil
	}
	if len(r.BlkioDeviceWriteBps) > 0 && !f.BlkioWriteBps {
		warn("Your kernel does not support BPS Block I/O write limit or the cgroup is not mounted. Block I/O BPS write limit discarded.")
		r.BlkioDeviceWriteBps = nil
	}
	if len(r.BlkioDeviceReadIOps) > 0 && !f.BlkioReadIOps {
		warn("Your kernel does not support IOPS Block read limit or the cgroup is not mounted. Block I/O IOPS read limit discarded.")
		r.BlkioDeviceReadIOps = nil
	}
	if len(r.BlkioDeviceWriteIOps) > 0 && !f.BlkioWriteIOps {
		warn("Your kernel does not support IOPS Block write limit or the cgroup is not mounted. Block I/O IOPS write limit discarded.")
		r.BlkioDeviceWriteIOps = nil
	}
	return nil
}
