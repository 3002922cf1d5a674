package dispatch

import (
	"context"
	"fmt"
	"os"
	"runtime"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
)

// crowd is the manager's end of a node that only says that it is there.
type crowd struct {
	ctx   context.Context
	first bool
	news  chan struct{}
}

func (c *crowd) Receive() (Up, error) {
	if !c.first {
		c.first = true
		return Up{Hello: &Hello{Protocol: Protocol, Status: []byte(`{"Addr":"10.0.0.1"}`)}}, nil
	}
	select {
	case <-time.After(Beat):
		return Up{}, nil
	case <-c.ctx.Done():
		return Up{}, c.ctx.Err()
	}
}

func (c *crowd) Send(d Down) error {
	if len(d.Objects) > 0 && !d.Synced {
		c.news <- struct{}{}
	}
	return nil
}

// Figures: what nodes cost a manager. ESCALE_NODES=5000 asks for so many.
func BenchmarkNodes(b *testing.B) {
	nodes := 500
	if n := os.Getenv("ESCALE_NODES"); n != "" {
		if _, err := fmt.Sscan(n, &nodes); err != nil {
			b.Fatal(err)
		}
	}
	s := mem.New(store.NewState())
	commit := func(c ...store.Change) {
		if _, err := s.Commit(b.Context(), c...); err != nil {
			b.Fatal(err)
		}
	}
	for i := range nodes {
		id := fmt.Sprint("n", i)
		commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: id}}))
		for j := range 20 { // of services with ten tasks each
			service := fmt.Sprint("s", (i*20+j)/10)
			commit(store.Create(&cluster.Task{
				Meta: cluster.Meta{ID: fmt.Sprint(id, "-", j), Owner: service}, Node: id, Desired: cluster.TaskRunning,
				Status: cluster.TaskStatus{State: cluster.TaskRunning}, Networks: []cluster.Attachment{{Network: "net-" + service}},
			}))
		}
	}
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	d := New(s, 1, quiet)
	ctx, cancel := context.WithCancel(b.Context())
	defer cancel()
	go func() { _ = d.Run(ctx) }()
	news := make(chan struct{}, 1024)
	for !d.serving() {
		time.Sleep(time.Millisecond)
	}
	for i := range nodes {
		go func() { _ = d.Serve(ctx, fmt.Sprint("n", i), &crowd{ctx: ctx, news: news}) }()
	}
	time.Sleep(3 * time.Second)
	runtime.GC()
	runtime.ReadMemStats(&after)
	cost := (float64(after.HeapInuse+after.StackInuse) - float64(before.HeapInuse+before.StackInuse)) / float64(nodes)
	for len(news) > 0 {
		<-news
	}
	b.ResetTimer()
	for i := range b.N { // a task changes, and its node and the one beside it are told
		id := fmt.Sprint("n", i%nodes, "-0")
		t, err := store.Find[*cluster.Task](s.View(), id)
		if err != nil {
			b.Fatal(err)
		}
		t = store.Copy(t)
		t.Status.Healthy = !t.Status.Healthy
		commit(store.Update(t))
		<-news
	}
	b.StopTimer()
	b.ReportMetric(cost, "B/node")
}

// serving tells whether nodes are let in.
func (d *Dispatcher) serving() bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.x != nil
}
