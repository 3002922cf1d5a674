package seccomp

import (
	"encoding/binary"
	"fmt"
	"slices"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// call is struct seccomp_data.
type call struct {
	nr, arch uint32
	args     [6]uint64
}

// interpret runs a program on a call as the kernel does (net/core/filter.c), and
// refuses what the kernel's seccomp_check_filter would.
func interpret(filter []byte, c call) (answer uint32, steps int, err error) {
	var data [64]byte
	binary.LittleEndian.PutUint32(data[0:], c.nr)
	binary.LittleEndian.PutUint32(data[4:], c.arch)
	for i, a := range c.args {
		binary.LittleEndian.PutUint64(data[16+8*i:], a)
	}
	var a uint32
	n := len(filter) / 8
	for pc := 0; pc < n; pc++ {
		steps++
		i := filter[pc*8:]
		op, jt, jf, k := binary.NativeEndian.Uint16(i), int(i[2]), int(i[3]), binary.NativeEndian.Uint32(i[4:])
		test := false
		switch op {
		case unix.BPF_LD | unix.BPF_W | unix.BPF_ABS:
			if k%4 != 0 || k >= 64 {
				return 0, steps, fmt.Errorf("%d: load of %d", pc, k)
			}
			a = binary.LittleEndian.Uint32(data[k:])
			continue
		case unix.BPF_ALU | unix.BPF_AND | unix.BPF_K:
			a &= k
			continue
		case unix.BPF_JMP | unix.BPF_JA:
			pc += int(k)
			continue
		case unix.BPF_RET | unix.BPF_K:
			return k, steps, nil
		case unix.BPF_JMP | unix.BPF_JEQ | unix.BPF_K:
			test = a == k
		case unix.BPF_JMP | unix.BPF_JGT | unix.BPF_K:
			test = a > k
		case unix.BPF_JMP | unix.BPF_JGE | unix.BPF_K:
			test = a >= k
		case unix.BPF_JMP | unix.BPF_JSET | unix.BPF_K: // of libseccomp's only
			test = a&k != 0
		default:
			return 0, steps, fmt.Errorf("%d: instruction %#x", pc, op)
		}
		if test {
			pc += jt
		} else {
			pc += jf
		}
	}
	return 0, steps, fmt.Errorf("ran off the end")
}

// meaning is what a profile says about a call, read without any haste: the reference
// for programs.
func meaning(goarch string, s *specs.LinuxSeccomp, c call) uint32 {
	m := machines[goarch]
	a := m.native
	found := false
	for i, candidate := range append([]arch{m.native}, m.others...) {
		if i > 0 && !slices.Contains(s.Architectures, candidate.name) {
			continue
		}
		if candidate.audit == unix.AUDIT_ARCH_X86_64 && (c.nr&x32Bit != 0) != (candidate.name == specs.ArchX32) {
			continue
		}
		if candidate.audit == c.arch {
			a, found = candidate, true
		}
	}
	fallback, _ := action(s.DefaultAction, s.DefaultErrnoRet)
	if !found {
		if c.arch == unix.AUDIT_ARCH_X86_64 && goarch == "amd64" && c.nr == ^uint32(0) {
			return fallback
		}
		return retKillThread
	}
	greatest := uint32(0)
	for _, r := range s.Syscalls {
		for _, name := range r.Names {
			if n, ok := a.number(name); ok {
				greatest = max(greatest, n)
			}
		}
	}
	if greatest&^x32Bit > 0 && c.nr > greatest && !passes(fallback) {
		return retNoSys
	}
	if a.name == specs.ArchX86_64 && c.nr >= x32Bit && !slices.Contains(s.Architectures, specs.ArchX32) {
		return retKillThread
	}
	type candidate struct {
		conditions []specs.LinuxSeccompArg
		ret        uint32
	}
	var conditional []candidate
	for _, r := range s.Syscalls {
		for _, name := range r.Names {
			ret, _ := action(r.Action, r.ErrnoRet)
			if ret == fallback {
				continue
			}
			args := slices.Clone(r.Args)
			if n, ok := a.number(name); !ok || n != c.nr {
				if args, ok = carriedBy(a, name, c.nr, args, ret, fallback); !ok {
					continue
				}
			}
			if len(args) == 0 {
				return ret
			}
			conditional = append(conditional, candidate{args, ret})
		}
	}
	for _, r := range conditional {
		indexes := map[uint]int{}
		met, one := true, false
		for _, arg := range r.conditions {
			indexes[arg.Index]++
			ok := compare(arg, c.args[arg.Index], a.narrow)
			met, one = met && ok, one || ok
		}
		if met || one && len(indexes) < len(r.conditions) {
			return r.ret
		}
	}
	return fallback
}

// carriedBy answers the condition on socketcall and ipc under which a rule holds there.
func carriedBy(a arch, name string, nr uint32, args []specs.LinuxSeccompArg, ret, fallback uint32) ([]specs.LinuxSeccompArg, bool) {
	if a.name != specs.ArchX86 {
		return nil, false
	}
	for _, c := range carriers {
		carried, ok := c.call[name]
		if n, _ := a.number(c.name); ok && n == nr && (len(args) == 0 || strictness(ret) <= strictness(fallback)) {
			return []specs.LinuxSeccompArg{{Index: 0, Op: specs.OpMaskedEqual, Value: uint64(c.mask), ValueTwo: uint64(carried)}}, true
		}
	}
	return nil, false
}

func compare(c specs.LinuxSeccompArg, arg uint64, narrow bool) bool {
	value, two := c.Value, c.ValueTwo
	if narrow {
		arg, value, two = arg&0xffffffff, value&0xffffffff, two&0xffffffff
	}
	switch c.Op {
	case specs.OpEqualTo:
		return arg == value
	case specs.OpNotEqual:
		return arg != value
	case specs.OpLessThan:
		return arg < value
	case specs.OpLessEqual:
		return arg <= value
	case specs.OpGreaterThan:
		return arg > value
	case specs.OpGreaterEqual:
		return arg >= value
	case specs.OpMaskedEqual:
		return arg&value == two&value
	}
	panic(c.Op)
}

// calls are those at which programs may differ: each number, each edge, each
// architecture, with arguments around the values that the profile has.
func calls(s *specs.LinuxSeccomp, each func(call)) {
	nrs := []uint32{1<<30 - 1, 1<<31 - 1, 1 << 31, 1<<31 + 100, 3<<30 - 1, 3 << 30, 3<<30 + 1, ^uint32(0) - 1, ^uint32(0), 0xf0001, 0xf0005, 0xf0006, 0xf0007}
	for n := range uint32(601) {
		nrs = append(nrs, n, n|x32Bit)
	}
	values := map[uint64]bool{0: true, 1: true, ^uint64(0): true, 1 << 32: true}
	compared := map[uint32]bool{102: true, 117: true}
	for _, r := range s.Syscalls {
		for _, name := range r.Names {
			for _, a := range []arch{x86_64, x86, x32, aarch64, arm} {
				if n, ok := a.number(name); ok && len(r.Args) > 0 {
					compared[n] = true
				}
			}
		}
		for _, a := range r.Args {
			for _, v := range []uint64{a.Value, a.ValueTwo} {
				for _, w := range []uint64{v, v + 1, v - 1, v | 1<<32, v &^ (1 << 32), v ^ 1<<63, v << 32} {
					values[w] = true
				}
			}
		}
	}
	for _, audit := range []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, unix.AUDIT_ARCH_RISCV64, 0} {
		for _, nr := range nrs {
			if !compared[nr] {
				each(call{nr, audit, [6]uint64{1, 2, 3, 4, 5, 6}})
				continue
			}
			for v := range values {
				each(call{nr, audit, [6]uint64{v, v, v, v, v, v}})
				each(call{nr, audit, [6]uint64{v, 1, v + 1, 2, ^v, 7}})
			}
		}
	}
}

// check compares a program with its profile's meaning.
func check(t *testing.T, goarch string, s *specs.LinuxSeccomp) {
	t.Helper()
	p, err := compileFor(goarch, s)
	if err != nil {
		t.Fatal(err)
	}
	wrong := 0
	calls(s, func(c call) {
		got, _, err := interpret(p.Filter, c)
		if want := meaning(goarch, s, c); err != nil || got != want {
			if wrong++; wrong < 20 {
				t.Errorf("%s: %+v: %#x, %v, want %#x", goarch, c, got, err, want)
			}
		}
	})
	if wrong > 0 {
		t.Fatalf("%d calls are answered otherwise", wrong)
	}
}

func ptr[T any](v T) *T { return &v }

var allArchs = []specs.Arch{specs.ArchX86_64, specs.ArchX86, specs.ArchX32, specs.ArchAARCH64, specs.ArchARM, specs.ArchMIPS}

func ruleOf(a specs.LinuxSeccompAction, args []specs.LinuxSeccompArg, names ...string) specs.LinuxSyscall {
	return specs.LinuxSyscall{Names: names, Action: a, Args: args}
}

func TestPrograms(t *testing.T) {
	type args = []specs.LinuxSeccompArg
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	profiles := map[string]specs.LinuxSeccomp{
		"default only": {DefaultAction: specs.ActErrno},
		"allow all":    {DefaultAction: specs.ActAllow, Architectures: allArchs},
		"unknown name": {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActAllow, nil, "not_yet", "read", "write")}},
		"deny list": {DefaultAction: specs.ActAllow, Architectures: allArchs, Syscalls: []specs.LinuxSyscall{
			ruleOf(specs.ActKillProcess, nil, "mount", "umount2"), ruleOf(specs.ActTrap, nil, "ptrace"),
			{Names: []string{"keyctl"}, Action: specs.ActErrno, ErrnoRet: ptr(uint(38))}, {Names: []string{"bpf"}, Action: specs.ActTrace, ErrnoRet: ptr(uint(7))},
			ruleOf(specs.ActLog, nil, "close"), ruleOf(specs.ActErrno, args{{Index: 0, Value: 40, Op: specs.OpEqualTo}}, "socket", "semop", "shmat"),
		}},
		"allow list": {DefaultAction: specs.ActErrno, DefaultErrnoRet: ptr(uint(13)), Architectures: allArchs, Syscalls: []specs.LinuxSyscall{
			ruleOf(specs.ActAllow, nil, "read", "write", "exit", "connect", "msgget", "recv"),
			ruleOf(specs.ActAllow, args{{Index: 0, Value: 40, Op: specs.OpNotEqual}}, "socket", "semget"),
			ruleOf(specs.ActAllow, args{{Index: 0, Value: 8, Op: specs.OpEqualTo}, {Index: 0, Value: 9, Op: specs.OpEqualTo}}, "personality"),
			ruleOf(specs.ActErrno, nil, "personality"), // another errno than the default
		}},
		"same as default": {DefaultAction: specs.ActErrno, Syscalls: []specs.LinuxSyscall{
			ruleOf(specs.ActErrno, nil, "clone", "openat2"), ruleOf(specs.ActAllow, args{{Index: 2, Value: 0x7e020000, ValueTwo: 0, Op: specs.OpMaskedEqual}}, "clone"),
		}},
		"kill": {DefaultAction: specs.ActKillProcess, Architectures: []specs.Arch{specs.ArchX32, specs.ArchARM}, Syscalls: []specs.LinuxSyscall{ruleOf(specs.ActAllow, nil, "read", "exit_group", "set_tls")}},
	}
	for _, op := range ops {
		for _, v := range []uint64{0, 40, 1<<32 | 5, ^uint64(0)} {
			profiles[fmt.Sprintf("%s %#x", op, v)] = specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: allArchs, Syscalls: []specs.LinuxSyscall{
				ruleOf(specs.ActAllow, args{{Index: 0, Value: v, ValueTwo: 4, Op: op}, {Index: 5, Value: 7, ValueTwo: 7, Op: op}}, "ioctl", "read"),
				ruleOf(specs.ActTrap, args{{Index: 1, Value: v, ValueTwo: v, Op: op}}, "ioctl"),
			}}
		}
	}
	for name, s := range profiles {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			for goarch := range machines {
				check(t, goarch, &s)
			}
		})
	}
}

// TestRefused: what cannot be said, or cannot be done, is not passed over.
func TestRefused(t *testing.T) {
	allow := func(change func(*specs.LinuxSeccomp)) *specs.LinuxSeccomp {
		s := &specs.LinuxSeccomp{DefaultAction: specs.ActAllow, Syscalls: []specs.LinuxSyscall{{Names: []string{"read"}, Action: specs.ActErrno}}}
		change(s)
		return s
	}
	for _, c := range []struct {
		s    *specs.LinuxSeccomp
		want string
	}{
		{allow(func(s *specs.LinuxSeccomp) { s.DefaultAction = "SCMP_ACT_MAYBE" }), `seccomp action "SCMP_ACT_MAYBE": no such action: invalid argument`},
		{allow(func(s *specs.LinuxSeccomp) { s.DefaultAction = specs.ActNotify }), `seccomp action SCMP_ACT_NOTIFY: listeners are not supported: not implemented`},
		{allow(func(s *specs.LinuxSeccomp) { s.Syscalls[0].Action = specs.ActNotify }), `seccomp rule 0 (read): seccomp action SCMP_ACT_NOTIFY: listeners are not supported: not implemented`},
		{allow(func(s *specs.LinuxSeccomp) {
			s.Flags = []specs.LinuxSeccompFlag{specs.LinuxSeccompFlagWaitKillableRecv}
		}), `seccomp flag SECCOMP_FILTER_FLAG_WAIT_KILLABLE_RECV: listeners are not supported: not implemented`},
		{allow(func(s *specs.LinuxSeccomp) { s.Flags = []specs.LinuxSeccompFlag{"X"} }), `seccomp flag "X": no such flag: invalid argument`},
		{allow(func(s *specs.LinuxSeccomp) { s.Architectures = []specs.Arch{"PDP11"} }), `seccomp architecture "PDP11": no such architecture: invalid argument`},
		{allow(func(s *specs.LinuxSeccomp) { s.Syscalls[0].ErrnoRet = ptr(uint(1 << 16)) }), `seccomp rule 0 (read): seccomp errnoRet 65536: at most 65535: invalid argument`},
		{allow(func(s *specs.LinuxSeccomp) { s.DefaultErrnoRet = ptr(uint(1)) }), `seccomp action SCMP_ACT_ALLOW: takes no errnoRet: invalid argument`},
		{allow(func(s *specs.LinuxSeccomp) { s.Syscalls[0].Names = []string{"read", ""} }), `seccomp rule 0 (read): a name is empty: invalid argument`},
		{allow(func(s *specs.LinuxSeccomp) {
			s.Syscalls[0].Args = []specs.LinuxSeccompArg{{Index: 6, Op: specs.OpEqualTo}}
		}), `seccomp rule 0 (read): argument 6: calls have 6, counted from 0: invalid argument`},
		{allow(func(s *specs.LinuxSeccomp) { s.Syscalls[0].Args = []specs.LinuxSeccompArg{{Op: "~"}} }), `seccomp rule 0 (read): operator "~": no such operator: invalid argument`},
	} {
		if p, err := Compile(c.s); err == nil || err.Error() != c.want {
			t.Errorf("%v, %v, want %s", p, err, c.want)
		}
	}
	for _, s := range []*specs.LinuxSeccomp{nil, {}} {
		if p, err := Compile(s); p != nil || err != nil {
			t.Errorf("no profile: %v, %v", p, err)
		}
	}
	many := &specs.LinuxSeccomp{DefaultAction: specs.ActErrno, Architectures: allArchs}
	for v := range uint64(2000) {
		many.Syscalls = append(many.Syscalls, ruleOf(specs.ActAllow, []specs.LinuxSeccompArg{{Value: v, Op: specs.OpEqualTo}}, "read"))
	}
	if p, err := Compile(many); err == nil {
		t.Errorf("a program of %d instructions, which the kernel does not take", p.Len())
	}
}

// FuzzPrograms makes profiles of the bytes and compares programs with their meaning.
func FuzzPrograms(f *testing.F) {
	f.Add([]byte{1, 0, 3, 9, 1, 2, 0, 3, 250, 0, 0, 1}, uint32(0), uint32(1), uint64(3), uint64(1<<32))
	f.Add([]byte{0, 7, 0, 1, 1, 200, 3, 1, 0, 6, 255, 17, 5, 2, 0, 0, 6, 1, 77, 3}, uint32(16), uint32(0), uint64(1<<63), uint64(5))
	names := make([]string, 0, len(table()))
	for name := range table() {
		names = append(names, name)
	}
	slices.Sort(names)
	acts := []specs.LinuxSeccompAction{specs.ActErrno, specs.ActAllow, specs.ActKill, specs.ActKillProcess, specs.ActTrap, specs.ActLog, specs.ActTrace}
	ops := []specs.LinuxSeccompOperator{specs.OpEqualTo, specs.OpNotEqual, specs.OpLessThan, specs.OpLessEqual, specs.OpGreaterThan, specs.OpGreaterEqual, specs.OpMaskedEqual}
	audits := []uint32{unix.AUDIT_ARCH_X86_64, unix.AUDIT_ARCH_I386, unix.AUDIT_ARCH_AARCH64, unix.AUDIT_ARCH_ARM, 0}
	f.Fuzz(func(t *testing.T, b []byte, nr, audit uint32, arg0, arg1 uint64) {
		next := func() int {
			if len(b) == 0 {
				return 0
			}
			n := int(b[0])
			b = b[1:]
			return n
		}
		s := &specs.LinuxSeccomp{DefaultAction: acts[next()%len(acts)]}
		mask := next()
		for i, a := range allArchs {
			if mask>>i&1 != 0 {
				s.Architectures = append(s.Architectures, a)
			}
		}
		for len(b) > 0 && len(s.Syscalls) < 40 {
			r := specs.LinuxSyscall{Action: acts[next()%len(acts)]}
			for range next()%8 + 1 {
				r.Names = append(r.Names, names[(next()<<8|next())%len(names)])
			}
			for range next() % 4 {
				value := uint64(next())<<uint(next()%64) | uint64(next())
				r.Args = append(r.Args, specs.LinuxSeccompArg{Index: uint(next() % 6), Op: ops[next()%len(ops)], Value: value, ValueTwo: uint64(next())})
			}
			s.Syscalls = append(s.Syscalls, r)
		}
		for goarch := range machines {
			p, err := compileFor(goarch, s)
			if err != nil {
				t.Fatalf("%+v: %v", s, err)
			}
			for _, c := range []call{
				{nr, audits[int(audit)%len(audits)], [6]uint64{arg0, arg1, arg0, arg1, arg0, arg1}},
				{nr % 512, audits[int(audit)%len(audits)], [6]uint64{arg1, arg0, arg1, arg0, arg1, arg0}},
				{nr%512 | x32Bit, audits[0], [6]uint64{arg1, arg1, arg0, arg0, arg1, arg0}},
			} {
				got, _, err := interpret(p.Filter, c)
				if want := meaning(goarch, s, c); err != nil || got != want {
					t.Fatalf("%s %+v: %+v: %#x, %v, want %#x", goarch, s, c, got, err, want)
				}
			}
		}
	})
}
