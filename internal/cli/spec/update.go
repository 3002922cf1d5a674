package spec

import (
	"github.com/moby/moby/api/types/container"
	"github.com/spf13/pflag"
)

// Update is the flags of `update`: the limits of a container that is there.
type Update struct {
	memory, reservation, swap size
	kernel                    size // taken and left out, as by the stock client
	cpus                      nanoCPUs
	restart                   string
	r                         container.Resources
	pids                      int64
}

// AddFlags defines them.
func (u *Update) AddFlags(f *pflag.FlagSet) {
	u.swap.unlimited = true
	f.Uint16Var(&u.r.BlkioWeight, "blkio-weight", 0, "Share of block I/O among containers, 10 to 1000; 0 turns it off")
	f.Int64Var(&u.r.CPUPeriod, "cpu-period", 0, "Period of the CPU quota, in microseconds")
	f.Int64Var(&u.r.CPUQuota, "cpu-quota", 0, "CPU time in a period, in microseconds")
	f.Int64Var(&u.r.CPURealtimePeriod, "cpu-rt-period", 0, "Period of real-time CPU, in microseconds")
	f.Int64Var(&u.r.CPURealtimeRuntime, "cpu-rt-runtime", 0, "Real-time CPU in a period, in microseconds")
	f.Int64VarP(&u.r.CPUShares, "cpu-shares", "c", 0, "Share of CPU among containers")
	f.Var(&u.cpus, "cpus", "Number of CPUs")
	f.StringVar(&u.r.CpusetCpus, "cpuset-cpus", "", "CPUs to run on (0-3, 0,1)")
	f.StringVar(&u.r.CpusetMems, "cpuset-mems", "", "Memory nodes to use (0-3, 0,1)")
	f.Var(&u.kernel, "kernel-memory", "No kernel has this limit any more")
	_ = f.MarkHidden("kernel-memory")
	f.VarP(&u.memory, "memory", "m", "Most memory")
	f.Var(&u.reservation, "memory-reservation", "Memory to come down to when the machine is short of it")
	f.Var(&u.swap, "memory-swap", "Most memory and swap together; -1 for swap without limit")
	f.Int64Var(&u.pids, "pids-limit", 0, "Most processes; -1 for no limit")
	f.StringVar(&u.restart, "restart", "", "What to do when the container exits")
}

// Build makes the request; what no flag names stays as it is.
func (u *Update) Build(f *pflag.FlagSet) (container.Resources, container.RestartPolicy, error) {
	r := u.r
	r.Memory, r.MemoryReservation, r.MemorySwap, r.NanoCPUs = u.memory.bytes, u.reservation.bytes, u.swap.bytes, int64(u.cpus)
	if f.Changed("pids-limit") && u.pids != 0 {
		r.PidsLimit = &u.pids
	}
	var p container.RestartPolicy
	var err error
	if u.restart != "" {
		p, err = restartPolicy(u.restart)
	}
	return r, p, err
}
