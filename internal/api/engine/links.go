package engine

import (
	"slices"

	"escale.dev/escale/internal/container"
)

// linkNames gives, for each container that others link to, the names that it
// has by that: "/user/alias".
func linkNames(views []container.View) map[container.ID][]string {
	var names map[container.ID][]string
	for i := range views {
		for _, l := range container.Links(&views[i].Record) {
			if names == nil {
				names = map[container.ID][]string{}
			}
			for j := range views {
				if l.To(&views[j].Record) {
					id := views[j].ID
					names[id] = append(names[id], "/"+views[i].Name+"/"+l.Alias)
				}
			}
		}
	}
	return names
}

// shownLinks are the links of a container as inspection shows them,
// "/target:/user/alias"; a target that is gone is left out.
func (s *Server) shownLinks(v *container.View) []string {
	var shown []string
	for _, l := range container.Links(&v.Record) {
		if target, err := s.cfg.Containers.Get(l.Ref); err == nil {
			shown = append(shown, "/"+target.Name+":/"+v.Name+"/"+l.Alias)
		}
	}
	slices.Sort(shown)
	return shown
}
