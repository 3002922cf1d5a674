package membership

import (
	"bytes"
	"context"
	"errors"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
)

// saved is what a host's store has now.
func (h *host) saved() *store.State {
	h.Helper()
	var out bytes.Buffer
	if err := store.Save(&out, h.m.Objects().View()); err != nil {
		h.Fatal(err)
	}
	s, err := store.Load(&out)
	if err != nil {
		h.Fatal(err)
	}
	return s
}

// own is this host's node as it is to be written.
func (h *host) own() *cluster.Node {
	h.Helper()
	_, n := h.asked()
	return n
}

func (h *host) write(c ...store.Change) {
	h.Helper()
	if _, err := h.m.Objects().Commit(h.Context(), c...); err != nil {
		h.Fatal(err)
	}
}

func app(name string) store.Change {
	return store.Create(&cluster.App{Meta: cluster.Meta{Name: name}})
}

// All managers are lost, one of them but for a while: a host that has nothing becomes the
// cluster at the address of one. Workers come to it by themselves, and so does the manager that
// was away, as a worker; tokens are what they were.
func TestRestore(t *testing.T) {
	t.Parallel()
	a, b, w := newHost(t, "a"), newHost(t, "b"), newHost(t, "w")
	workers, managers := a.found()
	if err := b.join(a, managers); err != nil {
		t.Fatal(err)
	}
	if err := w.join(a, workers); err != nil {
		t.Fatal(err)
	}
	a.write(app("kept"))
	if err := b.m.Current(t.Context()); err != nil || b.apps() != "kept" {
		t.Errorf("current on another manager: %v, %q", err, b.apps())
	}
	saved := a.saved()
	a.write(app("later"))
	twin := newHost(t, "twin")
	if err := twin.m.Restore(t.Context(), saved, twin.own(), false); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "at "+a.addr+":2377 leads this cluster") {
		t.Errorf("while the cluster goes on: %v", err)
	}
	if left, err := os.ReadDir(twin.cfg.Dir); err != nil || len(left) != 0 || !twin.phase(alone)() {
		t.Errorf("what is refused leaves %v, %v", left, err)
	}
	a.stop() // for good
	ctx, cancel := context.WithTimeout(t.Context(), 2*time.Second)
	defer cancel()
	b.till("without a majority", func() bool { return errdefs.IsUnavailable(b.m.Current(ctx)) })

	c := newHost(t, "c")
	c.addr = a.addr
	if err := c.m.Restore(t.Context(), saved, c.own(), false); err != nil {
		t.Fatal(err)
	}
	id := c.m.Node()
	c.till("ready", c.ready)
	if c.apps() != "kept" || id == a.m.Node() {
		t.Errorf("apps: %q, node %s", c.apps(), id)
	}
	one, err := store.Named[*cluster.Cluster](c.m.Objects().View(), cluster.DefaultCluster)
	if err != nil || one.ID != "c1" {
		t.Fatalf("the cluster: %+v, %v", one, err)
	}
	node := func(id string) *cluster.Node {
		n, err := store.Find[*cluster.Node](c.m.Objects().View(), id)
		if err != nil {
			t.Fatal(err)
		}
		return n
	}
	if n := node(a.m.Node()); n.Spec.Manager || n.Status.Manager != nil {
		t.Errorf("the lost manager: %+v", n)
	}
	w.till("come back", func() bool { list := w.m.State().Managers; return w.ready() && len(list) == 1 && list[0].Node == id })
	b.till("a worker", func() bool { return b.phase(worker)() && b.ready() })
	if n := node(w.m.Node()); !n.Status.Ready {
		t.Errorf("the worker: %+v", n)
	}
	d := newHost(t, "d")
	if err := d.join(c, managers); err != nil {
		t.Errorf("with the token of before: %v", err)
	}
	d.till("a manager", func() bool { return d.ready() && d.apps() == "kept" })
	c.again()
	c.till("ready", func() bool { return c.ready() && c.apps() == "kept" && c.m.Node() == id })
}

// A manager is set back to what was saved, when asked so and no other runs.
func TestSetBack(t *testing.T) {
	t.Parallel()
	a, b := newHost(t, "a"), newHost(t, "b")
	_, token := a.found()
	a.write(app("kept"))
	saved := a.saved()
	a.write(app("later"))
	if err := b.join(a, token); err != nil {
		t.Fatal(err)
	}
	id := a.m.Node()
	a.till("two", func() bool {
		n, err := store.Find[*cluster.Node](a.m.Objects().View(), b.m.Node())
		return err == nil && n.Status.Manager != nil && n.Status.Manager.Reachable
	})
	if err := a.m.Restore(t.Context(), saved, nil, false); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("another manager runs: %v", err)
	}
	if err := a.m.Restore(t.Context(), saved, &cluster.Node{}, false); !errdefs.IsFailedPrecondition(err) && !errdefs.IsAlreadyExists(err) {
		t.Errorf("not set back: %v", err)
	}
	if err := b.m.Leave(t.Context()); err != nil {
		t.Fatal(err)
	}
	if err := a.m.Restore(t.Context(), saved, &cluster.Node{Status: cluster.NodeStatus{Manager: &cluster.ManagerStatus{}}}, false); !errdefs.IsAlreadyExists(err) {
		t.Errorf("in a cluster: %v", err)
	}
	a.till("as it was", a.ready)
	if err := a.m.Restore(t.Context(), saved, nil, false); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		a.till("set back", func() bool { return a.ready() && a.apps() == "kept" && a.m.Node() == id })
		a.again()
	}
	a.till("ready", a.ready)
	other := b.other()
	if err := a.m.Restore(t.Context(), other, nil, false); !errdefs.IsConflict(err) {
		t.Errorf("another cluster's: %v", err)
	}
	a.till("as it was", func() bool { return a.ready() && a.apps() == "kept" })
}

// other are the objects of another cluster.
func (h *host) other() *store.State {
	h.Helper()
	s := store.NewState()
	c, _ := h.asked(func(c *cluster.Cluster) { c.ID = "c2" })
	if _, err := mem.New(s).Commit(h.Context(), store.Create(c)); err != nil {
		h.Fatal(err)
	}
	return s
}

// What cannot be restored leaves nothing.
func TestRestoreFails(t *testing.T) {
	for name, spoil := range map[string]func(h *host, saved *store.State) *store.State{
		"no program": func(h *host, s *store.State) *store.State {
			h.cfg.Program = []string{"/no/such/program"}
			h.again()
			return s
		},
		"a root without its key": func(h *host, s *store.State) *store.State {
			c := store.Copy(store.List[*cluster.Cluster](s.View())[0])
			c.Status.Key = nil
			if _, err := mem.New(s).Commit(h.Context(), store.Update(c)); err != nil {
				h.Fatal(err)
			}
			return s
		},
		"apps": func(h *host, s *store.State) *store.State { h.write(app("own")); return s },
		"no cluster": func(*host, *store.State) *store.State {
			return store.NewState()
		},
		"a port in use": func(h *host, s *store.State) *store.State {
			l, err := net.Listen("tcp", h.addr+":7946")
			if err != nil {
				h.Fatal(err)
			}
			h.Cleanup(func() { _ = l.Close() })
			return s
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			h := newHost(t, "a")
			saved := spoil(h, h.other())
			was := h.apps()
			if err := h.m.Restore(t.Context(), saved, h.own(), false); err == nil {
				t.Fatal("it is restored")
			}
			if !h.m.Alone() || !h.empty() || h.apps() != was {
				t.Errorf("%+v, empty %v, apps %q", h.m.State(), h.empty(), h.apps())
			}
			h.write(app("more"))
		})
	}
}

// An engine that is killed while it restores finds its host as it was, or, once the record is
// written, as it is to be: at every step.
func TestRestoreKilled(t *testing.T) {
	steps := []struct {
		name string
		do   func(dir string, r record) error
		done bool // it is what it is to be
	}{
		{"prepared", func(string, record) error { return nil }, false},
		{"written", func(dir string, r record) error { return r.write(dir) }, true},
		{"identity moved", moved(identityFile), true},
		{"keys moved", moved(identityFile, keysFile), true},
		{"store moved", moved(identityFile, keysFile, serverDir), true},
		{"emptied", func(dir string, r record) error {
			return errors.Join(moved(identityFile, keysFile, serverDir)(dir, r), os.RemoveAll(filepath.Join(dir, readyDir)))
		}, true},
	}
	for _, s := range steps {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			for _, back := range []bool{false, true} {
				h := newHost(t, "a")
				saved, n, was := h.other(), h.own(), ""
				if back {
					h.found()
					h.write(app("kept"))
					saved, n, was = h.saved(), nil, "keptlater"
					h.write(app("later"))
				} else if _, err := mem.New(saved).Commit(t.Context(), app("kept")); err != nil {
					t.Fatal(err)
				}
				x := restorer{h.m}
				r, n, err := x.place(saved.View(), n)
				if err != nil {
					t.Fatal(err)
				}
				h.stop()
				if err := seatOnly(t.Context(), mem.New(saved), n); err != nil {
					t.Fatal(err)
				}
				if _, err := x.prepare(t.Context(), filepath.Join(h.cfg.Dir, readyDir), r, mem.New(saved)); err != nil {
					t.Fatal(err)
				}
				if err := s.do(h.cfg.Dir, r); err != nil {
					t.Fatal(err)
				}
				h.start()
				if s.done {
					was = "kept"
				}
				h.till("what it is to be", func() bool { return h.apps() == was && h.ready() && h.m.Alone() == (!back && !s.done) })
				if _, err := os.Stat(filepath.Join(h.cfg.Dir, readyDir)); !errors.Is(err, os.ErrNotExist) {
					t.Error("something is left")
				}
				if !back && !s.done && !h.empty() {
					t.Error("it is not empty")
				}
				h.stop()
			}
		})
	}
}

// moved has some of what lies ready in its place, as if the engine had been killed then.
func moved(names ...string) func(dir string, r record) error {
	return func(dir string, r record) error {
		err := r.write(dir)
		for _, n := range names {
			to := filepath.Join(dir, n)
			err = errors.Join(err, os.RemoveAll(to), os.Rename(filepath.Join(dir, readyDir, n), to))
		}
		return err
	}
}
