package volume

import (
	"context"
	"maps"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
)

// fakeDriver keeps names; elsewhere are volumes that it finds when asked.
type fakeDriver struct {
	name      string
	vols      map[string]bool
	elsewhere string
	asked     int
}

func (f *fakeDriver) Has(name string) bool { return f.vols[name] }
func (f *fakeDriver) Acquire(_ context.Context, r Request, _ string) (Volume, error) {
	f.vols[r.Name] = true
	return Volume{Name: r.Name, Driver: f.name, Labels: r.Labels}, nil
}
func (f *fakeDriver) Get(_ context.Context, name string) (Volume, error) {
	f.asked++
	if f.vols[name] || name == f.elsewhere {
		return Volume{Name: name, Driver: f.name}, nil
	}
	return Volume{}, ErrNone(name)
}
func (f *fakeDriver) List(context.Context) (out []Volume, warnings []string) {
	for name := range maps.Keys(f.vols) {
		out = append(out, Volume{Name: name, Driver: f.name})
	}
	return out, []string{f.name + " warns"}
}
func (f *fakeDriver) Size(context.Context, string) (int64, error) { return 0, nil }
func (f *fakeDriver) Release(string, string)                      {}
func (f *fakeDriver) Remove(_ context.Context, name string, _ bool) error {
	delete(f.vols, name)
	return nil
}
func (f *fakeDriver) Mount(_ context.Context, name, _ string) (string, error) {
	return f.name + ":" + name, nil
}
func (f *fakeDriver) Unmount(string, string) error { return nil }
func (f *fakeDriver) Settle()                      {}

// A name is one volume's, whoever keeps it.
func TestWhoseVolume(t *testing.T) {
	own := &fakeDriver{name: Local, vols: map[string]bool{"mine": true, "both": true}}
	plug := &fakeDriver{name: "plug", vols: map[string]bool{"theirs": true}, elsewhere: "far"}
	s := NewSet(own, plug)
	for _, c := range []struct {
		r    Request
		want string // the driver, or the error
	}{
		{Request{Name: "mine"}, Local},
		{Request{Name: "mine", Driver: Local}, Local},
		{Request{Name: "mine", Driver: "plug"}, "create mine: driver 'local' already has volume 'mine': volume name must be unique"},
		{Request{Name: "mine", Driver: "plug", Held: true}, Local},
		{Request{Name: "theirs"}, "plug"},
		{Request{Name: "theirs", Driver: "plug"}, "plug"},
		{Request{Name: "far"}, "plug"},
		{Request{Name: "new"}, Local},
		{Request{Name: "new2", Driver: "plug"}, "plug"},
		{Request{Name: "lost", Held: true}, Local},
		{Request{Name: "lost2", Driver: "plug", Held: true}, "plug"},
	} {
		v, err := s.Create(t.Context(), c.r)
		got := v.Driver
		if err != nil {
			got = err.Error()
			if !errdefs.IsConflict(err) {
				t.Errorf("%+v: kind of %v", c.r, err)
			}
		}
		if got != c.want {
			t.Errorf("%+v: %s, want %s", c.r, got, c.want)
		}
	}
	asked := plug.asked
	v, err := s.Create(t.Context(), Request{Labels: map[string]string{"a": "b"}})
	if _, anonymous := v.Labels[Anonymous]; err != nil || len(v.Name) != 64 || !anonymous || v.Labels["a"] != "b" || plug.asked != asked {
		t.Errorf("without a name: %+v, %v", v, err)
	}
	for name, want := range map[string]string{"mine": "local:mine", "theirs": "plug:theirs", "new2": "plug:new2"} {
		if path, err := s.Mount(t.Context(), name, "c"); path != want || err != nil {
			t.Errorf("%s is mounted at %s, %v", name, path, err)
		}
	}
	plug.vols["both"] = true
	list, warnings := s.List(t.Context())
	var names []string
	for _, v := range list {
		names = append(names, v.Name)
	}
	if !slices.IsSorted(names) || strings.Count(strings.Join(names, " "), "both") != 1 || !slices.Equal(warnings, []string{"plug warns"}) {
		t.Errorf("listed %v, %v", names, warnings)
	}
}
