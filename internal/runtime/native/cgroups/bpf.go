package cgroups

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"os"
	"runtime"
	"unsafe"

	"golang.org/x/sys/unix"
)

// insn is struct bpf_insn (Documentation/bpf/standardization/instruction-set.rst).
type insn struct {
	code uint8
	regs uint8 // destination in the lower half, source in the upper
	off  int16
	imm  int32
}

// The few instructions that the program is made of.
const (
	opLoadWord  = unix.BPF_LDX | unix.BPF_MEM | unix.BPF_W
	opMov       = unix.BPF_ALU64 | unix.BPF_MOV | unix.BPF_K
	opMovReg32  = unix.BPF_ALU | unix.BPF_MOV | unix.BPF_X
	opAnd32     = unix.BPF_ALU | unix.BPF_AND | unix.BPF_K
	opShift32   = unix.BPF_ALU | unix.BPF_RSH | unix.BPF_K
	opNotEq     = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_K
	opNotEq32   = unix.BPF_JMP32 | unix.BPF_JNE | unix.BPF_K
	opNotEqReg  = unix.BPF_JMP | unix.BPF_JNE | unix.BPF_X
	opEq32      = unix.BPF_JMP32 | unix.BPF_JEQ | unix.BPF_K
	opExit      = unix.BPF_JMP | unix.BPF_EXIT
	kindBlock   = 1 // BPF_DEVCG_DEV_BLOCK
	kindChar    = 2 // BPF_DEVCG_DEV_CHAR
	progDevice  = 15
	attachDev   = 6
	cmdLoad     = 5
	cmdAttach   = 8
	allowMulti  = 2
	accessShift = 16
)

// program answers for a device: 1 where access is allowed, 0 where not. The context
// (struct bpf_cgroup_dev_ctx) has the access in the upper half of its first word,
// the kind in the lower, then major and minor. Each exception is one block:
// where it fits, the answer is the other than the default.
func program(r *Rules) []insn {
	yes, no := int32(0), int32(1) // what an exception and the default answer
	if !r.Allow {
		yes, no = 1, 0
	}
	p := []insn{
		{code: opLoadWord, regs: 2 | 1<<4, off: 0}, // r2 = first word
		{code: opMovReg32, regs: 3 | 2<<4},         // r3 = access
		{code: opShift32, regs: 3, imm: accessShift},
		{code: opAnd32, regs: 2, imm: 1<<accessShift - 1}, // r2 = kind
		{code: opLoadWord, regs: 4 | 1<<4, off: 4},        // r4 = major
		{code: opLoadWord, regs: 5 | 1<<4, off: 8},        // r5 = minor
	}
	for _, d := range r.order {
		access, ok := r.exceptions[d]
		if !ok {
			continue
		}
		p = append(p, block(d, access, r.Allow, yes)...)
	}
	return append(p, insn{code: opMov, regs: 0, imm: no}, insn{code: opExit})
}

// block is one exception. Where devices are denied unless excepted all that is asked
// for must be in it; where they are allowed, any of it.
func block(d device, access int, deny bool, answer int32) []insn {
	kind := int32(kindChar)
	if d.kind == 'b' {
		kind = kindBlock
	}
	b := []insn{{code: opNotEq, regs: 2, imm: kind}}
	if d.major != anyNumber {
		b = append(b, insn{code: opNotEq32, regs: 4, imm: int32(uint32(d.major))})
	}
	if d.minor != anyNumber {
		b = append(b, insn{code: opNotEq32, regs: 5, imm: int32(uint32(d.minor))})
	}
	switch {
	case deny:
		b = append(b, insn{code: opMovReg32, regs: 1 | 3<<4}, insn{code: opAnd32, regs: 1, imm: int32(access)}, insn{code: opEq32, regs: 1, imm: 0})
	case access != 7:
		b = append(b, insn{code: opMovReg32, regs: 1 | 3<<4}, insn{code: opAnd32, regs: 1, imm: int32(access)}, insn{code: opNotEqReg, regs: 1 | 3<<4})
	}
	b = append(b, insn{code: opMov, regs: 0, imm: answer}, insn{code: opExit})
	for i := range b {
		switch b[i].code {
		case opNotEq, opNotEq32, opNotEqReg, opEq32:
			b[i].off = int16(len(b) - i - 1) // to the next block
		}
	}
	return b
}

// attachProgram gives a cgroup a program, and takes away those that it had: on an
// update no old one may still forbid.
func attachProgram(dir string, p []insn) error {
	cgroup, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	prog, err := load(p)
	if err != nil {
		return fmt.Errorf("devices of cgroup %s: %w", dir, err)
	}
	defer unix.Close(prog)
	old, err := attached(int(cgroup.Fd()))
	if err != nil {
		return fmt.Errorf("devices of cgroup %s: %w", dir, err)
	}
	attr := struct{ target, prog, kind, flags uint32 }{uint32(cgroup.Fd()), uint32(prog), attachDev, allowMulti}
	if _, err := bpf(cmdAttach, unsafe.Pointer(&attr), unsafe.Sizeof(attr)); err != nil {
		return fmt.Errorf("devices of cgroup %s: attach: %w", dir, err)
	}
	for _, id := range old {
		if err := detach(int(cgroup.Fd()), id); err != nil {
			return fmt.Errorf("devices of cgroup %s: detach: %w", dir, err)
		}
	}
	return nil
}

func load(p []insn) (int, error) {
	var code bytes.Buffer
	if err := binary.Write(&code, binary.NativeEndian, p); err != nil {
		return -1, err
	}
	license := []byte("Apache\x00")
	attr := struct {
		kind, count          uint32
		insns, license       uint64
		logLevel, logSize    uint32
		log                  uint64
		version, flags       uint32
		name                 [16]byte
		ifindex, expectedFor uint32
	}{kind: progDevice, count: uint32(len(p)), expectedFor: attachDev}
	// As numbers nothing of Go's knows that they are used.
	var pins runtime.Pinner
	defer pins.Unpin()
	attr.insns, attr.license = pinned(&pins, &code.Bytes()[0]), pinned(&pins, &license[0])
	copy(attr.name[:], "escale_devices")
	fd, err := bpf(cmdLoad, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return -1, fmt.Errorf("load: %w", err)
	}
	return fd, nil
}

// pinned keeps something where it is and gives its address.
func pinned[T any](pins *runtime.Pinner, p *T) uint64 {
	pins.Pin(p)
	return uint64(uintptr(unsafe.Pointer(p)))
}

// attached lists the ids of the device programs of a cgroup itself.
func attached(cgroup int) ([]uint32, error) {
	const cmdQuery = 16
	ids := make([]uint32, 64)
	var pins runtime.Pinner
	defer pins.Unpin()
	attr := struct {
		target, kind, flags, attach uint32
		ids                         uint64
		count                       uint32
		_                           uint32
	}{target: uint32(cgroup), kind: attachDev, ids: pinned(&pins, &ids[0]), count: uint32(len(ids))}
	_, err := bpf(cmdQuery, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	if err != nil {
		return nil, fmt.Errorf("query: %w", err)
	}
	return ids[:min(int(attr.count), len(ids))], nil
}

func detach(cgroup int, id uint32) error {
	const cmdDetach, cmdByID = 9, 13
	byID := struct{ id, next, flags uint32 }{id: id}
	fd, err := bpf(cmdByID, unsafe.Pointer(&byID), unsafe.Sizeof(byID))
	if err == unix.ENOENT {
		return nil
	}
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	attr := struct{ target, prog, kind, flags uint32 }{uint32(cgroup), uint32(fd), attachDev, 0}
	_, err = bpf(cmdDetach, unsafe.Pointer(&attr), unsafe.Sizeof(attr))
	return err
}

// bpf is the system call (bpf(2)).
func bpf(cmd int, attr unsafe.Pointer, size uintptr) (int, error) {
	for {
		n, _, errno := unix.Syscall(unix.SYS_BPF, uintptr(cmd), uintptr(attr), size)
		switch errno {
		case 0:
			return int(n), nil
		case unix.EINTR, unix.EAGAIN:
			continue
		}
		return -1, errno
	}
}
