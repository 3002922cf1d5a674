package node

import (
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/ca"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/storetest"
	"github.com/containerd/errdefs"
)

// proxy stands between nodes and a manager, and cuts what goes through it.
type proxy struct {
	l  net.Listener
	to string

	mu    sync.Mutex
	conns map[net.Conn]bool
}

func newProxy(t *testing.T, to string) *proxy {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &proxy{l: l, to: to, conns: map[net.Conn]bool{}}
	t.Cleanup(func() {
		_ = l.Close()
		p.cut()
	})
	go p.run()
	return p
}

func (p *proxy) run() {
	for {
		a, err := p.l.Accept()
		if err != nil {
			return
		}
		b, err := net.Dial("tcp", p.to)
		if err != nil {
			_ = a.Close()
			continue
		}
		p.mu.Lock()
		p.conns[a], p.conns[b] = true, true
		p.mu.Unlock()
		for _, way := range [][2]net.Conn{{a, b}, {b, a}} {
			go func() {
				_, _ = io.Copy(way[0], way[1]) // either end may have been cut
				p.mu.Lock()
				delete(p.conns, way[0])
				delete(p.conns, way[1])
				p.mu.Unlock()
				_ = way[0].Close()
				_ = way[1].Close()
			}()
		}
	}
}

// cut ends all connections; new ones are possible.
func (p *proxy) cut() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for c := range p.conns {
		_ = c.Close()
	}
}

// A node whose connection is cut again and again says in the end all that it has to say; what
// it was told is written was written, and it is never taken for dead.
func TestCutConnections(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 1)
	a, _ := w.m.Authority()
	const tasks = 10
	w.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "n1"}}))
	for i := range tasks {
		w.commit(store.Create(&cluster.Task{Meta: cluster.Meta{ID: fmt.Sprint("t", i)}, Node: "n1", Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskAssigned}}))
	}
	p := newProxy(t, m.addr)
	storetest.Change(w, w.s, "m1", func(n *cluster.Node) { n.Status.Manager.Addr = p.l.Addr().String() })
	r := w.node(w.identity(a, "n1", ca.Worker, 0), []dispatch.Manager{{Addr: p.l.Addr().String()}})
	w.until("it is connected", r.Connected)
	stop := make(chan struct{})
	var cutter sync.WaitGroup
	cutter.Go(func() {
		rng := rand.New(rand.NewPCG(1, 2))
		for {
			select {
			case <-stop:
				return
			case <-time.After(time.Duration(rng.IntN(300)) * time.Millisecond):
				p.cut()
			}
		}
	})
	way := []cluster.TaskState{cluster.TaskAccepted, cluster.TaskPreparing, cluster.TaskReady, cluster.TaskStarting, cluster.TaskRunning, cluster.TaskComplete}
	lost := 0
	for _, state := range way {
		for i := range tasks {
			id := fmt.Sprint("t", i)
			w.until(fmt.Sprintf("%s is %s", id, state), func() bool {
				x, err := store.Find[*cluster.Task](r.View(), id)
				if err != nil {
					t.Fatal(err)
				}
				if x.Status.State == state {
					return true // it was written, though nobody could say so
				}
				x = store.Copy(x)
				x.Status.State = state
				_, err = r.Commit(t.Context(), store.Update(x))
				switch is, _ := store.Find[*cluster.Task](w.s.View(), id); {
				case err == nil && is.Status.State != state:
					t.Errorf("%s: it was said to be %s, and is %s", id, state, is.Status.State)
				case errdefs.IsUnavailable(err):
					lost++
				}
				return err == nil
			})
		}
	}
	close(stop)
	cutter.Wait()
	t.Logf("%d answers were lost", lost)
}

// A stream does not outlive its certificate.
func TestStill(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 1)
	who := ca.Peer{Node: "m1", Expires: time.Now().Add(time.Minute)}
	if err := m.still(who); err != nil {
		t.Error(err)
	}
	who.Expires = time.Now().Add(-time.Second)
	if err := m.still(who); !errdefs.IsUnauthorized(err) {
		t.Errorf("expired: %v", err)
	}
}
