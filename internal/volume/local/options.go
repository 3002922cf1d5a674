package local

import (
	"errors"
	"fmt"
	"net"
	"net/url"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/docker/go-units"
	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// needed tells for each option of the driver which others it needs.
var needed = map[string][]string{
	"device": {"type"},
	"type":   {"device"},
	"o":      {"device", "type"},
	"size":   nil,
}

// checkOptions refuses what the driver does not know, in Docker's words. Kind:
// InvalidArgument.
func checkOptions(options map[string]string) error {
	for _, name := range sortedNames(options) {
		if _, known := needed[name]; !known {
			return invalidf("invalid option: %q", name)
		}
	}
	if device := options["device"]; options["type"] == "cifs" && device != "" {
		u, err := url.Parse(device)
		if err != nil {
			return invalidf("error parsing mount device url: %s", err)
		}
		if u.Port() != "" {
			return invalidf("port not allowed in CIFS device URL, include 'port' in 'o='")
		}
	}
	if size, ok := options["size"]; ok {
		n, err := units.RAMInBytes(size)
		if err != nil {
			return invalidf("%s", err)
		}
		if n > 0 {
			return invalidf("quota size requested but no quota support")
		}
	}
	for _, name := range sortedNames(options) {
		for _, other := range needed[name] {
			if _, ok := options[other]; !ok {
				return invalidf("missing required option: %q", other)
			}
		}
	}
	return nil
}

// needsMount tells whether the options name something to mount.
func needsMount(options map[string]string) bool {
	return options["device"] != "" || options["type"] != ""
}

func sortedNames(m map[string]string) []string {
	names := make([]string, 0, len(m))
	for name := range m {
		names = append(names, name)
	}
	slices.Sort(names)
	return names
}

var nameRule = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

// checkName refuses names that could not be a directory's. Kind: InvalidArgument.
func checkName(name string) error {
	switch {
	case len(name) == 1:
		return invalidf("volume name is too short, names should be at least two alphanumeric characters")
	case !nameRule.MatchString(name):
		return invalidf("%q includes invalid characters for a local volume name, only \"[a-zA-Z0-9][a-zA-Z0-9_.-]\" are allowed. If you intended to pass a host directory, use absolute path", name)
	case len(name) > unix.NAME_MAX:
		return invalidf("volume name is too long, names should be at most %d characters", unix.NAME_MAX)
	}
	return nil
}

// mountAt mounts what the options name at path. It blocks as long as the kernel
// takes, which for a file server that does not answer is long. What it says has
// no password in it.
func mountAt(path string, options map[string]string) error {
	device, o, err := remote(options)
	if err == nil {
		err = mount.Mount(device, path, options["type"], o)
	}
	if err == nil {
		return nil
	}
	why := err.Error()
	for word := range strings.SplitSeq(options["o"], ",") {
		for _, secret := range []string{"password=", "pass="} {
			if strings.HasPrefix(word, secret) && len(word) > len(secret) {
				why = strings.ReplaceAll(why, word, secret+"********")
			}
		}
	}
	if why != err.Error() {
		err = errors.New(why)
	}
	return fmt.Errorf("error while mounting volume '%s': failed to mount local volume: %w", path, err)
}

// remote gives device and data of a mount with addresses in the place of names: the
// kernel knows addresses only. It blocks for the resolver.
func remote(options map[string]string) (device, o string, err error) {
	device, o = options["device"], options["o"]
	if device == "" {
		return "", "", errors.New("missing device in volume options")
	}
	kind := options["type"]
	if kind != "nfs" && kind != "nfs4" && kind != "cifs" {
		return device, o, nil
	}
	words := strings.Split(o, ",")
	for i, w := range words {
		host, ok := strings.CutPrefix(w, "addr=")
		if !ok || host == "" {
			continue
		}
		ip, err := address(host)
		if err != nil {
			return "", "", err
		}
		words[i] = "addr=" + ip
		return device, strings.Join(words, ","), nil
	}
	if kind != "cifs" {
		return device, o, nil
	}
	u, err := url.Parse(device)
	if err != nil {
		return "", "", fmt.Errorf("error parsing mount device url: %w", err)
	}
	if u.Host == "" || net.ParseIP(u.Host) != nil {
		return device, o, nil
	}
	ip, err := address(u.Host)
	if err != nil {
		return "", "", err
	}
	return strings.Replace(device, u.Host, ip, 1), o, nil
}

// address is that of a host.
func address(host string) (string, error) {
	if net.ParseIP(host) != nil {
		return host, nil
	}
	ip, err := net.ResolveIPAddr("ip", host)
	if err != nil {
		return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
	}
	return ip.String(), nil
}

// mounted tells whether something is mounted at path.
func mounted(path string) (bool, error) {
	on, err := mountinfo.Mounted(path)
	if errors.Is(err, os.ErrNotExist) {
		return false, nil
	}
	return on, err
}

// unmountAt takes everything off path that is mounted there. That there is
// nothing is fine.
func unmountAt(path string) error {
	for {
		err := unix.Unmount(path, unix.MNT_DETACH|unix.UMOUNT_NOFOLLOW)
		switch {
		case err == unix.EINVAL, err == unix.ENOENT:
			return nil
		case err != nil:
			return &os.PathError{Op: "unmount", Path: path, Err: err}
		}
	}
}

// deleteTree deletes a volume's directory, but not what is mounted in it. The
// directory bears a name that no volume has.
func deleteTree(dir string) error {
	data := filepath.Join(dir, dataDir)
	if on, err := mounted(data); err != nil || on {
		return errors.Join(err, fmt.Errorf("%s: something is mounted there: %w", data, unix.EBUSY))
	}
	return os.RemoveAll(dir)
}

func invalidf(format string, a ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, a...))
}
