package spec

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path"
	"strings"
)

const blanks = " \t"

// CheckEnv accepts NAME=VALUE and NAME; the latter takes its value from this
// process's environment, or stays bare (the engine then unsets it).
func CheckEnv(s string) (string, error) {
	name, _, hasValue := strings.Cut(s, "=")
	if name == "" {
		return "", fmt.Errorf("invalid environment variable: %s", s)
	}
	if hasValue {
		return s, nil
	}
	if v, ok := os.LookupEnv(name); ok {
		return name + "=" + v, nil
	}
	return s, nil
}

func checkLabel(s string) (string, error) {
	name, _, _ := strings.Cut(s, "=")
	name = strings.TrimLeft(name, blanks)
	if name == "" {
		return "", fmt.Errorf("invalid label '%s': empty name", s)
	}
	if strings.ContainsAny(name, blanks) {
		return "", fmt.Errorf("label '%s' contains whitespaces", name)
	}
	return s, nil
}

func checkAttach(s string) (string, error) {
	switch l := strings.ToLower(s); l {
	case "stdin", "stdout", "stderr":
		return l, nil
	}
	return "", errors.New("valid streams are STDIN, STDOUT and STDERR")
}

func checkIP(s string) (string, error) {
	ip := net.ParseIP(strings.TrimSpace(s))
	if ip == nil {
		return "", fmt.Errorf("IP address is not correctly formatted: %s", s)
	}
	return ip.String(), nil
}

func checkDNSSearch(s string) (string, error) {
	s = strings.Trim(s, " ")
	if s == "." {
		return s, nil
	}
	return checkDomain(s)
}

// checkDomain accepts labels of letters, digits and inner hyphens joined by
// dots, with an optional dot at the end (which is dropped), at least one
// letter and fewer than 255 bytes in all.
func checkDomain(s string) (string, error) {
	bad := fmt.Errorf("%s is not a valid domain", s)
	d := strings.TrimSuffix(strings.TrimRight(s, " \t\n\r\f\v"), ".")
	if d == "" || len(d) >= 255 {
		return "", bad
	}
	letter := false
	for _, label := range strings.Split(d, ".") {
		if label == "" || label[0] == '-' || label[len(label)-1] == '-' {
			return "", bad
		}
		for _, c := range []byte(label) {
			switch {
			case c >= 'a' && c <= 'z', c >= 'A' && c <= 'Z':
				letter = true
			case c >= '0' && c <= '9', c == '-':
			default:
				return "", bad
			}
		}
	}
	if !letter {
		return "", bad
	}
	return d, nil
}

// checkHost rewrites NAME=IP, NAME:IP and NAME=[IP] to NAME:IP.
func checkHost(s string) (string, error) {
	name, ip, ok := strings.Cut(s, "=")
	if !ok {
		name, ip, ok = strings.Cut(s, ":")
	}
	if !ok || name == "" || strings.Contains(name, ":") {
		return "", fmt.Errorf("bad format for add-host: %q", s)
	}
	if ip != "host-gateway" {
		if len(ip) > 2 && ip[0] == '[' && ip[len(ip)-1] == ']' {
			ip = ip[1 : len(ip)-1]
		}
		if _, err := checkIP(ip); err != nil {
			return "", fmt.Errorf("invalid IP address in add-host: %q", ip)
		}
	}
	return name + ":" + ip, nil
}

func checkLink(s string) (string, error) {
	if s == "" {
		return "", errors.New("empty string specified for links")
	}
	if strings.Count(s, ":") > 1 {
		return "", fmt.Errorf("bad format for links: %s", s)
	}
	return s, nil
}

func checkSysctl(s string) (string, error) {
	name, _, ok := strings.Cut(s, "=")
	if ok && name != "" {
		switch name {
		case "kernel.msgmax", "kernel.msgmnb", "kernel.msgmni", "kernel.sem", "kernel.shmall",
			"kernel.shmmax", "kernel.shmmni", "kernel.shm_rmid_forced":
			return s, nil
		}
		if strings.HasPrefix(name, "net.") || strings.HasPrefix(name, "fs.mqueue.") {
			return s, nil
		}
	}
	return "", fmt.Errorf("sysctl '%s' is not allowed", s)
}

// checkDeviceRule accepts "TYPE MAJOR:MINOR ACCESS" as the devices cgroup has
// it: a, b or c; numbers or *; one to three of r, w, m.
func checkDeviceRule(s string) (string, error) {
	bad := fmt.Errorf("invalid device cgroup format '%s'", s)
	f := strings.Split(s, " ")
	if len(f) != 3 || f[0] != "a" && f[0] != "b" && f[0] != "c" {
		return "", bad
	}
	major, minor, ok := strings.Cut(f[1], ":")
	if !ok || !deviceNumber(major) || !deviceNumber(minor) {
		return "", bad
	}
	if n := len(f[2]); n < 1 || n > 3 || strings.Trim(f[2], "rwm") != "" {
		return "", bad
	}
	return s, nil
}

func deviceNumber(s string) bool {
	return s == "*" || s != "" && strings.Trim(s, "0123456789") == ""
}

// deviceMode reports whether s is made of r, w and m, each at most once.
func deviceMode(s string) bool {
	if s == "" {
		return false
	}
	for i, c := range s {
		if !strings.ContainsRune("rwm", c) || strings.ContainsRune(s[:i], c) {
			return false
		}
	}
	return true
}

// qualifiedDevice reports whether s is a CDI name, VENDOR/CLASS=NAME, rather
// than a path.
func qualifiedDevice(s string) bool {
	kind, name, ok := strings.Cut(s, "=")
	if !ok || name == "" {
		return false
	}
	vendor, class, ok := strings.Cut(kind, "/")
	return ok && word(vendor, "_-.") && word(class, "_-") && deviceName(name)
}

// word reports whether s starts with a letter, ends with a letter or digit and
// has only letters, digits and extra between.
func word(s, extra string) bool {
	if s == "" || !letter(s[0]) {
		return false
	}
	for i := 1; i < len(s); i++ {
		if !letter(s[i]) && !digit(s[i]) && strings.IndexByte(extra, s[i]) < 0 {
			return false
		}
	}
	return letter(s[len(s)-1]) || digit(s[len(s)-1])
}

func deviceName(s string) bool {
	for i := range len(s) {
		alnum := letter(s[i]) || digit(s[i])
		edge := i == 0 || i == len(s)-1
		if !alnum && (edge || strings.IndexByte("_-.:", s[i]) < 0) {
			return false
		}
	}
	return true
}

func letter(c byte) bool { return c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z' }
func digit(c byte) bool  { return c >= '0' && c <= '9' }

// checkDevicePath validates [HOST:]CONTAINER[:MODE] and cleans the path where
// Docker does.
func checkDevicePath(s string) (string, error) {
	f := strings.Split(s, ":")
	if len(f) > 3 || f[0] == "" {
		return "", fmt.Errorf("bad format for path: %s", s)
	}
	inside, out := f[0], path.Clean(f[0])
	switch len(f) {
	case 2:
		if deviceMode(f[1]) {
			out = path.Clean(f[0]) + ":" + f[1]
		} else {
			inside = f[1]
			out = f[0] + ":" + path.Clean(f[1])
		}
	case 3:
		inside, out = f[1], s
		if !deviceMode(f[2]) {
			return "", fmt.Errorf("bad mode specified: %s", f[2])
		}
	}
	if !path.IsAbs(inside) {
		return "", fmt.Errorf("%s is not an absolute path", inside)
	}
	return out, nil
}

func addr(s, what string) (netip.Addr, error) {
	a, err := netip.ParseAddr(strings.TrimSpace(s))
	if err != nil {
		return netip.Addr{}, fmt.Errorf("invalid %s address: %s", what, s)
	}
	return a, nil
}
