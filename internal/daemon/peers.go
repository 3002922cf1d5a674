package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"net"
	"slices"
	"strconv"
	"sync/atomic"

	"escale.dev/escale/internal/api/engine"
	"escale.dev/escale/internal/api/peer"
	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	apievents "github.com/moby/moby/api/types/events"
	"github.com/opencontainers/go-digest"
)

// peers are the other nodes of the cluster, as this engine has them: where images are, and
// the containers of tasks. As long as none are served, there are none; a nil one has none
// either.
type peers struct {
	images     *image.Store
	containers *container.Manager
	events     *events.Journal
	moves      *ownMoves
	log        *slog.Logger
	links      atomic.Pointer[peerLinks]
}

// peerWorld is what a node knows of its cluster.
type peerWorld struct {
	Node     string                    // id of this one
	Objects  store.Store               // of a manager the cluster's; of a worker it may be empty
	Managers func() []dispatch.Manager // that the node knows
	Barred   func(node string) bool    // it was removed
}

// peerLinks are there while the node is in a cluster.
type peerLinks struct {
	peerWorld
	keeper *ca.Keeper
	dialer *peer.Dialer
	finder *peer.Finder
}

func newPeers(d *Daemon) *peers {
	p := &peers{images: d.images, containers: d.containers, events: d.events, log: d.log.With("component", "peers")}
	p.moves = &ownMoves{contents: d.containers.Moves(d.localVolumes), list: d.volumes, open: p.open, log: p.log}
	return p
}

// serve answers other nodes on a listener, and lets this engine call them, until ctx ends.
// It blocks, and closes the listener. tasks is the part of the API that managers may use.
func (p *peers) serve(ctx context.Context, k *ca.Keeper, w peerWorld, tasks *engine.Server, l net.Listener) error {
	links := &peerLinks{peerWorld: w, keeper: k}
	links.dialer = peer.NewDialer(k, links.addrOf)
	defer links.dialer.Close()
	links.finder = peer.NewFinder(links.dialer, links.known)
	p.links.Store(links)
	defer p.links.CompareAndSwap(links, nil)
	c := peer.Config{Keeper: k, Check: links.check, Images: image.Offer(p.images), Logs: ownLogs{p.containers}, Tasks: tasks.Tasks(), Volumes: p.moves, Log: p.log}
	c.Holders = func(ctx context.Context, w image.Wanted) (peer.Found, error) { return links.holders(ctx, p.images, w) }
	return peer.New(c).Serve(ctx, l)
}

func (p *peers) now() *peerLinks {
	if p == nil {
		return nil
	}
	return p.links.Load()
}

// errNoPeers is of a node that has no others.
var errNoPeers = fmt.Errorf("there are no other nodes: %w", errdefs.ErrNotFound)

// Lookup tells the id of the image that a name, with a tag, stands for on other nodes.
// NotFound; Conflict when it stands for several.
func (p *peers) Lookup(ctx context.Context, name reference.NamedTagged) (string, error) {
	l := p.now()
	if l == nil {
		return "", errNoPeers
	}
	f, err := l.finder.Find(ctx, image.Wanted{Name: name.String()})
	return f.ID.String(), err
}

// Fetch brings an image from other nodes under a name. NotFound when none of them has it.
func (p *peers) Fetch(ctx context.Context, name reference.Named, w image.Wanted, platform string) error {
	l := p.now()
	if l == nil {
		return errNoPeers
	}
	found, err := l.finder.Find(ctx, w)
	if err != nil {
		return err
	}
	src := l.dialer.Source(w, found)
	for {
		_, err := p.images.Remotes().Pull(ctx, name, image.PullOptions{Source: src, Platform: platform, Unlisted: true})
		if err == nil {
			told := reference.FamiliarString(name)
			p.log.Info("an image came from other nodes", "image", told, "nodes", len(found.Places))
			p.events.Publish(events.Message{Type: apievents.ImageEventType, Action: apievents.ActionPull, Actor: apievents.Actor{
				ID: told, Attributes: map[string]string{"name": reference.FamiliarName(name)},
			}})
			return nil
		}
		if ctx.Err() != nil || !src.Again() {
			return err
		}
		p.log.Warn("an image from another node was not what it should be: others are asked", "image", reference.FamiliarString(name), "error", err)
	}
}

// Logs opens the log of a task's container on another node.
func (p *peers) Logs(ctx context.Context, node, id string, o logs.ReadOptions) (logs.Reader, error) {
	l := p.now()
	if l == nil {
		return nil, errdefs.ErrUnavailable.WithMessage("node " + node + " is not available")
	}
	return l.dialer.Logs(ctx, node, id, o)
}

// Dial connects with the API of another node's engine.
func (p *peers) Dial(ctx context.Context, node string) (net.Conn, error) {
	l := p.now()
	if l == nil {
		return nil, errdefs.ErrUnavailable.WithMessage("node " + node + " is not available")
	}
	return l.dialer.Engine(ctx, node)
}

// manages tells whether this node knows the cluster as managers do.
func (l *peerLinks) manages() (store.View, bool) {
	v := l.Objects.View()
	_, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	return v, err == nil && l.keeper.Identity().Role == ca.Manager
}

// known are the other nodes that this one can ask.
func (l *peerLinks) known() (k peer.Known) {
	v, all := l.manages()
	if !all {
		for _, m := range l.Managers() {
			if m.Node != "" && m.Node != l.Node {
				k.Managers = append(k.Managers, m.Node)
			}
		}
		return k
	}
	k.All = true
	for _, n := range store.List[*cluster.Node](v) {
		switch {
		case n.ID == l.Node || !n.Status.Ready:
		case n.Spec.Manager:
			k.Managers = append(k.Managers, n.ID)
		default:
			k.Workers = append(k.Workers, n.ID)
		}
	}
	return k
}

// addrOf is where another node listens for this one.
func (l *peerLinks) addrOf(node string) (string, bool) {
	host := ""
	if n, err := store.Find[*cluster.Node](l.Objects.View(), node); err == nil {
		host = n.Status.Addr
	}
	if host == "" {
		list := l.Managers()
		if i := slices.IndexFunc(list, func(m dispatch.Manager) bool { return m.Node == node }); i >= 0 {
			host, _, _ = net.SplitHostPort(list[i].Addr) // "" when it is none
		}
	}
	return net.JoinHostPort(host, strconv.Itoa(peer.Port)), host != ""
}

// check refuses a node that is none of the cluster's any more, or shows a certificate of a
// role that it has no more. A worker knows who manages, who was removed, and of other
// workers only what their certificates say.
func (l *peerLinks) check(p ca.Peer) error {
	v, all := l.manages()
	if all {
		n, err := store.Find[*cluster.Node](v, p.Node)
		if err != nil {
			return fmt.Errorf("node %s is not of this cluster: %w", p.Node, errdefs.ErrPermissionDenied)
		}
		if p.Role == ca.Manager && !n.Spec.Manager {
			return fmt.Errorf("node %s is no manager any more: %w", p.Node, errdefs.ErrPermissionDenied)
		}
		return nil
	}
	if l.Barred(p.Node) {
		return fmt.Errorf("node %s was removed from this cluster: %w", p.Node, errdefs.ErrPermissionDenied)
	}
	list := l.Managers()
	knows := len(list) > 0 && !slices.ContainsFunc(list, func(m dispatch.Manager) bool { return m.Node == "" })
	if p.Role == ca.Manager && knows && !slices.ContainsFunc(list, func(m dispatch.Manager) bool { return m.Node == p.Node }) {
		return fmt.Errorf("node %s is no manager any more: %w", p.Node, errdefs.ErrPermissionDenied)
	}
	return nil
}

// holders tells another node who has an image, this one first of all.
func (l *peerLinks) holders(ctx context.Context, own *image.Store, w image.Wanted) (peer.Found, error) {
	if _, all := l.manages(); !all {
		return peer.Found{}, fmt.Errorf("node %s does not know who has images: %w", l.Node, errdefs.ErrUnavailable)
	}
	held, err := image.Offer(own).Find(ctx, w)
	if err != nil && !errdefs.IsNotFound(err) {
		return peer.Found{}, err
	}
	if err != nil {
		return l.finder.Find(ctx, w)
	}
	addr, _ := l.addrOf(l.Node)
	found := peer.Found{Held: held, Places: []peer.Place{{Node: l.Node, Addr: addr, ID: held.ID}}}
	if w.Name != "" {
		w = image.Wanted{ID: held.ID} // what its name stands for here counts
	}
	if more, err := l.finder.Find(ctx, w); err == nil {
		found.Places = append(found.Places, more.Places...)
	}
	found.Places = found.Places[:min(len(found.Places), peer.MaxPlaces)]
	return found, nil
}

// ownLogs are those of the containers of tasks of this node.
type ownLogs struct{ m *container.Manager }

// Open implements peer.Logs.
func (l ownLogs) Open(ctx context.Context, id string, o logs.ReadOptions) (logs.Reader, error) {
	v, err := l.m.Get(id)
	if err == nil && (v.Owner == nil || string(v.ID) != id) {
		err = errdefs.ErrNotFound.WithMessage("No such container: " + id)
	}
	if err != nil {
		return nil, err
	}
	r, _, err := l.m.Logs(ctx, id, o)
	return r, err
}

// taskLogs opens logs of tasks' containers, here and elsewhere.
type taskLogs struct {
	own   *container.Manager
	peers *peers
	node  func() string // id of this one
}

// Open implements swarm.Logs.
func (l taskLogs) Open(ctx context.Context, node, id string, o logs.ReadOptions) (logs.Reader, error) {
	if node != l.node() {
		return l.peers.Logs(ctx, node, id, o)
	}
	r, _, err := l.own.Logs(ctx, id, o)
	return r, err
}

// taskPlaces finds the containers of tasks, wherever they are.
type taskPlaces struct {
	*peers
	o *orchestrator
}

var _ engine.Elsewhere = taskPlaces{}

// Find implements engine.Elsewhere.
func (p taskPlaces) Find(ref string) (engine.Placed, error) {
	t, err := p.o.swarm.FindTask(ref)
	if err != nil {
		return engine.Placed{}, err
	}
	out := engine.Placed{Container: t.Status.Container.ID, Node: t.Node, Task: t.ID}
	if out.Node == p.o.part.Node() {
		out.Node = ""
	}
	return out, nil
}

// wantedAs says what of other nodes is as good as what a name means: what has its digest,
// else what they have under that name.
func wantedAs(name reference.Named, platform string) image.Wanted {
	w := image.Wanted{Platform: cmp.Or(platform, platforms.DefaultString())}
	if d, ok := name.(reference.Digested); ok {
		w.Digest = digest.Digest(d.Digest())
	} else {
		w.Name = name.String()
	}
	return w
}
