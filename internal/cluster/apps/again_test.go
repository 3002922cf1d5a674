package apps

import (
	"context"
	"sync"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// What has come to its end and is left so gets a successor when somebody asks, and nothing else
// does.
func TestAgain(t *testing.T) {
	a, s := open(t)
	ctx := context.Background()
	once := service("mig:1", 1)
	once.Task.Restart.Condition = cluster.RestartNone
	if _, err := a.Put(ctx, "shop", spec(map[string]cluster.ServiceSpec{"web": once}), Put{}); err != nil {
		t.Fatal(err)
	}
	one := task(t, s, "shop", cluster.TaskRunning)
	set := func(id string, f func(*cluster.Task)) {
		t.Helper()
		found, err := store.Find[*cluster.Task](s.View(), id)
		if err != nil {
			t.Fatal(err)
		}
		found = cluster.Copy(found)
		f(found)
		if _, err := s.Commit(ctx, store.Update(found)); err != nil {
			t.Fatal(err)
		}
	}
	all := func() []*cluster.Task { return store.List[*cluster.Task](s.View(), store.Owner(one.Owner)) }
	if id, err := a.Again(ctx, "shop", one.ID); err != nil || id != one.ID || len(all()) != 1 {
		t.Fatalf("one that runs: %q, %v, %d tasks", id, err, len(all()))
	}
	for what, err := range map[string]error{"app": second(a.Again(ctx, "none", one.ID)), "task": second(a.Again(ctx, "shop", "none"))} {
		if !errdefs.IsNotFound(err) {
			t.Errorf("no such %s: %v", what, err)
		}
	}
	set(one.ID, func(t *cluster.Task) { t.Status.State = cluster.TaskComplete })
	// Of those who ask at once, one makes it.
	ids := make([]string, 4)
	var asked sync.WaitGroup
	for i := range ids {
		asked.Go(func() {
			var err error
			if ids[i], err = a.Again(ctx, "shop", one.ID); err != nil && !errdefs.IsConflict(err) {
				t.Error(err)
			}
		})
	}
	asked.Wait()
	if len(all()) != 2 {
		t.Fatalf("%d tasks after %v", len(all()), ids)
	}
	var next *cluster.Task
	for _, task := range all() {
		if task.ID != one.ID {
			next = task
		} else if task.Desired != cluster.TaskShutdown {
			t.Errorf("the one before is to be %s", task.Desired)
		}
	}
	if next.Slot != one.Slot || next.Number != one.Number+1 || next.Desired != cluster.TaskRunning || next.Status.State != cluster.TaskNew || next.SpecNumber != one.SpecNumber {
		t.Errorf("the successor: %+v", next)
	}
	if _, err := a.Again(ctx, "shop", one.ID); !errdefs.IsConflict(err) {
		t.Errorf("one whose place another has: %v", err)
	}
	if err := a.Resume(ctx, map[string]string{labelTask: one.ID}); !errdefs.IsConflict(err) {
		t.Errorf("starting its container: %v", err)
	}
	// One that failed and is tried again by itself needs nobody.
	set(next.ID, func(t *cluster.Task) {
		t.Status.State, t.Spec.Restart.Condition = cluster.TaskFailed, cluster.RestartOnFailure
	})
	if id, err := a.Again(ctx, "shop", next.ID); err != nil || id != next.ID || len(all()) != 2 {
		t.Errorf("one that is replaced anyway: %q, %v, %d tasks", id, err, len(all()))
	}
	set(next.ID, func(t *cluster.Task) { t.Desired = cluster.TaskRemove })
	if _, err := a.Again(ctx, "shop", next.ID); !errdefs.IsConflict(err) {
		t.Errorf("one that is to go: %v", err)
	}
}

// A job runs as often as it says.
func TestAgainOfJob(t *testing.T) {
	a, s := open(t)
	ctx := context.Background()
	job := service("mig:1", 1)
	job.Mode = cluster.Mode{Job: &cluster.Job{Total: 1}}
	if _, err := a.Put(ctx, "shop", spec(map[string]cluster.ServiceSpec{"web": job}), Put{}); err != nil {
		t.Fatal(err)
	}
	one := task(t, s, "shop", cluster.TaskComplete)
	if _, err := a.Again(ctx, "shop", one.ID); !errdefs.IsConflict(err) {
		t.Errorf("a job's: %v", err)
	}
}
