package cluster

import (
	"fmt"
	"testing"
	"time"
)

// A place is filled again as its policy says, however many tasks the store still has.
func TestAgain(t *testing.T) {
	const day = 24 * time.Hour
	for _, c := range []struct {
		name   string
		policy RestartPolicy
		ends   TaskState
		lives  time.Duration // each of its tasks
		want   string        // the delays, as long as there is a next one
	}{
		{"any", RestartPolicy{Condition: RestartAny, Delay: time.Second}, TaskComplete, 0, "1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s"},
		{"on failure, well", RestartPolicy{Condition: RestartOnFailure}, TaskComplete, 0, ""},
		{"on failure", RestartPolicy{Condition: RestartOnFailure, Delay: time.Second, Attempts: 2}, TaskFailed, 0, "1s 1s"},
		{"none", RestartPolicy{Condition: RestartNone}, TaskFailed, 0, ""},
		{"no delay given", RestartPolicy{Condition: RestartAny}, TaskFailed, time.Second, "100ms 200ms 400ms 800ms 1.6s 3.2s 6.4s 12.8s 25.6s 51.2s 1m0s 1m0s"},
		{"no delay given, long lives", RestartPolicy{Condition: RestartAny, Attempts: 3}, TaskFailed, 10 * time.Second, "100ms 100ms 100ms"},
		{"many attempts", RestartPolicy{Condition: RestartAny, Delay: time.Second, Attempts: 8}, TaskRejected, 0, "1s 1s 1s 1s 1s 1s 1s 1s"},
		{"window", RestartPolicy{Condition: RestartAny, Delay: time.Second, Attempts: 3, Window: 10 * time.Second}, TaskFailed, time.Second, "1s 1s 1s"},
		{"window, never so many", RestartPolicy{Condition: RestartAny, Delay: time.Second, Attempts: 3, Window: 10 * time.Second}, TaskFailed, 3 * time.Second, "1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s 1s"},
		{"no window", RestartPolicy{Condition: RestartAny, Delay: time.Second, Attempts: 3}, TaskFailed, day, "1s 1s 1s"},
	} {
		t.Run(c.name, func(t *testing.T) {
			now := time.Unix(1e9, 0)
			task := &Task{Meta: Meta{Name: "web.1", CreatedAt: now}, Spec: TaskSpec{Restart: c.policy}, SpecNumber: 3, Number: 7, Slot: 1, Desired: TaskReady, Halted: true}
			got := ""
			for range 12 {
				begun := now
				if task.NotBefore.After(now) {
					begun = task.NotBefore
				}
				now = begun.Add(c.lives)
				failures := task.Failures
				task.Status = TaskStatus{State: c.ends, At: now}
				next := task.Again(now)
				if next == nil {
					break
				}
				if next.Number != task.Number+1 || next.SpecNumber != 3 || next.Desired != TaskReady || !next.Halted || next.Status.State != TaskNew {
					t.Fatalf("next is %+v", next)
				}
				if bad := c.ends != TaskComplete; next.Failures > 0 != bad || bad && next.Failures > 1 != (failures > 0 && c.lives < 10*time.Second) {
					t.Fatalf("after %d failures there are %d", failures, next.Failures)
				}
				next.CreatedAt = now
				task = next
				got += " " + fmt.Sprint(task.NotBefore.Sub(now))
			}
			if c.want != "" {
				c.want = " " + c.want
			}
			if got != c.want {
				t.Errorf("delays%s, want%s", got, c.want)
			}
		})
	}
}
