package daemon

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"path/filepath"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/agent"
	"escale.dev/escale/internal/cluster/apps"
	"escale.dev/escale/internal/cluster/executor"
	"escale.dev/escale/internal/cluster/mesh"
	"escale.dev/escale/internal/cluster/reconcile/allocate"
	"escale.dev/escale/internal/cluster/reconcile/app"
	"escale.dev/escale/internal/cluster/reconcile/cron"
	"escale.dev/escale/internal/cluster/reconcile/depend"
	"escale.dev/escale/internal/cluster/reconcile/enforce"
	"escale.dev/escale/internal/cluster/reconcile/global"
	"escale.dev/escale/internal/cluster/reconcile/job"
	"escale.dev/escale/internal/cluster/reconcile/reaper"
	"escale.dev/escale/internal/cluster/reconcile/replicated"
	"escale.dev/escale/internal/cluster/reconcile/restart"
	"escale.dev/escale/internal/cluster/reconcile/update"
	"escale.dev/escale/internal/cluster/scheduler"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/bolt"
	"escale.dev/escale/internal/cluster/store/loop"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/cluster/supply"
	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/sys/host"
	"github.com/containerd/errdefs"
)

// orchestrator keeps apps: this host is a cluster of one node.
type orchestrator struct {
	d    *Daemon
	log  *slog.Logger
	s    store.Store
	apps *apps.Apps
	lost error // why there is no store; nothing is kept then

	swarm *swarm.Swarm
	node  atomic.Pointer[string] // id of this one
}

// openTasks makes containers and files of tasks fit what the orchestrator knows, before a
// client can start one of them.
func (d *Daemon) openTasks(ctx context.Context) error {
	o := d.orchestrator
	if o.lost != nil {
		return nil
	}
	node, err := o.join(ctx)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	x := executor.New(node, o.s, newTaskContainers(d), newTaskSupplies(d), o.log)
	if err := x.Open(ctx); err != nil {
		return err
	}
	d.spans.settle(ctx)
	return agent.New(node, o.s, x, o.log).Open(ctx)
}

// openStore opens what the orchestrator knows. An engine whose store is damaged comes up
// without it: its containers go on, and who asks for apps is told.
func (d *Daemon) openStore(context.Context) error {
	path := filepath.Join(d.cfg.DataRoot, "state.db")
	o := &orchestrator{d: d, log: d.log.With("component", "orchestrator")}
	s, err := bolt.Open(path)
	switch {
	case errdefs.IsDataLoss(err):
		o.lost = err
		o.s = lostStore{mem.New(store.NewState()), err}
		o.log.Error("APPS ARE NOT KEPT: their store is damaged. What runs goes on. Put a good copy in its place, or take it away to begin without apps, and start the engine again", "file", path, "error", err)
	case err != nil:
		return err
	default:
		o.s = s
	}
	o.apps = apps.New(o.s, whoIsOn{d})
	o.swarm = o.newSwarm()
	d.orchestrator = o
	if d.spans != nil {
		d.spans.open(o.s)
	}
	d.onClose(o.s.Close)
	return nil
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

// loops are all there are.
func (o *orchestrator) loops() []loop.Loop {
	return []loop.Loop{
		app.Loop{}, replicated.Loop{}, global.Loop{}, job.Loop{}, cron.Loop{}, depend.Loop{}, restart.Loop{}, update.Loop{}, enforce.Loop{}, reaper.Loop{}, allocate.Loop{},
		scheduler.Loop{Score: scheduler.Scores()[o.d.cfg.Scheduling]},
	}
}

// pause is between an end of the orchestrator that nobody wanted and its next beginning.
const pause = time.Second

// run keeps apps until ctx ends. It blocks. What runs goes on. In safe mode no container is
// started by it: the gate of the containers' own restarts is its, too.
func (o *orchestrator) run(ctx context.Context) {
	for o.lost == nil {
		err := o.work(ctx)
		if ctx.Err() != nil {
			return
		}
		o.log.Error("the orchestrator has ended: beginning again", "error", err)
		select {
		case <-time.After(pause):
		case <-ctx.Done():
		}
	}
}

// work runs the loops and this node's part until ctx or one of them ends.
func (o *orchestrator) work(ctx context.Context) error {
	node, err := o.join(ctx)
	if err != nil {
		return fmt.Errorf("node: %w", err)
	}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	supplies := newTaskSupplies(o.d)
	x := executor.New(node, o.s, newTaskContainers(o.d), supplies, o.log)
	var parts sync.WaitGroup
	for what, run := range map[string]func() error{
		"loops": func() error { return loop.Run(ctx, o.s, o.log, o.loops()...) },
		"agent": func() error { return agent.New(node, o.s, x, o.log).Run(ctx) },
		"mesh": func() error {
			return mesh.New(node, o.s, &meshEngine{node: node, s: o.s, networks: o.d.networks, overlay: o.d.overlay}, o.log).Run(ctx)
		},
		"supplies": func() error { return supply.New(o.s, supplies, o.log).Run(ctx) },
		"events":   func() error { return o.swarm.Events(ctx, o.d.events.Publish) },
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
		parts.Go(func() { o.measure(ctx, node) })
	}
	parts.Wait()
	return context.Cause(ctx)
}

// join writes what this node is, and gives its id.
func (o *orchestrator) join(ctx context.Context) (string, error) {
	nodes := store.List[*cluster.Node](o.s.View())
	n := &cluster.Node{Meta: cluster.Meta{ID: cluster.NewID()}, Spec: cluster.NodeSpec{Manager: true, Availability: cluster.Active}}
	change := store.Create
	if len(nodes) > 0 {
		n, change = store.Copy(nodes[0]), store.Update
	}
	f := o.d.host
	n.Name = f.Hostname
	n.Status = cluster.NodeStatus{
		Ready: true, Since: time.Now().UTC(), Addr: cmp.Or(n.Status.Addr, "127.0.0.1"), Version: Version, Platform: cluster.Platform{OS: "linux", Architecture: runtime.GOARCH},
		Resources: cluster.Resources{NanoCPUs: int64(f.CPUs) * 1e9, Memory: f.Memory}, EngineLabels: o.labels(), Plugins: o.plugins(),
		ListenAddr: n.Status.ListenAddr, DataPathAddr: n.Status.DataPathAddr, Manager: n.Status.Manager,
	}
	_, err := o.s.Commit(ctx, change(n))
	o.node.Store(&n.ID)
	return n.ID, err
}

// measured is how often the node's usage is looked at.
const measured = 10 * time.Second

// measure writes how busy this node is, when it is not as busy as it was, until ctx ends.
func (o *orchestrator) measure(ctx context.Context, node string) {
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
		n, found := store.Find[*cluster.Node](o.s.View(), node)
		if found != nil || !differs(n.Status.Used, used, n.Status.Resources) {
			continue
		}
		n = store.Copy(n)
		n.Status.Used = used
		if _, failed := o.s.Commit(ctx, store.Update(n)); failed != nil && !errdefs.IsConflict(failed) && ctx.Err() == nil {
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
