package cluster

import "time"

// Delays of restart policies that give none.
const (
	firstDelay = 100 * time.Millisecond
	lastDelay  = time.Minute
	success    = 10 * time.Second // a task that ended before was none
)

// Again is the task that takes the place of t, which has ended, nil when the restart
// policy of t wants none. It starts after the delay of the policy. One that gives none
// gets a delay that doubles from 100 ms to a minute while tasks end within ten seconds.
func (t *Task) Again(now time.Time) *Task {
	p := t.Spec.Restart
	if p.Condition == RestartNone || p.Condition == RestartOnFailure && t.Status.State == TaskComplete {
		return nil
	}
	var count []time.Time // the restarts that are counted; tasks before t may have gone from the store
	if p.Attempts > 0 {
		for _, at := range t.Restarts {
			if p.Window == 0 || now.Sub(at) <= p.Window {
				count = append(count, at)
			}
		}
		if uint64(len(count)) >= p.Attempts {
			return nil
		}
		count = append(count, now)
	}
	next := t.Successor(t.Spec, t.SpecNumber)
	next.Desired, next.Halted, next.Restarts, next.NotBefore = t.Desired, t.Halted, count, now.Add(t.delay())
	if t.Status.State == TaskFailed || t.Status.State == TaskRejected {
		next.Failures = 1
		if t.quick() {
			next.Failures += t.Failures
		}
	}
	return next
}

// delay is how long the place stays empty after t.
func (t *Task) delay() time.Duration {
	if d := t.Spec.Restart.Delay; d > 0 {
		return d
	}
	if !t.quick() || !t.NotBefore.After(t.CreatedAt) {
		return firstDelay
	}
	return min(max(2*t.NotBefore.Sub(t.CreatedAt), firstDelay), lastDelay)
}

// quick tells whether a task that has ended did so soon after it could begin.
func (t *Task) quick() bool {
	begun := t.CreatedAt
	if t.NotBefore.After(begun) {
		begun = t.NotBefore
	}
	return t.Status.At.Sub(begun) < success
}

// Shaky tells whether the place of a task has failed before it, and it has not been as it is
// for long enough to say that it does not any more.
func (t *Task) Shaky(now time.Time) bool { return t.Failures > 0 && now.Sub(t.Status.At) < success }
