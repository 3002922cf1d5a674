// Package apparmor keeps a profile for containers loaded in kernels that have
// AppArmor. The kernel takes profiles compiled, and apparmor_parser compiles
// them; without that program there is no profile of ours.
//
// Sources: the kernel's admin-guide/LSM/apparmor.rst, apparmor.d(5), apparmor_parser(8).
package apparmor

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"sync"
)

const (
	enabledFile  = "/sys/module/apparmor/parameters/enabled"
	profilesFile = "/sys/kernel/security/apparmor/profiles"
	ownFile      = "/proc/self/attr/current"
)

// ErrNoParser tells that profiles cannot be compiled here.
var ErrNoParser = errors.New("apparmor_parser is not installed (Debian: the package apparmor)")

// Enabled reports whether the kernel confines by AppArmor and shows what is loaded.
func Enabled() bool {
	b, err := os.ReadFile(enabledFile)
	if err != nil || !bytes.HasPrefix(b, []byte("Y")) {
		return false
	}
	_, err = os.ReadFile(profilesFile)
	return err == nil
}

// Loaded reports whether the kernel has a profile of that name.
func Loaded(name string) (bool, error) {
	b, err := os.ReadFile(profilesFile)
	if err != nil {
		return false, err
	}
	return listed(b, name), nil
}

// listed finds name among lines of the form "name (mode)"; a name may hold spaces.
func listed(b []byte, name string) bool {
	for line := range strings.Lines(string(b)) {
		if i := strings.LastIndex(line, " ("); i >= 0 && line[:i] == name {
			return true
		}
	}
	return false
}

// Default is the profile of containers that name none. Its methods may be
// called by several goroutines.
type Default struct {
	Name string

	parser string
	mu     sync.Mutex
}

// New makes a profile of that name. ErrNoParser where it could not be loaded.
func New(name string) (*Default, error) {
	parser, err := exec.LookPath("apparmor_parser")
	if err != nil {
		// Its place is not on every service's PATH.
		if parser, err = exec.LookPath("/sbin/apparmor_parser"); err != nil {
			return nil, ErrNoParser
		}
	}
	return &Default{Name: name, parser: parser}, nil
}

// Ensure loads the profile unless the kernel has it: whoever reloads the
// machine's profiles takes ours away, as it stands in none of their files.
// One that is loaded stays as it is, whoever loaded it. Blocks while the parser
// runs, if it has to.
func (d *Default) Ensure(ctx context.Context) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	if ok, err := Loaded(d.Name); ok || err != nil {
		return err
	}
	own, _ := os.ReadFile(ownFile) // empty: as if unconfined
	cmd := exec.CommandContext(ctx, d.parser, "--replace", "--skip-cache")
	cmd.Stdin = strings.NewReader(profile(d.Name, label(own), exists))
	if out, err := cmd.CombinedOutput(); err != nil {
		return fmt.Errorf("AppArmor profile %q: %w: %s", d.Name, err, bytes.TrimSpace(out))
	}
	return nil
}

// label is the profile in what the kernel says of a process, "name (mode)".
func label(b []byte) string {
	s := strings.TrimRight(string(b), "\n\x00")
	if i := strings.LastIndex(s, " ("); i >= 0 {
		s = s[:i]
	}
	return s
}

func exists(path string) bool {
	_, err := os.Stat(path)
	return err == nil
}
