package node

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Who asks for a leader later than the one it misses is answered when there is one, and not before it
// serves; else after a while. Who does not miss one is answered at once.
func TestAskForLaterLeader(t *testing.T) {
	w := newSite(t)
	m1, m2 := w.manager("m1", 0), w.manager("m2", 0)
	j, err := w.join(m1.addr, w.token(workers))
	if err != nil {
		t.Fatal(err)
	}
	n := NewMember(j.Keeper, slog.New(slog.DiscardHandler))
	type answer struct {
		c    dispatch.Cluster
		err  error
		took time.Duration
	}
	ask := func(addr string, after uint64) chan answer {
		out := make(chan answer, 1)
		go func() {
			began := time.Now()
			c, err := n.Ask(t.Context(), addr, after)
			out <- answer{c, err, time.Since(began)}
		}()
		return out
	}
	m1.Follow("m2", 3)
	m2.Follow("m2", 3)
	if a := <-ask(m1.addr, 0); a.err != nil || a.c.Term != 3 || leads(a.c) != "m2" {
		t.Errorf("nobody is missed: %+v", a)
	}
	if a := <-ask(m1.addr, 2); a.err != nil || a.c.Term != 3 || a.took > held/2 {
		t.Errorf("a later one is known: %+v", a)
	}
	if a := <-ask(m1.addr, 3); a.err != nil || a.c.Term != 3 || a.took < held {
		t.Errorf("none is known: %+v", a)
	}
	waits, at := ask(m1.addr, 3), ask(m2.addr, 3)
	m1.Follow("", 0) // who led has resigned
	select {
	case a := <-waits:
		t.Errorf("nobody leads: %+v", a)
	case <-time.After(100 * time.Millisecond):
	}
	m1.Follow("m2", 4)
	if a := <-waits; a.err != nil || a.c.Term != 4 || leads(a.c) != "m2" {
		t.Errorf("another leads: %+v", a)
	}
	m2.Follow("m2", 4)
	select {
	case a := <-at:
		t.Errorf("it does not serve nodes yet: %+v", a)
	case <-time.After(100 * time.Millisecond):
	}
	m2.Lead(dispatch.New(w.s, 4, slog.New(slog.DiscardHandler)))
	if a := <-at; a.err != nil || a.c.Term != 4 {
		t.Errorf("it serves: %+v", a)
	}
	// A node that is removed while it waits is told nothing.
	waits = ask(m1.addr, 4)
	time.Sleep(100 * time.Millisecond)
	w.commit(store.Delete(w.get(j.Keeper.Identity().Node)))
	m1.Follow("m2", 5)
	if a := <-waits; !errdefs.IsPermissionDenied(a.err) {
		t.Errorf("it was removed: %+v", a)
	}
	if c, err := n.Ask(t.Context(), "127.0.0.1:1", 4); err == nil {
		t.Errorf("nobody is there: %+v", c)
	}
}

// leads is the node that leads, as a message has it; "" when it is none or several.
func leads(c dispatch.Cluster) (out string) {
	for _, m := range c.Managers {
		switch {
		case m.Leader && out != "":
			return ""
		case m.Leader:
			out = m.Node
		}
	}
	return out
}

// A node that comes to a leader who is about to serve nodes waits for it.
func TestLeaderAboutToServe(t *testing.T) {
	w := newSite(t)
	m := w.manager("m1", 0)
	j, err := w.join(m.addr, w.token(workers))
	if err != nil {
		t.Fatal(err)
	}
	n := NewMember(j.Keeper, slog.New(slog.DiscardHandler))
	first := make(chan dispatch.Down, 1)
	greet := func() {
		link, err := n.Dial(t.Context(), m.addr)
		if err != nil {
			t.Error(err)
			return
		}
		defer link.Close()
		if err := link.Send(dispatch.Up{Hello: &dispatch.Hello{Protocol: dispatch.Protocol, Status: []byte("{}")}}); err != nil {
			t.Error(err)
		}
		d, err := link.Receive()
		if err != nil {
			t.Error(err)
		}
		first <- d
	}
	m.Follow("m1", 7)
	go greet()
	select {
	case d := <-first:
		t.Fatalf("it is answered %+v", d)
	case <-time.After(ready / 5):
	}
	d := dispatch.New(w.s, 7, slog.New(slog.DiscardHandler))
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error)
	go func() { done <- d.Run(ctx) }()
	defer func() { cancel(); <-done }()
	m.Lead(d)
	if down := <-first; down.Refused || down.Term != 7 {
		t.Errorf("%+v", down)
	}
	m.Lead(nil)
	go greet()
	if down := <-first; !down.Refused { // it waits in vain
		t.Errorf("nobody serves: %+v", down)
	}
	if _, err := store.Find[*cluster.Node](w.s.View(), j.Keeper.Identity().Node); err != nil {
		t.Error(err)
	}
}
