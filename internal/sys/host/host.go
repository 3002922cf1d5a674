// Package host tells what the machine is: its kernel, processors and memory,
// its distribution, the boot it is in, and when a process of it started. It
// reads /proc, /etc/os-release and uname(2); nothing here blocks beyond that.
package host

import (
	"bufio"
	"bytes"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// Facts are what does not change while a machine is up.
type Facts struct {
	BootID          string // a UUID, new at every boot (random(4))
	Hostname        string
	Kernel          string // release as uname -r says it
	KernelBuild     string // version as uname -v says it
	Machine         string // architecture as uname -m says it, "x86_64"
	OperatingSystem string // PRETTY_NAME of os-release, "Debian GNU/Linux 12 (bookworm)"
	OSVersion       string // VERSION_ID of os-release, "12"
	CPUs            int    // processors this process may run on
	Memory          int64  // bytes of RAM the kernel has for use
	Swap            int64  // bytes of swap
}

// Read gathers the facts. What a machine does not tell stays empty, but for
// the boot id and the memory, without which an engine cannot work.
func Read() (Facts, error) {
	f := Facts{CPUs: runtime.NumCPU(), OperatingSystem: "Linux"}
	var err error
	if f.BootID, err = BootID(); err != nil {
		return Facts{}, err
	}
	var u unix.Utsname
	if err := unix.Uname(&u); err != nil {
		return Facts{}, fmt.Errorf("uname: %w", err)
	}
	f.Hostname = unix.ByteSliceToString(u.Nodename[:])
	f.Kernel = unix.ByteSliceToString(u.Release[:])
	f.KernelBuild = unix.ByteSliceToString(u.Version[:])
	f.Machine = unix.ByteSliceToString(u.Machine[:])

	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return Facts{}, err
	}
	if f.Memory, f.Swap, err = parseMeminfo(b); err != nil {
		return Facts{}, fmt.Errorf("/proc/meminfo: %w", err)
	}
	for _, path := range []string{"/etc/os-release", "/usr/lib/os-release"} {
		if file, err := os.Open(path); err == nil {
			name, version := parseOSRelease(io.LimitReader(file, 1<<20))
			_ = file.Close()
			if name != "" {
				f.OperatingSystem = name
			}
			f.OSVersion = version
			break
		}
	}
	return f, nil
}

// BootID is the identity of the present boot: a pid and a start time mean one
// process only together with it.
func BootID() (string, error) {
	b, err := os.ReadFile("/proc/sys/kernel/random/boot_id")
	if err != nil {
		return "", err
	}
	return strings.TrimSpace(string(b)), nil
}

// StartTime is when a process started, in clock ticks since boot (field 22 of
// /proc/<pid>/stat, proc(5)). The error is fs.ErrNotExist when there is no
// such process.
func StartTime(pid int) (uint64, error) {
	path := filepath.Join("/proc", strconv.Itoa(pid), "stat")
	b, err := os.ReadFile(path)
	if err != nil {
		return 0, err
	}
	t, err := parseStat(b)
	if err != nil {
		return 0, fmt.Errorf("%s: %w", path, err)
	}
	return t, nil
}

// parseStat reads the start time. The second field is a command name in
// parentheses that may itself hold spaces and parentheses, so that counting
// begins after the last closing one.
func parseStat(b []byte) (uint64, error) {
	i := bytes.LastIndexByte(b, ')')
	if i < 0 {
		return 0, fmt.Errorf("no command name")
	}
	const startTime = 22 - 3 // the fields after the name begin with the third
	fields := bytes.Fields(b[i+1:])
	if len(fields) <= startTime {
		return 0, fmt.Errorf("%d fields after the command name", len(fields))
	}
	return strconv.ParseUint(string(fields[startTime]), 10, 64)
}

// parseMeminfo reads the bytes of memory and swap.
func parseMeminfo(b []byte) (memory, swap int64, err error) {
	for line := range strings.Lines(string(b)) {
		key, value, ok := strings.Cut(line, ":")
		if !ok || (key != "MemTotal" && key != "SwapTotal") {
			continue
		}
		kb, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(value), " kB"), 10, 53)
		if err != nil {
			return 0, 0, fmt.Errorf("%s: %w", key, err)
		}
		if key == "MemTotal" {
			memory = kb * 1024
		} else {
			swap = kb * 1024
		}
	}
	if memory <= 0 {
		return 0, 0, fmt.Errorf("no MemTotal")
	}
	return memory, swap, nil
}

// parseOSRelease reads PRETTY_NAME and VERSION_ID (os-release(5)).
func parseOSRelease(r io.Reader) (name, version string) {
	s := bufio.NewScanner(r)
	for s.Scan() {
		key, value, ok := strings.Cut(strings.TrimSpace(s.Text()), "=")
		if !ok {
			continue
		}
		switch key {
		case "PRETTY_NAME":
			name = unquote(value)
		case "VERSION_ID":
			version = unquote(value)
		}
	}
	return name, version
}

// unquote undoes the shell quoting that os-release(5) allows.
func unquote(s string) string {
	if len(s) >= 2 && s[0] == '\'' && s[len(s)-1] == '\'' {
		return s[1 : len(s)-1]
	}
	if len(s) >= 2 && s[0] == '"' && s[len(s)-1] == '"' {
		s = s[1 : len(s)-1]
	}
	var out strings.Builder
	for i := 0; i < len(s); i++ {
		if s[i] == '\\' && i+1 < len(s) {
			i++
		}
		out.WriteByte(s[i])
	}
	return out.String()
}
