package move

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

func (w *world) begin(a Asked) string {
	w.Helper()
	id, err := w.desk().Begin(w.Context(), a)
	if err != nil {
		w.Fatal(err)
	}
	return id
}

// over waits for the end of a move.
func (w *world) over(id string) Shown {
	w.Helper()
	var m Shown
	w.till("move", func() bool {
		var err error
		if m, err = w.desk().Get(id); err != nil {
			w.Fatal(err)
		}
		return m.Over
	})
	return m
}

// A volume goes to another node, the task that has it with it; what comes in its place later stays there.
func TestMove(t *testing.T) {
	for _, keep := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "n1", "n2", "n3")
			defer w.stop()
			s := w.serve("db", 1, "data")
			at := w.running(s.ID)[0]
			to := map[string]string{"n1": "n2", "n2": "n3", "n3": "n1"}[at]
			w.put(at, "data", "precious")
			w.steps(20)
			defer w.lead(1)()
			id := w.begin(Asked{Volumes: []string{"data"}, To: "host-" + to, Keep: keep})
			var seen []string
			w.till("copying", func() bool {
				m, err := w.desk().Get("data")
				if err == nil && !slices.Contains(seen, m.Phase) {
					seen = append(seen, m.Phase)
				}
				for _, t := range store.List[*cluster.Task](w.s.View(), store.Owner(s.ID)) {
					if want := fmt.Sprintf(`volume "data" is being moved from node host-%s to node host-%s`, at, to); t.Status.State == cluster.TaskPending && strings.Contains(t.Status.Err, want) && m.Bytes > 3 && m.Total == 20 {
						return true
					}
				}
				return false
			})
			if _, err := w.desk().Begin(t.Context(), Asked{Volumes: []string{"data"}, To: to}); !errdefs.IsConflict(err) {
				t.Errorf("moved twice at once: %v", err)
			}
			if m := w.over(id); m.Phase != "done" || m.Message != "" || m.From.Name != "host-"+at {
				t.Errorf("%+v", m)
			}
			w.till("runs there", func() bool { return slices.Equal(w.running(s.ID), []string{to}) })
			if got, want := w.has(at, "data"), map[bool]string{false: "-", true: "precious"}[keep]; got != want || w.has(to, "data") != "precious" {
				t.Errorf("%s there, %s here", got, w.has(to, "data"))
			}
			if err := w.desk().Cancel(t.Context(), id); !errdefs.IsFailedPrecondition(err) {
				t.Errorf("canceled afterwards: %v", err)
			}
			// Whoever takes the place goes there, too.
			for _, task := range store.List[*cluster.Task](w.s.View(), store.Owner(s.ID)) {
				if task.Status.State == cluster.TaskRunning {
					c := store.Copy(task)
					c.Status.State = cluster.TaskFailed
					w.commit(store.Update(c))
				}
			}
			w.till("runs there again", func() bool { return slices.Equal(w.running(s.ID), []string{to}) })
			time.Sleep(kept)
			w.till("the move is forgotten", func() bool {
				list, err := w.desk().List()
				return err == nil && len(list) == 0
			})
		})
	}
}

// A place whose task has ended for good, and one that waits for its node, go where the volume goes.
func TestMoveOfPlacesThatWait(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		defer w.stop()
		s := w.serve("db", 1, "data")
		at := w.running(s.ID)[0]
		to := map[string]string{"n1": "n2", "n2": "n1"}[at]
		w.put(at, "data", "precious")
		w.commit(store.Create(&cluster.Volume{Meta: cluster.Meta{ID: "v", Name: "data"}, Spec: cluster.VolumeSpec{Name: "data"}, Status: cluster.VolumeStatus{Node: at}}))
		n, err := store.Find[*cluster.Node](w.s.View(), at)
		if err != nil {
			t.Fatal(err)
		}
		n = store.Copy(n)
		n.Spec.Availability = cluster.Drain
		w.commit(store.Update(n))
		w.till("waits", func() bool {
			return slices.ContainsFunc(store.List[*cluster.Task](w.s.View(), store.Owner(s.ID)), func(t *cluster.Task) bool {
				return t.Status.State == cluster.TaskPending && strings.Contains(t.Status.Err, `"escale volume move data NODE" takes it along`)
			})
		})
		defer w.lead(1)()
		if m := w.over(w.begin(Asked{Volumes: []string{"data"}, To: to})); m.Phase != "done" {
			t.Errorf("%+v", m)
		}
		w.till("runs there", func() bool { return slices.Equal(w.running(s.ID), []string{to}) && w.has(to, "data") == "precious" })
		if v, err := store.Find[*cluster.Volume](w.s.View(), "v"); err != nil || v.Status.Node != to {
			t.Errorf("where an app's volume is: %+v, %v", v, err)
		}
	})
}

// Whatever fails before the volume has arrived, the service has it where it was, and nothing is left of it
// on the other node.
func TestMoveUndone(t *testing.T) {
	for what, spoil := range map[string]func(w *world, at, to, call string) error{
		"the disk is full": func(_ *world, _, _, call string) error {
			if call == "fetch" {
				return errors.New("no space left on device")
			}
			return nil
		},
		"node n2 is not available": func(_ *world, _, to, call string) error {
			if call == "fetch" {
				return errdefs.ErrUnavailable.WithMessage("node n2 is not available")
			}
			return nil
		},
		"in use by mine": func(_ *world, _, _, call string) error {
			if call == "hold" {
				return errdefs.ErrConflict.WithMessage("volume data is in use by mine")
			}
			return nil
		},
		"canceled": nil,
	} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			defer w.stop()
			s := w.serve("db", 1, "data", "more")
			at := w.running(s.ID)[0]
			to := map[string]string{"n1": "n2", "n2": "n1"}[at]
			w.put(at, "data", "precious")
			defer w.lead(1)()
			if spoil != nil {
				w.mu.Lock()
				w.before = func(call string) error { return spoil(w, at, to, call) }
				w.mu.Unlock()
			} else {
				w.steps(1000)
			}
			id := w.begin(Asked{Volumes: []string{"data", "more"}, To: to})
			if spoil == nil {
				w.till("copying", func() bool { m, err := w.desk().Get(id); return err == nil && m.Bytes > 10 })
				if err := w.desk().Cancel(t.Context(), "data"); err != nil {
					t.Error(err)
				}
			}
			m := w.over(id)
			if m.Phase != "undone" || spoil == nil && m.Message != "canceled" || spoil != nil && m.Message == "" {
				t.Errorf("%s: %+v", what, m)
			}
			w.till(what, func() bool {
				return slices.Equal(w.running(s.ID), []string{at}) && w.has(at, "data") == "precious" && w.has(to, "data") == "-" && w.has(to, "more") == "-"
			})
		})
	}
}

// What a step of a former leader leaves on a node after the end of its move is swept, and the move is
// not forgotten before both nodes have answered, or are none any more.
func TestMoveSwept(t *testing.T) {
	for _, removed := range []bool{false, true} {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			defer w.stop()
			s := w.serve("db", 1, "data")
			at := w.running(s.ID)[0]
			to := map[string]string{"n1": "n2", "n2": "n1"}[at]
			w.put(at, "data", "precious")
			defer w.lead(1)()
			w.steps(1000)
			id := w.begin(Asked{Volumes: []string{"data"}, To: to})
			w.till("copying", func() bool { m, err := w.desk().Get(id); return err == nil && m.Bytes > 10 })
			if err := w.desk().Cancel(t.Context(), "data"); err != nil {
				t.Error(err)
			}
			if m := w.over(id); m.Phase != "undone" {
				t.Fatalf("%+v", m)
			}
			w.mu.Lock()
			w.disks[at]["data"].held, w.down[to] = id, true
			w.disks[to]["data"] = &disk{content: "late", held: id, in: true}
			before := len(w.calls)
			w.mu.Unlock()
			time.Sleep(2*sweeps + time.Second)
			for i := range 100 { // whatever else goes on
				n, err := store.Find[*cluster.Node](w.s.View(), at)
				if err != nil {
					t.Fatal(err)
				}
				n = store.Copy(n)
				n.Spec.Labels = map[string]string{"n": fmt.Sprint(i)}
				w.commit(store.Update(n))
				time.Sleep(10 * time.Millisecond)
			}
			w.mu.Lock()
			if asked := len(w.calls) - before; asked < 2 || asked > 8 {
				t.Errorf("nodes were asked %d times within two minutes", asked)
			}
			w.mu.Unlock()
			if got := w.has(at, "data"); got != "precious" {
				t.Errorf("on the first node the volume is %s", got)
			}
			moves := func() []*cluster.Move { return store.List[*cluster.Move](w.s.View()) }
			long := store.Copy(moves()[0])
			long.Status.At = long.Status.At.Add(-2 * kept) // as if so much had passed
			w.commit(store.Update(long))
			time.Sleep(2 * keptLook)
			if list := moves(); len(list) != 1 || list[0].Status.Swept {
				t.Errorf("a node has not answered, and there are %+v", list)
			}
			if removed {
				n, err := store.Find[*cluster.Node](w.s.View(), to)
				if err != nil {
					t.Fatal(err)
				}
				w.commit(store.Delete(n))
			} else {
				w.mu.Lock()
				w.down[to] = false
				w.mu.Unlock()
			}
			w.till("it is swept and forgotten", func() bool { return len(moves()) == 0 })
			if got := w.has(to, "data"); !removed && got != "-" {
				t.Errorf("on the second node the volume is %s", got)
			}
		})
	}
}

var errKilled = errors.New("killed")

// Whenever the leader is killed, the next one brings the move to its end; what a killed one asks for
// afterwards is not done. At no time two tasks have the volume.
func TestMoverKilled(t *testing.T) {
	done := false
	for kill := 1; !done; kill++ {
		synctest.Test(t, func(t *testing.T) {
			w := newWorld(t, "n1", "n2")
			defer w.stop()
			s := w.serve("db", 1, "data", "more")
			at := w.running(s.ID)[0]
			to := map[string]string{"n1": "n2", "n2": "n1"}[at]
			w.put(at, "data", "precious")
			id := w.begin(Asked{Volumes: []string{"more", "data"}, To: to})
			// The leader is killed with some call, which is carried out nevertheless, or not.
			calls, dead := 0, make(chan struct{})
			var die func()
			w.mu.Lock()
			w.before = func(string) error {
				if calls++; calls == kill {
					die()
					close(dead)
					if kill%2 == 0 {
						return errKilled
					}
				}
				return nil
			}
			die, stop := w.leader(1)
			w.mu.Unlock()
			ended := make(chan struct{})
			go func() {
				defer close(ended)
				w.over(id)
			}()
			select {
			case <-dead:
				stop()
				stop = w.lead(2)
				<-ended
			case <-ended:
				done = true // there are not so many calls
			}
			stop()
			m, err := w.desk().Get(id)
			if err != nil || m.Phase != "done" {
				t.Errorf("killed at call %d: %+v, %v", kill, m, err)
			}
			where, not := to, at
			if m.Phase == "undone" {
				where, not = at, to
			}
			w.till("the end", func() bool { return slices.Equal(w.running(s.ID), []string{where}) })
			if w.has(where, "data") != "precious" || w.has(not, "data") != "-" || w.has(not, "more") != "-" {
				t.Errorf("killed at call %d: %s: %s on %s, %s on %s", kill, m.Phase, w.has(where, "data"), where, w.has(not, "data"), not)
			}
			late := Step{Move: id, Volume: "data", Peer: not, Term: 1}
			if err := w.Hold(t.Context(), where, late); w.terms[where] == 2 && !errdefs.IsPermissionDenied(err) {
				t.Errorf("killed at call %d: a leader of before was heard: %v", kill, err)
			}
		})
		if kill > 50 {
			t.Fatal("it never ends")
		}
	}
}

// What is in the way of a move is said before anything is touched.
func TestMoveRefused(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2", "n3")
		defer w.stop()
		both := w.serve("both", 1, "b1", "b2")
		at := w.running(both.ID)[0]
		to := map[string]string{"n1": "n2", "n2": "n1", "n3": "n1"}[at]
		bound := w.serve("bound", 1, "tied")
		c, err := store.Find[*cluster.Service](w.s.View(), bound.ID)
		if err != nil {
			t.Fatal(err)
		}
		c = store.Copy(c)
		c.Spec.Task.Placement.Constraints = []string{"node.hostname==host-" + w.running(bound.ID)[0]}
		w.commit(store.Update(c))
		away := map[string]string{"n1": "n2", "n2": "n1", "n3": "n1"}[w.running(bound.ID)[0]]
		w.mu.Lock()
		w.disks["n3"]["far"] = &disk{options: map[string]string{"type": "nfs", "device": ":/x"}}
		w.disks["n3"]["bind"] = &disk{options: map[string]string{"type": "none", "device": "/srv"}}
		w.disks["n3"]["plug"] = &disk{driver: "cloud"}
		w.disks["n3"]["mine"] = &disk{users: []User{{Name: "zoe"}, {Name: "web.1", Task: "t"}}}
		w.disks["n1"]["two"], w.disks["n2"]["two"] = &disk{}, &disk{}
		w.disks["n3"]["idle"], w.disks["n3"]["back"] = &disk{content: "x"}, &disk{content: "x"}
		w.mu.Unlock()
		w.commit(store.Create(&cluster.Volume{Meta: cluster.Meta{Name: "back@1"}, Spec: cluster.VolumeSpec{Name: "back", Removed: true}, Status: cluster.VolumeStatus{Node: "n1", Owed: true}}))
		d := w.desk()
		for _, x := range []struct {
			a     Asked
			is    func(error) bool
			words string
		}{
			{Asked{Volumes: []string{"far"}, To: "n1"}, errdefs.IsNotImplemented, "volume far is on storage that nodes share (driver nfs)"},
			{Asked{Volumes: []string{"plug"}, To: "n1"}, errdefs.IsNotImplemented, "(driver cloud)"},
			{Asked{Volumes: []string{"bind"}, To: "n1"}, errdefs.IsNotImplemented, `its driver mounts /srv of type "none" on node host-n3`},
			{Asked{Volumes: []string{"mine"}, To: "n1"}, errdefs.IsConflict, "volume mine is used on node host-n3 by containers that are of no service: zoe"},
			{Asked{Volumes: []string{"two"}, To: "n3"}, errdefs.IsInvalidArgument, "volume two is on nodes host-n1, host-n2: say from which one"},
			{Asked{Volumes: []string{"two"}, To: "n2", From: "n1"}, errdefs.IsConflict, "node host-n2 has a volume two already"},
			{Asked{Volumes: []string{"idle"}, To: "n2", From: "n1"}, errdefs.IsNotFound, "node host-n1 has no volume idle"},
			{Asked{Volumes: []string{"idle"}, To: "n3"}, errdefs.IsConflict, "node host-n3 has a volume idle already"},
			{Asked{Volumes: []string{"back"}, To: "n1"}, errdefs.IsConflict, "node host-n1 has been away and is to remove a volume back of before"},
			{Asked{Volumes: []string{"nosuch"}, To: "n3"}, errdefs.IsNotFound, "no node has a volume nosuch"},
			{Asked{Volumes: []string{"idle"}, To: "nosuch"}, errdefs.IsNotFound, "node nosuch not found"},
			{Asked{To: "n1"}, errdefs.IsInvalidArgument, "no volume is named"},
			{Asked{Volumes: []string{"b1"}, To: to}, errdefs.IsFailedPrecondition, "service both has volume b2 on node host-" + at + ", too: move both at once"},
			{Asked{Volumes: []string{"tied"}, To: away}, errdefs.IsFailedPrecondition, "does not satisfy the constraints of service bound"},
		} {
			if _, err := d.Begin(t.Context(), x.a); !x.is(err) || !strings.Contains(err.Error(), x.words) {
				t.Errorf("%+v: %v, want %s", x.a, err, x.words)
			}
		}
		if list, err := d.List(); err != nil || len(list) > 0 {
			t.Errorf("%+v, %v", list, err)
		}
		w.mu.Lock()
		w.down["n2"] = true
		w.mu.Unlock()
		all, missing, err := d.Volumes(t.Context())
		if err != nil || !slices.Equal(missing, []string{"host-n2"}) || !slices.ContainsFunc(all, func(p Placed) bool { return p.Name == "idle" && p.Node == Place{"n3", "host-n3"} }) {
			t.Errorf("%+v, %v, %v", all, missing, err)
		}
		if _, err := d.Begin(t.Context(), Asked{Volumes: []string{"idle"}, To: "n2"}); !errdefs.IsUnavailable(err) {
			t.Errorf("to a node that is not there: %v", err)
		}
		if _, err := d.Begin(t.Context(), Asked{Volumes: []string{"two"}, From: "n2", To: "n3"}); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "node host-n2 is not available") {
			t.Errorf("from a node that is not there: %v", err)
		}
		d.Manages = func(store.View) error { return errdefs.ErrUnavailable }
		if _, err := d.Begin(context.Background(), Asked{Volumes: []string{"idle"}, To: "n1"}); !errdefs.IsUnavailable(err) {
			t.Errorf("on no manager: %v", err)
		}
	})
}

// A volume that no task has is moved, too; two moves are done one after the other.
func TestMovesInTurn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t, "n1", "n2")
		defer w.stop()
		w.put("n1", "a", "1")
		w.put("n1", "b", "2")
		w.steps(5)
		first := w.begin(Asked{Volumes: []string{"a"}, To: "n2"})
		time.Sleep(time.Millisecond)
		second := w.begin(Asked{Volumes: []string{"b"}, To: "n2"})
		defer w.lead(1)()
		w.till("the first copies", func() bool { m, err := w.desk().Get(first); return err == nil && m.Phase == "copying" })
		if m, err := w.desk().Get(second); err != nil || m.Phase != "" {
			t.Errorf("%+v, %v", m, err)
		}
		for _, id := range []string{first, second} {
			if m := w.over(id); m.Phase != "done" {
				t.Errorf("%+v", m)
			}
		}
		if w.has("n2", "a") != "1" || w.has("n2", "b") != "2" || w.has("n1", "a") != "-" {
			t.Errorf("%s %s %s", w.has("n2", "a"), w.has("n2", "b"), w.has("n1", "a"))
		}
	})
}
