package swarm

import (
	"context"
	"errors"
	"io"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/backup"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// Backups saves a swarm, and begins one anew from what was saved.
type Backups struct{ *Swarm }

// current is how long the other managers have to say what the swarm is.
const current = 5 * time.Second

// Backup writes all that the swarm is to what begin gives, sealed with a passphrase or, without
// one, the key with which managers are unlocked; begin is told whether most managers do not
// answer: then it is what this one knows. It blocks as long as its reader does. InvalidArgument
// when there is nothing to seal it with.
func (s Backups) Backup(ctx context.Context, passphrase string, begin func(stale bool) io.Writer) error {
	if _, err := the(s.Store.View()); err != nil {
		return err
	}
	asking, cancel := context.WithTimeout(ctx, current)
	stale := s.Membership.Current(asking) != nil
	cancel()
	if err := ctx.Err(); err != nil {
		return context.Cause(ctx)
	}
	v := s.Store.View()
	c, err := the(v)
	if err != nil {
		return err
	}
	secret := backup.Secret{Passphrase: passphrase}
	if passphrase == "" {
		if !c.Spec.EncryptionConfig.AutoLockManagers {
			return say(errdefs.ErrInvalidArgument, "a backup has all secrets of the swarm, and the key of its root: it is sealed with a passphrase, which is needed unless managers are locked (swarm update --autolock)")
		}
		secret.UnlockKey = c.Status.UnlockKey
	}
	h := backup.Head{Made: s.Now()}
	if n, err := store.Find[*cluster.Node](v, s.Membership.Part().Node); err == nil {
		h.Version = n.Status.Version
	}
	return backup.Write(&late{begin: func() io.Writer { return begin(stale) }}, v, h, secret)
}

// late begins an answer with the first byte of it: what is refused before has none.
type late struct {
	begin func() io.Writer
	w     io.Writer
}

// Write implements io.Writer.
func (l *late) Write(b []byte) (int, error) {
	if l.w == nil {
		l.w = l.begin()
	}
	return l.w.Write(b)
}

// Restoration is how a swarm is begun anew from a backup.
type Restoration struct {
	Passphrase, UnlockKey                   string // one of both
	Force                                   bool   // a manager is set back, or the swarm goes on elsewhere
	ListenAddr, AdvertiseAddr, DataPathAddr string // as of swarm.InitRequest
}

// Restored is what became of it.
type Restored struct {
	Cluster, Node string // ids
	Made          time.Time
	Revision      uint64
	Objects       int
}

// Restore begins a swarm anew from a backup, with this host as its only manager: whole or not
// at all. It blocks until others can join. PermissionDenied for a secret that does not open it;
// InvalidArgument for a backup that is none and for addresses of a manager that has its own, FailedPrecondition for one of a later version.
func (s Backups) Restore(ctx context.Context, r io.Reader, o Restoration) (out Restored, err error) {
	part := s.Membership.Part()
	var node *cluster.Node
	switch {
	case part.In && !part.Manager:
		return out, errInSwarm
	case part.In && !o.Force:
		return out, say(errdefs.ErrConflict, "This node is a manager of a swarm: --force sets that back to what the backup has.")
	case part.In && o.ListenAddr+o.AdvertiseAddr+o.DataPathAddr != "":
		return out, say(errdefs.ErrInvalidArgument, "A manager that is set back keeps its addresses: restore without them, or have it leave first (swarm leave --force).")
	case !part.In:
		if node, err = s.placed(s.Store.View(), swarm.InitRequest{ListenAddr: o.ListenAddr, AdvertiseAddr: o.AdvertiseAddr, DataPathAddr: o.DataPathAddr}); err != nil {
			return out, err
		}
		node.Spec.Availability, node.Spec.Manager = cluster.Active, true
	}
	saved, h, err := backup.Read(r, backup.Secret{Passphrase: o.Passphrase, UnlockKey: o.UnlockKey})
	if err != nil {
		return out, err
	}
	out = Restored{Cluster: h.Cluster, Made: h.Made, Revision: h.Revision, Objects: h.Objects}
	err = s.Membership.Restore(context.WithoutCancel(ctx), saved, node, o.Force) // detached: it is not to be left half-way
	out.Node = s.Membership.Part().Node
	switch {
	case errdefs.IsAlreadyExists(err):
		return out, errInSwarm
	case errors.Is(err, context.DeadlineExceeded):
		return out, say(errdefs.ErrUnavailable, "The swarm is restored and takes long to begin: that goes on. Use \"docker info\" to see how it stands.")
	}
	return out, err
}
