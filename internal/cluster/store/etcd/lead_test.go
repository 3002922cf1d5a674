package etcd

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// leaderEnv makes the test binary, run anew, a manager that leads, by the server at a socket.
const leaderEnv = "ESCALE_TEST_STORE_LEADER"

// leadForEver commits for ever as a leader, and prints what becomes of each commit.
func leadForEver(socket string) error {
	ctx := context.Background()
	s, err := Open(ctx, Config{Socket: socket, Name: "frozen", Lease: time.Second, Log: slog.New(slog.NewTextHandler(os.Stderr, nil))})
	if err != nil {
		return err
	}
	l, err := s.Lead(ctx)
	if err != nil {
		return err
	}
	for {
		at, err := l.Store().Commit(ctx, store.Create(&cluster.Task{Meta: cluster.Meta{Name: "frozen"}}))
		fmt.Println(at, errdefs.IsFailedPrecondition(err), err)
		if err != nil {
			return err
		}
	}
}

// leadTogether makes stores of one server, each of another manager.
func leadTogether(t *testing.T, names ...string) (r *running, out []*Store) {
	t.Helper()
	r = start(t, config(t, "m1")).ready(t)
	for _, n := range names {
		out = append(out, r.open(t, func(c *Config) { c.Name, c.Lease, c.Prefer = n, soon, nil }))
	}
	return r, out
}

// One leads at a time; who has lost it is refused at once, and told; terms grow.
func TestLead(t *testing.T) {
	_, stores := leadTogether(t, "a", "b")
	a, b := stores[0], stores[1]
	if is, err := a.standing(t.Context()); err != nil || is.Leading != (Leading{}) {
		t.Errorf("before all: %+v, %v", is, err)
	}
	first, err := a.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	term := first.Term()
	if is, err := b.Leading(t.Context(), Leading{}); err != nil || is != (Leading{"a", term}) {
		t.Errorf("b knows %+v, %v", is, err)
	}
	next := make(chan *Leader, 1)
	go func() {
		l, err := b.Lead(t.Context())
		if err != nil {
			t.Error(err)
		}
		next <- l
	}()
	must(t, first.Store(), store.Create(&cluster.Task{}))
	must(t, b, store.Create(&cluster.Task{})) // not as the leader
	must(t, first.Store(), store.Create(&cluster.Task{}))
	select {
	case <-next:
		t.Fatal("two lead")
	case <-time.After(100 * time.Millisecond):
	}
	// The lease is taken away, which the first has not heard of when it commits.
	if _, err := b.client.Revoke(t.Context(), first.lease); err != nil {
		t.Fatal(err)
	}
	blind := led{a, &Leader{s: a, fence: first.fence, lost: make(chan struct{})}}
	for range 2 {
		if _, err := blind.Commit(t.Context(), store.Create(&cluster.Task{})); !errdefs.IsFailedPrecondition(err) {
			t.Errorf("after its end: %v", err)
		}
	}
	second := <-next
	if second.Term() <= term {
		t.Errorf("the second term is %d, the first was %d", second.Term(), term)
	}
	<-first.Done()
	if _, err := first.Store().Commit(t.Context(), store.Create(&cluster.Task{})); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("while another leads: %v", err)
	}
	if is, err := a.Leading(t.Context(), Leading{"a", term}); err != nil || is != (Leading{"b", second.Term()}) {
		t.Errorf("a knows %+v, %v", is, err)
	}
	must(t, second.Store(), store.Create(&cluster.Task{}))
	if err := second.Store().Close(); err != nil { // it resigns
		t.Error(err)
	}
	<-second.Done()
	third, err := a.Lead(t.Context())
	if err != nil || third.Term() <= second.Term() {
		t.Fatalf("%+v, %v", third, err)
	}
	if n := len(store.List[*cluster.Task](b.View())); n != 4 {
		t.Errorf("%d tasks", n)
	}
	if err := a.Close(); err != nil {
		t.Error(err)
	}
	<-third.Done()
	if _, err := a.Lead(t.Context()); !errdefs.IsUnavailable(err) {
		t.Errorf("of a closed store: %v", err)
	}
}

// The manager that should lead does, also when another already does; and when one that led
// starts anew it need not wait for its own end.
func TestPrefer(t *testing.T) {
	r, stores := leadTogether(t, "a")
	first, err := stores[0].Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	again := r.open(t, func(c *Config) { c.Name, c.Lease, c.Prefer = "a", soon, nil })
	second, err := again.Lead(t.Context())
	if err != nil || second.Term() <= first.Term() {
		t.Fatalf("%+v, %v", second, err)
	}
	<-first.Done()
	var mu sync.Mutex
	prefer, changed := false, make(chan struct{})
	b := r.open(t, func(c *Config) {
		c.Name, c.Lease = "b", soon
		c.Prefer = func() (bool, <-chan struct{}) {
			mu.Lock()
			defer mu.Unlock()
			return prefer, changed
		}
	})
	leads := make(chan *Leader, 1)
	go func() {
		l, err := b.Lead(t.Context())
		if err != nil {
			t.Error(err)
		}
		leads <- l
	}()
	must(t, second.Store(), store.Create(&cluster.Task{}))
	mu.Lock()
	prefer = true
	close(changed)
	changed = make(chan struct{})
	mu.Unlock()
	if l := <-leads; l.Term() <= second.Term() {
		t.Errorf("b leads in term %d, a did in %d", l.Term(), second.Term())
	}
	<-second.Done()
}

// Who leads has seen what was committed before: it waits for that, or does not lead.
func TestLeadSees(t *testing.T) {
	_, stores := leadTogether(t, "a", "b", "c")
	a, b, c := stores[0], stores[1], stores[2]
	b.mu.Lock() // it applies nothing
	must(t, a, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "before"}}))
	leads := make(chan *Leader, 1)
	go func() {
		l, err := b.Lead(t.Context())
		if err != nil {
			t.Error(err)
		}
		leads <- l
	}()
	if is, err := a.Leading(t.Context(), Leading{}); err != nil || is.Name != "b" {
		t.Errorf("%+v, %v", is, err)
	}
	select {
	case l := <-leads:
		t.Errorf("b leads, and has seen %d commits", l.Store().View().Revision())
		leads <- l
	case <-time.After(100 * time.Millisecond):
	}
	b.mu.Unlock()
	l := <-leads
	if _, err := store.Named[*cluster.Service](l.Store().View(), "before"); err != nil {
		t.Error(err)
	}
	if err := l.Resign(t.Context()); err != nil {
		t.Fatal(err)
	}
	c.cancel()
	c.followed.Wait() // it follows no more
	must(t, a, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "after"}}))
	ctx, cancel := context.WithTimeout(t.Context(), attempt+attempt/2)
	defer cancel()
	if l, err := c.Lead(ctx); err == nil {
		t.Errorf("c leads, and has seen %d commits", l.Store().View().Revision())
	}
	ctx, cancel = context.WithTimeout(t.Context(), soon/2) // before leases end: c has given up its own
	defer cancel()
	next, err := a.Lead(ctx)
	if err != nil {
		t.Fatal(err)
	}
	must(t, next.Store(), store.Create(&cluster.Task{}))
}

// The leader of a cluster that was made of a backup is believed by those who have obeyed
// leaders of the one before.
func TestTermsGoOn(t *testing.T) {
	r, stores := leadTogether(t, "a")
	s := stores[0]
	old := uint64(0)
	for range 3 {
		l, err := s.Lead(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if l.Term() <= old {
			t.Errorf("term %d after %d", l.Term(), old)
		}
		old = l.Term()
		if err := l.Resign(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	must(t, s, store.Create(&cluster.Task{}))
	time.Sleep(time.Until(time.Unix(int64(old)+1, 0))) // a restoration takes longer than that
	anew := Config{Socket: r.cfg.Socket, Prefix: "anew"}
	if err := Carry(t.Context(), anew, "a backup", s.View()); err != nil {
		t.Fatal(err)
	}
	l, err := r.open(t, func(c *Config) { c.Name, c.Prefix, c.Prefer = "b", anew.Prefix, nil }).Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	if l.Term() <= old {
		t.Errorf("term %d; nodes know %d", l.Term(), old)
	}
}

// What was read before a commit of the store's own does not take that back.
func TestListBesideCommits(t *testing.T) {
	_, stores := leadTogether(t, "a")
	s := stores[0]
	must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "before"}}))
	got, err := read(t.Context(), s, false)
	if err != nil {
		t.Fatal(err)
	}
	w, err := s.Watch(1)
	if err != nil {
		t.Fatal(err)
	}
	must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "meanwhile"}}))
	if err := s.take(got); err != nil {
		t.Fatal(err)
	}
	if _, err := store.Named[*cluster.Service](s.View(), "meanwhile"); err != nil {
		t.Error(err)
	}
	if list, err := w.Next(t.Context()); err != nil || len(list) != 1 || list[0].Revision != 2 {
		t.Errorf("%+v, %v", list, err)
	}
	must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "after"}}))
}

// A leader that is frozen for longer than its lease, and thawed amid what it was doing, does
// nothing more.
func TestFrozenLeader(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	s := r.open(t, func(c *Config) { c.Name, c.Prefer, c.Lease = "heir", nil, soon })
	cmd := exec.Command(os.Args[0])
	cmd.Env = append(os.Environ(), leaderEnv+"="+r.cfg.Socket)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _, _ = cmd.Process.Kill(), cmd.Wait() })
	lines := bufio.NewScanner(out)
	for range 20 {
		if !lines.Scan() {
			t.Fatal("the leader has ended")
		}
	}
	if err := cmd.Process.Signal(syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	l, err := s.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	from := must(t, l.Store(), store.Create(&cluster.Task{Meta: cluster.Meta{Name: "heir"}}))
	if err := cmd.Process.Signal(syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	last := ""
	for lines.Scan() {
		last = lines.Text()
		word := strings.Fields(last)
		if at, err := strconv.ParseUint(word[0], 10, 64); err != nil || at > from {
			t.Errorf("it went on: %s; another led from %d on", last, from)
		}
	}
	if !strings.Contains(last, " true ") {
		t.Errorf("its end: %s", last)
	}
	for _, o := range store.List[*cluster.Task](s.View()) {
		if o.Name == "frozen" && o.Revision > from {
			t.Errorf("it has written at %d; another led from %d on", o.Revision, from)
		}
	}
	must(t, l.Store(), store.Create(&cluster.Task{}))
}

// An attempt to write ends when writes begin to go another way, and with itself.
func TestRerouted(t *testing.T) {
	another := make(chan struct{})
	first, cancel := context.WithCancel(t.Context())
	untilRerouted(first, cancel, func() (bool, <-chan struct{}) { return false, another })
	if first.Err() != nil {
		t.Fatal("nothing has changed")
	}
	close(another)
	select {
	case <-first.Done():
	case <-time.After(soon):
		t.Error("it waits for an answer that will not come")
	}
	last, cancel := context.WithCancel(t.Context())
	defer cancel()
	if untilRerouted(last, cancel, nil); last.Err() != nil {
		t.Error("nobody knows how writes go")
	}
}
