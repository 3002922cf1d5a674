package load

import (
	"fmt"

	"escale.dev/escale/test/internal/harness"
)

// wander makes a network, puts the container on it and perhaps takes it off again,
// and in the end removes the network, which must have let go of everything.
func (b *box) wander() error {
	name := b.Client.name("net")
	if cut, err := b.do("POST", "/networks/create", map[string]any{"Name": name, "EnableIPv6": b.rng.IntN(2) == 0, "Internal": b.rng.IntN(4) == 0}, nil); err != nil && !(cut && harness.Status(err) == 409) {
		return fmt.Errorf("network create: %w", err)
	}
	join := map[string]any{"Container": b.id, "EndpointConfig": map[string]any{"GwPriority": b.rng.IntN(3)}}
	on := true
	if cut, err := b.do("POST", "/networks/"+name+"/connect", join, nil); err != nil {
		// On the host's network or none it joins no other; what had no answer may have been done.
		refused := harness.Status(err) == 400
		if on = !refused; !refused && !(cut && harness.Status(err) == 403) {
			return fmt.Errorf("network connect: %w", err)
		}
	}
	for range b.rng.IntN(3) {
		if !on {
			break
		}
		if cut, err := b.do("POST", "/networks/"+name+"/disconnect", map[string]any{"Container": b.id}, nil); err != nil && !(cut && harness.Status(err) == 500) {
			return fmt.Errorf("network disconnect: %w", err)
		}
		if cut, err := b.do("POST", "/networks/"+name+"/connect", join, nil); err != nil && !(cut && harness.Status(err) == 403) {
			return fmt.Errorf("network connect: %w", err)
		}
	}
	if on {
		if cut, err := b.do("POST", "/networks/"+name+"/disconnect", map[string]any{"Container": b.id}, nil); err != nil && !(cut && harness.Status(err) == 500) {
			return fmt.Errorf("network disconnect: %w", err)
		}
	}
	if cut, err := b.do("DELETE", "/networks/"+name, nil, nil); err != nil && !(cut && harness.Status(err) == 404) {
		return fmt.Errorf("network rm: %w", err)
	}
	return nil
}
