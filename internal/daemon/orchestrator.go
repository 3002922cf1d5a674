package daemon

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/agent"
	"escale.dev/escale/internal/cluster/apps"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/executor"
	"escale.dev/escale/internal/cluster/mesh"
	"escale.dev/escale/internal/cluster/move"
	"escale.dev/escale/internal/cluster/reconcile/allocate"
	"escale.dev/escale/internal/cluster/reconcile/app"
	"escale.dev/escale/internal/cluster/reconcile/cron"
	"escale.dev/escale/internal/cluster/reconcile/depend"
	"escale.dev/escale/internal/cluster/reconcile/enforce"
	"escale.dev/escale/internal/cluster/reconcile/global"
	"escale.dev/escale/internal/cluster/reconcile/job"
	"escale.dev/escale/internal/cluster/reconcile/keys"
	"escale.dev/escale/internal/cluster/reconcile/reaper"
	"escale.dev/escale/internal/cluster/reconcile/replicated"
	"escale.dev/escale/internal/cluster/reconcile/restart"
	"escale.dev/escale/internal/cluster/reconcile/retire"
	"escale.dev/escale/internal/cluster/reconcile/root"
	"escale.dev/escale/internal/cluster/reconcile/sweep"
	"escale.dev/escale/internal/cluster/reconcile/update"
	"escale.dev/escale/internal/cluster/scheduler"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/bolt"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/cluster/supply"
	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/daemon/membership"
	"escale.dev/escale/internal/sys/host"
	"github.com/containerd/errdefs"
)

// orchestrator keeps apps: on a host that is alone, or in a cluster.
type orchestrator struct {
	d      *Daemon
	log    *slog.Logger
	part   *membership.Membership
	apps   *apps.Apps
	keeper *apps.Apps // of this node's containers
	swarm  *swarm.Swarm
	lost   error // why there is no store; nothing is kept then
	used   atomic.Pointer[cluster.Resources]
	reach  reach
}

var _ membership.Parts = (*orchestrator)(nil)

// openTasks makes containers and files of tasks fit what the orchestrator knows, before a
// client can start one of them. Of a node that knows nothing of its cluster yet they stay as
// they are until a manager has told it.
func (d *Daemon) openTasks(ctx context.Context) error {
	o := d.orchestrator
	if o.lost != nil {
		return nil
	}
	node, err := o.part.Enter(ctx)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	if !o.part.Whole() {
		return nil
	}
	s := o.part.Part()
	x := executor.New(node, s, newTaskContainers(d), newTaskSupplies(d), o.log)
	if err := x.Open(ctx); err != nil {
		return err
	}
	if o.part.Alone() {
		d.spans.settle(ctx)
	}
	return agent.New(node, s, x, o.log).Open(ctx)
}

// openStore opens what the orchestrator knows: what this host's part in a cluster is, and the
// store that goes with it.
func (d *Daemon) openStore(context.Context) error {
	d.peers = newPeers(d)
	o := &orchestrator{d: d, log: d.log.With("component", "orchestrator")}
	program, err := beside("escale-store")
	if err != nil {
		program = "escale-store" // who makes a cluster is told that it is missing
	}
	path := filepath.Join(d.cfg.DataRoot, "state.db")
	o.part, err = membership.Open(membership.Config{
		Dir: filepath.Join(d.cfg.DataRoot, "cluster"), RunDir: filepath.Join(d.cfg.ExecRoot, "cluster"), Program: []string{program},
		Alone: func() (store.Store, error) { return o.openAlone(path) }, Forget: func() error { return remove(path) },
		Parts: o, Log: d.log.With("component", "cluster"),
	})
	if err != nil {
		return err
	}
	d.onClose(o.part.Close)
	o.apps = apps.New(o.part.Objects(), whoIsOn{d})
	o.keeper = apps.New(o.part.Part(), whoIsOn{d})
	o.swarm = o.newSwarm()
	d.orchestrator = o
	if d.spans != nil {
		d.spans.open(o.part)
	}
	return nil
}

// remove removes a file that may not be there.
func remove(path string) error {
	if err := os.Remove(path); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// openAlone opens the store of a host that is in no cluster. An engine whose store is damaged
// comes up without it: its containers go on, and who asks for apps is told.
func (o *orchestrator) openAlone(path string) (store.Store, error) {
	s, err := bolt.Open(path)
	if errdefs.IsDataLoss(err) {
		o.lost = err
		o.log.Error("APPS ARE NOT KEPT: their store is damaged. What runs goes on. Put a good copy in its place, or take it away to begin without apps, and start the engine again", "file", path, "error", err)
		return lostStore{mem.New(store.NewState()), err}, nil
	}
	if err != nil {
		return nil, err
	}
	if why := s.Swollen(); why != nil {
		o.log.Warn("the store of apps is larger than it has to be", "file", path, "error", why)
	}
	return s, nil
}

// lostStore stands for one that cannot be read: it is empty, and stays so.
type lostStore struct {
	*mem.Store
	why error
}

// Commit implements store.Store.
func (l lostStore) Commit(context.Context, ...store.Change) (uint64, error) {
	return 0, fmt.Errorf("apps are not kept: %w: %w", l.why, errdefs.ErrUnavailable)
}

// keepApps begins to keep apps, until ctx ends or release is called, which waits for the end of it.
func (d *Daemon) keepApps(ctx context.Context) (release func()) {
	ctx, cancel := context.WithCancel(ctx)
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		d.orchestrator.run(ctx)
	}()
	return func() {
		cancel()
		<-ended
	}
}

// loops are all there are; see Lead of membership.Parts.
func (o *orchestrator) loops(heard func(node string) bool) []loop.Loop {
	list := []loop.Loop{
		app.Loop{}, replicated.Loop{}, global.Loop{}, job.Loop{}, cron.Loop{}, depend.Loop{}, restart.Loop{}, update.Loop{}, enforce.Loop{}, reaper.Loop{}, allocate.Loop{},
		root.Loop{}, keys.Loop{}, retire.Loop{}, sweep.Loop{}, scheduler.Loop{Score: scheduler.Scores()[o.d.cfg.Scheduling], Heard: heard},
	}
	if o.d.cfg.Scheduling == "spread" { // the others put tasks where it would take them from
		list = append(list, scheduler.Rebalance{})
	}
	return list
}

// run keeps apps until ctx ends, and blocks. What runs goes on. In safe mode no container is
// started by it: the gate of the containers' own restarts is its, too.
func (o *orchestrator) run(ctx context.Context) { o.part.Run(ctx) }

// Lead implements membership.Parts.
func (o *orchestrator) Lead(ctx context.Context, s store.Store, heard func(string) bool) error {
	if o.lost != nil {
		<-ctx.Done()
		return nil
	}
	of, cluster := s.(move.LeaderStore)
	if !cluster {
		return loop.Run(ctx, s, o.log, o.loops(heard)...)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	moved := make(chan error, 1)
	go func() {
		err := o.moves().lead(ctx, of, o.log)
		cancel(err)
		moved <- err
	}()
	err := loop.Run(ctx, s, o.log, o.loops(heard)...)
	cancel(err)
	return errors.Join(err, <-moved)
}

// moves are the steps of moves of volumes, on all nodes.
func (o *orchestrator) moves() moveNodes { return moveNodes{o.d.peers.moves, o.d.peers, o.part.Node} }

// desk is what people ask of moves.
func (o *orchestrator) desk() *move.Desk {
	return &move.Desk{Store: o.part.Objects(), Nodes: o.moves(), Manages: swarm.Manages}
}

// Manage implements membership.Parts.
func (o *orchestrator) Manage(ctx context.Context, _ store.Store) error {
	return o.swarm.Events(ctx, o.d.events.Publish)
}

// Node implements membership.Parts.
func (o *orchestrator) Node(ctx context.Context, node string, s store.Store) error {
	if o.lost != nil {
		<-ctx.Done()
		return nil
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	supplies := newTaskSupplies(o.d)
	x := executor.New(node, s, newTaskContainers(o.d), supplies, o.log)
	var parts sync.WaitGroup
	for what, run := range map[string]func() error{
		"agent": func() error { return agent.New(node, s, x, o.log).Run(ctx) },
		"mesh": func() error {
			return mesh.New(node, s, &meshEngine{networks: o.d.networks, overlay: o.d.overlay, span: o.d.spans.make}, o.log).Run(ctx)
		},
		"supplies": func() error { return supply.New(s, supplies, o.log).Run(ctx) },
	} {
		parts.Go(func() {
			err := run()
			if err == nil {
				err = fmt.Errorf("ended: %w", context.Canceled)
			}
			cancel(fmt.Errorf("%s: %w", what, err))
		})
	}
	if o.d.cfg.Scheduling == "usage" {
		parts.Go(func() { o.measure(ctx, node, s) })
	}
	if !o.part.Alone() {
		parts.Go(func() { o.d.spans.settle(ctx) })
	}
	parts.Wait()
	return context.Cause(ctx)
}

// Peers implements membership.Parts.
func (o *orchestrator) Peers(ctx context.Context, k *ca.Keeper, l net.Listener) error {
	w := peerWorld{Node: o.part.Node(), Objects: o.part.Objects(), Barred: o.part.Barred, Managers: func() []dispatch.Manager { return o.part.State().Managers }}
	return o.d.peers.serve(ctx, k, w, o.d.server, l)
}

// Idle implements membership.Parts.
func (o *orchestrator) Idle(ctx context.Context) (bool, error) {
	list, err := newTaskContainers(o.d).Kept(ctx)
	if err != nil {
		return false, err
	}
	node := o.part.Node()
	for _, c := range list {
		if c.Node == node {
			return false, nil
		}
	}
	return len((&meshEngine{networks: o.d.networks, overlay: o.d.overlay}).Have()) == 0, nil
}

// Describe implements membership.Parts.
func (o *orchestrator) Describe() (string, cluster.NodeStatus) {
	name, s := o.describe()
	s.Encrypts = o.d.overlay != nil && o.d.overlay.Encrypts() == nil
	return name, s
}

// describe says what the node is, but for what concerns other nodes alone.
func (o *orchestrator) describe() (string, cluster.NodeStatus) {
	f := o.d.host
	s := cluster.NodeStatus{
		Version: Version, Platform: cluster.Platform{OS: "linux", Architecture: runtime.GOARCH}, EngineLabels: o.labels(), Plugins: o.plugins(),
		Resources: cluster.Resources{NanoCPUs: int64(f.CPUs) * 1e9, Memory: f.Memory},
	}
	if u := o.used.Load(); u != nil {
		s.Used = *u
	}
	o.outward(&s)
	return f.Hostname, s
}

// Enter implements membership.Parts.
func (o *orchestrator) Enter(ctx context.Context, s store.Store) (string, error) {
	if o.lost != nil {
		return "", nil
	}
	if err := o.d.localVolumes.FreeAll(); err != nil { // nobody else is left to say that they may be used
		o.log.Error("volumes that were being moved stay as they are", "error", err)
	}
	nodes := store.List[*cluster.Node](s.View())
	n := &cluster.Node{Meta: cluster.Meta{ID: cluster.NewID()}, Spec: cluster.NodeSpec{Manager: true, Availability: cluster.Active}}
	change := store.Create
	if len(nodes) > 0 {
		n, change = store.Copy(nodes[0]), store.Update
	}
	n.Name, n.Status = o.describe()
	n.Status.Encrypts = true // from who is alone nothing goes anywhere
	n.Status.Ready, n.Status.Since, n.Status.Addr = true, time.Now().UTC(), "127.0.0.1"
	_, err := s.Commit(ctx, change(n))
	return n.ID, err
}

// measured is how often the node's usage is looked at.
const measured = 10 * time.Second

// measure notes how busy this node is, when it is not as busy as it was, until ctx ends: who
// is alone writes it, others tell it.
func (o *orchestrator) measure(ctx context.Context, node string, s store.Store) {
	last, err := host.ReadUsage()
	for err == nil {
		select {
		case <-time.After(measured):
		case <-ctx.Done():
			return
		}
		var now host.Usage
		if now, err = host.ReadUsage(); err != nil {
			break
		}
		ticks := now.Total - last.Total
		used := cluster.Resources{Memory: now.Memory}
		if ticks > 0 {
			used.NanoCPUs = int64(float64(o.d.host.CPUs) * 1e9 * float64(now.Busy-last.Busy) / float64(ticks))
		}
		last = now
		n, found := store.Find[*cluster.Node](s.View(), node)
		if found != nil || !differs(n.Status.Used, used, n.Status.Resources) {
			continue
		}
		o.used.Store(&used)
		if !o.part.Alone() {
			continue
		}
		n = store.Copy(n)
		n.Status.Used = used
		if _, failed := s.Commit(ctx, store.Update(n)); failed != nil && !errdefs.IsConflict(failed) && ctx.Err() == nil {
			o.log.Warn("how busy this node is cannot be written", "error", failed)
		}
	}
	o.log.Warn("how busy this node is cannot be read", "error", err)
}

// differs tells whether usage has changed by a twentieth of what there is.
func differs(was, is, all cluster.Resources) bool {
	far := func(a, b, all int64) bool { return max(a-b, b-a) > all/20 }
	return far(was.NanoCPUs, is.NanoCPUs, all.NanoCPUs) || far(was.Memory, is.Memory, all.Memory)
}
