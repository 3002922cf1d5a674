package cgroups

import (
	"errors"
	"fmt"
	"path/filepath"
	"strconv"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// access to a device.
const (
	mknod = 1 << iota // as in struct bpf_cgroup_dev_ctx: BPF_DEVCG_ACC_*
	read
	readWrite = 4
)

// anyNumber is the number that stands for all.
const anyNumber = -1

// device is what a rule is about. kind is 'b' or 'c'.
type device struct {
	kind         byte
	major, minor int64
}

// Rules are who may have access to devices: a default, and for which the answer is
// the other one.
type Rules struct {
	Allow      bool
	exceptions map[device]int // access
	order      []device
}

// always are the devices that every container may use, as in runc.
var always = []struct {
	d      device
	access int
}{
	{device{'c', anyNumber, anyNumber}, mknod}, {device{'b', anyNumber, anyNumber}, mknod},
	{device{'c', 1, 3}, 7}, {device{'c', 1, 8}, 7}, {device{'c', 1, 7}, 7}, {device{'c', 5, 0}, 7}, {device{'c', 1, 5}, 7}, {device{'c', 1, 9}, 7},
	{device{'c', 136, anyNumber}, 7}, {device{'c', 5, 2}, 7},
}

// NewRules reads the specification's list, of which the last that fits counts, and
// adds what every container may use.
func NewRules(list []specs.LinuxDeviceCgroup) (*Rules, error) {
	r := &Rules{exceptions: map[device]int{}}
	for _, l := range list {
		if err := r.add(l); err != nil {
			return nil, err
		}
	}
	for _, a := range always {
		_ = r.set(a.d, a.access, true) // who denies them among others means these too
	}
	return r, nil
}

func (r *Rules) add(l specs.LinuxDeviceCgroup) error {
	number := func(p *int64) int64 {
		if p == nil {
			return anyNumber
		}
		return *p
	}
	access := 0
	for _, c := range l.Access {
		bit := map[rune]int{'r': read, 'w': readWrite, 'm': mknod}[c]
		if bit == 0 {
			return fmt.Errorf("device rule: access %q: not known", l.Access)
		}
		access |= bit
	}
	if l.Access == "" {
		access = mknod | read | readWrite
	}
	major, minor := number(l.Major), number(l.Minor)
	if major < anyNumber || minor < anyNumber || major > 1<<32-1 || minor > 1<<32-1 {
		return fmt.Errorf("device rule: %d:%d: not a device", major, minor)
	}
	var kinds []byte
	switch l.Type {
	case "", "a":
		kinds = []byte{'b', 'c'}
	case "b":
		kinds = []byte{'b'}
	case "c", "u":
		kinds = []byte{'c'}
	default:
		return fmt.Errorf("device rule: type %q: not known", l.Type)
	}
	if len(kinds) == 2 && major == anyNumber && minor == anyNumber && access == 7 {
		r.Allow, r.exceptions, r.order = l.Allow, map[device]int{}, nil
		return nil
	}
	for _, k := range kinds {
		if err := r.set(device{k, major, minor}, access, l.Allow); err != nil {
			return err
		}
	}
	return nil
}

// set makes or takes back an exception. Narrower ones that a wider rule covers go; a
// part of a wider one cannot, for version 1 knows no exceptions from exceptions.
func (r *Rules) set(d device, access int, allow bool) error {
	if allow == r.Allow {
		for o, a := range r.exceptions {
			if o != d && o.covers(d) && a&access != 0 {
				return fmt.Errorf("device rule %s: cannot punch hole in existing wildcard rule %s", d.words(access), o.words(a))
			}
		}
		for o := range r.exceptions {
			if d.covers(o) {
				if r.exceptions[o] &^= access; r.exceptions[o] == 0 {
					delete(r.exceptions, o)
				}
			}
		}
		return nil
	}
	if _, ok := r.exceptions[d]; !ok {
		r.order = append(r.order, d)
	}
	r.exceptions[d] |= access
	return nil
}

func (d device) covers(o device) bool {
	return d.kind == o.kind && (d.major == anyNumber || d.major == o.major) && (d.minor == anyNumber || d.minor == o.minor)
}

// words are a rule as version 1 reads it: "c 1:3 rwm".
func (d device) words(access int) string {
	number := func(n int64) string {
		if n == anyNumber {
			return "*"
		}
		return strconv.FormatInt(n, 10)
	}
	s := string(d.kind) + " " + number(d.major) + ":" + number(d.minor) + " "
	if access&read != 0 {
		s += "r"
	}
	if access&readWrite != 0 {
		s += "w"
	}
	if access&mknod != 0 {
		s += "m"
	}
	return s
}

// LimitDevices says which devices may be used. In version 2 that is a program,
// which stays for as long as the cgroup.
func (g *Group) LimitDevices(r *Rules) error {
	if g.Pure {
		return attachProgram(g.Unified, program(r))
	}
	dir, ok := g.V1["devices"]
	if !ok {
		return errors.New("devices cannot be limited: controller devices is not mounted")
	}
	all, other := "devices.deny", "devices.allow"
	if r.Allow {
		all, other = other, all
	}
	if err := write(filepath.Join(dir, all), "a"); err != nil {
		if r.Allow && errors.Is(err, unix.EPERM) {
			return fmt.Errorf("devices: the cgroup above allows less: %w", err)
		}
		return err
	}
	for _, d := range r.order {
		access, ok := r.exceptions[d]
		if !ok {
			continue
		}
		if err := write(filepath.Join(dir, other), d.words(access)); err != nil {
			return err
		}
	}
	return nil
}
