package daemon

import (
	"cmp"
	"slices"
	"strings"

	"escale.dev/escale/internal/network"
)

// networks are the engine's networks as the API has them: the host's own is one
// too, though nothing is made for it.
type networks struct {
	*network.Manager
	host network.Info
}

// List tells of all networks, by name.
func (n networks) List() []network.Info {
	all := append(n.Manager.List(), n.host)
	slices.SortFunc(all, func(a, b network.Info) int { return cmp.Compare(a.Name, b.Name) })
	return all
}

// Inspect tells of one network, by name, id, or a beginning of the id.
func (n networks) Inspect(ref string) (network.Info, error) {
	found, err := n.Manager.Inspect(ref)
	if err != nil && ref != "" && (ref == n.host.Name || strings.HasPrefix(n.host.ID, ref)) {
		return n.host, nil
	}
	return found, err
}
