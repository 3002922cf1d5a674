package seccomp

import (
	"encoding/binary"
	"fmt"
	"runtime"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// Program is a filter as the kernel takes it.
type Program struct {
	// Flags are those of seccomp(SECCOMP_SET_MODE_FILTER): SECCOMP_FILTER_FLAG_*.
	Flags uint32
	// Filter are instructions, struct sock_filter each (8 bytes, the host's byte order).
	Filter []byte
}

// Len is how many instructions a program has.
func (p *Program) Len() int { return len(p.Filter) / instruction }

// Bounds of a program, by linux/bpf_common.h and linux/filter.h.
const (
	maxInstructions = 4096
	instruction     = 8 // bytes of one
)

// Compile makes a profile's program for this machine. It returns nil for no profile and
// for one without default and rules, which is none to runc either. Errors are of the
// kinds InvalidArgument, for what a profile may not say, and NotImplemented, for
// listeners (SCMP_ACT_NOTIFY) and machines other than amd64 and arm64.
func Compile(s *specs.LinuxSeccomp) (*Program, error) {
	return compileFor(runtime.GOARCH, s)
}

func compileFor(goarch string, s *specs.LinuxSeccomp) (*Program, error) {
	if s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0 {
		return nil, nil
	}
	m, ok := machines[goarch]
	if !ok {
		return nil, fmt.Errorf("seccomp on %s: %w", goarch, errdefs.ErrNotImplemented)
	}
	flags, err := filterFlags(s.Flags)
	if err != nil {
		return nil, err
	}
	archs, err := m.archs(s.Architectures)
	if err != nil {
		return nil, err
	}
	p, err := newProfile(s)
	if err != nil {
		return nil, err
	}
	all := p.code(archs)
	if len(all) > maxInstructions {
		return nil, fmt.Errorf("seccomp profile: %d instructions, the kernel takes %d: %w", len(all), maxInstructions, errdefs.ErrInvalidArgument)
	}
	return &Program{Flags: flags, Filter: all.bytes()}, nil
}

// filterFlags are the flags of a profile. One that names none has
// SECCOMP_FILTER_FLAG_SPEC_ALLOW, as with runc: the mitigation that it switches off
// costs much and guards little (runc's issue 2430).
func filterFlags(list []specs.LinuxSeccompFlag) (flags uint32, err error) {
	if list == nil {
		return unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW, nil
	}
	for _, f := range list {
		switch f {
		case flagSync: // the process has one thread when its program begins
		case specs.LinuxSeccompFlagLog:
			flags |= unix.SECCOMP_FILTER_FLAG_LOG
		case specs.LinuxSeccompFlagSpecAllow:
			flags |= unix.SECCOMP_FILTER_FLAG_SPEC_ALLOW
		case specs.LinuxSeccompFlagWaitKillableRecv:
			return 0, fmt.Errorf("seccomp flag %s: listeners are not supported: %w", f, errdefs.ErrNotImplemented)
		default:
			return 0, fmt.Errorf("seccomp flag %q: no such flag: %w", f, errdefs.ErrInvalidArgument)
		}
	}
	return flags, nil
}

// code are instructions of which every way ends in an answer, unless said otherwise.
// All jumps lead forward and are relative, so code can be put anywhere.
type code []unix.SockFilter

// Where struct seccomp_data has what (linux/seccomp.h). Both machines are little endian.
const (
	offNumber = 0
	offArch   = 4
	offArgs   = 16
)

func load(offset uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_LD | unix.BPF_W | unix.BPF_ABS, K: offset}
}

func ret(answer uint32) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_RET | unix.BPF_K, K: answer}
}

func jump(test uint16, k uint32, yes, no uint8) unix.SockFilter {
	return unix.SockFilter{Code: unix.BPF_JMP | test | unix.BPF_K, Jt: yes, Jf: no, K: k}
}

// branch tests the accumulator: yes follows if it is so, no otherwise.
func branch(test uint16, k uint32, yes, no code) code {
	var c code
	if len(no) <= 255 {
		c = code{jump(test, k, uint8(len(no)), 0)}
	} else {
		c = code{jump(test, k, 0, 1), {Code: unix.BPF_JMP | unix.BPF_JA, K: uint32(len(no))}}
	}
	return append(append(c, no...), yes...)
}

// code is the whole program.
func (p *profile) code(archs []arch) code {
	groups := [][]arch{}
	for _, a := range archs {
		if len(groups) > 0 && a.audit == groups[0][0].audit {
			groups[0] = append(groups[0], a)
		} else {
			groups = append(groups, []arch{a})
		}
	}
	all := code{ret(retKillThread)}
	for i := len(groups) - 1; i >= 0; i-- {
		section := append(code{load(offNumber)}, search(p.spans(groups[i]))...)
		all = branch(unix.BPF_JEQ, groups[i][0].audit, section, all)
	}
	return append(code{load(offArch)}, all...)
}

// search finds the span of the number in the accumulator.
func search(spans []span) code {
	if len(spans) == 1 {
		return spans[0].leaf
	}
	half := len(spans) / 2
	return branch(unix.BPF_JGE, uint32(spans[half].first), search(spans[half:]), search(spans[:half]))
}

// leaf is what is done with one call.
func leaf(rules []rule, fallback uint32, narrow bool) code {
	var c code
	for _, r := range rules {
		c = append(c, r.code(narrow)...)
		if len(r.when) == 0 {
			return c
		}
	}
	return append(c, ret(fallback))
}

// Where the jumps of a condition lead, until code knows how far that is. Real jumps
// there are of 0 to 8.
const (
	toMet   = 254
	toUnmet = 255
)

// code answers if all conditions are met; otherwise it goes on behind its end.
func (r rule) code(narrow bool) code {
	var c code
	for _, w := range r.when {
		test := w.code(narrow)
		for i := range test {
			if test[i].Code&7 == unix.BPF_JMP {
				test[i].Jt = met(test[i].Jt, len(test)-i-1)
				test[i].Jf = met(test[i].Jf, len(test)-i-1)
			}
		}
		c = append(c, test...)
	}
	c = append(c, ret(r.ret))
	for i := range c {
		if c[i].Code&7 != unix.BPF_JMP {
			continue
		}
		// Six conditions of seven instructions: it is never far.
		if c[i].Jt == toUnmet {
			c[i].Jt = uint8(len(c) - i - 1)
		}
		if c[i].Jf == toUnmet {
			c[i].Jf = uint8(len(c) - i - 1)
		}
	}
	return c
}

func met(jump uint8, end int) uint8 {
	if jump == toMet {
		return uint8(end)
	}
	return jump
}

// code compares an argument: its upper half first, then, where that decides nothing,
// the lower. Jumps lead to toMet and toUnmet.
func (w condition) code(narrow bool) code {
	offset := offArgs + 8*uint32(w.index)
	low, lowMask := uint32(w.value), uint32(w.mask)
	high, highMask := uint32(w.value>>32), uint32(w.mask>>32)
	var c code
	half := func(offset, mask uint32, jumps ...unix.SockFilter) {
		c = append(c, load(offset))
		if mask != ^uint32(0) {
			c = append(c, unix.SockFilter{Code: unix.BPF_ALU | unix.BPF_AND | unix.BPF_K, K: mask})
		}
		c = append(c, jumps...)
	}
	// first compares upper halves by "greater" and "equal".
	first := func(jumps ...unix.SockFilter) {
		if !narrow {
			half(offset+4, highMask, jumps...)
		}
	}
	switch w.op {
	case specs.OpEqualTo, specs.OpMaskedEqual:
		if highMask != 0 {
			first(jump(unix.BPF_JEQ, high, 0, toUnmet))
		}
		half(offset, lowMask, jump(unix.BPF_JEQ, low, toMet, toUnmet))
	case specs.OpNotEqual:
		first(jump(unix.BPF_JEQ, high, 0, toMet))
		half(offset, lowMask, jump(unix.BPF_JEQ, low, toUnmet, toMet))
	case specs.OpGreaterThan:
		first(jump(unix.BPF_JGT, high, toMet, 0), jump(unix.BPF_JEQ, high, 0, toUnmet))
		half(offset, lowMask, jump(unix.BPF_JGT, low, toMet, toUnmet))
	case specs.OpGreaterEqual:
		first(jump(unix.BPF_JGT, high, toMet, 0), jump(unix.BPF_JEQ, high, 0, toUnmet))
		half(offset, lowMask, jump(unix.BPF_JGE, low, toMet, toUnmet))
	case specs.OpLessThan:
		first(jump(unix.BPF_JGT, high, toUnmet, 0), jump(unix.BPF_JEQ, high, 0, toMet))
		half(offset, lowMask, jump(unix.BPF_JGE, low, toUnmet, toMet))
	case specs.OpLessEqual:
		first(jump(unix.BPF_JGT, high, toUnmet, 0), jump(unix.BPF_JEQ, high, 0, toMet))
		half(offset, lowMask, jump(unix.BPF_JGT, low, toUnmet, toMet))
	}
	return c
}

// bytes are instructions as the kernel reads them.
func (c code) bytes() []byte {
	b := make([]byte, 0, len(c)*instruction)
	for _, i := range c {
		b = binary.NativeEndian.AppendUint16(b, i.Code)
		b = append(b, i.Jt, i.Jf)
		b = binary.NativeEndian.AppendUint32(b, i.K)
	}
	return b
}
