package cron

import (
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
)

// at sets the clock; the day is one without a change of the clocks.
func at(b *looptest.Bench, clock string) {
	b.Helper()
	t, err := time.Parse("2006-01-02 15:04", clock)
	if err != nil {
		b.Fatal(err)
	}
	b.Now = t
}

func newBench(t *testing.T, schedule string) *looptest.Bench {
	b := looptest.New(t, Loop{In: time.UTC})
	at(b, "2026-03-01 10:20")
	b.Service("job", cluster.Mode{Job: &cluster.Job{Total: 1}, Schedule: schedule})
	return b
}

func due(b *looptest.Bench, want string) {
	b.Helper()
	if got := b.Get("job").Status.Due.UTC().Format("2006-01-02 15:04"); got != want {
		b.Errorf("due %s, want %s", got, want)
	}
}

// The first look runs nothing; then each time that is due is a run of its own number.
func TestDue(t *testing.T) {
	b := newBench(t, "30 * * * *")
	b.Steps("job: number 1")
	b.Rest(10 * time.Minute)
	due(b, "2026-03-01 10:30")
	at(b, "2026-03-01 10:30")
	b.Steps("job: number 2")
	b.Rest(time.Hour)
	if s := b.Get("job"); s.Status.Run != 2 || s.Numbers != 2 {
		t.Errorf("it is %+v", s)
	}
	at(b, "2026-03-01 11:29")
	b.Rest(time.Minute)
	at(b, "2026-03-01 11:30")
	b.Steps("job: number 3", "")
}

// A run that works still is not disturbed; the next one is when it is due again.
func TestLeftOutWhileOneWorks(t *testing.T) {
	b := newBench(t, "30 * * * *")
	b.Steps("job: number 1")
	b.Task("job", 1, cluster.TaskRunning)
	at(b, "2026-03-01 10:30")
	b.Steps("job: number 1", "")
	due(b, "2026-03-01 11:30")
	b.Becomes("job.1#1", cluster.TaskComplete)
	b.Rest(time.Hour)
	at(b, "2026-03-01 11:30")
	b.Steps("job: number 2", "")
}

// Of runs that were due while nobody looked there is one.
func TestMissed(t *testing.T) {
	b := newBench(t, "30 * * * *")
	b.Steps("job: number 1")
	at(b, "2026-03-05 07:10")
	b.Steps("job: number 2", "")
	due(b, "2026-03-05 07:30")
}

// Another schedule counts from now, and none not at all.
func TestChanged(t *testing.T) {
	b := newBench(t, "@yearly")
	b.Steps("job: number 1", "")
	due(b, "2027-01-01 00:00")
	b.Change("job", func(s *cluster.Service) { s.Spec.Mode.Schedule = "@daily" })
	b.Steps("job: number 1", "")
	due(b, "2026-03-02 00:00")
	b.Change("job", func(s *cluster.Service) { s.Spec.Mode.Schedule = "" })
	b.Rest(0)
}

func TestNever(t *testing.T) {
	for _, schedule := range []string{"0 0 30 2 *", "nonsense", ""} {
		newBench(t, schedule).Rest(0)
	}
}

// Schedules are in the time of a place.
func TestPlace(t *testing.T) {
	b := newBench(t, "0 6 * * *")
	east := time.FixedZone("east", 5*3600)
	d := Loop{In: east}.Decide(b.Store.View(), b.Get("job").ID, b.Now)
	if len(d.Changes) != 1 {
		t.Fatalf("%+v", d)
	}
	b.Commit(store.Update(d.Changes[0].Object))
	due(b, "2026-03-02 01:00")
}
