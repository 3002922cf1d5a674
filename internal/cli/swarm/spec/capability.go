package spec

import (
	"maps"
	"slices"
	"strings"
)

// What stands for many capabilities: all of them, and, when a service is updated, none
// of what was said before.
const (
	allCapabilities    = "ALL"
	resetCapabilities  = "RESET"
	capabilitiesPrefix = "CAP_"
)

// capabilitySet writes the names as the kernel has them.
func capabilitySet(words []string) map[string]bool {
	set := map[string]bool{}
	for _, w := range words {
		w = strings.ToUpper(strings.TrimSpace(w))
		if w != allCapabilities && w != resetCapabilities && !strings.HasPrefix(w, capabilitiesPrefix) {
			w = capabilitiesPrefix + w
		}
		set[w] = true
	}
	return set
}

// Capabilities are those of a new service: what is added is not dropped.
func Capabilities(add, drop []string) (added, dropped []string) {
	a, d := capabilitySet(add), capabilitySet(drop)
	for _, set := range []map[string]bool{a, d} {
		delete(set, resetCapabilities)
		if set[allCapabilities] {
			maps.DeleteFunc(set, func(c string, _ bool) bool { return c != allCapabilities })
		}
	}
	maps.DeleteFunc(d, func(c string, _ bool) bool { return a[c] })
	return slices.Sorted(maps.Keys(a)), slices.Sorted(maps.Keys(d))
}

// updateCapabilities changes those of a service. What was added is dropped by being no
// more added, and the other way round; only what is neither goes to the list it is
// asked for.
func updateCapabilities(have, haveDropped, add, drop []string) (added, dropped []string) {
	a, d := capabilitySet(have), capabilitySet(haveDropped)
	toAdd, toDrop := capabilitySet(add), capabilitySet(drop)
	for _, x := range []struct{ asked, set map[string]bool }{{toAdd, a}, {toDrop, d}} {
		if x.asked[resetCapabilities] {
			clear(x.set)
			delete(x.asked, resetCapabilities)
		}
	}
	for c := range toDrop {
		switch {
		case toAdd[c]:
		case a[c]:
			delete(a, c)
		default:
			d[c] = true
		}
	}
	for c := range toAdd {
		if d[c] {
			delete(d, c)
		} else {
			a[c] = true
		}
	}
	return capabilityList(a), capabilityList(d)
}

func capabilityList(set map[string]bool) []string {
	if set[allCapabilities] {
		return []string{allCapabilities}
	}
	return slices.Sorted(maps.Keys(set))
}
