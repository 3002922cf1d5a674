package simulation

import (
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// newest is the newest task of a service's first place.
func (w *world) newest(name string) *cluster.Task {
	s, err := store.Named[*cluster.Service](w.s.View(), name)
	if err != nil {
		return nil
	}
	slots := cluster.Slots(store.List[*cluster.Task](w.s.View(), store.Owner(s.ID)))
	if len(slots) == 0 {
		return nil
	}
	return slots[0].Current()
}

// What shares with containers of another service is made after those, at the first up and
// when they are exchanged, in whatever order all is looked at; and exchanged once.
func TestAppShares(t *testing.T) {
	for seed := range uint64(20) {
		w := newWorld(t, seed, 1)
		w.ask(func(s *cluster.AppSpec) {
			side, vpn := spec(good, 0, 1), spec(good, 0, 1)
			side.Task.Needs = []cluster.Need{{Service: "shop_vpn", Condition: cluster.Started, Restart: true, Shared: true}}
			vpn.Task.Needs = []cluster.Need{{Service: "shop_db", Condition: cluster.Started}}
			vpn.Update = &cluster.Rollout{Parallelism: 1, StartFirst: seed%2 == 0, OnFailure: cluster.FailureRollback}
			side.Update = &cluster.Rollout{Parallelism: 1, StartFirst: seed%3 == 0, OnFailure: cluster.FailureRollback}
			s.Services = map[string]cluster.ServiceSpec{"side": side, "vpn": vpn, "db": spec(good, 0, 1)}
		})
		stable := false // nothing of vpn fails
		w.watch = func() {
			side, vpn := w.newest("shop_side"), w.newest("shop_vpn")
			if side == nil || side.Status.State != cluster.TaskPreparing || !stable {
				return
			}
			if vpn == nil || vpn.Status.State != cluster.TaskRunning || side.SpecNumber != vpn.SpecNumber {
				t.Fatalf("seed %d: it is made before that with which it shares\n%s", seed, w.describe())
			}
		}
		mix := func() {
			for range 30 {
				w.some()
				for _, task := range store.List[*cluster.Task](w.s.View()) {
					if w.rng.IntN(2) == 0 {
						w.act(task)
					}
				}
			}
			w.settle()
		}
		change := func(image string) {
			w.ask(func(s *cluster.AppSpec) {
				vpn, side := s.Services["vpn"], s.Services["side"]
				vpn.Task.Force++
				c := *vpn.Task.Container
				c.Image = image
				vpn.Task.Container = &c
				side.Task.Force++ // as it is asked for
				s.Services["vpn"], s.Services["side"] = vpn, side
			})
			mix()
		}
		stable = true
		mix()
		change(good)
		if side, vpn := w.newest("shop_side"), w.newest("shop_vpn"); w.phase() != "steady" || side.Number != 2 || vpn.Number != 2 || side.Status.RunningAt.Before(vpn.Status.RunningAt) {
			t.Fatalf("seed %d: %s\n%s", seed, w.phase(), w.describe())
		}
		stable = false
		change(broken)
		if up, _ := w.running("shop_side"); !strings.HasPrefix(w.phase(), "reverted vpn: ") || up[3] != 1 || w.rollout("shop_side") != cluster.UpdateCompleted {
			t.Fatalf("seed %d: %s\n%s", seed, w.phase(), w.describe())
		}
		if side, vpn := w.newest("shop_side"), w.newest("shop_vpn"); vpn.Status.State != cluster.TaskRunning || side.Status.RunningAt.Before(vpn.Status.RunningAt) {
			t.Fatalf("seed %d: after it went back it shares with what is no more\n%s", seed, w.describe())
		}
	}
}
