package executor

import (
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// Who is to be on a network that is made anew waits for those that are on the old one,
// and for nobody else.
func TestNetworkMadeAnew(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := begin(t)
		c := r.task("t2", func(t *cluster.Task) { t.Networks = []cluster.Attachment{{Network: "shop_net", Made: 1}} })
		old := r.task("t1", func(t *cluster.Task) {
			t.Networks, t.Status.State = []cluster.Attachment{{Network: "shop_net"}}, cluster.TaskRunning
		})
		if _, err := r.s.Commit(t.Context(), store.Create(old.t)); err != nil {
			t.Fatal(err)
		}
		n, spec := time.Now(), cluster.NetworkSpec{Name: "shop_net", Made: 1}
		r.e.inUse = func() bool { return time.Since(n) < time.Minute+time.Second }
		time.AfterFunc(time.Minute, func() { r.become(func(t *cluster.Task) { t.Status.State = cluster.TaskShutdown }) })
		if err := c.network(t.Context(), spec); err != nil || time.Since(n) < time.Minute {
			t.Errorf("after %s: %v", time.Since(n), err)
		}
		r.e.inUse = func() bool { return true }
		n = time.Now()
		if err := c.network(t.Context(), spec); !errdefs.IsUnavailable(err) || time.Since(n) > lingered+time.Second {
			t.Errorf("in use by others, after %s: %v", time.Since(n), err)
		}
	})
}
