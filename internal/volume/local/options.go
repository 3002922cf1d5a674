package local

import (
	"errors"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/sys/mount"
	"github.com/moby/sys/mountinfo"
	"golang.org/x/sys/unix"
)

// needed tells for each option of the driver which others it needs.
var needed = map[string][]string{
	"device": {"type"},
	"type":   {"device"},
	"o":      {"device", "type"},
}

// checkOptions refuses what the driver does not know, in Docker's words. Kind:
// InvalidArgument.
func checkOptions(options map[string]string) error {
	for _, name := range sortedNames(options) {
		if name == "size" {
			return invalidf("quota size requested but no quota support")
		}
		if _, known := needed[name]; !known {
			return invalidf("invalid option: %q", name)
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
// takes, which for a file server that does not answer is long.
func mountAt(path string, options map[string]string) error {
	device, kind, o := options["device"], options["type"], options["o"]
	if kind == "nfs" || kind == "nfs4" || kind == "cifs" {
		var err error
		if o, err = resolveAddr(o); err != nil {
			return fmt.Errorf("failed to mount local volume: %w", err)
		}
	}
	if err := mount.Mount(device, path, kind, o); err != nil {
		return fmt.Errorf("error while mounting volume '%s': failed to mount local volume: %w", path, err)
	}
	return nil
}

// resolveAddr puts the address where addr= names a host: the kernel knows
// addresses only.
func resolveAddr(o string) (string, error) {
	words := strings.Split(o, ",")
	for i, w := range words {
		host, ok := strings.CutPrefix(w, "addr=")
		if !ok || net.ParseIP(host) != nil {
			continue
		}
		ip, err := net.ResolveIPAddr("ip", host)
		if err != nil {
			return "", fmt.Errorf("error resolving passed in network volume address: %w", err)
		}
		words[i] = "addr=" + ip.String()
	}
	return strings.Join(words, ","), nil
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
