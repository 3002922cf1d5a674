// Package swarm is what Docker's swarm API asks of the orchestrator: a view of the
// objects in the store in Docker's form, and changes of them in Docker's words. It
// writes what is wanted; the loops see to it. Before swarm init, and on a node that does
// not manage, everything is refused as Docker does.
package swarm

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Root is the certificate authority of a swarm, both PEM.
type Root struct {
	Cert, Key []byte
	Ends      time.Time // it is valid until then
}

// Authority makes what nodes know each other by.
type Authority interface {
	// NewRoot makes a root for the cluster of an id.
	NewRoot(cluster string, now time.Time) (Root, error)
	// LoadRoot reads one that somebody gives, in the form in which roots are compared.
	// InvalidArgument when it is none, or the key is another's.
	LoadRoot(cert, key []byte) (Root, error)
	// Rotate makes what is needed to exchange a root for the next.
	Rotate(root, next Root) (cluster.RootRotation, error)
	// Token is what a node shows to join: it names the root and has a secret.
	Token(cert []byte, secret string) (string, error)
	// NewSecret is the secret part of a token that nobody has.
	NewSecret() string
	// NewUnlockKey is a key to lock managers with.
	NewUnlockKey() string
}

// Image is what the name of an image stands for.
type Image struct {
	Ref       string             // the name with its digest, when a registry has told it
	ID        string             // of the image that is here; "": none is
	Platforms []cluster.Platform // that it is for, when a registry has told
	Warning   string             // why neither is known
}

// Images tells what names of images stand for.
type Images interface {
	// Resolve looks in the registry, when ask says so, and here. It blocks.
	Resolve(ctx context.Context, ref, auth string, ask bool) Image
}

// Networks are those of the engine that no cluster has.
type Networks interface {
	// Local tells whether a node has a network of a name or id of its own, and whether
	// every node has one of that name from the start: host, bridge, none.
	Local(ref string) (name string, there, predefined bool)
}

// Config is what a Swarm needs; all of it must be set.
type Config struct {
	Store      store.Store
	Authority  Authority
	Images     Images
	Networks   Networks
	Membership Membership
	// Addrs are the addresses of the host, by interface.
	Addrs func() ([]Interface, error)
	Now   func() time.Time
	// NewName makes a name for a service that got none.
	NewName func() string
	Logs    Logs
}

// Membership is this host's part in a swarm. Errors carry a kind and, where they are for
// clients, Docker's words.
type Membership interface {
	// Part tells what it is now.
	Part() Part
	// Found makes a swarm of this host: c and n are to be written. AlreadyExists.
	Found(ctx context.Context, c *cluster.Cluster, n *cluster.Node) error
	// Force has the swarm go on with this manager alone, when the others are lost for good.
	Force(ctx context.Context) error
	// Join makes this host a node of a swarm. AlreadyExists; context.DeadlineExceeded: it goes on.
	Join(ctx context.Context, j Joining) error
	// Leave has it be in no swarm. NotFound.
	Leave(ctx context.Context) error
	// Current waits until Store has all that was committed when it was called. Unavailable: most
	// managers do not answer.
	Current(ctx context.Context) error
	// Restore begins a swarm anew from objects that were saved; n is this node as it is to be
	// written, nil sets this manager back. AlreadyExists; Conflict; FailedPrecondition.
	Restore(ctx context.Context, saved *store.State, n *cluster.Node, force bool) error
	// Unlock opens the store of a manager that is locked. Conflict: it is not.
	Unlock(ctx context.Context, key string) error
}

// Part is this host's part in a swarm.
type Part struct {
	Node     string // id; "" as long as it has none
	In       bool   // it is in a swarm
	Manager  bool
	Ready    bool   // it is what it is to be
	Locked   bool   // a manager whose store nobody has unlocked
	Addr     string // by which the others reach it
	Err      string
	Managers []swarm.Peer
}

// Joining is how a host comes into a swarm: addresses are host:port.
type Joining struct {
	Managers     []string
	Token        string
	Listen, Addr string // Addr "": by which it reaches a manager
	DataPath     string
	Availability string
}

// Interface is a network interface of the host.
type Interface struct {
	Name  string
	Flags net.Flags
	Addrs []netip.Addr
}

// Swarm answers for the swarm. Its methods may be called from several goroutines.
type Swarm struct{ Config }

// New makes a Swarm.
func New(c Config) *Swarm { return &Swarm{c} }

// The errors of a node that is not, or is already, in a swarm.
var (
	errNoSwarm    = errdefs.ErrUnavailable.WithMessage("This node is not part of a swarm")
	errNoManager  = errdefs.ErrUnavailable.WithMessage(`This node is not a swarm manager. Use "docker swarm init" or "docker swarm join" to connect this node to swarm and try again.`)
	errWorker     = errdefs.ErrUnavailable.WithMessage("This node is not a swarm manager. Worker nodes can't be used to view or modify cluster state. Please run this command on a manager node or promote the current node to a manager.")
	errInSwarm    = errdefs.ErrUnavailable.WithMessage(`This node is already part of a swarm. Use "docker swarm leave" to leave this swarm and join another one.`)
	errOutOfOrder = fmt.Errorf("rpc error: code = Unknown desc = update out of sequence")
)

// kind is one of errdefs' that can be given words of its own.
type kind interface{ WithMessage(string) error }

// say is an error of a kind, which its words do not name: clients are shown them.
func say(k kind, format string, args ...any) error {
	return k.WithMessage(fmt.Sprintf(format, args...))
}

// rpc is an error as managers of Docker tell it, whose clients know the words.
func rpc(k kind, format string, args ...any) error {
	codes := map[kind]string{
		errdefs.ErrInvalidArgument: "InvalidArgument", errdefs.ErrNotFound: "NotFound", errdefs.ErrAlreadyExists: "AlreadyExists",
		errdefs.ErrFailedPrecondition: "FailedPrecondition", errdefs.ErrNotImplemented: "Unimplemented",
	}
	return k.WithMessage("rpc error: code = " + codes[k] + " desc = " + fmt.Sprintf(format, args...))
}

// invalid is what a client has asked that cannot be.
func invalid(format string, args ...any) error {
	return rpc(errdefs.ErrInvalidArgument, format, args...)
}

// the gives the swarm of a view. Unavailable when there is none, or this node knows nothing of
// it: then the view has the node alone, which says why.
func the(v store.View) (*cluster.Cluster, error) {
	c, err := store.Named[*cluster.Cluster](v, cluster.DefaultCluster)
	if err == nil {
		return c, nil
	}
	for _, n := range store.List[*cluster.Node](v) {
		switch {
		case n.Status.Message != "":
			return nil, errdefs.ErrUnavailable.WithMessage(n.Status.Message)
		case !n.Spec.Manager:
			return nil, errWorker
		}
	}
	return nil, errNoManager
}

// Manages refuses where this node is no manager of a swarm, in Docker's words. Unavailable.
func Manages(v store.View) error {
	_, err := the(v)
	return err
}

// find gives the object that people mean; what is its kind's name in messages.
func find[T cluster.Object](v store.View, what, ref string) (T, error) {
	var none T
	if _, err := the(v); err != nil {
		return none, err
	}
	o, err := store.Resolve[T](v, ref)
	switch {
	case errdefs.IsNotFound(err):
		return none, say(errdefs.ErrNotFound, "%s %s not found", what, ref)
	case errdefs.IsInvalidArgument(err):
		n := 0
		for _, other := range store.List[T](v) {
			if len(ref) > 0 && (other.Base().Name == ref || len(other.Base().ID) >= len(ref) && other.Base().ID[:len(ref)] == ref) {
				n++
			}
		}
		return none, say(errdefs.ErrInvalidArgument, "%s %s is ambiguous (%d matches found)", what, ref, n)
	}
	if err == nil && cluster.IsInternal(o) {
		return none, say(errdefs.ErrNotFound, "%s %s not found", what, ref)
	}
	return o, err
}

// meta is an object's in Docker's form.
func meta(m *cluster.Meta) swarm.Meta {
	return swarm.Meta{Version: swarm.Version{Index: m.Revision}, CreatedAt: m.CreatedAt, UpdatedAt: m.UpdatedAt}
}

// owned refuses to change what an app has.
func owned(v store.View, what string, m *cluster.Meta) error {
	if m.Owner == "" {
		return nil
	}
	app := m.Owner
	if a, err := store.Find[*cluster.App](v, m.Owner); err == nil {
		app = a.Name
	}
	return say(errdefs.ErrConflict, "%s %s is of app %s, which the engine keeps: change it with \"escale up\"", what, m.Name, app)
}

// written says why a change of an object that a client has seen could not be written.
func written(err error) error {
	if errdefs.IsConflict(err) {
		return errOutOfOrder
	}
	return err
}
