package agent

import (
	"errors"
	"testing"
	"testing/synctest"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/container"
)

// halt marks a task as stopped by a client, and ends its container as the client does.
func (r *rig) halt(id string, code int) {
	r.t.Helper()
	b := r.m.has[id]
	r.change(id, func(t *cluster.Task) { t.Halted = true })
	b.end <- code
	synctest.Wait()
}

func (r *rig) unhalt(id string) {
	r.t.Helper()
	r.change(id, func(t *cluster.Task) { t.Halted = false })
}

// says compares what a task tells people.
func (r *rig) says(id, message string) {
	r.t.Helper()
	if got := r.get(id).Status.Message; got != message {
		r.t.Errorf("%s says %q, want %q", id, got, message)
	}
}

// up makes a task that runs and is well.
func (r *rig) up(id string) {
	r.t.Helper()
	r.task(id, "good")
	close(r.m.has[id].healthy)
	synctest.Wait()
	r.want(id, "running healthy", "prepare start")
}

// What a client stops stays so, without being a failure, and comes back when it is
// wanted again: also when somebody has removed it.
func TestHalted(t *testing.T) {
	agents(t, func(r *rig) {
		r.up("stopped")
		r.up("removed")
		for _, id := range []string{"stopped", "removed"} {
			r.halt(id, 143)
			r.want(id, "running", "prepare start shutdown")
			r.says(id, haltedMessage)
		}
		delete(r.m.has, "removed")
		for _, id := range []string{"stopped", "removed"} {
			r.unhalt(id)
			r.says(id, "started")
		}
		r.want("stopped", "running healthy", "prepare start shutdown prepare start")
		r.want("removed", "running", "prepare start shutdown prepare start") // this one is new, and not well yet
		r.m.has["removed"].end <- 0
		synctest.Wait()
		r.want("removed", "complete", "prepare start shutdown prepare start")
	})
}

// The end of a container can be seen before it is known that a client wanted it.
func TestHaltedAtTheEnd(t *testing.T) {
	agents(t, func(r *rig) {
		r.up("x")
		task := store.Copy(r.get("x"))
		task.Halted = true
		if _, err := r.s.Commit(t.Context(), store.Update(task)); err != nil { // and nobody has read it yet
			t.Fatal(err)
		}
		r.m.has["x"].ill <- errors.New("No such container")
		synctest.Wait()
		r.want("x", "running", "prepare start shutdown")
	})
}

// What is made only waits; one that is halted while it starts does not run.
func TestHaltedBeforeItRuns(t *testing.T) {
	agents(t, func(r *rig) {
		task := &cluster.Task{
			Meta: cluster.Meta{ID: "x"}, Node: "n1", Desired: cluster.TaskRunning, Status: cluster.TaskStatus{State: cluster.TaskAssigned},
			Spec: cluster.TaskSpec{Container: &container.Config{}}, Halted: true,
		}
		if _, err := r.s.Commit(t.Context(), store.Create(task)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.want("x", "ready", "prepare")
		delete(r.m.has, "x")
		r.unhalt("x")
		r.want("x", "running", "prepare prepare start")
		if r.m.has["x"] == nil {
			t.Error("it was started without being there")
		}
		late := store.Copy(task)
		late.ID, late.Status.State, late.Revision = "y", cluster.TaskStarting, 0
		if _, err := r.s.Commit(t.Context(), store.Create(late)); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
		r.want("y", "running", "")
		r.says("y", haltedMessage)
	})
}

// A later engine leaves what was halted, ends what its predecessor could not, and
// brings back what was wanted again while none was there.
func TestHaltedAnew(t *testing.T) {
	agents(t, func(r *rig) {
		for _, id := range []string{"stays", "late", "back"} {
			r.up(id)
		}
		r.halt("stays", 0)
		r.halt("back", 0)
		r.stop()
		r.change("late", func(t *cluster.Task) { t.Halted = true })
		r.unhalt("back")
		r.begin()
		r.want("stays", "running", "prepare start shutdown")
		r.want("late", "running", "prepare start shutdown")
		r.says("late", haltedMessage)
		r.want("back", "running healthy", "prepare start shutdown prepare start")
		r.change("stays", func(t *cluster.Task) { t.Desired = cluster.TaskShutdown })
		r.want("stays", "shutdown", "prepare start shutdown")
	})
}

// One that cannot come back has failed, unless a client stops it again meanwhile.
func TestResumeFails(t *testing.T) {
	agents(t, func(r *rig) {
		r.up("x")
		r.halt("x", 0)
		r.change("x", func(t *cluster.Task) { t.Spec.Container.Image = "broken" })
		r.stop() // the next one knows of the change
		r.unhalt("x")
		r.begin()
		r.want("x", "failed: exec format error", "prepare start shutdown prepare")
	})
}

// Let go, a container runs on, whatever its task's state.
func TestReleased(t *testing.T) {
	agents(t, func(r *rig) {
		r.up("x")
		r.task("none", "missing")
		for _, id := range []string{"x", "none"} {
			r.change(id, func(t *cluster.Task) { t.Desired = cluster.TaskOrphaned })
		}
		r.want("x", "orphaned", "prepare start release")
		r.want("none", "rejected: No such image: missing", "prepare")
		if _, err := r.s.Commit(t.Context(), store.Delete(r.get("x"))); err != nil {
			t.Fatal(err)
		}
		synctest.Wait()
	})
}

// What a client starts in the instant between its end and the word of it has no place
// any more.
func TestStartedAfterItsEnd(t *testing.T) {
	agents(t, func(r *rig) {
		r.up("x")
		r.stop()
		r.m.has["x"].running = true
		r.change("x", func(t *cluster.Task) { t.Status.State = cluster.TaskFailed })
		r.begin()
		r.want("x", "failed healthy", "prepare start shutdown")
	})
}
