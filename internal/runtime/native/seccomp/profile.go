package seccomp

import (
	"cmp"
	"fmt"
	"slices"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// flagSync has a filter bind all threads of its process; the specification has no name for it.
const flagSync = "SECCOMP_FILTER_FLAG_TSYNC"

// What a filter answers (linux/seccomp.h, SECCOMP_RET_*).
const (
	retKillThread  = 0x00000000
	retKillProcess = 0x80000000
	retTrap        = 0x00030000
	retErrno       = 0x00050000
	retTrace       = 0x7ff00000
	retLog         = 0x7ffc0000
	retAllow       = 0x7fff0000

	retNoSys = retErrno | uint32(unix.ENOSYS)
)

var actions = map[specs.LinuxSeccompAction]uint32{
	specs.ActKill: retKillThread, specs.ActKillThread: retKillThread, specs.ActKillProcess: retKillProcess,
	specs.ActTrap: retTrap, specs.ActErrno: retErrno, specs.ActTrace: retTrace, specs.ActLog: retLog, specs.ActAllow: retAllow,
}

// operators compare an argument.
var operators = map[specs.LinuxSeccompOperator]bool{specs.OpNotEqual: true, specs.OpLessThan: true, specs.OpLessEqual: true, specs.OpEqualTo: true,
	specs.OpGreaterEqual: true, specs.OpGreaterThan: true, specs.OpMaskedEqual: true}

// maxData is what fits beside an action: SECCOMP_RET_DATA.
const maxData = 0xffff

// action is what a filter answers for an action with its number of an error, nil for
// the default, EPERM.
func action(a specs.LinuxSeccompAction, errno *uint) (uint32, error) {
	if a == specs.ActNotify {
		return 0, fmt.Errorf("seccomp action %s: listeners are not supported: %w", a, errdefs.ErrNotImplemented)
	}
	ret, ok := actions[a]
	if !ok {
		return 0, fmt.Errorf("seccomp action %q: no such action: %w", a, errdefs.ErrInvalidArgument)
	}
	if ret != retErrno && ret != retTrace {
		if errno != nil {
			return 0, fmt.Errorf("seccomp action %s: takes no errnoRet: %w", a, errdefs.ErrInvalidArgument)
		}
		return ret, nil
	}
	data := uint(unix.EPERM)
	if errno != nil {
		data = *errno
	}
	if data > maxData {
		return 0, fmt.Errorf("seccomp errnoRet %d: at most %d: %w", data, maxData, errdefs.ErrInvalidArgument)
	}
	return ret | uint32(data), nil
}

// strictness orders answers as the kernel does among several filters: less is stricter.
func strictness(ret uint32) int32 { return int32(ret & 0xffff0000) }

// passes says that calls get through with this answer, or that somebody else sees to them.
func passes(ret uint32) bool {
	switch ret & 0xffff0000 {
	case retAllow, retLog, retTrace:
		return true
	}
	return false
}

// rule is an answer for calls whose arguments meet all conditions.
type rule struct {
	when []condition
	ret  uint32
}

// condition compares one argument.
type condition struct {
	index       uint
	op          specs.LinuxSeccompOperator
	value, mask uint64 // mask is all ones, but for SCMP_CMP_MASKED_EQ
}

// maxArgs is how many arguments a call has.
const maxArgs = 6

func conditions(args []specs.LinuxSeccompArg) ([]condition, error) {
	list := make([]condition, 0, len(args))
	for _, a := range args {
		if a.Index >= maxArgs {
			return nil, fmt.Errorf("argument %d: calls have %d, counted from 0: %w", a.Index, maxArgs, errdefs.ErrInvalidArgument)
		}
		c := condition{a.Index, a.Op, a.Value, ^uint64(0)}
		if !operators[a.Op] {
			return nil, fmt.Errorf("operator %q: no such operator: %w", a.Op, errdefs.ErrInvalidArgument)
		}
		if a.Op == specs.OpMaskedEqual {
			c.mask, c.value = a.Value, a.ValueTwo&a.Value
		}
		list = append(list, c)
	}
	return list, nil
}

// alternatives are the conjunctions that a rule's conditions are: one, or, if two of
// them are about the same argument, each by itself, which is what runc has always
// made of them and profiles rely on.
func alternatives(when []condition) [][]condition {
	var seen [maxArgs]bool
	for _, c := range when {
		if seen[c.index] {
			var each [][]condition
			for _, c := range when {
				each = append(each, []condition{c})
			}
			return each
		}
		seen[c.index] = true
	}
	return [][]condition{when}
}

// named is a rule of the profile with the calls that it is about.
type named struct {
	names []string
	rules []rule
}

// profile is a specification that was checked.
type profile struct {
	fallback uint32 // the default
	rules    []named
	// mentioned are all names, those of rules that say nothing new too.
	mentioned []string
}

func newProfile(s *specs.LinuxSeccomp) (*profile, error) {
	fallback, err := action(s.DefaultAction, s.DefaultErrnoRet)
	if err != nil {
		return nil, err
	}
	p := &profile{fallback: fallback}
	for i, c := range s.Syscalls {
		where := fmt.Sprintf("seccomp rule %d", i)
		if len(c.Names) > 0 {
			where += fmt.Sprintf(" (%s)", c.Names[0])
		}
		if slices.Contains(c.Names, "") {
			return nil, fmt.Errorf("%s: a name is empty: %w", where, errdefs.ErrInvalidArgument)
		}
		ret, err := action(c.Action, c.ErrnoRet)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		when, err := conditions(c.Args)
		if err != nil {
			return nil, fmt.Errorf("%s: %w", where, err)
		}
		p.mentioned = append(p.mentioned, c.Names...)
		if ret == fallback {
			continue
		}
		n := named{names: c.Names}
		for _, w := range alternatives(when) {
			n.rules = append(n.rules, rule{w, ret})
		}
		p.rules = append(p.rules, n)
	}
	return p, nil
}

// newest is the greatest number that the profile mentions, and whether there is any.
func (p *profile) newest(a arch) (newest uint32, ok bool) {
	for _, name := range p.mentioned {
		if n, known := a.number(name); known && n >= newest {
			newest, ok = n, true
		}
	}
	return newest, ok && newest > uint32(a.first)
}

// byNumber are the rules for each call of an architecture: one without conditions, or
// several with them.
func (p *profile) byNumber(a arch) map[uint32][]rule {
	calls := map[uint32][]rule{}
	for _, n := range p.rules {
		for _, name := range n.names {
			if number, ok := a.number(name); ok {
				calls[number] = join(calls[number], n.rules)
			}
			if a.name != specs.ArchX86 {
				continue
			}
			for _, c := range carriers {
				if carried, ok := c.call[name]; ok {
					if number, ok := a.number(c.name); ok {
						calls[number] = join(calls[number], c.carry(carried, n.rules, p.fallback))
					}
				}
			}
		}
	}
	return calls
}

// join adds rules to those that a call has.
func join(old, add []rule) []rule {
	for _, r := range add {
		switch {
		case len(old) == 1 && len(old[0].when) == 0: // the first without conditions stays alone
		case len(r.when) == 0:
			old = []rule{r}
		default:
			old = append(slices.Clip(old), r)
		}
	}
	return old
}

// carry are the rules of a call for the call that carries it.
func (c carrier) carry(number uint32, rules []rule, fallback uint32) []rule {
	is := condition{0, specs.OpMaskedEqual, uint64(number), uint64(c.mask)}
	var list []rule
	for _, r := range rules {
		if len(r.when) > 0 && strictness(r.ret) > strictness(fallback) {
			continue
		}
		list = append(list, rule{[]condition{is}, r.ret})
	}
	return list
}

// span is the numbers from first to the next span's first, and what is done with them.
type span struct {
	first uint64
	leaf  code
}

// spans divides the 2³² numbers of what the kernel calls one architecture; archs are the
// one or two conventions of it.
func (p *profile) spans(archs []arch) []span {
	base := code{ret(p.fallback)}
	list := []span{{0, base}}
	wide := archs[0].audit == unix.AUDIT_ARCH_X86_64
	if wide && len(archs) == 1 {
		// x32 is another architecture that nobody named. All ones is what a tracer
		// writes to have a call skipped, and none of x32.
		list = append(list, span{x32Bit, code{ret(retKillThread)}}, span{1<<32 - 1, base})
	}
	for _, a := range archs {
		list = append(list, p.known(a)...)
		newest, ok := p.newest(a)
		if !ok || passes(p.fallback) {
			continue
		}
		// Newer than all that is named.
		list = append(list, span{uint64(newest) + 1, code{ret(retNoSys)}})
		switch {
		case !wide:
		case len(archs) == 1:
			list = append(list, span{1 << 31, code{ret(retNoSys)}}, span{1<<31 | x32Bit, code{ret(retKillThread)}})
		case a.first == 0:
			list = append(list, span{x32Bit, base}, span{1 << 31, code{ret(retNoSys)}})
		}
	}
	return merge(list)
}

// known are the spans of an architecture's calls that have rules, each one number.
func (p *profile) known(a arch) []span {
	base := code{ret(p.fallback)}
	var list []span
	calls := p.byNumber(a)
	for number, rules := range calls {
		list = append(list, span{uint64(number), leaf(rules, p.fallback, a.narrow)})
		if _, ok := calls[number+1]; !ok {
			list = append(list, span{uint64(number) + 1, base})
		}
	}
	return list
}

// merge sorts spans; of several that begin at one number the last counts, and
// neighbours that do the same become one.
func merge(list []span) []span {
	slices.SortStableFunc(list, func(a, b span) int { return cmp.Compare(a.first, b.first) })
	var out []span
	for _, s := range list {
		if s.first > 1<<32-1 {
			break
		}
		if n := len(out); n > 0 && out[n-1].first == s.first {
			out = out[:n-1]
		}
		if n := len(out); n > 0 && slices.Equal(out[n-1].leaf, s.leaf) {
			continue
		}
		out = append(out, s)
	}
	return out
}
