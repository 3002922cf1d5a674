package cluster

import (
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

func TestParseSchedule(t *testing.T) {
	at := time.Date(2026, 1, 1, 12, 0, 30, 0, time.UTC)
	for s, want := range map[string]time.Duration{"*/5 * * * *": 4*time.Minute + 30*time.Second, "@hourly": 59*time.Minute + 30*time.Second, "TZ=UTC 1 12 * * *": 30 * time.Second} {
		sched, err := ParseSchedule(s)
		if err != nil || sched.Next(at).Sub(at) != want {
			t.Errorf("%q: %v", s, err)
		}
	}
	for _, s := range []string{"", "x", "* * * *", "@sometimes", "TZ=UTC", "CRON_TZ=", "TZ=nowhere * * * * *", "61 * * * *"} {
		if _, err := ParseSchedule(s); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", s, err)
		}
	}
}

// Whatever somebody writes there, nobody falls over it.
func FuzzParseSchedule(f *testing.F) {
	for _, s := range []string{"*/5 * * * *", "@every 1h", "TZ=UTC 1 12 * * MON-FRI", "CRON_TZ=", "TZ="} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if sched, err := ParseSchedule(s); err == nil {
			sched.Next(time.Unix(1e9, 0))
		}
	})
}
