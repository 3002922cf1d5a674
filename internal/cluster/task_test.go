package cluster

import (
	"encoding/json"
	"regexp"
	"testing"
)

// A task goes forward only, and from an end nowhere.
func TestTaskStates(t *testing.T) {
	for _, from := range order {
		for _, to := range order {
			may := from.May(to)
			want := !from.Ended() && from.Before(to) && to != TaskRemove
			if may != want {
				t.Errorf("from %s to %s: %t", from, to, may)
			}
		}
		if from.May("nonsense") || TaskState("nonsense").May(from) {
			t.Errorf("%s and what is no state", from)
		}
	}
	for _, c := range []struct {
		from, to TaskState
		may      bool
	}{
		{TaskNew, TaskPending, true}, {TaskRunning, TaskFailed, true}, {TaskPreparing, TaskRejected, true}, {TaskRunning, TaskStarting, false},
		{TaskFailed, TaskRunning, false}, {TaskComplete, TaskShutdown, false}, {TaskRunning, TaskRunning, false}, {TaskRunning, TaskOrphaned, true},
	} {
		if got := c.from.May(c.to); got != c.may {
			t.Errorf("from %s to %s: %t", c.from, c.to, got)
		}
	}
	for state, ended := range map[TaskState]bool{TaskRunning: false, TaskReady: false, TaskComplete: true, TaskOrphaned: true, "": false} {
		if state.Ended() != ended {
			t.Errorf("%q ended: %t", state, !ended)
		}
	}
}

func TestKinds(t *testing.T) {
	for _, k := range Kinds() {
		o := k.New()
		if o == nil || o.Kind() != k || o.Base() == nil {
			t.Fatalf("%s makes %T", k, o)
		}
		o.Base().ID = "x"
		if b, err := json.Marshal(o); err != nil || !regexp.MustCompile(`^{"ID":"x"`).Match(b) {
			t.Errorf("%s is written as %s, %v", k, b, err)
		}
	}
	if Kind("nonsense").New() != nil {
		t.Error("there is a kind of nonsense")
	}
	a, b := NewID(), NewID()
	if a == b || !regexp.MustCompile(`^[0-9a-z]{25}$`).MatchString(a) {
		t.Errorf("ids %q and %q", a, b)
	}
}
