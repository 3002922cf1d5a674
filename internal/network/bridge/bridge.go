// Package bridge is the network driver "bridge": containers on a Linux bridge,
// with addresses of a private subnet, reaching the outside under the host's
// address, and with ports published on the host.
package bridge

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Driver is the driver of bridged networks.
type Driver struct {
	house
	fw *firewall.Firewall

	remover remover
	host6   host6

	mu       sync.Mutex
	networks map[string]*bridged // by id
	known    map[string]bool     // ids that Create was called with
	batching bool                // the firewall waits for the end of a Batch
	plugs    map[string]plug     // links on the host, by name

	healed  func(id string) // is told of a bridge that was made anew
	healing sync.Mutex      // held by who makes a bridge or a link anew
	whose   func(hostLink string) (network.Live, bool)
	mended  map[string][]time.Time // links on the host, and when they were made anew; guarded by healing
}

// house is what is known of the host.
type house struct {
	cfg network.Config
	log *slog.Logger
}

// bridged is one network.
type bridged struct {
	spec   network.Spec // with the subnets that it has
	opts   options
	index  int // of the bridge
	v4, v6 network.Subnet
}

var (
	_ network.Driver    = (*Driver)(nil)
	_ network.Publisher = (*Driver)(nil)
	_ network.Watcher   = (*Driver)(nil)
	_ network.Mender    = (*Driver)(nil)
)

// New makes a Driver; nothing is touched before Create.
func New(cfg network.Config) *Driver {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		house: house{cfg: cfg, log: log}, fw: firewall.New(firewall.Config{Instance: cfg.Instance, Links: cfg.LinkPrefix(), Strict: cfg.Strict, Logger: log}),
		remover: remover{group: cfg.LinkGroup()}, networks: map[string]*bridged{}, known: map[string]bool{}, plugs: map[string]plug{},
		whose: func(string) (network.Live, bool) { return network.Live{}, false }, mended: map[string][]time.Time{},
		healed: func(string) {},
	}
}

// Type implements network.Driver.
func (d *Driver) Type() string { return "bridge" }

// Check implements network.Driver.
func (d *Driver) Check(spec network.Spec) error {
	_, err := d.read(spec)
	if err != nil {
		return err
	}
	count := map[bool]int{}
	for _, s := range spec.Subnets {
		count[s.Prefix.Addr().Is6()]++
	}
	if count[false] > 1 || count[true] > 1 {
		return errdefs.ErrPermissionDenied.WithMessage("bridge driver doesn't support multiple subnets")
	}
	return nil
}

// NoGateway implements network.Gatewayless: without an address of the host there
// is nothing that could be one.
func (d *Driver) NoGateway(spec network.Spec, v6 bool) bool {
	o, err := d.read(spec)
	if err != nil {
		return false
	}
	return v6 && o.mode6 == firewall.Isolated || !v6 && o.mode4 == firewall.Isolated
}

// Shares implements network.Sharer: a bridge that is there already has its subnet.
func (d *Driver) Shares(spec network.Spec) bool {
	o, err := d.read(spec)
	if err != nil {
		return false
	}
	l, err := netlink.LinkByName(o.link)
	return err == nil && l.Type() == "bridge"
}

// Create implements network.Driver.
func (d *Driver) Create(_ context.Context, spec network.Spec) (network.Info, error) {
	opts, err := d.read(spec)
	if err != nil {
		return network.Info{}, err
	}
	d.mu.Lock()
	d.known[spec.ID] = true
	clash := d.sameBridge(spec.ID, opts.link)
	d.mu.Unlock()
	if clash != "" {
		return network.Info{}, errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf(
			"cannot create network %s (%s): conflicts with network %s: networks have same bridge name", spec.ID, opts.link, clash))
	}
	b := &bridged{spec: spec, opts: opts}
	if err := d.ensure(b); err != nil {
		return network.Info{}, fmt.Errorf("bridge %q: %w", opts.link, err)
	}
	d.mu.Lock()
	old := d.networks[spec.ID]
	d.networks[spec.ID] = b
	d.mu.Unlock()
	if err := d.renewRules(); err != nil {
		if old == nil { // it was not there before
			err = errors.Join(err, d.Delete(context.Background(), spec.ID)) // detached: it is the undo
		}
		return network.Info{}, err
	}
	return network.Info{
		Name: spec.Name, ID: spec.ID, Driver: d.Type(), Scope: "local", Options: d.shown(spec, opts),
		IPAM: network.IPAM{Subnets: b.spec.Subnets},
	}, nil
}

// sameBridge finds another network whose bridge has this name. Called with mu held.
func (d *Driver) sameBridge(id, link string) string {
	for _, b := range d.networks {
		if b.spec.ID != id && b.opts.link == link {
			return b.spec.ID
		}
	}
	return ""
}

// Batch implements network.Batcher: the firewall's table is written once.
func (d *Driver) Batch(do func() error) error {
	d.mu.Lock()
	d.batching = true
	d.mu.Unlock()
	err := do()
	d.mu.Lock()
	d.batching = false
	d.mu.Unlock()
	return errors.Join(err, d.renewRules())
}

// renewRules makes the firewall's table that of the networks of now.
func (d *Driver) renewRules() error {
	d.mu.Lock()
	rules, batching := d.rules(), d.batching
	d.mu.Unlock()
	switch {
	case batching:
		return nil
	case len(rules) == 0:
		return d.fw.Delete()
	default:
		return d.fw.Open(rules)
	}
}

// rules are the networks as the firewall needs them. Called with mu held.
func (d *Driver) rules() []firewall.Network {
	var out []firewall.Network
	for _, id := range slices.Sorted(maps.Keys(d.networks)) {
		b := d.networks[id]
		n := firewall.Network{Bridge: b.opts.link, ICC: b.opts.icc, Internal: b.spec.Internal, Trusted: b.opts.trusted}
		if b.v4.Prefix.IsValid() {
			n.V4 = firewall.Family{Subnet: b.v4.Prefix, Host: b.v4.Gateway, Mode: b.opts.mode4, Masquerade: b.opts.masq && b.opts.nat(b.opts.mode4), Source: b.opts.host4}
		}
		if b.v6.Prefix.IsValid() {
			n.V6 = firewall.Family{Subnet: b.v6.Prefix, Host: b.v6.Gateway, Mode: b.opts.mode6, Masquerade: b.opts.masq && b.opts.nat(b.opts.mode6), Source: b.opts.host6}
		}
		out = append(out, n)
	}
	return out
}

// network finds a network by its id.
func (d *Driver) network(id string) (*bridged, error) {
	d.mu.Lock()
	defer d.mu.Unlock()
	b, ok := d.networks[id]
	if !ok {
		return nil, fmt.Errorf("network %s not found: %w", id, errdefs.ErrNotFound)
	}
	return b, nil
}

// Delete implements network.Driver. A bridge that others made stays.
func (d *Driver) Delete(_ context.Context, id string) error {
	d.mu.Lock()
	b, ok := d.networks[id]
	delete(d.networks, id)
	delete(d.known, id)
	d.mu.Unlock()
	if !ok {
		return d.deleteMarked(id)
	}
	errs := []error{d.renewRules()}
	if d.owns(b) {
		errs = append(errs, deleteLink(b.opts.link))
	}
	return errors.Join(errs...)
}

// Healed sets what is called after the bridge of a network was made anew. It is called
// before Watch.
func (d *Driver) Healed(f func(id string)) { d.healed = f }

// Link is the name of the bridge of a network; NotFound.
func (d *Driver) Link(id string) (string, error) {
	b, err := d.network(id)
	if err != nil {
		return "", err
	}
	return b.opts.link, nil
}

// Close implements network.Driver.
func (d *Driver) Close() error {
	d.host6.close()
	return d.fw.Close()
}

// Join implements network.Driver. Blocks for about a millisecond.
func (d *Driver) Join(_ context.Context, id string, ns *netns.Handle, j network.Join) (ep network.Endpoint, err error) {
	b, err := d.network(id)
	if err != nil {
		return ep, err
	}
	mac := j.MAC
	if len(mac) == 0 {
		mac = hardwareOf(j)
	}
	ep = network.Endpoint{NetworkID: id, EndpointID: j.EndpointID, Interface: j.Interface, MAC: mac.String()}
	v := veth{ns: ns, mac: mac, hairpin: j.Published, Link: j.Inside()}
	ep.HostLink, err = d.connect(b, v, j.EndpointID)
	if err != nil && !isThere(b) {
		// Somebody has removed the bridge: it is there anew after this.
		if err = (healer{d}).healOne(b); err == nil {
			if b, err = d.network(id); err == nil {
				ep.HostLink, err = d.connect(b, v, j.EndpointID)
			}
		}
	}
	if err != nil {
		return network.Endpoint{}, fmt.Errorf("network %q: endpoint %s: %w", b.spec.Name, j.EndpointID, err)
	}
	if err := d.fw.Attach(ep.HostLink, j.IP.Addr(), j.IP6.Addr()); err != nil {
		return network.Endpoint{}, errors.Join(fmt.Errorf("network %q: endpoint %s: %w", b.spec.Name, j.EndpointID, err), d.remover.remove(ep.HostLink))
	}
	d.note(ep.HostLink, id, j.Published)
	return ep, nil
}

// isThere tells whether a network's bridge is there, as far as the kernel tells.
func isThere(b *bridged) bool {
	l, err := netlink.LinkByIndex(b.index)
	return err == nil && l.Type() == "bridge" || err != nil && !errors.As(err, new(netlink.LinkNotFoundError))
}

// hardwareOf is the MAC address of a container that asked for none. Docker's are random,
// and told to all neighbours; ours go with the address, so that nobody need be told: who
// knew the address of a container that is gone reaches the next that has it. Of two
// addresses IPv4's counts.
func hardwareOf(j network.Join) net.HardwareAddr {
	if !j.IP.IsValid() && j.IP6.IsValid() {
		a := j.IP6.Addr().As16()
		return net.HardwareAddr{0x02, 0x42, a[12], a[13], a[14], a[15]}
	}
	return hardware(j.IP.Addr(), j.EndpointID)
}

// hardware is the MAC address that goes with an IPv4 address, as Docker makes it:
// what knew the address before need not ask anew. Without one it is made of an id.
func hardware(ip netip.Addr, id string) net.HardwareAddr {
	if ip.Is4() {
		a := ip.As4()
		return net.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}
	}
	sum := sha256.Sum256([]byte(id))
	return net.HardwareAddr{0x02, 0x42, sum[0], sum[1], sum[2], sum[3]}
}

// Leave implements network.Driver. Blocks for some 20 ms: the kernel waits until
// no packet can be on the link.
func (d *Driver) Leave(ctx context.Context, ep network.Endpoint) error {
	if err := d.Unpublish(ctx, []network.Endpoint{ep}); err != nil {
		return err
	}
	d.forget(ep.HostLink)
	if d.ours(ep.HostLink) {
		if err := d.remover.remove(ep.HostLink); err != nil {
			return err
		}
		return d.fw.Detach(ep.HostLink)
	}
	return nil
}
