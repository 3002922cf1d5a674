package macvlan_test

import (
	"errors"
	"strings"
	"testing"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/macvlan"
	"escale.dev/escale/internal/network/networktest"
	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func config(t *testing.T, dir string) network.Config {
	t.Helper()
	cfg := network.DefaultConfig()
	cfg.Instance, cfg.NetnsDir = "suite", dir
	return cfg
}

func TestDriver(t *testing.T) {
	dir := t.TempDir() + "/netns"
	networktest.Test(t, networktest.Subject{
		New:   func(t *testing.T) network.Driver { return macvlan.New(config(t, dir)) },
		Links: true, Dir: dir,
	})
}

// TestIPVLAN: the suite where the kernel has ipvlan, else a clear refusal that
// leaves nothing behind.
func TestIPVLAN(t *testing.T) {
	netnstest.Root(t)
	dir := t.TempDir() + "/netns"
	d := macvlan.IPVLAN(config(t, dir))
	spec := network.Spec{Name: "n", ID: strings.Repeat("cd", 32), IPv4: true}
	_, err := d.Create(t.Context(), spec)
	if err == nil {
		if err := d.Delete(t.Context(), spec.ID); err != nil {
			t.Fatal(err)
		}
		networktest.Test(t, networktest.Subject{
			New:   func(t *testing.T) network.Driver { return macvlan.IPVLAN(config(t, dir)) },
			Links: true, Dir: dir, SameMAC: true,
		})
		return
	}
	if !errdefs.IsNotImplemented(err) || err.Error() != "the kernel of this host has no ipvlan (module ipvlan)" {
		t.Errorf("Create: %v", err)
	}
	if _, err := netlink.LinkByName("di-" + spec.ID[:12]); err == nil {
		t.Error("the parent is left")
	}
}

// parent makes a link of the host that can have VLANs, which goes with the test.
func parent(t *testing.T, name string) {
	t.Helper()
	attrs := netlink.NewLinkAttrs()
	attrs.Name = name
	l := &netlink.Veth{LinkAttrs: attrs, PeerName: name + "p"}
	if err := netlink.LinkAdd(l); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := netlink.LinkDel(l); err != nil {
			t.Error(err)
		}
	})
	if err := netlink.LinkSetUp(l); err != nil {
		t.Fatal(err)
	}
}

// Parents that the driver makes go with the last network on them; others stay.
func TestParents(t *testing.T) {
	netnstest.Root(t)
	parent(t, "up7")
	d := macvlan.New(config(t, t.TempDir()+"/netns"))
	there := func(name string) bool { _, err := netlink.LinkByName(name); return err == nil }
	spec := func(digit, parent, mode string) network.Spec {
		return network.Spec{Name: "n" + digit, ID: strings.Repeat(digit, 64), IPv4: true, Options: map[string]string{"parent": parent, "macvlan_mode": mode}}
	}
	vlanErr := func() error { _, err := d.Create(t.Context(), spec("1", "up7.12", "")); return err }()
	if errors.Is(vlanErr, unix.EOPNOTSUPP) || vlanErr != nil && strings.Contains(vlanErr.Error(), "operation not supported") {
		t.Log("the kernel has no VLANs: ", vlanErr)
	} else {
		if vlanErr != nil || !there("up7.12") {
			t.Fatalf("a VLAN: %v", vlanErr)
		}
		if _, err := d.Create(t.Context(), spec("2", "up7.12", "private")); err != nil {
			t.Error(err)
		}
		if _, err := d.Create(t.Context(), spec("3", "up7.12", "passthru")); err == nil || !strings.Contains(err.Error(), "cannot use mode passthru, macvlan network") {
			t.Errorf("passthru beside others: %v", err)
		}
		for i, digit := range []string{"1", "2"} {
			if err := d.Delete(t.Context(), strings.Repeat(digit, 64)); err != nil {
				t.Error(err)
			}
			if there("up7.12") != (i == 0) {
				t.Errorf("after %d of 2 networks the VLAN is there: %v", i+1, there("up7.12"))
			}
		}
	}
	if _, err := d.Create(t.Context(), spec("4", "up7", "vepa")); err != nil {
		t.Error(err)
	}
	if err := d.Delete(t.Context(), strings.Repeat("4", 64)); err != nil || !there("up7") {
		t.Errorf("the host's own link: %v", err)
	}
	for parent, words := range map[string]string{
		"lo": "loopback interface is not a valid macvlan parent link", "nosuch": "invalid subinterface vlan name nosuch", "nosuch.5": "-o parent interface was not found on the host: nosuch",
		"up7.0": "vlan id must be between 1-4094", "up7.4095": "vlan id must be between 1-4094", "up7.x": "unable to parse a valid vlan id from: x", "a/b": "is no name of a link",
	} {
		s := spec("5", parent, "")
		if _, err := d.Create(t.Context(), s); err == nil || !strings.Contains(err.Error(), words) {
			t.Errorf("parent %q: %v", parent, err)
		}
	}
	if err := d.Check(spec("6", "up7", "odd")); err == nil || !strings.Contains(err.Error(), "requested macvlan mode 'odd' is not valid") {
		t.Errorf("mode: %v", err)
	}
}
