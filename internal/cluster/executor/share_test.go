package executor

import (
	"slices"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
)

// What shares with containers of another service gets those of that one's present tasks,
// whichever of them has the name.
func TestShare(t *testing.T) {
	type task struct {
		state, desired cluster.TaskState
		made           bool
	}
	for _, c := range []struct {
		name  string
		tasks []task // the oldest first
		want  int    // which one is meant; -1: whatever the name is
	}{
		{"runs", []task{{cluster.TaskRunning, cluster.TaskRunning, true}}, 0},
		{"exchanged, the new one first", []task{{cluster.TaskRunning, cluster.TaskShutdown, true}, {cluster.TaskRunning, cluster.TaskRunning, true}}, 1},
		{"exchanged, the old one first", []task{{cluster.TaskShutdown, cluster.TaskShutdown, true}, {cluster.TaskRunning, cluster.TaskRunning, true}}, 1},
		{"gone back", []task{{cluster.TaskRunning, cluster.TaskRunning, true}, {cluster.TaskFailed, cluster.TaskRemove, true}}, 0},
		{"made only", []task{{cluster.TaskFailed, cluster.TaskShutdown, true}, {cluster.TaskReady, cluster.TaskRunning, true}}, 1},
		{"over", []task{{cluster.TaskFailed, cluster.TaskShutdown, true}, {cluster.TaskComplete, cluster.TaskShutdown, true}}, 1},
		{"failed", []task{{cluster.TaskFailed, cluster.TaskRunning, true}}, -1},
		{"removed by hand", []task{{cluster.TaskRunning, cluster.TaskRunning, false}}, -1},
	} {
		t.Run(c.name, func(t *testing.T) {
			r := begin(t)
			want := "shop-vpn-1"
			for i, is := range c.tasks {
				o := &cluster.Task{
					Meta: cluster.Meta{Name: "shop_vpn.1", Owner: "vpn"}, App: "app", Node: "n1", Slot: 1, Number: uint64(i + 1), Desired: is.desired, Status: cluster.TaskStatus{State: is.state},
					Spec: cluster.TaskSpec{Name: "shop-vpn-1", Container: &container.Config{}},
				}
				if _, err := r.s.Commit(t.Context(), store.Create(o)); err != nil {
					t.Fatal(err)
				}
				for _, o := range store.List[*cluster.Task](r.s.View()) {
					if o.Number != uint64(i+1) || !is.made {
						continue
					}
					id := []string{"first", "second"}[i]
					r.e.list = append(r.e.list, &made{Container: Container{ID: id, Task: o.ID}})
					if i == c.want {
						want = id
					}
				}
			}
			side := r.task("side", func(t *cluster.Task) {
				t.App, t.Networks = "app", nil
				t.Spec.Needs = []cluster.Need{{Service: "shop_vpn", Condition: cluster.Started, Shared: true}}
				t.Spec.Host = &container.HostConfig{NetworkMode: "container:shop-vpn-1", PidMode: "container:shop-vpn-1", IpcMode: "container:theirs", VolumesFrom: []string{"shop-vpn-1:ro", "shop-vpn-1"}}
			})
			if err := side.Prepare(t.Context()); err != nil {
				t.Fatal(err)
			}
			h := r.e.list[len(r.e.list)-1].host
			if string(h.NetworkMode) != "container:"+want || string(h.PidMode) != "container:"+want || h.IpcMode != "container:theirs" || !slices.Equal(h.VolumesFrom, []string{want + ":ro", want}) {
				t.Errorf("it shares with %s, %s, %s, %v; want %s", h.NetworkMode, h.PidMode, h.IpcMode, h.VolumesFrom, want)
			}
			if side.t.Spec.Host.VolumesFrom[0] != "shop-vpn-1:ro" {
				t.Error("the task was changed")
			}
		})
	}
}
