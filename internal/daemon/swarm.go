package daemon

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/store/seal"
	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/daemon/membership"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/pkg/authconfig"
	"github.com/moby/moby/api/types/registry"
	apiswarm "github.com/moby/moby/api/types/swarm"
)

// newSwarm makes the swarm's part of the orchestrator.
func (o *orchestrator) newSwarm() *swarm.Swarm {
	d := o.d
	return swarm.New(swarm.Config{
		Store: o.part.Objects(), Membership: swarmPart{o.part}, Authority: authority{}, Images: serviceImages{registries{d.registry, d.images, d.events}, newTaskSupplies(d)},
		Networks: localNetworks{d.networks}, Logs: taskLogs{d.containers, d.peers, o.part.Node},
		Addrs: o.hostAddrs, Now: func() time.Time { return time.Now().UTC() },
		NewName: func() string { return strings.ReplaceAll(container.NewName(), ".", "-") },
	})
}

// authority is the certificate authority of a swarm.
type authority struct{}

// NewRoot implements swarm.Authority.
func (authority) NewRoot(id string, now time.Time) (swarm.Root, error) {
	r, err := ca.NewRoot(id, now)
	if err != nil {
		return swarm.Root{}, err
	}
	return asRoot(r)
}

func asRoot(r *ca.Root) (swarm.Root, error) {
	key, err := r.KeyPEM()
	return swarm.Root{Cert: r.PEM(), Key: key, Ends: r.Ends()}, err
}

// LoadRoot implements swarm.Authority.
func (authority) LoadRoot(cert, key []byte) (swarm.Root, error) {
	r, err := ca.LoadRoot(cert, key)
	if err != nil {
		return swarm.Root{}, err
	}
	return asRoot(r)
}

// Rotate implements swarm.Authority.
func (authority) Rotate(root, next swarm.Root) (out cluster.RootRotation, err error) {
	old, err := ca.LoadRoot(root.Cert, root.Key)
	if err != nil {
		return out, err
	}
	to, err := ca.LoadRoot(next.Cert, next.Key)
	if err != nil {
		return out, err
	}
	a, err := ca.NewAuthority(old, nil)
	if err != nil {
		return out, err
	}
	r, err := a.Rotate(to)
	if err != nil {
		return out, err
	}
	return cluster.RootRotation{Cert: r.Cert, Key: r.Key, Cross: r.Cross, Issuer: to.Issuer()}, nil
}

// Token implements swarm.Authority.
func (authority) Token(cert []byte, secret string) (string, error) {
	r, err := ca.LoadRoot(cert, nil)
	if err != nil {
		return "", err
	}
	return ca.Token(r.Digest(), secret), nil
}

// NewSecret implements swarm.Authority.
func (authority) NewSecret() string { return ca.NewSecret() }

// NewUnlockKey implements swarm.Authority.
func (authority) NewUnlockKey() string { return seal.NewKey().String() }

// swarmPart is this host's part in a cluster, as Docker's swarm has it.
type swarmPart struct{ *membership.Membership }

// Part implements swarm.Membership.
func (p swarmPart) Part() swarm.Part {
	s := p.State()
	out := swarm.Part{
		Node: s.Node, In: s.Phase != membership.Alone, Manager: s.Phase == membership.Manager, Ready: s.Ready, Locked: s.Locked, Addr: s.Addr, Err: s.Failed,
	}
	for _, m := range s.Managers {
		out.Managers = append(out.Managers, apiswarm.Peer{NodeID: m.Node, Addr: m.Addr})
	}
	return out
}

// Join implements swarm.Membership.
func (p swarmPart) Join(ctx context.Context, j swarm.Joining) error {
	return p.Membership.Join(ctx, membership.Joining(j))
}

// asking is how long a registry has to tell what a name stands for.
const asking = 10 * time.Second

// serviceImages tells what the images of services are.
type serviceImages struct {
	registries registries
	supplies   taskSupplies
}

// Resolve implements swarm.Images.
func (s serviceImages) Resolve(ctx context.Context, ref, auth string, ask bool) swarm.Image {
	var out swarm.Image
	if named, err := reference.ParseDockerRef(ref); ask && err == nil {
		if out, err = s.ask(ctx, named, auth); err == nil {
			return out
		}
		out.Warning = fmt.Sprintf("image %s could not be accessed on a registry to record\nits digest. Each node will access %s independently,\npossibly leading to different nodes running different\nversions of the image.\n", ref, ref)
	}
	if img, err := s.supplies.images.Get(ctx, ref); err == nil {
		out.ID, out.Warning = img.ID, ""
		return out
	}
	if named, err := reference.ParseDockerRef(ref); err == nil && s.supplies.peers != nil {
		if tagged, ok := named.(reference.NamedTagged); ok {
			id, err := s.supplies.peers.Lookup(ctx, tagged)
			switch {
			case err == nil:
				out.ID, out.Warning = id, ""
			case errdefs.IsConflict(err): // which one is meant has to be said
				out.Warning = errtext.Of(err) + "\n"
			}
		}
	}
	return out
}

// ask has the registry say what a name stands for.
func (s serviceImages) ask(ctx context.Context, named reference.Named, auth string) (out swarm.Image, err error) {
	ctx, cancel := context.WithTimeout(ctx, asking)
	defer cancel()
	var login registry.AuthConfig
	if auth != "" {
		given, err := authconfig.Decode(auth)
		if err != nil {
			return out, err
		}
		login = *given
	}
	has, err := s.registries.Distribution(ctx, named, login)
	if err != nil {
		return out, err
	}
	digested, err := reference.WithDigest(named, has.Descriptor.Digest)
	if err != nil {
		return out, err
	}
	out.Ref = reference.FamiliarString(digested)
	for _, p := range has.Platforms {
		out.Platforms = append(out.Platforms, cluster.Platform{OS: p.OS, Architecture: p.Architecture})
	}
	return out, nil
}

// localNetworks are the engine's networks, for services.
type localNetworks struct{ m *network.Manager }

// Local implements swarm.Networks.
func (l localNetworks) Local(ref string) (name string, there, predefined bool) {
	i, err := l.m.Find(ref)
	if err != nil {
		return "", false, false
	}
	return i.Name, true, i.Predefined()
}

// hostAddrs are the addresses that this host has, by interface, but for those of the
// engine's own networks.
func (o *orchestrator) hostAddrs() ([]swarm.Interface, error) {
	own := map[netip.Addr]bool{}
	for _, i := range o.d.networks.List() {
		for _, s := range i.IPAM.Subnets {
			own[s.Gateway] = true
		}
	}
	list, err := net.Interfaces()
	var out []swarm.Interface
	for _, i := range list {
		addrs, failed := i.Addrs()
		err = errors.Join(err, failed)
		next := swarm.Interface{Name: i.Name, Flags: i.Flags}
		for _, a := range addrs {
			if p, bad := netip.ParsePrefix(a.String()); bad == nil && !own[p.Addr()] {
				next.Addrs = append(next.Addrs, p.Addr())
			}
		}
		out = append(out, next)
	}
	return out, err
}

// labels are the engine's labels, by name.
func (o *orchestrator) labels() map[string]string {
	var out map[string]string
	for _, l := range o.d.now().cfg.Labels {
		if out == nil {
			out = map[string]string{}
		}
		name, value, _ := strings.Cut(l, "=")
		out[name] = value
	}
	return out
}

// plugins are the drivers that containers of tasks can use here.
func (o *orchestrator) plugins() (out []cluster.Plugin) {
	for _, k := range []struct {
		kind  string
		names []string
	}{{"Log", logKinds().Names()}, {"Network", o.d.networkDrivers()}, {"Volume", o.d.volumeDrivers()}} {
		for _, n := range k.names {
			out = append(out, cluster.Plugin{Type: k.kind, Name: n})
		}
	}
	return out
}
