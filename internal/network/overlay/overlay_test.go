package overlay_test

import (
	"context"
	"errors"
	"net/netip"
	"os"
	"strings"
	"testing"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/networktest"
	"escale.dev/escale/internal/network/overlay"
	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

func TestMain(m *testing.M) {
	if os.Getenv(asNode) != "" {
		node()
		return
	}
	netnstest.Main(m)
}

func config() network.Config {
	cfg := network.DefaultConfig()
	cfg.Instance = "suite"
	return cfg
}

// alone is the driver without a Manager, which restores endpoints by the driver of bridges.
type alone struct {
	*overlay.Driver
	bridges *bridge.Driver
}

func newAlone() alone {
	b := bridge.New(config())
	return alone{overlay.New(config(), b), b}
}

func (a alone) Restore(ctx context.Context, live map[string][]network.Live) error {
	return errors.Join(a.Driver.Restore(ctx, live), a.bridges.Restore(ctx, live))
}

func TestDriver(t *testing.T) {
	networktest.Test(t, networktest.Subject{
		New:   func(*testing.T) network.Driver { return newAlone() },
		Links: true, HostLinks: true, Scope: "swarm", Options: map[string]string{overlay.OptionVNI: "4097"},
	})
}

func TestOptions(t *testing.T) {
	d := newAlone()
	encrypted := d.Encrypts()
	for options, want := range map[string]error{
		overlay.OptionVNI + "=4097,4098":           nil,
		overlay.OptionVNI + "=0":                   errdefs.ErrInvalidArgument,
		overlay.OptionVNI + "=16777216":            errdefs.ErrInvalidArgument,
		overlay.OptionVNI + "=x":                   errdefs.ErrInvalidArgument,
		"com.docker.network.driver.mtu=1400":       nil,
		"com.docker.network.driver.mtu=12":         errdefs.ErrInvalidArgument,
		"encrypted=":                               encrypted,
		"encrypted=true":                           encrypted,
		"encrypted=false":                          nil,
		"com.example.something.else=is for others": nil,
	} {
		key, value, _ := strings.Cut(options, "=")
		if err := d.Check(network.Spec{ID: id, Options: map[string]string{key: value}}); !errors.Is(err, want) {
			t.Errorf("%s: %v, want %v", options, err, want)
		}
	}
}

var id = strings.Repeat("cd", 32)

func spec() network.Spec {
	return network.Spec{Name: "net", ID: id, IPv4: true, IPv6: true, Options: map[string]string{overlay.OptionVNI: "4099"}, Subnets: []network.Subnet{
		{Prefix: netip.MustParsePrefix("10.90.0.0/24"), Gateway: netip.MustParseAddr("10.90.0.1")},
		{Prefix: netip.MustParsePrefix("fd00:90::/64"), Gateway: netip.MustParseAddr("fd00:90::1")},
	}}
}

// The link to other nodes is there as long as there are any; one of an engine that was killed
// is taken up as it is, and goes when its network is no more.
func TestTunnelIsTakenUp(t *testing.T) {
	netnstest.Root(t)
	tunnel := func() netlink.Link {
		t.Helper()
		l, err := netlink.LinkByName("vx-" + id[:12])
		if errors.As(err, new(netlink.LinkNotFoundError)) {
			return nil
		}
		if err != nil {
			t.Fatal(err)
		}
		return l
	}
	peers := []overlay.Peer{{Addr: netip.MustParseAddr("10.90.0.7"), VTEP: netip.MustParseAddr("192.0.2.7")}}
	d := newAlone()
	d.SetUnderlay(overlay.Underlay{Local: netip.MustParseAddr("127.0.0.1")})
	if _, err := d.Create(t.Context(), spec()); err != nil {
		t.Fatal(err)
	}
	if tunnel() != nil {
		t.Error("a network without peers has a link to them")
	}
	if err := d.SetPeers(t.Context(), id, peers); err != nil {
		t.Fatal(err)
	}
	first := tunnel()
	if first == nil {
		t.Fatal("no link to peers")
	}
	next := newAlone() // the other was killed
	if _, err := next.Create(t.Context(), spec()); err != nil {
		t.Fatal(err)
	}
	if err := next.Restore(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	next.SetUnderlay(overlay.Underlay{Local: netip.MustParseAddr("127.0.0.1")})
	if err := next.SetPeers(t.Context(), id, peers); err != nil {
		t.Fatal(err)
	}
	if l := tunnel(); l == nil || l.Attrs().Index != first.Attrs().Index {
		t.Error("a link that was there was made anew")
	}
	if err := next.SetPeers(t.Context(), id, nil); err != nil || tunnel() != nil {
		t.Errorf("without peers the link stays: %v", err)
	}
	if err := next.SetPeers(t.Context(), id, peers); err != nil || tunnel() == nil {
		t.Errorf("with peers again there is no link: %v", err)
	}
	last := newAlone() // it knows of no network
	if err := last.Restore(t.Context(), nil); err != nil {
		t.Fatal(err)
	}
	if tunnel() != nil {
		t.Error("the link of a network that is no more stays")
	}
	if err := last.SetPeers(t.Context(), id, peers); !errdefs.IsNotFound(err) {
		t.Errorf("peers of a network that is not there: %v", err)
	}
	if err := next.Delete(t.Context(), id); err != nil {
		t.Fatal(err)
	}
	for _, d := range []alone{d, next, last} {
		if err := d.Close(); err != nil {
			t.Error(err)
		}
	}
}

// Nodes are reached otherwise than before: each network follows as it is told of, and one that
// cannot holds up no other.
func TestUnderlayChanges(t *testing.T) {
	netnstest.Root(t)
	d := newAlone()
	other := spec()
	other.Name, other.ID, other.Options = "numberless", strings.Repeat("ef", 32), nil
	other.Subnets = []network.Subnet{{Prefix: netip.MustParsePrefix("10.91.0.0/24"), Gateway: netip.MustParseAddr("10.91.0.1")}}
	other.IPv6 = false
	peers := []overlay.Peer{{Addr: netip.MustParseAddr("10.90.0.7"), VTEP: netip.MustParseAddr("192.0.2.7")}}
	for _, s := range []network.Spec{spec(), other} {
		if _, err := d.Create(t.Context(), s); err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() {
			if err := d.Delete(context.Background(), s.ID); err != nil {
				t.Error(err)
			}
		})
	}
	for _, port := range []uint16{0, 4800} {
		d.SetUnderlay(overlay.Underlay{Local: netip.MustParseAddr("127.0.0.1"), Port: port})
		if err := d.SetPeers(t.Context(), other.ID, peers); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("a network without a number has a link: %v", err)
		}
		if err := d.SetPeers(t.Context(), id, peers); err != nil {
			t.Fatalf("port %d: %v", port, err)
		}
		l, err := netlink.LinkByName("vx-" + id[:12])
		if err != nil {
			t.Fatal(err)
		}
		want := int(port)
		if port == 0 {
			want = 4789
		}
		if v, ok := l.(*netlink.Vxlan); !ok || v.Port != want {
			t.Errorf("the link is %+v, want port %d", l, want)
		}
	}
}
