package network

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"reflect"
	"slices"
	"sync"
	"time"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// Ingress is what this host publishes as every host of its cluster does: connections to its
// ports are spread over tasks on this host and on others, which are reached by one network.
type Ingress struct {
	Network string // id
	Ports   []IngressPort
}

// IngressPort is a port of the host, at all addresses at which ports are published.
type IngressPort struct {
	Proto network.IPProtocol
	Port  uint16
	To    uint16 // of the tasks
	// Group is that of containers of this host that publish the port by themselves: they have
	// their share of it.
	Group    string
	Backends []Backend
}

// Backend is a task, by its address on the network.
type Backend struct {
	Addr  netip.Addr
	Far   bool `json:",omitempty"` // on another host
	Rests bool `json:",omitempty"` // nothing new goes there; what is under way goes on
}

// ingress keeps what this host publishes for its cluster.
type ingress struct {
	*base
	mu     sync.Mutex
	asked  Ingress
	is     Ingress // as it is in the kernel: more may rest than was asked
	behind bool    // it may not be as it was asked
	doors  map[door]*held
	rests  map[netip.Addr]bool // of containers of this host that take nothing new
	again  *time.Timer
	closed bool
}

// door is a port that is to be held.
type door struct {
	proto    network.IPProtocol
	port, to uint16
	group    string
}

// held is a port that is held, or why it cannot be.
type held struct {
	mappings []port.Mapping // to no address in particular
	files    []*os.File
	err      error
}

func newIngress(b *base) *ingress {
	return &ingress{base: b, doors: map[door]*held{}, rests: map[netip.Addr]bool{}}
}

func (p IngressPort) door() door { return door{p.Proto, p.Port, p.To, p.Group} }

// retaken is how long a host waits before it looks again whether a port is free that was not.
const retaken = 10 * time.Second

// SetIngress makes this what the host publishes for its cluster. A port that another program or
// container of the host has is told of in the log, and taken once it is free; the other hosts
// have theirs. NotFound when the network is not here. Blocks for a few milliseconds. On an error
// some of it may not be so: it is to be called again.
func (m *Manager) SetIngress(ctx context.Context, in Ingress) error {
	if _, err := m.networks.find(in.Network); err != nil {
		return err
	}
	return m.ingress.set(ctx, in)
}

// Remove removes a network as maker has it; what is published by it goes first.
func (m *Manager) Remove(ctx context.Context, ref string) error {
	if i, err := m.Find(ref); err == nil {
		if err := m.ingress.end(ctx, i.ID); err != nil {
			return err
		}
	}
	return m.maker.Remove(ctx, ref)
}

func (g *ingress) set(ctx context.Context, in Ingress) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if !g.behind && reflect.DeepEqual(g.asked, in) {
		return nil
	}
	g.behind = true
	if err := g.note(in); err != nil {
		return err
	}
	return g.apply(ctx, in)
}

// end takes back all that is published by a network; "": by whichever.
func (g *ingress) end(ctx context.Context, id string) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.asked.Network == "" || id != "" && g.asked.Network != id {
		return nil
	}
	if err := g.apply(ctx, Ingress{}); err != nil {
		return err
	}
	return g.note(Ingress{})
}

// resting is what is asked for, with the containers of this host that take nothing new.
func (g *ingress) resting(in Ingress) Ingress {
	in.Ports = slices.Clone(in.Ports)
	for i := range in.Ports {
		p := &in.Ports[i]
		p.Backends = slices.Clone(p.Backends)
		for j := range p.Backends {
			p.Backends[j].Rests = p.Backends[j].Rests || g.rests[p.Backends[j].Addr]
		}
	}
	return in
}

// apply makes it so. Called with mu held, as all that follow.
func (g *ingress) apply(ctx context.Context, asked Ingress) error {
	g.asked = asked
	in := g.resting(asked)
	wanted := map[door]bool{}
	for _, p := range in.Ports {
		wanted[p.door()] = true
		g.take(p.door(), in.Network)
	}
	if err := g.spread(ctx, in); err != nil {
		return err
	}
	err := g.pass(g.is, in)
	for d := range g.doors {
		if !wanted[d] {
			g.release(d)
		}
	}
	g.is, g.behind = in, err != nil
	for a := range g.rests {
		if !in.has(a) {
			delete(g.rests, a)
		}
	}
	g.retry()
	return err
}

// has tells whether an address is that of a task.
func (in Ingress) has(a netip.Addr) bool {
	return slices.ContainsFunc(in.Ports, func(p IngressPort) bool {
		return slices.ContainsFunc(p.Backends, func(b Backend) bool { return b.Addr == a })
	})
}

// take holds a port, if it can be.
func (g *ingress) take(d door, network string) {
	old := g.doors[d]
	if old != nil && old.err == nil {
		return
	}
	now := &held{}
	now.mappings, now.files, now.err = g.ports.Hold([]port.Spec{d.spec()}, g.leads(network), d.group)
	if now.err != nil && (old == nil || old.err.Error() != now.err.Error()) {
		g.log.Error("a port of the cluster is not answered by this host", "port", fmt.Sprintf("%d/%s", d.port, d.proto), "error", now.err)
	}
	if now.err == nil && old != nil {
		g.log.Info("a port of the cluster is answered by this host, too, now that it is free", "port", fmt.Sprintf("%d/%s", d.port, d.proto))
	}
	g.doors[d] = now
}

func (d door) spec() port.Spec {
	p, _ := network.PortFrom(d.to, d.proto) // zero, which nothing leads to, of a protocol that is none
	return port.Spec{Container: p, First: d.port, Last: d.port}
}

// leads is where ports of the host lead by a network: to all addresses of its families.
func (g *ingress) leads(network string) port.To {
	to := port.To{Forwarded: g.cfg.Forward, At: g.cfg.Publish}
	a, err := g.networks.find(network)
	if err != nil {
		return to
	}
	if a.info.Subnet(false).Prefix.IsValid() {
		to.V4 = netip.IPv4Unspecified()
	}
	if a.info.Subnet(true).Prefix.IsValid() {
		to.V6 = netip.IPv6Unspecified()
	}
	return to
}

// release lets a port go.
func (g *ingress) release(d door) {
	h := g.doors[d]
	delete(g.doors, d)
	for _, f := range h.files {
		f.Close()
	}
	g.ports.Free(h.mappings)
}

// retry looks again at ports that are taken, after a while.
func (g *ingress) retry() {
	if g.again != nil {
		g.again.Stop()
		g.again = nil
	}
	if g.closed || !slices.ContainsFunc(slices.Collect(maps.Values(g.doors)), func(h *held) bool { return h.err != nil && !errdefs.IsNotImplemented(h.err) }) {
		return
	}
	g.again = time.AfterFunc(retaken, func() {
		g.mu.Lock()
		defer g.mu.Unlock()
		if g.closed {
			return
		}
		if err := g.apply(context.Background(), g.asked); err != nil { // detached: a step of the kernel
			g.log.Error("ports of the cluster", "error", err)
		}
	})
}

// spread has the kernel spread connections as in says.
func (g *ingress) spread(ctx context.Context, in Ingress) error {
	var list []port.Mapping
	var far []netip.Addr
	for _, p := range in.Ports {
		h := g.doors[p.door()]
		for _, m := range h.mappings {
			if !m.Translated() {
				continue
			}
			for _, b := range p.serving(m) {
				m.To = netip.AddrPortFrom(b.Addr, p.To)
				if list = append(list, m); b.Far {
					far = append(far, b.Addr)
				}
			}
		}
	}
	for _, d := range g.drivers {
		if s, ok := d.(Spreader); ok {
			return s.Spread(ctx, list, far, stray(g.is, in))
		}
	}
	if len(list) == 0 {
		return nil
	}
	return fmt.Errorf("ports of the cluster: no driver spreads connections: %w", errdefs.ErrNotImplemented)
}

// serving are the tasks that something new goes to by a place on the host.
func (p IngressPort) serving(m port.Mapping) (out []Backend) {
	for _, b := range p.Backends {
		if b.Addr.Is4() == m.To.Addr().Is4() && !b.Rests {
			out = append(out, b)
		}
	}
	return out
}

// pass has the engine pass on what the kernel cannot translate.
func (g *ingress) pass(was, is Ingress) error {
	if !g.cfg.Forward {
		return nil
	}
	var errs []error
	there := map[port.Mapping]bool{}
	for _, p := range is.Ports {
		h := g.doors[p.door()]
		for _, m := range g.forwarded(p) {
			there[m] = true
			if !slices.ContainsFunc(p.Backends, func(b Backend) bool { return b.Addr == m.To.Addr() && !b.Rests }) {
				g.forward.Rest(forwarded(m))
			} else {
				errs = append(errs, g.forward.Add(forwarded(m), port.Find(h.files, m)))
			}
		}
	}
	for _, p := range was.Ports {
		for _, m := range g.forwarded(p) {
			if !there[m] {
				g.forward.Remove(forwarded(m))
			}
		}
	}
	return errors.Join(errs...)
}

// forwarded are the ways of a port by which the engine passes on.
func (g *ingress) forwarded(p IngressPort) (out []port.Mapping) {
	h := g.doors[p.door()]
	if h == nil {
		return nil
	}
	for _, m := range h.mappings {
		if !m.Forwarded() {
			continue
		}
		for _, b := range p.Backends {
			if b.Addr.Is4() == m.To.Addr().Is4() {
				m.To = netip.AddrPortFrom(b.Addr, p.To)
				out = append(out, m)
			}
		}
	}
	return out
}

// stray is what goes elsewhere now, or nowhere: datagrams to tasks that do not serve, and
// connections to those that are no more, whose clients are told so.
func stray(was, is Ingress) Stray {
	out := Stray{Datagrams: map[uint16][]netip.Addr{}, Ports: map[uint16]bool{}}
	had := map[door]IngressPort{}
	for _, p := range was.Ports {
		had[p.door()] = p
		for _, b := range p.Backends {
			if !is.has(b.Addr) && !slices.Contains(out.Ended, b.Addr) {
				out.Ended = append(out.Ended, b.Addr)
			}
		}
		out.Ports[p.Port] = true
	}
	serve := func(p IngressPort) (out []netip.Addr) {
		for _, b := range p.Backends {
			if !b.Rests {
				out = append(out, b.Addr)
			}
		}
		return out
	}
	for _, p := range is.Ports {
		old, published := had[p.door()]
		delete(had, p.door())
		now := serve(p)
		if p.Proto == network.UDP && (!published || slices.ContainsFunc(serve(old), func(a netip.Addr) bool { return !slices.Contains(now, a) })) {
			out.Datagrams[p.Port] = now
		}
	}
	for d := range had {
		if d.proto == network.UDP && out.Datagrams[d.port] == nil {
			out.Datagrams[d.port] = []netip.Addr{}
		}
	}
	return out
}

// rest has nothing new come to a container of this host, or again.
func (g *ingress) rest(ctx context.Context, eps []Endpoint, rests bool) {
	g.mu.Lock()
	defer g.mu.Unlock()
	changed := false
	for _, ep := range eps {
		if ep.NetworkID != g.asked.Network || ep.Network == "" {
			continue
		}
		for _, a := range ep.addresses() {
			if g.rests[a] != rests && g.is.has(a) {
				changed = true
				if g.rests[a] = rests; !rests {
					delete(g.rests, a)
				}
			}
		}
	}
	if !changed {
		return
	}
	if err := g.apply(ctx, g.asked); err != nil {
		g.log.Error("ports of the cluster", "error", err)
	}
}

// addresses are those of an endpoint.
func (ep Endpoint) addresses() (out []netip.Addr) {
	for _, text := range []string{ep.IP, ep.IP6} {
		if a, err := netip.ParseAddr(text); err == nil {
			out = append(out, a)
		}
	}
	return out
}

// ingressFormat is the version of the file of what is published (docs/formats.md).
const ingressFormat = 1

// noted is what is kept, for as long as the kernel has the rules.
type noted struct {
	Format int
	Ingress
}

// note keeps what is to be published, for an engine after this one.
func (g *ingress) note(in Ingress) error {
	if g.cfg.IngressFile == "" {
		return nil
	}
	if in.Network == "" {
		if err := os.Remove(g.cfg.IngressFile); !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	b, err := json.Marshal(noted{ingressFormat, in})
	if err != nil {
		return err
	}
	return atomicfile.Write(g.cfg.IngressFile, append(b, '\n'), 0o600, atomicfile.Options{})
}

// recall reads what an engine before this one published. Connections go on being spread so
// until somebody says what is to be.
func (g *ingress) recall(ctx context.Context) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.cfg.IngressFile == "" {
		return nil
	}
	b, err := os.ReadFile(g.cfg.IngressFile)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var n noted
	if err == nil {
		err = json.Unmarshal(b, &n)
	}
	if err != nil || n.Format != ingressFormat {
		g.log.Warn("what was published for the cluster is not known until it is told again", "file", g.cfg.IngressFile, "error", err)
		return g.note(Ingress{})
	}
	if _, err := g.networks.find(n.Network); err != nil {
		return g.note(Ingress{}) // it went with its network
	}
	g.behind = true
	return g.apply(ctx, n.Ingress)
}

// close lets go of the ports; what the kernel does stays.
func (g *ingress) close() {
	g.mu.Lock()
	defer g.mu.Unlock()
	g.closed = true
	g.retry()
	for d := range g.doors {
		g.release(d)
	}
}
