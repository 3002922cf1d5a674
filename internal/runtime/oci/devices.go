package oci

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// errNotDevice tells of a file that is no device node.
var errNotDevice = errors.New("not a device node")

// defaultDeviceRules allow zero, null, urandom, random, tty and console, and
// deny everything else; fuse explicitly. The runtime adds those of devices
// that it makes itself (null, zero, full, random, urandom, tty, ptmx, pts).
func defaultDeviceRules() []specs.LinuxDeviceCgroup {
	rule := func(allow bool, major, minor int64) specs.LinuxDeviceCgroup {
		return specs.LinuxDeviceCgroup{Allow: allow, Type: "c", Major: &major, Minor: &minor, Access: "rwm"}
	}
	return []specs.LinuxDeviceCgroup{
		{Allow: false, Access: "rwm"},
		rule(true, 1, 5), rule(true, 1, 3), rule(true, 1, 9), rule(true, 1, 8),
		rule(true, 5, 0), rule(true, 5, 1),
		rule(false, 10, 229),
	}
}

// devices are the nodes that a container gets and the rules of what it may use.
func (b *Builder) devices(hc *container.HostConfig) (devices []specs.LinuxDevice, rules []specs.LinuxDeviceCgroup, err error) {
	rules = defaultDeviceRules()
	if hc.Privileged {
		if devices, err = b.hostDevices(); err != nil {
			return nil, nil, fmt.Errorf("devices of the host: %w", err)
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Access: "rwm"})
	}
	for _, m := range hc.Devices {
		if hc.Privileged && m.PathOnHost == m.PathInContainer {
			continue // it has them all
		}
		access := m.CgroupPermissions
		if hc.Privileged || access == "" {
			access = "rwm"
		}
		found, err := devicesAt(m.PathOnHost, m.PathInContainer)
		if err != nil {
			return nil, nil, err
		}
		devices = append(devices, found...)
		for _, d := range found {
			if !hc.Privileged {
				rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: d.Type, Major: &d.Major, Minor: &d.Minor, Access: access})
			}
		}
	}
	if !hc.Privileged {
		if rules, err = appendDeviceRules(rules, hc.DeviceCgroupRules); err != nil {
			return nil, nil, err
		}
	}
	return devices, rules, nil
}

// devicesAt finds the device at a path of the host, or all those below it.
func devicesAt(host, inside string) ([]specs.LinuxDevice, error) {
	if inside == "" {
		inside = host
	}
	refuse := func(err error) ([]specs.LinuxDevice, error) {
		return nil, words("error gathering device information while adding custom device %q: %s", host, err)
	}
	resolved, err := filepath.EvalSymlinks(host)
	if err != nil {
		// In the words of the system call, as for a device that is gone.
		var pathErr *fs.PathError
		if errors.As(err, &pathErr) {
			err = pathErr.Err
		}
		return refuse(err)
	}
	d, err := deviceAt(resolved)
	if err == nil {
		d.Path = inside
		return []specs.LinuxDevice{d}, nil
	}
	if !errors.Is(err, errNotDevice) {
		return refuse(err)
	}
	var found []specs.LinuxDevice
	_ = filepath.WalkDir(resolved, func(path string, e fs.DirEntry, err error) error {
		if err != nil || e.IsDir() {
			return nil // what cannot be read is left out
		}
		if d, err := deviceAt(path); err == nil {
			d.Path = filepath.Join(inside, strings.TrimPrefix(path, resolved))
			found = append(found, d)
		}
		return nil
	})
	if len(found) == 0 {
		return refuse(errNotDevice)
	}
	return found, nil
}

// deviceAt describes a device node; errNotDevice for any other file.
func deviceAt(path string) (specs.LinuxDevice, error) {
	var st unix.Stat_t
	if err := unix.Lstat(path, &st); err != nil {
		return specs.LinuxDevice{}, err
	}
	d := specs.LinuxDevice{
		Path:  path,
		Major: int64(unix.Major(st.Rdev)), Minor: int64(unix.Minor(st.Rdev)),
		UID: &st.Uid, GID: &st.Gid,
	}
	switch st.Mode & unix.S_IFMT {
	case unix.S_IFBLK:
		d.Type = "b"
	case unix.S_IFCHR:
		d.Type = "c"
	case unix.S_IFIFO:
		d.Type = "p"
	default:
		return specs.LinuxDevice{}, errNotDevice
	}
	mode := os.FileMode(st.Mode &^ unix.S_IFMT)
	d.FileMode = &mode
	return d, nil
}

// allDevices lists the device nodes below dir for privileged containers,
// without what a container has of its own: terminals, shared memory, console.
func allDevices(dir string) ([]specs.LinuxDevice, error) {
	var out []specs.LinuxDevice
	err := filepath.WalkDir(dir, func(path string, e fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // went away meanwhile
		}
		if err != nil {
			return err
		}
		if e.IsDir() {
			switch e.Name() {
			case "pts", "shm", "fd", "mqueue", ".lxc", ".lxd-mounts", ".udev":
				return fs.SkipDir
			}
			return nil
		}
		if e.Type()&fs.ModeDevice == 0 || e.Name() == "console" {
			return nil
		}
		d, err := deviceAt(path)
		switch {
		case errors.Is(err, fs.ErrNotExist), errors.Is(err, errNotDevice):
			return nil
		case err != nil:
			return fmt.Errorf("%s: %w", path, err)
		}
		out = append(out, d)
		return nil
	})
	return out, err
}

// deviceRule is the form of --device-cgroup-rule (cgroup-v1/devices.rst).
var deviceRule = regexp.MustCompile(`^([acb]) ([0-9]+|\*):([0-9]+|\*) ([rwm]{1,3})$`)

func appendDeviceRules(rules []specs.LinuxDeviceCgroup, asked []string) ([]specs.LinuxDeviceCgroup, error) {
	for _, rule := range asked {
		m := deviceRule.FindStringSubmatch(rule)
		if m == nil {
			return nil, invalid("invalid device cgroup rule format: '%s'", rule)
		}
		major, ok1 := deviceNumber(m[2])
		minor, ok2 := deviceNumber(m[3])
		if !ok1 {
			return nil, invalid("invalid major value in device cgroup rule format: '%s'", rule)
		}
		if !ok2 {
			return nil, invalid("invalid minor value in device cgroup rule format: '%s'", rule)
		}
		rules = append(rules, specs.LinuxDeviceCgroup{Allow: true, Type: m[1], Major: &major, Minor: &minor, Access: m[4]})
	}
	return rules, nil
}

// deviceNumber is a number or -1 for "*".
func deviceNumber(s string) (int64, bool) {
	if s == "*" {
		return -1, true
	}
	n, err := strconv.ParseInt(s, 10, 64)
	return n, err == nil
}
