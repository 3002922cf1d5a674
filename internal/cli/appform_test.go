package cli

import (
	"reflect"
	"testing"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cluster/apps"
)

// What the engine tells of apps and what the client package reads are declared twice,
// for the client is others' to import: they must have the same form.
func TestAppForm(t *testing.T) {
	for what, pair := range map[string][2]reflect.Type{
		"app":      {reflect.TypeFor[client.App](), reflect.TypeFor[apps.View]()},
		"plan":     {reflect.TypeFor[client.AppPlan](), reflect.TypeFor[apps.Plan]()},
		"revision": {reflect.TypeFor[client.AppRevision](), reflect.TypeFor[apps.Revision]()},
	} {
		sameForm(t, what, pair[0], pair[1])
	}
}

func sameForm(t *testing.T, where string, a, b reflect.Type) {
	t.Helper()
	if a.Kind() != b.Kind() {
		t.Errorf("%s: %s and %s", where, a, b)
		return
	}
	switch a.Kind() {
	case reflect.Slice, reflect.Pointer:
		sameForm(t, where, a.Elem(), b.Elem())
	case reflect.Map:
		sameForm(t, where+" keys", a.Key(), b.Key())
		sameForm(t, where, a.Elem(), b.Elem())
	case reflect.Struct:
		if a == b {
			return
		}
		if a.NumField() != b.NumField() {
			t.Errorf("%s: %d fields and %d", where, a.NumField(), b.NumField())
			return
		}
		for i := range a.NumField() {
			f, g := a.Field(i), b.Field(i)
			if f.Name != g.Name || f.Tag != g.Tag {
				t.Errorf("%s: %s `%s` and %s `%s`", where, f.Name, f.Tag, g.Name, g.Tag)
				continue
			}
			sameForm(t, where+"."+f.Name, f.Type, g.Type)
		}
	}
}
