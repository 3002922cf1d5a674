// Package overlay is the network driver "overlay": networks that span the nodes of a cluster.
// On each node such a network is a bridge like those of the driver "bridge", with the same
// rules, published ports and repairs; what is different is one more port of it, a VXLAN link
// that carries frames to the other nodes. Nothing is learned and nothing is flooded: which
// address is where is told by SetPeers. A network without peers has no such link.
package overlay

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"strconv"
	"strings"
	"sync"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"escale.dev/escale/internal/network/overlay/esp"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
)

// The options of overlay networks.
const (
	OptionVNI     = "com.docker.network.driver.overlay.vxlanid_list"
	optionMTU     = "com.docker.network.driver.mtu"
	OptionSecret  = "encrypted"
	bridgeMTU     = "com.docker.network.driver.mtu"
	bridgeMode4   = "com.docker.network.bridge.gateway_mode_ipv4"
	bridgeMode6   = "com.docker.network.bridge.gateway_mode_ipv6"
	isolated      = "isolated"
	defaultPort   = 4789
	overhead4     = 50 // bytes that VXLAN adds to a frame's packet, over IPv4
	overhead6     = 70
	highestNumber = 1<<24 - 1
)

// Bridges is the driver whose bridges these networks are made of.
type Bridges interface {
	network.Driver
	network.Publisher

	// Healed sets what is called after the bridge of a network was made anew.
	Healed(f func(id string))
	// Link is the name of the bridge of a network; NotFound.
	Link(id string) (string, error)
	// Seal says which networks are to be encrypted: what is not is dropped.
	Seal(list []firewall.Sealed) error
}

// Driver is the driver of overlay networks.
type Driver struct {
	Bridges
	cfg    network.Config
	log    *slog.Logger
	cipher *esp.Cipher
	able   ability

	mu       sync.Mutex
	under    Underlay
	networks map[string]*spanned // by id
}

// spanned is one network.
type spanned struct {
	id    string
	vni   uint32
	mtu   int
	seal  bool     // it is encrypted between nodes
	keys  esp.Keys // of one that is; none until SetKeys
	told  bool     // which peers it has; until then what an earlier engine left stays
	peers []Peer
}

// Underlay is how frames go from node to node.
type Underlay struct {
	Local netip.Addr // of this node
	Port  uint16     // UDP, of all nodes; 0 is 4789
}

var (
	_ network.Driver    = (*Driver)(nil)
	_ network.Publisher = (*Driver)(nil)
	_ network.Guest     = (*Driver)(nil)
)

// New makes a Driver over that of bridges; nothing is touched before Create.
func New(cfg network.Config, bridges Bridges) *Driver {
	log := cfg.Logger
	if log == nil {
		log = slog.New(slog.DiscardHandler)
	}
	d := &Driver{Bridges: bridges, cfg: cfg, log: log, cipher: esp.New(cfg.Instance, nil), able: ability{probe: esp.Probe}, networks: map[string]*spanned{}}
	bridges.Healed(d.healed)
	return d
}

// Type implements network.Driver.
func (d *Driver) Type() string { return "overlay" }

// Host implements network.Guest.
func (d *Driver) Host() network.Driver { return d.Bridges }

// Check implements network.Driver.
func (d *Driver) Check(spec network.Spec) error {
	if _, err := d.read(spec); err != nil {
		return err
	}
	return nil
}

// read reads the options of a network; InvalidArgument.
func (d *Driver) read(spec network.Spec) (*spanned, error) {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	s := &spanned{id: spec.ID, seal: Encrypted(spec.Options)}
	s.mtu = d.MTU(s.seal)
	if text, ok := spec.Options[OptionVNI]; ok {
		first, _, _ := strings.Cut(text, ",")
		n, err := strconv.ParseUint(first, 10, 32)
		if err != nil || n == 0 || n > highestNumber {
			return nil, bad("invalid vxlan id value %q passed", text)
		}
		s.vni = uint32(n)
	}
	if text, ok := spec.Options[optionMTU]; ok {
		n, err := strconv.Atoi(text)
		if err != nil || n < 68 || n > 65535 {
			return nil, bad("invalid MTU value %s", text)
		}
		s.mtu = n
	}
	if s.seal {
		if err := d.able.now(); err != nil {
			return nil, fmt.Errorf("network %s cannot be encrypted here (--opt encrypted): %w", cmp.Or(spec.Name, spec.ID), err)
		}
	}
	return s, nil
}

// Encrypted tells whether a network of these options is encrypted between nodes.
func Encrypted(options map[string]string) bool {
	text, ok := options[OptionSecret]
	return ok && text != "false"
}

// Encrypts tells whether this node can have networks that are: nil, or why not, which is
// NotImplemented when its kernel lacks something. Blocks for some milliseconds the first time,
// and each minute as long as it cannot: somebody may load what is missing.
func (d *Driver) Encrypts() error { return d.able.now() }

// bridged is the network as the driver of bridges is to make it.
func (s *spanned) bridged(spec network.Spec) network.Spec {
	out := spec
	out.Options = map[string]string{bridgeMTU: strconv.Itoa(s.mtu)}
	if spec.Internal {
		// The host has no part in it: containers of other nodes would not find it there.
		out.Options[bridgeMode4], out.Options[bridgeMode6] = isolated, isolated
	}
	return out
}

// Create implements network.Driver.
func (d *Driver) Create(ctx context.Context, spec network.Spec) (network.Info, error) {
	s, err := d.read(spec)
	if err != nil {
		return network.Info{}, err
	}
	info, err := d.Bridges.Create(ctx, s.bridged(spec))
	if err != nil {
		return info, err
	}
	info.Driver, info.Scope, info.Options = d.Type(), "swarm", maps.Clone(spec.Options)
	d.mu.Lock()
	defer d.mu.Unlock()
	old := d.networks[spec.ID]
	if old != nil {
		s.peers, s.told, s.keys = old.peers, old.told, old.keys
	}
	d.networks[spec.ID] = s
	if err := d.sealed(); err != nil {
		if d.networks[spec.ID] = old; old == nil { // it was not there before
			delete(d.networks, spec.ID)
			err = errors.Join(err, d.Bridges.Delete(context.WithoutCancel(ctx), spec.ID))
		}
		return network.Info{}, err
	}
	return info, nil
}

// Delete implements network.Driver.
func (d *Driver) Delete(ctx context.Context, id string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	delete(d.networks, id)
	if err := removeTunnel(linkName(id)); err != nil {
		return err
	}
	if err := errors.Join(d.sweepSealed(), d.sealed()); err != nil {
		return err
	}
	return d.Bridges.Delete(ctx, id)
}

// Join implements network.Driver.
func (d *Driver) Join(ctx context.Context, id string, ns *netns.Handle, j network.Join) (network.Endpoint, error) {
	if len(j.MAC) == 0 && !j.IP.IsValid() && j.IP6.IsValid() {
		// Every node derives it from the address.
		j.MAC = hardware(j.IP6.Addr())
	}
	return d.Bridges.Join(ctx, id, ns, j)
}

// Restore implements network.Driver: what is left of networks that nobody knows goes. The
// endpoints are the other driver's to restore.
func (d *Driver) Restore(_ context.Context, _ map[string][]network.Live) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return errors.Join(d.sweep(), d.sweepSealed())
}

// SetUnderlay says how frames go from node to node, from now on. The link of a network is
// another one when SetPeers comes next.
func (d *Driver) SetUnderlay(u Underlay) {
	if u.Port == 0 {
		u.Port = defaultPort
	}
	d.mu.Lock()
	defer d.mu.Unlock()
	d.under = u
}
