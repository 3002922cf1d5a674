package seccomp

import (
	_ "embed"
	"fmt"
	"strconv"
	"strings"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// arch is one calling convention. Two of them, x86_64 and x32, share what the kernel
// calls an architecture, and are told apart by a bit of the call's number.
type arch struct {
	name   specs.Arch
	audit  uint32 // AUDIT_ARCH_*, what seccomp_data.arch has
	column int    // in syscalls.txt
	narrow bool   // arguments are compared by their lower 32 bits
	first  uint64 // the least number of this convention
}

// x32Bit marks calls by the convention x32 (asm/unistd.h, __X32_SYSCALL_BIT).
const x32Bit = 1 << 30

var (
	x86_64  = arch{specs.ArchX86_64, unix.AUDIT_ARCH_X86_64, 0, false, 0}
	x86     = arch{specs.ArchX86, unix.AUDIT_ARCH_I386, 1, true, 0}
	x32     = arch{specs.ArchX32, unix.AUDIT_ARCH_X86_64, 2, true, x32Bit}
	aarch64 = arch{specs.ArchAARCH64, unix.AUDIT_ARCH_AARCH64, 3, false, 0}
	arm     = arch{specs.ArchARM, unix.AUDIT_ARCH_ARM, 4, true, 0}
)

// machine is what a kernel runs: its native convention and the others.
type machine struct {
	native arch
	others []arch
}

// machines by Go's names.
var machines = map[string]machine{
	"amd64": {x86_64, []arch{x86, x32}},
	"arm64": {aarch64, []arch{arm}},
}

// foreign are architectures that a profile may name and that no machine above runs:
// no call of theirs can come.
var foreign = map[specs.Arch]bool{
	specs.ArchMIPS: true, specs.ArchMIPS64: true, specs.ArchMIPS64N32: true,
	specs.ArchMIPSEL: true, specs.ArchMIPSEL64: true, specs.ArchMIPSEL64N32: true,
	specs.ArchPPC: true, specs.ArchPPC64: true, specs.ArchPPC64LE: true,
	specs.ArchS390: true, specs.ArchS390X: true, specs.ArchRISCV64: true, specs.ArchLOONGARCH64: true,
	specs.ArchPARISC: true, specs.ArchPARISC64: true, specs.ArchM68K: true, specs.ArchSH: true, specs.ArchSHEB: true,
	specs.ArchX86_64: true, specs.ArchX86: true, specs.ArchX32: true, specs.ArchAARCH64: true, specs.ArchARM: true,
}

// archs picks a profile's architectures out of those of the machine, the native first.
func (m machine) archs(names []specs.Arch) ([]arch, error) {
	named := map[specs.Arch]bool{}
	for _, name := range names {
		if !foreign[name] {
			return nil, fmt.Errorf("seccomp architecture %q: no such architecture: %w", name, errdefs.ErrInvalidArgument)
		}
		named[name] = true
	}
	list := []arch{m.native}
	for _, a := range m.others {
		if named[a.name] {
			list = append(list, a)
		}
	}
	return list, nil
}

// columns of syscalls.txt.
const columns = 5

// numbers of one call by column, -1 where there is none.
type numbers [columns]int32

// syscallsText is made of the kernel's headers by TestTable -update. A line has a name
// and its numbers on x86_64, x86, x32 (without its bit), aarch64 and arm.
//
//go:embed syscalls.txt
var syscallsText string

// syscallsSum is the text's CRC-32 (IEEE), which the digests of profiles have in them:
// to make it takes longer than to look a filter up.
const syscallsSum = 0x5195601e

var table = sync.OnceValue(func() map[string]numbers {
	calls := make(map[string]numbers, strings.Count(syscallsText, "\n"))
	for line := range strings.Lines(syscallsText) {
		f := strings.Fields(line)
		if len(f) != columns+1 || f[0] == "#" {
			continue
		}
		n := numbers{}
		for i, s := range f[1:] {
			v, err := strconv.ParseInt(s, 10, 32)
			if err != nil {
				v = -1 // "-"
			}
			n[i] = int32(v)
		}
		calls[f[0]] = n
	}
	return calls
})

// number finds a call's, with what marks the convention.
func (a arch) number(name string) (uint32, bool) {
	n, ok := table()[name]
	if !ok || n[a.column] < 0 {
		return 0, false
	}
	return uint32(n[a.column]) | uint32(a.first), true
}

// carrier is a call that carries others, whose number is its first argument.
type carrier struct {
	name string
	mask uint32            // what of the first argument counts
	call map[string]uint32 // by name, what stands in linux/net.h and linux/ipc.h
}

var carriers = []carrier{
	{"socketcall", 0xffffffff, map[string]uint32{
		"socket": 1, "bind": 2, "connect": 3, "listen": 4, "accept": 5, "getsockname": 6, "getpeername": 7, "socketpair": 8,
		"send": 9, "recv": 10, "sendto": 11, "recvfrom": 12, "shutdown": 13, "setsockopt": 14, "getsockopt": 15,
		"sendmsg": 16, "recvmsg": 17, "accept4": 18, "recvmmsg": 19, "sendmmsg": 20,
	}},
	// The upper half is a version, which the kernel takes off.
	{"ipc", 0xffff, map[string]uint32{
		"semop": 1, "semget": 2, "semctl": 3, "semtimedop": 4, "msgsnd": 11, "msgrcv": 12, "msgget": 13, "msgctl": 14,
		"shmat": 21, "shmdt": 22, "shmget": 23, "shmctl": 24,
	}},
}
