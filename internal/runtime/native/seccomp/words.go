package seccomp

import (
	"maps"
	"slices"

	"github.com/opencontainers/runtime-spec/specs-go"
)

// Actions are those that a profile may name, sorted.
func Actions() []string { return sorted(actions) }

// Operators are those that a profile may compare by, sorted.
func Operators() []string { return sorted(operators) }

// Archs are those that a profile may name, sorted; of others than the machine's there
// are no calls to filter.
func Archs() []string { return sorted(foreign) }

// Flags are those that a profile may ask for, sorted.
func Flags() []string {
	return []string{string(specs.LinuxSeccompFlagLog), string(specs.LinuxSeccompFlagSpecAllow), flagSync}
}

func sorted[K ~string, V any](m map[K]V) []string {
	var list []string
	for k := range maps.Keys(m) {
		list = append(list, string(k))
	}
	slices.Sort(list)
	return list
}
