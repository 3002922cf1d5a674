package compose

import (
	"context"
	"fmt"
	"strings"
	"time"

	"escale.dev/escale/client"
)

// standstill is how long a command waits for a service that no node of the cluster suits, or
// that cannot have its addresses, while nothing else of its app is on its way.
const standstill = 30 * time.Second

// patience says how long and for what an app is followed.
type patience struct {
	seconds int           // at most; 0: as long as it takes
	still   time.Duration // until it counts as stuck; 0: never does
	created bool          // containers that are made will do
}

// detached is the patience of a command that comes back by itself: who says how many seconds
// waits that long.
func detached(seconds int, created bool) patience {
	p := patience{seconds: seconds, created: created}
	if seconds == 0 {
		p.still = standstill
	}
	return p
}

// stall notices that an app has come to a standstill.
type stall struct {
	after time.Duration
	name  string // of the command line
	why   string // it stands still, as it was told last; "": it does not
	since *time.Timer
}

// see takes note of how an app is. end is called, from a goroutine of its own, when it has stood
// still for that long; the error says why, and what can be done.
func (st *stall) see(app *client.App, end context.CancelCauseFunc) {
	why, next := stuck(app, st.name)
	if st.after == 0 || why == st.why {
		return
	}
	st.why = why
	if st.since != nil {
		st.since.Stop()
	}
	if why == "" {
		return
	}
	err := fmt.Errorf("app %s: %s\nNothing has changed for %v. The app is kept. %s. '%s up --wait-timeout SECONDS' waits longer.", app.Name, why, st.after, next, st.name) //nolint:staticcheck // sentences for people
	st.since = time.AfterFunc(st.after, func() { end(err) })
}

// stop forgets it.
func (st *stall) stop() {
	if st.since != nil {
		st.since.Stop()
	}
}

// stuck says which services no node suits or no address is for, why, and what can be done, when nothing of
// the app is on its way. A volume that is being moved comes to an end.
func stuck(app *client.App, name string) (why, next string) {
	var list []string
	drained, unaddressed := false, false
	for i := range app.Services {
		sv := &app.Services[i]
		told := false
		for j := range sv.Tasks {
			t := &sv.Tasks[j]
			placeless, addressless := t.State == "pending" && strings.HasPrefix(t.Err, "no suitable node"), t.Err != "" && t.Message == "pending address allocation"
			switch {
			case ended(t), t.Halted:
			case placeless || addressless:
				if strings.Contains(t.Err, "is being moved") {
					return "", ""
				}
				drained = drained || strings.Contains(t.Err, "node not available")
				unaddressed = unaddressed || addressless
				if !told {
					told, list = true, append(list, fmt.Sprintf("service %s: %s: %s", sv.Name, t.Name, t.Err))
				}
			case onItsWay(t):
				return "", ""
			}
		}
	}
	switch {
	case drained:
		next = fmt.Sprintf("It starts once its node is back: '%s node ls' tells which is down, '%[1]s node update --availability active NODE' lets one that is drained or paused have tasks again", name)
	case unaddressed:
		next = fmt.Sprintf("Change the file and say '%s up' again", name)
	default:
		next = fmt.Sprintf("It starts once there is a node for it: see '%s node ls', or change the file and say '%[1]s up' again", name)
	}
	return strings.Join(list, "\n"), next
}

// onItsWay tells whether something is being done about a task on its node.
func onItsWay(t *client.AppTask) bool {
	switch t.State {
	case "accepted":
		return !strings.HasPrefix(t.Message, "waits for service ")
	case "assigned", "preparing", "starting":
		return true
	case "running":
		return !t.Healthy
	}
	return false
}
