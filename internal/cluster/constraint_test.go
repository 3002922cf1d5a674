package cluster

import "testing"

// Any text is read as a constraint or refused in words.
func FuzzConstraint(f *testing.F) {
	for _, s := range []string{"node.role == manager", "node.labels.a.b!=c", "==", "engine.labels.x==y", "a!=b==c"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		list, err := ParseConstraints([]string{s})
		switch {
		case err != nil && err.Error() == "":
			t.Error("an error without words")
		case err == nil:
			list[0].Holds(&Node{})
		}
	})
}
