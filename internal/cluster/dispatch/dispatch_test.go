package dispatch

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/storetest"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// secrets makes a secret and lets a task use it, by name.
func (w *world) secret(name string) {
	w.commit(store.Create(&cluster.Secret{Meta: cluster.Meta{ID: "id-" + name, Name: name}, Spec: cluster.SecretSpec{Data: []byte("data-of-" + name)}}))
}

func uses(names ...string) func(*cluster.Task) {
	return func(t *cluster.Task) {
		for _, n := range names {
			t.Spec.Secrets = append(t.Spec.Secrets, cluster.FileRef{Name: n})
		}
	}
}

// A node gets its tasks and what they need; of others' it gets where they are, when it
// has to reach them, and of secrets nothing that its tasks do not use.
func TestView(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2", "n3")
		for _, s := range []string{"one", "two", "three"} {
			w.secret(s)
		}
		web, db := w.service("web"), w.service("db")
		w.task("t1", web, "n1", uses("one"))
		w.task("t2", web, "n2", uses("two"))
		w.task("t3", db, "n3", uses("three"))
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		if !r.Connected() {
			t.Fatal("not connected")
		}
		own, err := store.Find[*cluster.Task](r.View(), "t1")
		if err != nil || len(own.Spec.Secrets) != 1 || own.Spec.Container.Env[0] != "PASSWORD=of-web" {
			t.Errorf("its own task: %+v, %v", own, err)
		}
		other, err := store.Find[*cluster.Task](r.View(), "t2")
		if err != nil || other.Node != "n2" || other.Owner != "web" || other.Spec.Container != nil || other.Spec.Secrets != nil || len(other.Networks) != 1 {
			t.Errorf("a task beside it: %+v, %v", other, err)
		}
		for what, c := range map[string]struct{ has, want bool }{
			"a task of a network that it has not":    {has[*cluster.Task](r, "t3"), false},
			"a service of such":                      {has[*cluster.Service](r, "db"), false},
			"the service of its task":                {has[*cluster.Service](r, "web"), true},
			"itself":                                 {has[*cluster.Node](r, "n1"), true},
			"the node of the task beside":            {has[*cluster.Node](r, "n2"), true},
			"another node":                           {has[*cluster.Node](r, "n3"), false},
			"its task's secret":                      {has[*cluster.Secret](r, "id-one"), true},
			"the secret of a task that is elsewhere": {has[*cluster.Secret](r, "id-two"), false},
			"the secret of nobody":                   {has[*cluster.Secret](r, "id-three"), false},
		} {
			if c.has != c.want {
				t.Errorf("%s: %t", what, c.has)
			}
		}
		if n := store.List[*cluster.Network](r.View()); len(n) != 1 || n[0].Spec.Name != "net-web" {
			t.Errorf("%d networks", len(n))
		}
		// A task of the other service comes, and one goes.
		w.task("t4", db, "n1", uses("three"))
		settle()
		if !has[*cluster.Secret](r, "id-three") || !has[*cluster.Task](r, "t3") || !has[*cluster.Node](r, "n3") {
			t.Error("what a new task needs is missing")
		}
		storetest.Change(w, w.s, "t4", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		settle()
		if has[*cluster.Secret](r, "id-three") || !has[*cluster.Task](r, "t4") || !has[*cluster.Task](r, "t3") {
			t.Error("a task that is to end keeps its secret, or loses more")
		}
		storetest.Change(w, w.s, "t4", func(t *cluster.Task) { t.Status.State = cluster.TaskShutdown })
		settle()
		if has[*cluster.Task](r, "t3") || has[*cluster.Node](r, "n3") || !has[*cluster.Task](r, "t4") {
			t.Error("a task that has ended still asks for what is beside it")
		}
		t4, _ := store.Find[*cluster.Task](w.s.View(), "t4")
		w.commit(store.Delete(t4))
		settle()
		if has[*cluster.Task](r, "t4") || has[*cluster.Service](r, "db") || !has[*cluster.Service](r, "web") {
			t.Error("what nobody needs any more is still there")
		}
	})
}

// No byte of what belongs to others reaches a node, whatever happens to tasks.
func TestNoStrangersSecrets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2")
		w.secret("one")
		w.secret("two")
		a := &cluster.App{Meta: cluster.Meta{ID: "app", Name: "shop"}, Spec: cluster.AppSpec{Secrets: map[string]cluster.SecretSpec{"two": {Data: []byte("data-of-two")}}}}
		w.commit(store.Create(a))
		// Its name is another's as well: the app's own comes first.
		w.commit(store.Create(&cluster.Secret{Meta: cluster.Meta{ID: "id-app", Name: "shop_one"}, Spec: cluster.SecretSpec{Data: []byte("data-of-the-app")}}))
		web := w.service("web", func(s *cluster.Service) {
			s.Owner = "app"
			s.Spec.Ports = []cluster.Port{{Target: 80, Published: 80}}
		})
		other := w.service("other", func(s *cluster.Service) { s.Spec.Networks = web.Spec.Networks })
		w.task("t1", web, "n1", uses("one"))
		w.task("t2", other, "n2", uses("two"), func(t *cluster.Task) { t.Spec.Auth = "of-the-registry" })
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		text := func() string {
			var b strings.Builder
			if err := store.Save(&b, r.View()); err != nil {
				t.Fatal(err)
			}
			return b.String()
		}
		data := func(s string) string { b, _ := json.Marshal([]byte(s)); return strings.Trim(string(b), `"`) }
		for range 3 {
			all := text()
			for _, no := range []string{data("data-of-two"), data("data-of-one"), "of-the-registry", "PASSWORD=of-other"} {
				if strings.Contains(all, no) {
					t.Errorf("%q is there:\n%s", no, all)
				}
			}
			for _, yes := range []string{data("data-of-the-app"), "PASSWORD=of-web", `"t2"`, `"other"`} {
				if !strings.Contains(all, yes) {
					t.Errorf("%q is not there:\n%s", yes, all)
				}
			}
			storetest.Change(w, w.s, "t2", func(t *cluster.Task) { t.Status.State = cluster.TaskRunning })
			storetest.Change(w, w.s, "other", func(s *cluster.Service) { s.Spec.Number++; s.Previous = &s.Spec })
			settle()
		}
	})
}

// What becomes of a task is written once the manager has it, and seen before that is said.
// Nothing else may be written.
func TestCommit(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2")
		web := w.service("web")
		w.task("t1", web, "n1")
		w.task("t2", web, "n2")
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		mine := func() *cluster.Task {
			x, err := store.Find[*cluster.Task](r.View(), "t1")
			if err != nil {
				t.Fatal(err)
			}
			return store.Copy(x)
		}
		x := mine()
		x.Status.State, x.Status.Message = cluster.TaskAccepted, "accepted"
		if _, err := r.Commit(t.Context(), store.Update(x)); err != nil {
			t.Fatal(err)
		}
		is, _ := store.Find[*cluster.Task](w.s.View(), "t1")
		if is.Status.Message != "accepted" || mine().Status.Message != "accepted" || x.Revision != is.Revision {
			t.Errorf("the cluster has %+v, the node %+v, its writer %d", is.Status, mine().Status, x.Revision)
		}
		desired, moved, back, lost := mine(), mine(), mine(), mine()
		desired.Desired, moved.Node, back.Status.State, lost.ID = cluster.TaskShutdown, "n2", cluster.TaskAssigned, "t9"
		theirs, _ := store.Find[*cluster.Task](r.View(), "t2")
		theirs = store.Copy(theirs)
		theirs.Status.State = cluster.TaskFailed
		service, _ := store.Find[*cluster.Service](r.View(), "web")
		stale := mine()
		stale.Revision--
		for what, c := range map[string]struct {
			change store.Change
			is     func(error) bool
		}{
			"what is wanted of a task": {store.Update(desired), errdefs.IsPermissionDenied},
			"its node":                 {store.Update(moved), errdefs.IsPermissionDenied},
			"an earlier state":         {store.Update(back), errdefs.IsFailedPrecondition},
			"one that there is not":    {store.Update(lost), errdefs.IsNotFound},
			"another's":                {store.Update(theirs), errdefs.IsPermissionDenied},
			"a service":                {store.Update(service), errdefs.IsPermissionDenied},
			"a task that is made":      {store.Create(&cluster.Task{}), errdefs.IsPermissionDenied},
			"a task that is removed":   {store.Delete(mine()), errdefs.IsPermissionDenied},
			"what is not so any more":  {store.Update(stale), errdefs.IsConflict},
			"a service, unchanged":     {store.Unchanged(service), func(err error) bool { return err == nil }},
		} {
			if _, err := r.Commit(t.Context(), c.change); !c.is(err) {
				t.Errorf("%s: %v", what, err)
			}
		}
		// The manager trusts no node to keep to that.
		w.mu.Lock()
		d := w.d
		w.mu.Unlock()
		halt := true
		status, _ := json.Marshal(cluster.TaskStatus{State: cluster.TaskFailed})
		for what, reports := range map[string][]Report{
			"another's":       {{Task: "t2", Status: status}},
			"another's, halt": {{Task: "t2", Halted: &halt}},
			"with others":     {{Task: "t1", Status: status}, {Task: "t2", Status: status}},
			"twice":           {{Task: "t1", Status: status}, {Task: "t1", Halted: &halt}},
			"nothing":         {{Task: "t1"}},
			"no JSON":         {{Task: "t1", Status: json.RawMessage("x"), Halted: &halt}},
			"no state":        {{Task: "t1", Status: json.RawMessage("{}")}},
			"a new one":       {{Task: "t1", Status: json.RawMessage(`{"State":"new"}`)}},
		} {
			if err := d.do(t.Context(), job{node: "n1", reports: reports}); err == nil {
				t.Errorf("%s: written", what)
			}
		}
		if is, _ := store.Find[*cluster.Task](w.s.View(), "t1"); is.Status.State != cluster.TaskAccepted || is.Halted {
			t.Errorf("what was refused was written: %t, %+v", is.Halted, is.Status)
		}
		// Once another leads, it is not the node's fault.
		w.s.over.Store(true)
		x = mine()
		x.Status.State = cluster.TaskPreparing
		if _, err := r.Commit(t.Context(), store.Update(x)); !errdefs.IsUnavailable(err) {
			t.Errorf("to one that does not lead any more: %v", err)
		}
		w.s.over.Store(false)
		w.silence("n1", true)
		settle()
		x = mine()
		x.Status.State = cluster.TaskPreparing
		if _, err := r.Commit(t.Context(), store.Update(x)); !errdefs.IsUnavailable(err) {
			t.Errorf("cut off: %v", err)
		}
		if mine().Status.State != cluster.TaskAccepted {
			t.Error("what nobody has is shown")
		}
	})
}

// That a client stops the container of a task on its node, or starts it again, is recorded,
// whatever the task says meanwhile.
func TestHalted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.task("t1", w.service("web"), "n1")
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		find := func(s store.Store) *cluster.Task {
			x, err := store.Find[*cluster.Task](s.View(), "t1")
			if err != nil {
				t.Fatal(err)
			}
			return store.Copy(x)
		}
		for _, halted := range []bool{true, false, true} {
			x := find(r)
			x.Halted = halted
			if _, err := r.Commit(t.Context(), store.Update(x)); err != nil {
				t.Fatal(err)
			}
			if is := find(w.s); is.Halted != halted || x.Halted != halted || x.Revision != is.Revision {
				t.Errorf("the cluster has %t; the node %t", is.Halted, x.Halted)
			}
		}
		// What the node said of the task just before stays.
		storetest.Change(w, w.s, "t1", func(t *cluster.Task) { t.Status.State, t.Status.Message = cluster.TaskRunning, "runs" })
		w.mu.Lock()
		d := w.d
		w.mu.Unlock()
		no := false
		if err := d.do(t.Context(), job{node: "n1", reports: []Report{{Task: "t1", Halted: &no}}}); err != nil {
			t.Fatal(err)
		}
		if is := find(w.s); is.Halted || is.Status.State != cluster.TaskRunning || is.Status.Message != "runs" {
			t.Errorf("%t, %+v", is.Halted, is.Status)
		}
		settle()
		x := find(r)
		x.Halted = true
		if _, err := r.Commit(t.Context(), store.Update(x)); err != nil {
			t.Fatal(err)
		}
		x = find(r) // and what it says with that is taken, too
		x.Halted, x.Status.State = false, cluster.TaskComplete
		if _, err := r.Commit(t.Context(), store.Update(x)); err != nil {
			t.Fatal(err)
		}
		if is := find(w.s); is.Halted || is.Status.State != cluster.TaskComplete {
			t.Errorf("%t, %+v", is.Halted, is.Status)
		}
	})
}

// What is to go from every node is told to all, as long as it is there.
func TestRemovedEverywhere(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2")
		w.commit(
			store.Create(&cluster.Network{Meta: cluster.Meta{ID: "net", Name: "net"}, Spec: cluster.NetworkSpec{Name: "net"}}),
			store.Create(&cluster.Volume{Meta: cluster.Meta{ID: "vol", Name: "vol"}, Spec: cluster.VolumeSpec{Name: "vol"}}))
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		if has[*cluster.Network](r, "net") || has[*cluster.Volume](r, "vol") {
			t.Error("a node has what it does not need")
		}
		storetest.Change(w, w.s, "net", func(n *cluster.Network) { n.Spec.Removed = true })
		storetest.Change(w, w.s, "vol", func(v *cluster.Volume) { v.Spec.Removed = true })
		settle()
		n, err1 := store.Find[*cluster.Network](r.View(), "net")
		v, err2 := store.Find[*cluster.Volume](r.View(), "vol")
		if err1 != nil || err2 != nil || !n.Spec.Removed || !v.Spec.Removed {
			t.Errorf("%+v, %v; %+v, %v", n, err1, v, err2)
		}
		late, _ := w.node("n2", "")
		settle()
		if !has[*cluster.Network](late, "net") || !has[*cluster.Volume](late, "vol") {
			t.Error("a node that comes later is not told")
		}
		n, _ = store.Find[*cluster.Network](w.s.View(), "net")
		v, _ = store.Find[*cluster.Volume](w.s.View(), "vol")
		w.commit(store.Delete(n), store.Delete(v))
		settle()
		if has[*cluster.Network](r, "net") || has[*cluster.Volume](late, "vol") {
			t.Error("it is told of what has gone")
		}
	})
}

// What a node owes is told to it alone: others may have something of that name.
func TestOwed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2")
		w.commit(store.Create(&cluster.Volume{Meta: cluster.Meta{ID: "vol", Name: "vol"}, Spec: cluster.VolumeSpec{Name: "vol", Removed: true}, Status: cluster.VolumeStatus{Node: "n2"}}))
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		if !has[*cluster.Volume](r, "vol") {
			t.Error("a node is not told of what goes everywhere")
		}
		storetest.Change(w, w.s, "vol", func(v *cluster.Volume) { v.Name, v.Status.Owed = "vol@vol", true })
		settle()
		if has[*cluster.Volume](r, "vol") {
			t.Error("a node is told of what another owes")
		}
		late, _ := w.node("n2", "")
		settle()
		if v, err := store.Find[*cluster.Volume](late.View(), "vol"); err != nil || v.Spec.Name != "vol" || !v.Spec.Removed || !v.Status.Owed {
			t.Errorf("who owes it is told %+v, %v", v, err)
		}
	})
}

// A dispatcher says why it has ended when it was not asked to.
func TestStoreClosed(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		d := New(w.s, 1, quiet)
		ended := make(chan error, 1)
		go func() { ended <- d.Run(t.Context()) }()
		settle()
		if err := w.s.Close(); err != nil {
			t.Fatal(err)
		}
		if err := <-ended; !errdefs.IsUnavailable(err) {
			t.Errorf("under it the store was closed: %v", err)
		}
	})
}

// A manager that stood still has heard nobody, and takes nobody for dead.
func TestStoodStill(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2")
		w.elect("a:1", 1)
		w.node("n1", "")
		time.Sleep(2 * Grace)
		synctest.Wait()
		w.mu.Lock()
		d := w.d
		w.mu.Unlock()
		silent := func(stood bool) []string {
			d.mu.Lock()
			long := time.Since(d.begun) - Dead - time.Second
			d.sessions["n1"].last.Store(int64(long))
			d.seen["n2"] = long
			d.mu.Unlock()
			return d.silent(stood)
		}
		if list := silent(true); len(list) > 0 || !d.connected("n1") {
			t.Errorf("%v are taken for dead", list)
		}
		if list := silent(false); len(list) != 2 || d.connected("n1") {
			t.Errorf("%v are dead", list)
		}
	})
}

// A node that is not heard of for long is down; when it comes back it is not, and
// one that is only cut off for a moment never is.
func TestHealth(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2")
		w.elect("a:1", 1)
		w.node("n1", "")
		_, end := w.node("n2", "")
		settle()
		is := func(id string) cluster.NodeStatus {
			n, err := store.Find[*cluster.Node](w.s.View(), id)
			if err != nil {
				t.Fatal(err)
			}
			return n.Status
		}
		if !is("n1").Ready || !is("n2").Ready || is("n1").Addr != "10.0.0.1" {
			t.Fatalf("%+v, %+v", is("n1"), is("n2"))
		}
		w.cut("n1")
		end()
		time.Sleep(Dead - time.Second)
		if !is("n2").Ready {
			t.Error("down before its time")
		}
		time.Sleep(time.Second + 2*watched)
		synctest.Wait()
		if n := is("n2"); n.Ready || n.Message != heartbeat || time.Since(n.Since) > time.Second {
			t.Errorf("silent for long: %+v", n)
		}
		if n := is("n1"); !n.Ready || time.Since(n.Since) < Dead {
			t.Errorf("it has come back before anybody missed it: %+v", n)
		}
		w.node("n2", "")
		settle()
		if n := is("n2"); !n.Ready || n.Message != "" {
			t.Errorf("back: %+v", n)
		}
		// After a change of leaders all have time to come.
		w.silence("n1", true)
		w.elect("b:1", 2)
		time.Sleep(Grace - time.Second)
		if !is("n1").Ready {
			t.Error("a new leader gives no grace")
		}
		w.mu.Lock()
		d := w.d
		w.mu.Unlock()
		if d.Heard("n1") || !d.Heard("n2") {
			t.Errorf("meanwhile n1 is heard %t, n2 %t", d.Heard("n1"), d.Heard("n2"))
		}
		time.Sleep(time.Second + 2*watched)
		synctest.Wait()
		if is("n1").Ready || !is("n2").Ready {
			t.Errorf("after the grace: %+v, %+v", is("n1"), is("n2"))
		}
		if time.Sleep(time.Second); !d.Heard("n1") {
			t.Error("after the grace a node is not what the store says of it")
		}
	})
}

// A node whose connection does not last is there all the same.
func TestUnsteady(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.elect("a:1", 1)
		w.node("n1", "")
		settle()
		n, _ := store.Find[*cluster.Node](w.s.View(), "n1")
		for range 100 {
			w.cut("n1")
			time.Sleep(200 * time.Millisecond)
		}
		settle()
		if now, _ := store.Find[*cluster.Node](w.s.View(), "n1"); !now.Status.Ready || !now.Status.Since.Equal(n.Status.Since) {
			t.Errorf("it was taken for dead: %+v", now.Status)
		}
	})
}

// What a node and a manager say when there is nothing to say.
func TestIdle(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.task("t1", w.service("web"), "n1")
		w.elect("a:1", 1)
		w.node("n1", "")
		time.Sleep(10 * time.Second)
		w.mu.Lock()
		w.msgs, w.bytes = 0, 0
		w.mu.Unlock()
		time.Sleep(100 * time.Second)
		w.mu.Lock()
		defer w.mu.Unlock()
		t.Logf("%d messages and %d bytes of JSON in 100 s", w.msgs, w.bytes)
		if w.msgs > 402 || w.bytes > 3000 {
			t.Errorf("%d messages, %d bytes", w.msgs, w.bytes)
		}
	})
}

// A node that was away gets what has changed, and no more; from any manager.
func TestReturn(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		web := w.service("web")
		for _, id := range []string{"t1", "t2", "t3", "t4"} {
			w.task(id, web, "n1")
		}
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		w.silence("n1", true)
		time.Sleep(10 * time.Second)
		storetest.Change(w, w.s, "t1", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		t2, _ := store.Find[*cluster.Task](w.s.View(), "t2")
		w.commit(store.Delete(t2))
		w.elect("b:1", 2)
		w.mu.Lock()
		w.sent["n1"] = 0
		w.mu.Unlock()
		w.silence("n1", false)
		time.Sleep(2 * lastPause)
		settle()
		t1, err := store.Find[*cluster.Task](r.View(), "t1")
		if err != nil || t1.Desired != cluster.TaskShutdown || has[*cluster.Task](r, "t2") || !has[*cluster.Task](r, "t3") {
			t.Errorf("%+v, %v", t1, err)
		}
		if n := w.sent["n1"]; n > 3 { // the task, and the node itself: down, and back
			t.Errorf("%d objects were sent", n)
		}
	})
}

// A node that starts while it is cut off knows what it knew, but for secrets.
func TestKept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.secret("one")
		w.task("t1", w.service("web"), "n1", uses("one"))
		w.elect("a:1", 7)
		path := filepath.Join(t.TempDir(), "view.json")
		r, stop := w.node("n1", path)
		settle()
		if !has[*cluster.Secret](r, "id-one") {
			t.Fatal("no secret")
		}
		stop()
		if b, err := os.ReadFile(path); err != nil || strings.Contains(string(b), `"secret"`) {
			t.Errorf("%s, %v", b, err)
		}
		if st, err := os.Stat(path); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v", st, err)
		}
		w.silence("n1", true)
		r, stop = w.node("n1", path)
		if err := r.Ready(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !has[*cluster.Task](r, "t1") || !has[*cluster.Service](r, "web") || has[*cluster.Secret](r, "id-one") || r.Managers()[0].Addr != "a:1" {
			t.Error("what was kept is not what it is to be")
		}
		w.silence("n1", false)
		time.Sleep(2 * lastPause)
		settle()
		if !has[*cluster.Secret](r, "id-one") {
			t.Error("the secret has not come back")
		}
		// A leader of before has nothing to say.
		w.elect("a:1", 6)
		time.Sleep(2 * lastPause)
		settle()
		if r.Connected() {
			t.Error("a leader whose term is over is listened to")
		}
		w.elect("a:1", 8)
		time.Sleep(2 * lastPause)
		settle()
		if !r.Connected() {
			t.Error("the new leader is not listened to")
		}
		stop()
		for text, ok := range map[string]bool{"x": true, "": true, `{"Format":2}`: false} {
			if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := Open(Config{Node: "n1", Path: path, Log: quiet}); (err == nil) != ok {
				t.Errorf("%q: %v", text, err)
			}
		}
	})
}

// A node that is removed is told so, and not let in again.
func TestRemovedNode(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.elect("a:1", 1)
		r, _ := w.node("n1", "")
		settle()
		n, _ := store.Find[*cluster.Node](w.s.View(), "n1")
		w.commit(store.Delete(n))
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if r.Connected() {
			t.Error("it is still connected")
		}
		if err := r.Err(); !errdefs.IsPermissionDenied(err) {
			t.Errorf("it does not know why: %v", err)
		}
		w.mu.Lock()
		w.d.mu.Lock()
		if n := len(w.d.seen); n > 0 {
			t.Errorf("%d nodes are waited for", n)
		}
		w.d.mu.Unlock()
		w.mu.Unlock()
		w.silence("n1", true) // that nobody answers any more says less
		time.Sleep(10 * time.Second)
		if err := r.Err(); !errdefs.IsPermissionDenied(err) {
			t.Errorf("it does not know why any more: %v", err)
		}
		if _, err := store.Find[*cluster.Node](w.s.View(), "n1"); !errdefs.IsNotFound(err) {
			t.Errorf("it has made itself anew: %v", err)
		}
	})
}

// The keys of an encrypted network are with those nodes that have a task on it, or a container,
// as long as they do, also when others come in their place; on no disk of a node.
func TestNetworkKeys(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1", "n2", "n3")
		n := &cluster.Network{Meta: cluster.Meta{ID: "sealed", Name: "sealed"}, Spec: cluster.NetworkSpec{Name: "sealed", Create: &network.CreateRequest{Driver: "overlay", Attachable: true, Options: map[string]string{"encrypted": ""}}}}
		w.commit(store.Create(n))
		on := func(t *cluster.Task) {
			t.Networks = []cluster.Attachment{{Network: "sealed"}}
			t.Addresses = []cluster.TaskAddress{{Network: "sealed", Addr: netip.MustParsePrefix("10.9.0.2/24")}}
		}
		web := w.service("web", func(*cluster.Service) {})
		w.task("t1", web, "n1", on)
		w.elect("a:1", 1)
		path := filepath.Join(t.TempDir(), "view")
		nodes := map[string]*Remote{}
		for _, id := range []string{"n1", "n2", "n3"} {
			file := ""
			if id == "n1" {
				file = path
			}
			nodes[id], _ = w.node(id, file)
		}
		has := func(id string) string {
			s, err := store.Named[*cluster.Secret](nodes[id].View(), cluster.KeysOf("sealed"))
			if err != nil {
				return ""
			}
			return string(s.Spec.Data)
		}
		want := func(when string, n1, n2, n3 string) {
			t.Helper()
			settle()
			if got := [3]string{has("n1"), has("n2"), has("n3")}; got != [3]string{n1, n2, n3} {
				t.Errorf("%s nodes have the keys %q", when, got)
			}
		}
		want("at first", "", "", "")
		keys := &cluster.Secret{Meta: cluster.Meta{ID: "k", Name: cluster.KeysOf("sealed")}, Spec: cluster.SecretSpec{Network: "sealed", Data: []byte("first")}}
		w.commit(store.Create(keys))
		want("made", "first", "", "")
		// A task cannot ask for them by their name or id.
		w.task("t2", web, "n2", func(t *cluster.Task) {
			t.Spec.Secrets = []cluster.FileRef{{Name: cluster.KeysOf("sealed")}}
		})
		want("with a task that asks for them,", "first", "", "")
		storetest.Change(w, w.s, "sealed", func(n *cluster.Network) {
			n.Status.Attached = []cluster.Attached{{Node: "n3", Container: "c", Addrs: []netip.Prefix{netip.MustParsePrefix("10.9.0.3/24")}}}
		})
		want("with a container on another,", "first", "", "first")
		storetest.Change(w, w.s, "k", func(s *cluster.Secret) { s.Spec.Data = []byte("second") })
		want("exchanged,", "second", "", "second")
		time.Sleep(2 * keeping)
		if b, err := os.ReadFile(path); err != nil || bytes.Contains(b, []byte(base64.StdEncoding.EncodeToString([]byte("second")))) {
			t.Errorf("what a node keeps: %v, %s", err, b)
		}
		storetest.Change(w, w.s, "t1", func(t *cluster.Task) { t.Status.State = cluster.TaskShutdown })
		storetest.Change(w, w.s, "sealed", func(n *cluster.Network) { n.Status.Attached = nil })
		want("when nobody is on it any more", "", "", "")
	})
}

// Who was removed every node is told, and keeps; who does not lead cannot take it back.
func TestBarred(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		w := newWorld(t)
		w.machines("n1")
		w.elect("a:1", 1)
		path := filepath.Join(t.TempDir(), "view.json")
		r, stop := w.node("n1", path)
		settle()
		if r.Barred("gone") {
			t.Error("barred before it is removed")
		}
		c := w.managers()
		c.Barred = []string{"gone"}
		w.d.Tell(c)
		settle()
		if !r.Barred("gone") || r.Barred("n1") {
			t.Error("it was not told who was removed")
		}
		w.elect("", 0) // managers answer, and know less
		time.Sleep(10 * time.Second)
		if !r.Barred("gone") {
			t.Error("somebody who does not lead has taken it back")
		}
		stop()
		w.silence("n1", true)
		r, stop = w.node("n1", path)
		settle()
		if !r.Barred("gone") {
			t.Error("it was not kept")
		}
		w.silence("n1", false)
		w.elect("a:1", 2)
		time.Sleep(10 * time.Second)
		if !r.Connected() || r.Barred("gone") {
			t.Error("it is barred for ever")
		}
		stop()
	})
}
