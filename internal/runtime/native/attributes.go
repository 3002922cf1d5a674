package native

import (
	"errors"
	"fmt"
	"os"
	"strconv"
	"strings"
	"unsafe"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/inside"
)

// setOOMScore sets that of the half inside, which may have lost the right to lower it.
func setOOMScore(pid int, score *int) error {
	if score == nil {
		return nil
	}
	if err := os.WriteFile("/proc/"+strconv.Itoa(pid)+"/oom_score_adj", []byte(strconv.Itoa(*score)), 0); err != nil {
		return fmt.Errorf("failed to set oom_score_adj to %d: %w", *score, err)
	}
	return nil
}

// raiseLimits allows the half inside the limits that it is to set itself, which may
// be less than it needs until then.
func raiseLimits(pid int, list []specs.POSIXRlimit) error {
	for _, l := range list {
		n, ok := inside.Resource(l.Type)
		if !ok {
			return fmt.Errorf("rlimit %q: not known", l.Type)
		}
		var now unix.Rlimit
		err := unix.Prlimit(pid, n, nil, &now)
		if err == nil && now.Max < l.Hard {
			now.Max = l.Hard
			err = unix.Prlimit(pid, n, &now, nil)
		}
		if err != nil {
			return fmt.Errorf("error setting rlimits for container: %s: %w", l.Type, err)
		}
	}
	return nil
}

var (
	policies = map[specs.LinuxSchedulerPolicy]uint32{specs.SchedOther: unix.SCHED_NORMAL, specs.SchedFIFO: unix.SCHED_FIFO, specs.SchedRR: unix.SCHED_RR,
		specs.SchedBatch: unix.SCHED_BATCH, specs.SchedISO: 4, specs.SchedIdle: unix.SCHED_IDLE, specs.SchedDeadline: unix.SCHED_DEADLINE}
	schedFlags = map[specs.LinuxSchedulerFlag]uint64{specs.SchedFlagResetOnFork: unix.SCHED_FLAG_RESET_ON_FORK, specs.SchedFlagReclaim: unix.SCHED_FLAG_RECLAIM,
		specs.SchedFlagDLOverrun: unix.SCHED_FLAG_DL_OVERRUN, specs.SchedFlagKeepPolicy: unix.SCHED_FLAG_KEEP_POLICY, specs.SchedFlagKeepParams: unix.SCHED_FLAG_KEEP_PARAMS,
		specs.SchedFlagUtilClampMin: unix.SCHED_FLAG_UTIL_CLAMP_MIN, specs.SchedFlagUtilClampMax: unix.SCHED_FLAG_UTIL_CLAMP_MAX}
	ioClasses = map[specs.IOPriorityClass]int{specs.IOPRIO_CLASS_RT: 1, specs.IOPRIO_CLASS_BE: 2, specs.IOPRIO_CLASS_IDLE: 3}
)

// maxIOPriority is the least that a class of io priority has (ioprio_set(2)).
const maxIOPriority = 7

// setScheduling sets how a process gets processors and disks; of the process that
// stands for the container's, before it is that.
func setScheduling(pid int, p *specs.Process) error {
	if s := p.Scheduler; s != nil {
		attr := unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policies[s.Policy], Nice: s.Nice, Priority: uint32(s.Priority), Runtime: s.Runtime, Deadline: s.Deadline, Period: s.Period}
		for _, f := range s.Flags {
			attr.Flags |= schedFlags[f]
		}
		if err := unix.SchedSetAttr(pid, &attr, 0); err != nil {
			return fmt.Errorf("error setting scheduler: %w", err)
		}
	}
	if io := p.IOPriority; io != nil {
		class := ioClasses[io.Class]
		const whoProcess, classShift = 1, 13 // ioprio_set(2)
		if _, _, errno := unix.Syscall(unix.SYS_IOPRIO_SET, whoProcess, uintptr(pid), uintptr(class<<classShift|io.Priority)); errno != 0 {
			return fmt.Errorf("failed to set io priority: %w", errno)
		}
	}
	return nil
}

// validateScheduling refuses what the kernel would pass over or take for something else.
func validateScheduling(p *specs.Process) error {
	if s := p.Scheduler; s != nil {
		_, known := policies[s.Policy]
		real := s.Policy == specs.SchedFIFO || s.Policy == specs.SchedRR
		switch {
		case s.Policy == "":
			return errors.New("scheduler policy is required")
		case !known:
			return fmt.Errorf("scheduler policy %q: not known", s.Policy)
		case s.Nice < -20 || s.Nice > 19:
			return fmt.Errorf("invalid scheduler.nice: %d when scheduler.policy is %s", s.Nice, s.Policy)
		case s.Nice != 0 && s.Policy != specs.SchedOther && s.Policy != specs.SchedBatch:
			return errors.New("scheduler.nice can only be specified for SchedOther or SchedBatch policy")
		case s.Priority != 0 && !real:
			return errors.New("scheduler.priority can only be specified for SchedFIFO or SchedRR policy")
		case s.Policy != specs.SchedDeadline && (s.Runtime != 0 || s.Deadline != 0 || s.Period != 0):
			return errors.New("scheduler runtime/deadline/period can only be specified for SchedDeadline policy")
		}
		for _, f := range s.Flags {
			if _, ok := schedFlags[f]; !ok {
				return fmt.Errorf("scheduler flag %q: not known", f)
			}
		}
	}
	if io := p.IOPriority; io != nil {
		if io.Priority < 0 || io.Priority > maxIOPriority {
			return fmt.Errorf("invalid ioPriority.Priority: %d", io.Priority)
		}
		if _, ok := ioClasses[io.Class]; !ok {
			return fmt.Errorf("invalid ioPriority.Class: %q", io.Class)
		}
	}
	if a := p.ExecCPUAffinity; a != nil {
		for _, list := range []string{a.Initial, a.Final} {
			if _, err := cpuMask(list); list != "" && err != nil {
				return err
			}
		}
	}
	return nil
}

// setAffinity binds a process to the processors of a list as "0-3,7"; empty: to none.
func setAffinity(pid int, list string) error {
	if list == "" {
		return nil
	}
	mask, err := cpuMask(list)
	if err != nil {
		return err
	}
	if _, _, errno := unix.Syscall(unix.SYS_SCHED_SETAFFINITY, uintptr(pid), unsafe.Sizeof(mask), uintptr(unsafe.Pointer(&mask))); errno != 0 {
		return fmt.Errorf("error setting CPU affinity: %w", errno)
	}
	return nil
}

// maxCPUs is the most processors that Linux can be built for.
const maxCPUs = 8192

// cpuBits are a word's.
const cpuBits = strconv.IntSize

// cpuMask is a list as "0-3,7" for sched_setaffinity(2).
func cpuMask(list string) (mask [maxCPUs / cpuBits]uint, err error) {
	for part := range strings.SplitSeq(list, ",") {
		first, last, ok := strings.Cut(strings.TrimSpace(part), "-")
		if !ok {
			last = first
		}
		from, ferr := strconv.Atoi(first)
		to, terr := strconv.Atoi(last)
		if ferr != nil || terr != nil || from < 0 || to < from || to >= maxCPUs {
			return mask, fmt.Errorf("CPU affinity %q: invalid", list)
		}
		for n := from; n <= to; n++ {
			mask[n/cpuBits] |= 1 << (n % cpuBits)
		}
	}
	return mask, nil
}
