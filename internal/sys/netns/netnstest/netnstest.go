// Package netnstest runs the tests of a package on a host of their own: the test
// program starts itself again in a fresh network and mount namespace. Tests then
// may use any bridge, table or port beside whatever runs on the machine, and
// nothing outlives the program, even if it is killed.
package netnstest

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inside tells the second program that it is there.
const inside = "ESCALE_NETNSTEST"

// Main is the TestMain of a package whose tests need root. Without root the tests
// run where they are, and those that call Root skip.
func Main(m *testing.M) {
	if os.Geteuid() != 0 {
		os.Exit(m.Run())
	}
	if os.Getenv(inside) == "" {
		os.Exit(again())
	}
	if err := prepare(); err != nil {
		fmt.Fprintln(os.Stderr, "test host:", err)
		os.Exit(2)
	}
	os.Exit(m.Run())
}

// Root skips the test unless it may make namespaces.
func Root(t testing.TB) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("needs root: makes network namespaces, links and nftables tables")
	}
}

// again runs this program in new namespaces and gives its exit code.
func again() int {
	runtime.LockOSThread() // Pdeathsig is about the thread
	cmd := exec.Command("/proc/self/exe", os.Args[1:]...)
	cmd.Args[0] = os.Args[0]
	cmd.Env = append(os.Environ(), inside+"=1")
	cmd.Stdin, cmd.Stdout, cmd.Stderr = os.Stdin, os.Stdout, os.Stderr
	cmd.SysProcAttr = &syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET | unix.CLONE_NEWNS, Pdeathsig: syscall.SIGKILL}
	err := cmd.Run()
	if exit := (*exec.ExitError)(nil); errors.As(err, &exit) {
		return max(exit.ExitCode(), 1)
	}
	if err != nil {
		fmt.Fprintln(os.Stderr, "test host:", err)
		return 2
	}
	return 0
}

// prepare keeps mounts inside and brings the loopback link up.
func prepare() error {
	if err := unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, ""); err != nil {
		return fmt.Errorf("private mounts: %w", err)
	}
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		return err
	}
	return netlink.LinkSetUp(lo)
}
