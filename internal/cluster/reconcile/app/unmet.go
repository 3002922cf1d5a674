package app

import (
	"errors"
	"fmt"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// unmet says what a place of a service waits for that does not come any more: the good end of a
// service that has ended badly and is not tried again; "" is nothing. What is about to be
// exchanged tells nothing of that, on either side.
func (d *decision) unmet(s *cluster.Service, slots []cluster.Slot) string {
	for _, slot := range slots {
		t := slot.Current()
		if t.SpecNumber != s.Spec.Number || !t.Needy() || t.Halted {
			continue
		}
		for _, n := range t.Spec.Needs {
			if n.Condition != cluster.Completed || n.Optional {
				continue
			}
			need, err := store.Named[*cluster.Service](d.v, n.Service)
			if err != nil {
				continue // it may come
			}
			if err := d.end(need); err != nil {
				return fmt.Sprintf("service %q didn't complete successfully: %s", d.part(need), err)
			}
		}
	}
	return ""
}

// end is how a service has ended that is not tried again; nil: it may still end well, or has.
func (d *decision) end(s *cluster.Service) error {
	for _, slot := range cluster.Slots(store.List[*cluster.Task](d.v, store.Owner(s.ID))) {
		t := slot.Current()
		over := t.Desired.Stops() // the loop that would put another into its place has seen to it
		if s.Spec.Mode.Job != nil || s.Spec.Mode.GlobalJob {
			over = t.Again(d.now) == nil
		}
		switch {
		case t.SpecNumber != s.Spec.Number, t.Status.State == cluster.TaskComplete, !t.Status.State.Ended(), !over:
		case t.Status.Container != nil:
			return fmt.Errorf("exit %d", t.Status.Container.ExitCode)
		default:
			return errors.New(t.Status.Err)
		}
	}
	return nil
}
