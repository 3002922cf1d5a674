// Package bridge is the network driver "bridge": containers on a Linux bridge,
// with addresses of a private subnet, reaching the outside under the host's
// address, and with ports published on the host.
package bridge

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/network/ipam"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// Driver is the driver of bridged networks.
type Driver struct {
	cfg network.Config
	log *slog.Logger
	fw  *firewall.Firewall

	remover remover

	mu       sync.Mutex
	networks map[string]*bridged // by id
}

// bridged is one network.
type bridged struct {
	name, id string
	link     string // name of the bridge
	index    int    // of the bridge
	gateway  netip.Addr
	pool     *ipam.Pool
}

var (
	_ network.Driver    = (*Driver)(nil)
	_ network.Publisher = (*Driver)(nil)
	_ network.Watcher   = (*Driver)(nil)
)

// New makes a Driver; nothing is touched before Create.
func New(cfg network.Config) *Driver {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	return &Driver{
		cfg: cfg, log: log, fw: firewall.New(cfg.Instance, log),
		remover: remover{group: cfg.LinkGroup()}, networks: map[string]*bridged{},
	}
}

// Type implements network.Driver.
func (d *Driver) Type() string { return "bridge" }

// Create implements network.Driver. Engines on one machine exclude each other
// while they look for a free subnet.
func (d *Driver) Create(_ context.Context, spec network.Spec) (network.Info, error) {
	unlock, err := netns.Lock()
	if err != nil {
		return network.Info{}, err
	}
	defer unlock()
	link, bip := "br-"+spec.ID[:min(12, len(spec.ID))], netip.Prefix{}
	if spec.Name == network.Bridge {
		link, bip = d.cfg.Bridge(), d.cfg.BIP
	}
	index, addr, err := d.ensureBridge(link, bip)
	if err != nil {
		return network.Info{}, fmt.Errorf("bridge %q: %w", link, err)
	}
	if err := d.settings(link); err != nil {
		return network.Info{}, fmt.Errorf("bridge %q: %w", link, err)
	}
	pool, err := ipam.New(addr.Masked(), addr.Addr())
	if err != nil {
		return network.Info{}, fmt.Errorf("bridge %q: %w", link, err)
	}
	d.mu.Lock()
	b := &bridged{name: spec.Name, id: spec.ID, link: link, index: index, gateway: addr.Addr(), pool: pool}
	if old, ok := d.networks[spec.ID]; ok && old.pool.Subnet() == pool.Subnet() && old.gateway == b.gateway {
		b.pool = old.pool // what is given out stays given out
	}
	d.networks[spec.ID] = b
	rules := d.rules()
	d.mu.Unlock()
	if err := d.fw.Open(rules); err != nil {
		return network.Info{}, err
	}
	return d.info(b), nil
}

// rules are the networks as the firewall needs them. Called with mu held.
func (d *Driver) rules() []firewall.Network {
	var out []firewall.Network
	for _, id := range slices.Sorted(maps.Keys(d.networks)) {
		b := d.networks[id]
		out = append(out, firewall.Network{
			Bridge: b.link, ICC: d.cfg.ICC,
			V4: firewall.Family{Subnet: b.pool.Subnet(), Masquerade: d.cfg.IPMasq},
		})
	}
	return out
}

func (d *Driver) info(b *bridged) network.Info {
	const prefix = "com.docker.network.bridge."
	return network.Info{
		Name: b.name, ID: b.id, Driver: d.Type(), Scope: "local",
		Subnet: b.pool.Subnet().String(), Gateway: b.gateway.String(),
		Options: map[string]string{
			prefix + "default_bridge":       strconv.FormatBool(b.name == network.Bridge),
			prefix + "enable_icc":           strconv.FormatBool(d.cfg.ICC),
			prefix + "enable_ip_masquerade": strconv.FormatBool(d.cfg.IPMasq),
			prefix + "host_binding_ipv4":    "0.0.0.0",
			prefix + "name":                 b.link,
			"com.docker.network.driver.mtu": strconv.Itoa(d.cfg.LinkMTU()),
		},
	}
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

// Delete implements network.Driver.
func (d *Driver) Delete(_ context.Context, id string) error {
	d.mu.Lock()
	b, ok := d.networks[id]
	delete(d.networks, id)
	rules := d.rules()
	d.mu.Unlock()
	if !ok {
		return nil
	}
	var errs []error
	if len(rules) == 0 {
		errs = append(errs, d.fw.Delete())
	} else {
		errs = append(errs, d.fw.Open(rules))
	}
	errs = append(errs, deleteLink(b.link))
	return errors.Join(errs...)
}

// Close implements network.Driver.
func (d *Driver) Close() error { return d.fw.Close() }

// Watch implements network.Watcher.
func (d *Driver) Watch(ctx context.Context, ready func()) error { return d.fw.Watch(ctx, ready) }

// Join implements network.Driver. Blocks for about a millisecond.
func (d *Driver) Join(_ context.Context, id string, ns *netns.Handle, j network.Join) (ep network.Endpoint, err error) {
	b, err := d.network(id)
	if err != nil {
		return ep, err
	}
	ip, err := b.address(j.IP)
	if err != nil {
		return ep, err
	}
	mac := j.MAC
	if len(mac) == 0 {
		mac = hardware(ip)
	}
	ep = network.Endpoint{
		Network: b.name, NetworkID: id, EndpointID: j.EndpointID, Interface: j.Interface, MAC: mac.String(),
		IP: ip.String(), PrefixLen: b.pool.Subnet().Bits(), Gateway: b.gateway.String(),
	}
	v := veth{ns: ns, inside: j.Interface, mac: mac, addr: netip.PrefixFrom(ip, ep.PrefixLen), hairpin: j.Published}
	if j.Gateway {
		v.gateway = b.gateway
	}
	if ep.HostLink, err = d.connect(b, v, j.EndpointID); err != nil {
		b.pool.Release(ip)
		if l, e := netlink.LinkByIndex(b.index); errors.As(e, new(netlink.LinkNotFoundError)) || e == nil && l.Type() != "bridge" {
			err = fmt.Errorf("its bridge %q was removed, an engine that starts anew makes it again", b.link)
		}
		return network.Endpoint{}, fmt.Errorf("network %q: endpoint %s: %w", b.name, j.EndpointID, err)
	}
	return ep, nil
}

// address takes an address, the one that is wanted if one is.
func (b *bridged) address(want netip.Addr) (netip.Addr, error) {
	if want.IsValid() {
		return want, b.pool.Take(want)
	}
	ip, err := b.pool.Next()
	if errors.Is(err, ipam.ErrExhausted) {
		return ip, fmt.Errorf("no available IPv4 addresses on this network's address pools: %s (%s)", b.name, b.id)
	}
	return ip, err
}

// hardware is the MAC address that goes with an address, as Docker makes it:
// what knew the address before need not ask anew.
func hardware(ip netip.Addr) net.HardwareAddr {
	a := ip.As4()
	return net.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}
}

// Leave implements network.Driver. Blocks for some 20 ms: the kernel waits until
// no packet can be on the link.
func (d *Driver) Leave(ctx context.Context, ep network.Endpoint) error {
	if err := d.Unpublish(ctx, []network.Endpoint{ep}); err != nil {
		return err
	}
	if d.ours(ep.HostLink) {
		if err := d.remover.remove(ep.HostLink); err != nil {
			return err
		}
	}
	b, err := d.network(ep.NetworkID)
	if err != nil {
		return nil // the network has gone, and its addresses with it
	}
	if ip, err := netip.ParseAddr(ep.IP); err == nil {
		b.pool.Release(ip)
	}
	return nil
}
