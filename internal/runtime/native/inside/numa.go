package inside

import (
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// modes and flags of set_mempolicy(2) by the specification's names.
var (
	policyModes = map[string]uintptr{"MPOL_DEFAULT": unix.MPOL_DEFAULT, "MPOL_PREFERRED": unix.MPOL_PREFERRED, "MPOL_BIND": unix.MPOL_BIND, "MPOL_INTERLEAVE": unix.MPOL_INTERLEAVE,
		"MPOL_LOCAL": unix.MPOL_LOCAL, "MPOL_PREFERRED_MANY": unix.MPOL_PREFERRED_MANY, "MPOL_WEIGHTED_INTERLEAVE": unix.MPOL_WEIGHTED_INTERLEAVE}
	policyFlags = map[string]uintptr{"MPOL_F_STATIC_NODES": unix.MPOL_F_STATIC_NODES, "MPOL_F_RELATIVE_NODES": unix.MPOL_F_RELATIVE_NODES, "MPOL_F_NUMA_BALANCING": unix.MPOL_F_NUMA_BALANCING}
)

// MemoryPolicies are the modes and flags by the specification's names, sorted.
func MemoryPolicies() (modes, flags []string) {
	return slices.Sorted(maps.Keys(policyModes)), slices.Sorted(maps.Keys(policyFlags))
}

const maxNodes = 1024

// memoryPolicy says from which nodes the process' memory comes.
func (h *candidate) memoryPolicy() error {
	p := h.MemoryPolicy
	if p == nil || p.Mode == "" {
		return nil
	}
	mode, ok := policyModes[string(p.Mode)]
	if !ok {
		return fmt.Errorf("memory policy %q: not known", p.Mode)
	}
	for _, f := range p.Flags {
		bit, ok := policyFlags[string(f)]
		if !ok {
			return fmt.Errorf("memory policy: flag %q: not known", f)
		}
		mode |= bit
	}
	mask, err := nodeMask(p.Nodes)
	if err != nil {
		return err
	}
	var ptr, n uintptr
	if p.Nodes != "" {
		ptr, n = uintptr(unsafe.Pointer(&mask[0])), maxNodes+1
	}
	_, _, errno := unix.Syscall(unix.SYS_SET_MEMPOLICY, mode, ptr, n)
	if errno != 0 {
		return os.NewSyscallError("set_mempolicy", errno)
	}
	return nil
}

// nodeMask reads a list as "0-3,7" (cpuset(7)).
func nodeMask(list string) (mask [maxNodes/64 + 1]uint64, err error) {
	for part := range strings.SplitSeq(list, ",") {
		if part == "" {
			continue
		}
		first, last, ok := strings.Cut(strings.TrimSpace(part), "-")
		if !ok {
			last = first
		}
		from, ferr := strconv.Atoi(first)
		to, terr := strconv.Atoi(last)
		if ferr != nil || terr != nil || from < 0 || to < from || to >= maxNodes {
			return mask, fmt.Errorf("memory policy: nodes %q: invalid", list)
		}
		for n := from; n <= to; n++ {
			mask[n/64] |= 1 << (n % 64)
		}
	}
	return mask, nil
}
