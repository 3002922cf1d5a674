package container

import (
	"context"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/container/archive"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/mount"
)

// Movable are the volumes that can be moved to another node; see local.Store.
type Movable interface {
	Get(ctx context.Context, name string) (volume.Volume, error)
	Hold(name string, m volume.Moving) error
	Free(name, id string) error
	Drop(name, id string) error
	Arrive(r volume.Request, created time.Time, m volume.Moving) (volume.Arrival, error)
}

// Moves is a node's part in moving volumes to other nodes and from them. Each step may be taken
// again, and what an engine that is killed has begun is as if it had not.
type Moves struct {
	m *Manager
	v Movable
}

// Moves are those of a manager's volumes.
func (m *Manager) Moves(v Movable) Moves { return Moves{m, v} }

// VolumeUser is a container that has a volume.
type VolumeUser struct {
	Name    string
	Task    string // id; "": it is of no task
	Running bool   // or about to
}

// Users are the containers that have a volume, by name.
func (c Moves) Users(name string) (out []VolumeUser) {
	for _, e := range c.having(name) {
		out = append(out, userOf(e.view()))
	}
	return out
}

func userOf(v View) VolumeUser {
	u := VolumeUser{Name: v.Name, Running: v.State.Status != Created && v.State.Status != Exited && v.State.Status != Dead}
	if v.Owner != nil {
		u.Task = v.Owner.Task
	}
	return u
}

func (c Moves) having(name string) (out []*entry) {
	for _, e := range c.m.store.all() {
		v := e.view()
		if slices.ContainsFunc(v.Mounts, func(p Mount) bool { return p.Type == mount.TypeVolume && p.Name == name }) {
			out = append(out, e)
		}
	}
	slices.SortFunc(out, func(a, b *entry) int { return strings.Compare(a.view().Name, b.view().Name) })
	return out
}

// Hold keeps a volume for a move that takes it away: from now on no container gets it. It waits
// for starts that are under way. Kinds: NotFound; NotImplemented for a volume that has
// no content of its own here; Conflict when another move has it, a container has that runs, or
// one that no task has.
func (c Moves) Hold(ctx context.Context, name string, m volume.Moving) error {
	v, err := c.m.cfg.Volumes.Get(ctx, name)
	if err != nil {
		return err
	}
	if v.Driver != volume.Local {
		return errdefs.ErrNotImplemented.WithMessage(fmt.Sprintf("volume %s is kept by driver %s, not by this node", name, v.Driver))
	}
	if err := c.v.Hold(name, m); err != nil {
		return err
	}
	var names []string
	for _, e := range c.having(name) {
		if err := e.op.lock(ctx); err != nil {
			return err // the next try finds it held
		}
		u := userOf(e.view())
		e.op.unlock()
		if u.Task == "" || u.Running {
			names = append(names, u.Name)
		}
	}
	if len(names) == 0 {
		return nil
	}
	if err := c.v.Free(name, m.ID); err != nil {
		return err
	}
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf("volume %s is in use by %s", name, strings.Join(names, ", ")))
}

// Free lets containers have the volume again, or for the first time. Idempotent.
func (c Moves) Free(name, id string) error { return c.v.Free(name, id) }

// Drop removes the volume that a move has here. Idempotent. Kind: Conflict while containers of tasks
// that are over have it.
func (c Moves) Drop(name, id string) error { return c.v.Drop(name, id) }

// Leaving is what another node is told of a volume before its content.
type Leaving struct {
	Labels    map[string]string `json:",omitempty"`
	Options   map[string]string `json:",omitempty"`
	CreatedAt time.Time
	Total     int64 // bytes of its files
}

// Send writes the content of a volume that is held for a move, for the node that it goes to. open is
// called before the first byte. It blocks for disk and peer. Kinds: PermissionDenied when it is not on
// its way to that node; NotFound.
func (c Moves) Send(ctx context.Context, name, id, peer string, open func(Leaving) (io.Writer, error)) error {
	v, err := c.v.Get(ctx, name)
	if err != nil {
		return err
	}
	if m := v.Moving; m == nil || m.In || m.ID != id || m.Peer != peer {
		return errdefs.ErrPermissionDenied.WithMessage(fmt.Sprintf("volume %s is not on its way to node %s", name, peer))
	}
	total, err := c.m.cfg.Volumes.Size(ctx, name)
	if err != nil {
		return err
	}
	root, err := os.Open(v.Path)
	if err != nil {
		return err
	}
	defer root.Close()
	w, err := open(Leaving{v.Labels, v.Options, v.CreatedAt, total})
	if err != nil {
		return err
	}
	return archive.Backup(ctx, root, w)
}

// Arrived tells whether a volume has come here whole by a move. AlreadyExists when there is another
// of the name.
func (c Moves) Arrived(ctx context.Context, name, id string) (bool, error) {
	v, err := c.v.Get(ctx, name)
	if errdefs.IsNotFound(err) {
		_, err = c.m.cfg.Volumes.Get(ctx, name) // a plugin's
	}
	switch {
	case errdefs.IsNotFound(err):
		return false, nil
	case err != nil:
		return false, err
	case v.Moving != nil && v.Moving.In && v.Moving.ID == id:
		return true, nil
	}
	return false, errdefs.ErrAlreadyExists.WithMessage(fmt.Sprintf("there is a volume %s here already", name))
}

// Receive makes a volume of content that comes from another node: all of it, after what is on the disk
// was read again and found to be what came, or nothing. Nobody gets it before Free. told hears of the
// bytes that came. It blocks for disk and peer. Kinds: AlreadyExists, InvalidArgument, DataLoss.
func (c Moves) Receive(ctx context.Context, name string, m volume.Moving, l Leaving, content io.Reader, told func(int64)) error {
	a, err := c.v.Arrive(volume.Request{Name: name, Labels: l.Labels, Options: l.Options}, l.CreatedAt, m)
	if err != nil {
		return err
	}
	defer func() {
		if err := a.Abort(); err != nil {
			c.m.log.Warn("deleting a volume that has come in part", "volume", name, "error", err)
		}
	}()
	came, err := unpack(ctx, a.Root(), &counted{r: content, told: told})
	if err != nil {
		return err
	}
	r, w := io.Pipe()
	go func() { w.CloseWithError(archive.Backup(ctx, a.Root(), w)) }()
	is, err := archive.Digest(r)
	r.Close() // ends the writer, if it has not
	if err != nil {
		return err
	}
	if is != came {
		return fmt.Errorf("volume %s: what was written is %s, what came is %s: %w", name, is, came, errdefs.ErrDataLoss)
	}
	return a.Keep()
}

// unpack fills a tree, and gives the digest of what it was filled from.
func unpack(ctx context.Context, root *os.File, content io.Reader) (string, error) {
	r, w := io.Pipe()
	type result struct {
		digest string
		err    error
	}
	done := make(chan result, 1)
	go func() {
		d, err := archive.Digest(r)
		_, _ = io.Copy(io.Discard, r) // what is behind the archive
		done <- result{d, err}
	}()
	err := archive.Unpack(ctx, root, io.TeeReader(content, w))
	w.CloseWithError(err)
	got := <-done
	if err != nil {
		return "", err
	}
	return got.digest, got.err
}
