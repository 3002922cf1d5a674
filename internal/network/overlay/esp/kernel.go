package esp

import (
	"errors"
	"fmt"
	"net/netip"
	"runtime"

	"escale.dev/escale/internal/sys/rtnl"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// real is the kernel.
type real struct{}

var families = []int{netlink.FAMILY_V4, netlink.FAMILY_V6}

// States implements Kernel.
func (real) States() (out []netlink.XfrmState, err error) {
	for _, family := range families {
		list, err := rtnl.Whole(func() ([]netlink.XfrmState, error) { return netlink.XfrmStateList(family) })
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// Policies implements Kernel.
func (real) Policies() (out []netlink.XfrmPolicy, err error) {
	for _, family := range families {
		list, err := rtnl.Whole(func() ([]netlink.XfrmPolicy, error) { return netlink.XfrmPolicyList(family) })
		if err != nil {
			return nil, err
		}
		out = append(out, list...)
	}
	return out, nil
}

// AddState implements Kernel.
func (real) AddState(s *netlink.XfrmState) error { return netlink.XfrmStateAdd(s) }

// DelState implements Kernel.
func (real) DelState(s *netlink.XfrmState) error { return gone(netlink.XfrmStateDel(s)) }

// SetPolicy implements Kernel.
func (real) SetPolicy(p *netlink.XfrmPolicy) error { return netlink.XfrmPolicyUpdate(p) }

// DelPolicy implements Kernel.
func (real) DelPolicy(p *netlink.XfrmPolicy) error { return gone(netlink.XfrmPolicyDel(p)) }

// gone is err, unless it says that there is nothing.
func gone(err error) error {
	if errors.Is(err, unix.ESRCH) || errors.Is(err, unix.ENOENT) {
		return nil
	}
	return err
}

// Probe tells whether the kernel encrypts: nil, or ErrNone, or why that cannot be found out.
// It tries in a network namespace of its own, which goes with the attempt, and loads the
// kernel's modules. Blocks for some milliseconds.
func Probe() error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine, and the namespace with it
		err := probe()
		if errors.Is(err, ErrNone) {
			err = ErrNone // without the attempt
		}
		done <- err
	}()
	return <-done
}

func probe() error {
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		return fmt.Errorf("network namespace: %w", err)
	}
	here := netip.MustParseAddr("192.0.2.1")
	c := New("probe", nil)
	return c.Set(Network{ID: "probe", VNI: 1, To: 4789, Local: here, Peers: []netip.Addr{here.Next()}, Keys: Keys{Current: Key{ID: 1, Secret: make([]byte, 32)}}})
}
