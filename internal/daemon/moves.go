package daemon

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"sync"
	"time"

	"escale.dev/escale/internal/api/peer"
	"escale.dev/escale/internal/cluster/move"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
)

// moveWait is how long a node that is to take a step waits for one of the same volume.
const moveWait = 20 * time.Second

// contents are the volumes' part in moves; see container.Moves.
type contents interface {
	Users(name string) []container.VolumeUser
	Hold(ctx context.Context, name string, m volume.Moving) error
	Free(name, id string) error
	Drop(name, id string) error
	Send(ctx context.Context, name, id, peer string, open func(container.Leaving) (io.Writer, error)) error
	Arrived(ctx context.Context, name, id string) (bool, error)
	Receive(ctx context.Context, name string, m volume.Moving, l container.Leaving, content io.Reader, told func(int64)) error
}

// volumeList are the volumes of an engine.
type volumeList interface {
	Get(ctx context.Context, name string) (volume.Volume, error)
	List(ctx context.Context) (list []volume.Volume, warnings []string)
}

// ownMoves are this node's steps of moves. Steps of one volume are taken one after the other, and what
// a leader of before has asked for is refused, once another was heard.
type ownMoves struct {
	contents contents
	list     volumeList
	// open opens a volume's content on the node that has it.
	open func(ctx context.Context, s move.Step) (container.Leaving, io.ReadCloser, error)
	log  *slog.Logger

	mu    sync.Mutex
	term  uint64                   // the highest that was heard
	steps map[string]chan struct{} // by volume: holds one who takes a step
	halts map[string]func()        // by volume: ends the copy that is under way
}

var _ peer.Volumes = (*ownMoves)(nil)

// Volumes implements peer.Volumes.
func (o *ownMoves) Volumes(ctx context.Context, name string) ([]move.Volume, error) {
	var list []volume.Volume
	if name == "" {
		list, _ = o.list.List(ctx)
	} else {
		v, err := o.list.Get(ctx, name)
		if errdefs.IsNotFound(err) {
			return []move.Volume{}, nil
		}
		if err != nil {
			return nil, err
		}
		list = []volume.Volume{v}
	}
	out := make([]move.Volume, len(list))
	for i := range list {
		v := &list[i]
		out[i] = move.Volume{Name: v.Name, Driver: v.Driver, Scope: v.Scope, Labels: v.Labels, Options: v.Options, CreatedAt: v.CreatedAt}
		if v.Moving != nil {
			out[i].Moving = v.Moving.ID
		}
		for _, u := range o.contents.Users(v.Name) {
			out[i].Users = append(out[i].Users, move.User(u))
		}
	}
	return out, nil
}

// Send implements peer.Volumes.
func (o *ownMoves) Send(ctx context.Context, s move.Step, to string, open func(container.Leaving) (io.Writer, error)) error {
	return o.contents.Send(ctx, s.Volume, s.Move, to, open)
}

// hear refuses a leader of before. PermissionDenied.
func (o *ownMoves) hear(term uint64) error {
	o.mu.Lock()
	defer o.mu.Unlock()
	if term < o.term {
		return fmt.Errorf("it is asked by the leader of term %d, one of term %d was heard: %w", term, o.term, errdefs.ErrPermissionDenied)
	}
	o.term = term
	return nil
}

// turn waits until nobody else takes a step of a volume; a copy that is under way ends. Unavailable.
func (o *ownMoves) turn(ctx context.Context, name string) (done func(), err error) {
	o.mu.Lock()
	if o.steps == nil {
		o.steps, o.halts = map[string]chan struct{}{}, map[string]func(){}
	}
	if o.steps[name] == nil {
		o.steps[name] = make(chan struct{}, 1)
	}
	turn, halt := o.steps[name], o.halts[name]
	o.mu.Unlock()
	if halt != nil {
		halt()
	}
	select {
	case turn <- struct{}{}:
		return func() { <-turn }, nil
	case <-time.After(moveWait):
		return nil, fmt.Errorf("volume %s is busy with a step before: %w", name, errdefs.ErrUnavailable)
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
}

// Do implements peer.Volumes.
func (o *ownMoves) Do(ctx context.Context, what string, s move.Step, told func(bytes, total int64)) error {
	if err := o.hear(s.Term); err != nil {
		return err
	}
	done, err := o.turn(ctx, s.Volume)
	if err != nil {
		return err
	}
	defer done()
	if err := o.hear(s.Term); err != nil { // another may have led meanwhile
		return err
	}
	switch what {
	case peer.StepHold:
		return o.contents.Hold(ctx, s.Volume, volume.Moving{ID: s.Move, Peer: s.Peer})
	case peer.StepFetch:
		return o.fetch(ctx, s, told)
	case peer.StepFree:
		return o.contents.Free(s.Volume, s.Move)
	case peer.StepDrop:
		return o.contents.Drop(s.Volume, s.Move)
	}
	return fmt.Errorf("step %q: %w", what, errdefs.ErrInvalidArgument)
}

// fetch brings a volume here.
func (o *ownMoves) fetch(ctx context.Context, s move.Step, told func(bytes, total int64)) error {
	here, err := o.contents.Arrived(ctx, s.Volume, s.Move)
	if err != nil || here {
		return err
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	o.mu.Lock()
	o.halts[s.Volume] = func() { cancel(fmt.Errorf("the copy was called off: %w", errdefs.ErrUnavailable)) }
	o.mu.Unlock()
	defer func() {
		o.mu.Lock()
		defer o.mu.Unlock()
		delete(o.halts, s.Volume)
	}()
	l, content, err := o.open(ctx, s)
	if err != nil {
		return err
	}
	defer content.Close()
	begin := time.Now()
	err = o.contents.Receive(ctx, s.Volume, volume.Moving{ID: s.Move, In: true, Peer: s.Peer}, l, content, func(n int64) { told(n, l.Total) })
	if ctx.Err() != nil && err != nil {
		return context.Cause(ctx)
	}
	if err == nil {
		o.log.Info("a volume has come from another node", "volume", s.Volume, "node", s.Peer, "bytes", l.Total, "took", time.Since(begin))
	}
	return err
}

// open opens the content of a volume on another node.
func (p *peers) open(ctx context.Context, s move.Step) (container.Leaving, io.ReadCloser, error) {
	l := p.now()
	if l == nil {
		return container.Leaving{}, nil, errNoPeers
	}
	return l.dialer.VolumeContent(ctx, s)
}

// moveNodes are the steps on all nodes, for who leads, and for who asks which volumes there are.
type moveNodes struct {
	own   *ownMoves
	peers *peers
	node  func() string // id of this one
}

var _ move.Nodes = moveNodes{}

func (m moveNodes) do(ctx context.Context, node, what string, s move.Step, told func(bytes, total int64)) error {
	if node == m.node() {
		return m.own.Do(ctx, what, s, told)
	}
	l := m.peers.now()
	if l == nil {
		return fmt.Errorf("node %s is not available: %w", node, errdefs.ErrUnavailable)
	}
	return l.dialer.VolumeStep(ctx, node, what, s, told)
}

// Hold implements move.Nodes.
func (m moveNodes) Hold(ctx context.Context, node string, s move.Step) error {
	return m.do(ctx, node, peer.StepHold, s, nil)
}

// Fetch implements move.Nodes.
func (m moveNodes) Fetch(ctx context.Context, node string, s move.Step, told func(bytes, total int64)) error {
	return m.do(ctx, node, peer.StepFetch, s, told)
}

// Free implements move.Nodes.
func (m moveNodes) Free(ctx context.Context, node string, s move.Step) error {
	return m.do(ctx, node, peer.StepFree, s, nil)
}

// Drop implements move.Nodes.
func (m moveNodes) Drop(ctx context.Context, node string, s move.Step) error {
	return m.do(ctx, node, peer.StepDrop, s, nil)
}

// Volumes implements move.Nodes.
func (m moveNodes) Volumes(ctx context.Context, node, name string) ([]move.Volume, error) {
	if node == m.node() {
		return m.own.Volumes(ctx, name)
	}
	l := m.peers.now()
	if l == nil {
		return nil, fmt.Errorf("node %s is not available: %w", node, errdefs.ErrUnavailable)
	}
	return l.dialer.Volumes(ctx, node, name)
}

// lead moves volumes while this manager leads, in a store in which only it can write. It blocks until ctx
// ends; a host that is alone has nothing to move.
func (m moveNodes) lead(ctx context.Context, s move.LeaderStore, log *slog.Logger) error {
	return move.New(s, m, s.Term(), log.With("component", "moves")).Run(ctx)
}
