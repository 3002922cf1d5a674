package systemd

import "testing"

func TestCgroup(t *testing.T) {
	for _, c := range []struct{ slice, prefix, name, want string }{
		{"", "docker", "a1", "/system.slice/docker-a1.scope"},
		{"system.slice", "", "a1", "/system.slice/a1.scope"},
		{"a-b-c.slice", "p", "x", "/a.slice/a-b.slice/a-b-c.slice/p-x.scope"},
		{"-.slice", "p", "x", "/p-x.scope"},
		{"a.slice", "p", "b.slice", "/a.slice/b.slice"},
	} {
		if got := Cgroup(c.slice, c.prefix, c.name); got != c.want {
			t.Errorf("%q %q %q: %s, want %s", c.slice, c.prefix, c.name, got, c.want)
		}
	}
}
