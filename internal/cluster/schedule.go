package cluster

import (
	"fmt"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/robfig/cron/v3"
)

// ParseSchedule reads a schedule: minute, hour, day of the month, month, day of the week, or
// @daily and the like, after TZ=Europe/Zurich if not in the time of the host. InvalidArgument
// when it is none.
func ParseSchedule(s string) (cron.Schedule, error) {
	if zone, _, spaced := strings.Cut(s, " "); !spaced && (strings.HasPrefix(zone, "TZ=") || strings.HasPrefix(zone, "CRON_TZ=")) {
		return nil, fmt.Errorf("schedule %q: a time zone and nothing else: %w", s, errdefs.ErrInvalidArgument)
	}
	sched, err := cron.ParseStandard(s)
	if err != nil {
		return nil, fmt.Errorf("schedule %q: %w: %w", s, err, errdefs.ErrInvalidArgument)
	}
	return sched, nil
}
