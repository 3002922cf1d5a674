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
	if is, err := b.Leading(t.Context(), Leading{}); err != nil || is != (Leading{"a", 1}) {
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
	if second.Term() != 2 {
		t.Errorf("the second term is %d", second.Term())
	}
	<-first.Done()
	if _, err := first.Store().Commit(t.Context(), store.Create(&cluster.Task{})); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("while another leads: %v", err)
	}
	if is, err := a.Leading(t.Context(), Leading{"a", 1}); err != nil || is != (Leading{"b", 2}) {
		t.Errorf("a knows %+v, %v", is, err)
	}
	must(t, second.Store(), store.Create(&cluster.Task{}))
	if err := second.Store().Close(); err != nil { // it resigns
		t.Error(err)
	}
	<-second.Done()
	third, err := a.Lead(t.Context())
	if err != nil || third.Term() != 3 {
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
	if err != nil || second.Term() != 2 {
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
	if l := <-leads; l.Term() != 3 {
		t.Errorf("b leads in term %d", l.Term())
	}
	<-second.Done()
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
