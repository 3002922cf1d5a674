package network

import (
	"context"
	"fmt"
	"time"

	apievents "github.com/moby/moby/api/types/events"
)

// leavePatience is how long the removal of a network, and who asks for an address of
// it, or for any of a full one, wait for the kernel to give back what containers that
// have ended had there.
const leavePatience = 15 * time.Second

// Remove removes a network of a user's that no container is on. Killed before the
// answer, it is there whole or not at all when the next engine is open. Blocks for the
// kernel and some seconds for a plugin that it was made by. Kinds and words of errors
// are Docker's.
func (m maker) Remove(ctx context.Context, ref string) error {
	m.making.Lock()
	a, err := m.removeHere(ctx, ref)
	m.making.Unlock()
	if err != nil {
		return err
	}
	defer m.networks.drop(a)
	m.names.setServices(a.info.ID, nil)
	m.balance.drop(a.info.ID)
	// What plugins have of it goes when no record tells of it any more: cut off here,
	// the next engine goes on.
	if foreign(a.driver) {
		if err := a.driver.Delete(ctx, a.info.ID); err != nil {
			m.log.Warn("driver of a network that was removed", "network", a.info.Name, "driver", a.info.Driver, "error", err)
		}
	}
	if a.addresses != nil {
		a.addresses.Drop(ctx, a.info.ID)
	}
	if !a.info.ConfigOnly {
		m.tell(apievents.ActionDestroy, &a.info)
	}
	return nil
}

// removeHere removes what is ours of a network: nobody finds it any more.
func (m maker) removeHere(ctx context.Context, ref string) (*attached, error) {
	patient, cancel := context.WithTimeout(ctx, leavePatience)
	a, err := m.networks.leave(patient, ref)
	cancel()
	if err != nil {
		return nil, err
	}
	if a.driver != nil && !foreign(a.driver) {
		if err := a.driver.Delete(ctx, a.info.ID); err != nil {
			m.networks.stay(a)
			return nil, fmt.Errorf("error while removing network: %w", err)
		}
	}
	if err := m.records.remove(a.info.ID); err != nil {
		m.networks.stay(a)
		return nil, fmt.Errorf("error while removing network: %w", err)
	}
	return a, nil
}
