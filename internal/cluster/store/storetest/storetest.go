// Package storetest is the contract of stores: what every implementation passes.
package storetest

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Run tests a store. open opens one on what dir holds; the store of a kind that
// keeps nothing is empty each time, and says so by durable.
func Run(t *testing.T, durable bool, open func(t *testing.T, dir string) store.Store) {
	for name, test := range map[string]func(t *testing.T, s store.Store){
		"commit": testCommit, "refused": testRefused, "conflict": testConflict, "names": testNames, "lists": testLists,
		"watch": testWatch, "slow watch": testSlowWatch, "shared": testShared, "saved": testSaved, "many": testMany, "closed": testClosed,
	} {
		t.Run(name, func(t *testing.T) {
			s := open(t, t.TempDir())
			t.Cleanup(func() { _ = s.Close() })
			test(t, s)
		})
	}
	if durable {
		t.Run("durable", func(t *testing.T) { testDurable(t, open) })
	}
}

func service(name string) *cluster.Service {
	return &cluster.Service{Meta: cluster.Meta{Name: name, Labels: map[string]string{"a": "1"}}}
}

func must(t *testing.T, s store.Store, changes ...store.Change) uint64 {
	t.Helper()
	at, err := s.Commit(t.Context(), changes...)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

func testCommit(t *testing.T, s store.Store) {
	if s.View().Revision() != 0 {
		t.Fatalf("revision %d of nothing", s.View().Revision())
	}
	web := service("web")
	task := &cluster.Task{Meta: cluster.Meta{Owner: "x"}, Slot: 1}
	at := must(t, s, store.Create(web), store.Create(task))
	if at != 1 || web.ID == "" || web.Revision != 1 || web.CreatedAt.IsZero() || task.ID == web.ID {
		t.Errorf("made at %d: %+v %+v", at, web.Meta, task.Meta)
	}
	before := s.View()
	change := store.Copy(web)
	change.Spec.Labels = map[string]string{"new": "yes"}
	if at := must(t, s, store.Update(change), store.Delete(task)); at != 2 || change.Revision != 2 {
		t.Errorf("changed at %d: %+v", at, change.Meta)
	}
	if at := must(t, s, store.Unchanged(change)); at != 2 {
		t.Errorf("nothing led to revision %d", at)
	}
	if got, err := store.Find[*cluster.Service](before, web.ID); err != nil || got.Spec.Labels != nil || before.Revision() != 1 {
		t.Errorf("the view from before has %+v, %v", got, err)
	}
	got, err := store.Find[*cluster.Service](s.View(), web.ID)
	if err != nil || got.Spec.Labels["new"] != "yes" || got.UpdatedAt.Before(got.CreatedAt) {
		t.Errorf("the view of now has %+v, %v", got, err)
	}
	if _, err := store.Find[*cluster.Task](s.View(), task.ID); !errdefs.IsNotFound(err) {
		t.Errorf("a removed task: %v", err)
	}
}

func testRefused(t *testing.T, s store.Store) {
	web := service("web")
	must(t, s, store.Create(web))
	gone := service("gone")
	gone.ID = "gone"
	many := make([]store.Change, store.MaxChanges+1)
	for i := range many {
		many[i] = store.Create(service(fmt.Sprint("many", i)))
	}
	for name, c := range map[string]struct {
		changes []store.Change
		kind    error
	}{
		"not there":    {[]store.Change{store.Update(gone)}, errdefs.ErrNotFound},
		"removed":      {[]store.Change{store.Delete(gone)}, errdefs.ErrNotFound},
		"id taken":     {[]store.Change{store.Create(store.Copy(web))}, errdefs.ErrAlreadyExists},
		"twice":        {[]store.Change{store.Unchanged(web), store.Delete(web)}, errdefs.ErrInvalidArgument},
		"without name": {[]store.Change{store.Create(&cluster.Service{})}, errdefs.ErrInvalidArgument},
		"too many":     {many, errdefs.ErrInvalidArgument},
		"one is wrong": {[]store.Change{store.Create(service("other")), store.Delete(gone)}, errdefs.ErrNotFound},
	} {
		if _, err := s.Commit(t.Context(), c.changes...); !errors.Is(err, c.kind) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if got := store.List[*cluster.Service](s.View()); len(got) != 1 || s.View().Revision() != 1 {
		t.Errorf("what was refused left %d services at revision %d", len(got), s.View().Revision())
	}
	if at := must(t, s); at != 1 {
		t.Errorf("nothing leads to revision %d", at)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := s.Commit(ctx, store.Create(service("late"))); err == nil {
		if _, err := store.Named[*cluster.Service](s.View(), "late"); err != nil {
			t.Error("a commit that was given up and answered well is not there")
		}
	}
}

func testConflict(t *testing.T, s store.Store) {
	web := service("web")
	must(t, s, store.Create(web))
	mine, theirs := store.Copy(web), store.Copy(web)
	theirs.Spec.Number = 7
	must(t, s, store.Update(theirs))
	for name, c := range map[string]store.Change{"update": store.Update(mine), "delete": store.Delete(mine), "unchanged": store.Unchanged(mine)} {
		if _, err := s.Commit(t.Context(), c, store.Create(service("other"))); !errdefs.IsConflict(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	got, err := store.Find[*cluster.Service](s.View(), web.ID)
	if err != nil || got.Spec.Number != 7 || got.Revision != 2 || !got.CreatedAt.Equal(web.CreatedAt) {
		t.Errorf("%+v, %v", got, err)
	}
	// Of many who change the same, each in turn wins.
	var group sync.WaitGroup
	for range 8 {
		group.Go(func() {
			for range 10 {
				for {
					o, err := store.Find[*cluster.Service](s.View(), web.ID)
					if err != nil {
						t.Error(err)
						return
					}
					o = store.Copy(o)
					o.Spec.Number++
					if _, err = s.Commit(t.Context(), store.Update(o)); err == nil {
						break
					}
					if !errdefs.IsConflict(err) {
						t.Error(err)
						return
					}
				}
			}
		})
	}
	group.Wait()
	if got, err := store.Find[*cluster.Service](s.View(), web.ID); err != nil || got.Spec.Number != 87 {
		t.Errorf("80 changes led from 7 to %d, %v", got.Spec.Number, err)
	}
}

func testNames(t *testing.T, s store.Store) {
	a, b := service("a"), service("b")
	must(t, s, store.Create(a), store.Create(b), store.Create(&cluster.Network{Meta: cluster.Meta{Name: "a"}}))
	if _, err := s.Commit(t.Context(), store.Create(service("a"))); !errdefs.IsAlreadyExists(err) {
		t.Errorf("the name of another: %v", err)
	}
	if _, err := s.Commit(t.Context(), store.Create(service("c")), store.Create(service("c"))); !errdefs.IsAlreadyExists(err) {
		t.Errorf("one name for two: %v", err)
	}
	a, b = store.Copy(a), store.Copy(b)
	a.Name, b.Name = "b", "a"
	must(t, s, store.Update(a), store.Update(b)) // they change names
	must(t, s, store.Delete(a), store.Create(service("b")))
	for range 2 { // tasks have no name of their own
		must(t, s, store.Create(&cluster.Task{Meta: cluster.Meta{Name: "x.1"}}))
	}
	v := s.View()
	got, err := store.Resolve[*cluster.Service](v, "a")
	if err != nil || got.ID != b.ID {
		t.Errorf("a is %v, %v", got, err)
	}
	if got, err = store.Resolve[*cluster.Service](v, b.ID[:20]); err != nil || got.ID != b.ID {
		t.Errorf("the beginning of an id: %v, %v", got, err)
	}
	if _, err := store.Resolve[*cluster.Task](v, "x.1"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("two tasks of one name: %v", err)
	}
	for _, ref := range []string{"", "nosuch"} {
		if _, err := store.Resolve[*cluster.Service](v, ref); !errdefs.IsNotFound(err) {
			t.Errorf("%q: %v", ref, err)
		}
	}
}

func testLists(t *testing.T, s store.Store) {
	web, db := service("web"), service("db")
	db.Labels = map[string]string{"a": "2", "tier": "data"}
	must(t, s, store.Create(web), store.Create(db))
	for i := range 6 {
		owner := []*cluster.Service{web, db}[i%2]
		must(t, s, store.Create(&cluster.Task{Meta: cluster.Meta{Owner: owner.ID}, Node: []string{"n1", "n10", ""}[i%3]}))
	}
	v := s.View()
	for name, c := range map[string]struct{ got, want int }{
		"all":           {len(store.List[*cluster.Service](v)), 2},
		"none":          {len(store.List[*cluster.Volume](v)), 0},
		"label":         {len(store.List[*cluster.Service](v, store.Label("a"))), 2},
		"value":         {len(store.List[*cluster.Service](v, store.LabelIs("a", "2"))), 1},
		"two":           {len(store.List[*cluster.Service](v, store.Label("a"), store.Label("tier"))), 1},
		"owner":         {len(store.List[*cluster.Task](v, store.Owner(web.ID))), 3},
		"node":          {len(store.List[*cluster.Task](v, store.OnNode("n1"))), 2},
		"node, owner":   {len(store.List[*cluster.Task](v, store.OnNode("n1"), store.Owner(web.ID))), 1},
		"nobody's":      {len(store.List[*cluster.Task](v, store.Owner("x"))), 0},
		"a beginning":   {len(store.List[*cluster.Service](v, store.LabelIs("a", ""))), 0},
		"tasks, in all": {len(store.List[*cluster.Task](v)), 6},
	} {
		if c.got != c.want {
			t.Errorf("%s: %d, want %d", name, c.got, c.want)
		}
	}
	task := store.Copy(store.List[*cluster.Task](v, store.OnNode("n1"))[0])
	task.Node = "n2"
	must(t, s, store.Update(task))
	if old, now := len(store.List[*cluster.Task](v, store.OnNode("n1"))), len(store.List[*cluster.Task](s.View(), store.OnNode("n1"))); old != 2 || now != 1 {
		t.Errorf("after a move: %d in the view from before, %d now", old, now)
	}
}

func testWatch(t *testing.T, s store.Store) {
	first := service("first")
	must(t, s, store.Create(first))
	all, err := s.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	tasks, err := s.Watch(s.View().Revision(), cluster.KindTask)
	if err != nil {
		t.Fatal(err)
	}
	task := &cluster.Task{}
	must(t, s, store.Create(task), store.Create(service("second")))
	must(t, s, store.Delete(first))
	must(t, s, store.Delete(task))
	next := func(w *store.Watch, n int) (out []store.Commit) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		for len(out) < n {
			list, err := w.Next(ctx)
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, list...)
		}
		return out
	}
	got := next(all, 4)
	for i, want := range []string{"+service", "+task +service", "-service", "-task"} {
		if text := describe(got[i]); text != want || got[i].Revision != uint64(i+1) {
			t.Errorf("commit %d at %d: %s, want %s", i, got[i].Revision, text, want)
		}
	}
	if got := next(tasks, 2); describe(got[0])+describe(got[1]) != "+task-task" {
		t.Errorf("of tasks: %v", got)
	}
	// One that waits is woken, and one that is given up ends.
	woken := make(chan []store.Commit)
	go func() { list, _ := all.Next(t.Context()); woken <- list }()
	must(t, s, store.Create(service("third")))
	if list := <-woken; len(list) != 1 || describe(list[0]) != "+service" {
		t.Errorf("woken with %v", list)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := all.Next(ctx); !errors.Is(err, context.Canceled) {
		t.Errorf("given up: %v", err)
	}
	if _, err := s.Watch(s.View().Revision() + 1); !errdefs.IsOutOfRange(err) {
		t.Errorf("from a revision to come: %v", err)
	}
}

func describe(c store.Commit) (out string) {
	for _, e := range c.Events {
		sign := map[[2]bool]string{{true, false}: "+", {false, true}: "-", {false, false}: "~"}[[2]bool{e.Old == nil, e.New == nil}]
		if out != "" {
			out += " "
		}
		out += sign + string(e.Kind())
	}
	return out
}

// testSlowWatch: who is too slow is told, and never skips in silence.
func testSlowWatch(t *testing.T, s store.Store) {
	w, err := s.Watch(0)
	if err != nil {
		t.Fatal(err)
	}
	parallel(t, 16, 330, func(i int) error {
		_, err := s.Commit(t.Context(), store.Create(&cluster.Task{}))
		for range 16 {
			if err == nil {
				_, err = s.Commit(t.Context(), store.Create(&cluster.Task{Slot: uint64(i)}))
			}
		}
		return err
	})
	if _, err := w.Next(t.Context()); !errdefs.IsOutOfRange(err) {
		t.Errorf("5610 commits later: %v", err)
	}
	if _, err := s.Watch(1); !errdefs.IsOutOfRange(err) {
		t.Errorf("from an old revision: %v", err)
	}
	if _, err := s.Watch(s.View().Revision()); err != nil {
		t.Error(err)
	}
}

// testShared: objects given and taken are not one.
func testShared(t *testing.T, s store.Store) {
	web := service("web")
	must(t, s, store.Create(web))
	web.Labels["a"] = "changed by the writer"
	got, err := store.Find[*cluster.Service](s.View(), web.ID)
	if err != nil || got.Labels["a"] != "1" {
		t.Errorf("%v, %v", got.Labels, err)
	}
	own := store.Copy(got)
	own.Labels["a"] = "changed by a reader"
	if got.Labels["a"] != "1" {
		t.Error("a copy is none")
	}
}

// testSaved: what is saved can be loaded and is the same; what is cut off or else
// damaged is refused.
func testSaved(t *testing.T, s store.Store) {
	for i := range 20 {
		must(t, s, store.Create(service(fmt.Sprint("s", i))), store.Create(&cluster.Task{Slot: uint64(i)}))
	}
	var b bytes.Buffer
	if err := store.Save(&b, s.View()); err != nil {
		t.Fatal(err)
	}
	text := b.Bytes()
	again, err := store.Load(bytes.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	var c bytes.Buffer
	if err := store.Save(&c, again.View()); err != nil || !bytes.Equal(c.Bytes(), text) {
		t.Errorf("saved again: %d bytes of %d, %v", c.Len(), len(text), err)
	}
	for i := 0; i < len(text)-4; i += 97 {
		if _, err := store.Load(bytes.NewReader(text[:i])); !errdefs.IsInvalidArgument(err) {
			t.Fatalf("cut at %d: %v", i, err)
		}
	}
	if _, err := store.Load(bytes.NewReader([]byte(`{"Format":99}`))); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a later format: %v", err)
	}
}

// testMany: views do not change while much is written, and each is whole.
func testMany(t *testing.T, s store.Store) {
	stop := make(chan struct{})
	var readers sync.WaitGroup
	for range 4 {
		readers.Go(func() {
			for {
				select {
				case <-stop:
					return
				default:
				}
				v := s.View()
				tasks, services := len(store.List[*cluster.Task](v)), len(store.List[*cluster.Service](v))
				if tasks != 3*services {
					t.Errorf("a commit in halves: %d services, %d tasks", services, tasks)
					return
				}
			}
		})
	}
	parallel(t, 8, 200, func(i int) error {
		_, err := s.Commit(t.Context(), store.Create(service(fmt.Sprint("m", i))), store.Create(&cluster.Task{}), store.Create(&cluster.Task{}), store.Create(&cluster.Task{}))
		return err
	})
	close(stop)
	readers.Wait()
	if got := s.View().Revision(); got != 200 {
		t.Errorf("200 commits led to revision %d", got)
	}
}

func testClosed(t *testing.T, s store.Store) {
	must(t, s, store.Create(service("web")))
	w, err := s.Watch(s.View().Revision())
	if err != nil {
		t.Fatal(err)
	}
	ended := make(chan error)
	go func() { _, err := w.Next(context.WithoutCancel(t.Context())); ended <- err }()
	for range 2 {
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
	if err := <-ended; !errdefs.IsUnavailable(err) {
		t.Errorf("a watch of a closed store: %v", err)
	}
	if _, err := s.Commit(t.Context(), store.Create(service("late"))); !errdefs.IsUnavailable(err) {
		t.Errorf("a commit to it: %v", err)
	}
	if _, err := store.Named[*cluster.Service](s.View(), "web"); err != nil {
		t.Errorf("a view of it: %v", err)
	}
}

func testDurable(t *testing.T, open func(*testing.T, string) store.Store) {
	dir := t.TempDir()
	s := open(t, dir)
	web := service("web")
	must(t, s, store.Create(web))
	must(t, s, store.Create(&cluster.Task{Meta: cluster.Meta{Owner: web.ID}}))
	change := store.Copy(web)
	change.Spec.Number = 3
	must(t, s, store.Update(change))
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	s = open(t, dir)
	defer s.Close()
	got, err := store.Named[*cluster.Service](s.View(), "web")
	if err != nil || got.Spec.Number != 3 || got.Revision != 3 || s.View().Revision() != 3 || len(store.List[*cluster.Task](s.View(), store.Owner(web.ID))) != 1 {
		t.Errorf("%+v at %d, %v", got, s.View().Revision(), err)
	}
	if _, err := s.Watch(1); !errdefs.IsOutOfRange(err) {
		t.Errorf("a watch from before: %v", err)
	}
	must(t, s, store.Delete(got))
}

// parallel calls f for 0 to n-1, so many at once.
func parallel(t *testing.T, width, n int, f func(i int) error) {
	t.Helper()
	var group sync.WaitGroup
	work := make(chan int)
	for range width {
		group.Go(func() {
			for i := range work {
				if err := f(i); err != nil {
					t.Error(err)
				}
			}
		})
	}
	for i := range n {
		work <- i
	}
	close(work)
	group.Wait()
}

// Change changes an object of a store, whoever else writes it.
func Change[T cluster.Object](t testing.TB, s store.Store, id string, f func(T)) {
	t.Helper()
	for {
		o, err := store.Find[T](s.View(), id)
		if err != nil {
			t.Fatal(err)
		}
		o = store.Copy(o)
		f(o)
		if _, err = s.Commit(t.Context(), store.Update(o)); err == nil {
			return
		}
		if !errdefs.IsConflict(err) {
			t.Fatal(err)
		}
	}
}
