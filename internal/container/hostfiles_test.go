package container

import (
	"os"
	"slices"
	"strings"
	"testing"

	"escale.dev/escale/internal/network"
	"github.com/moby/moby/api/types/container"
)

// hostsOf are the lines of a container's /etc/hosts below the loopback names.
func hostsOf(t *testing.T, m *Manager, id ID) string {
	t.Helper()
	text, err := os.ReadFile(m.hostFilesOf(id).hosts)
	if err != nil {
		t.Fatal(err)
	}
	_, own, found := strings.Cut(string(text), "ip6-allrouters\n")
	if !found {
		t.Fatalf("no loopback names: %q", text)
	}
	return own
}

func TestHostGateway(t *testing.T) {
	for _, c := range []struct {
		name, bridge string
		said         []string
		want         string
	}{
		{"the default network's, not the container's own", "10.9.0.1", nil, "10.9.0.1\tgate\n"},
		{"the container's own without a default network", "", nil, "172.17.0.1\tgate\n"},
		{"as the engine's settings say", "10.9.0.1", []string{"192.0.2.1", "2001:db8::1"}, "192.0.2.1\tgate\n2001:db8::1\tgate\n"},
	} {
		world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
			f.gateway = c.bridge
			m.cfg.Defaults.HostGateways = c.said
			id := create(t, m, "web", &container.HostConfig{ExtraHosts: []string{"gate:host-gateway"}})
			if err := m.Start(t.Context(), "web"); err != nil {
				t.Fatal(err)
			}
			if got := hostsOf(t, m, id); got != c.want+"172.17.0.2\t"+id.Short()+"\n" {
				t.Errorf("%s: %q", c.name, got)
			}
		})
	}
}

// TestHostsOfALiveConnect: a running container knows itself at the networks it is on
// now, in the file it has mounted; what others wrote there stays.
func TestHostsOfALiveConnect(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		ctx := t.Context()
		made, err := m.Create(ctx, Create{
			Name: "web", Config: &container.Config{Image: "debian", Hostname: "box", Domainname: "example.org"},
			HostConfig: &container.HostConfig{ExtraHosts: []string{"box.example.org box:172.18.0.2", "db:10.1.2.3"}},
		})
		if err != nil {
			t.Fatal(err)
		}
		if err := m.Start(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		path := m.hostFilesOf(made.ID).hosts
		before, err := os.Stat(path)
		if err != nil {
			t.Fatal(err)
		}
		const added, first, second = "172.18.0.2\tbox.example.org box\n10.1.2.3\tdb\n", "172.17.0.2\tbox.example.org box\n", "172.18.0.2\tbox.example.org box\n"
		is := func(what, want string) {
			t.Helper()
			if got := hostsOf(t, m, made.ID); got != want {
				t.Errorf("%s: %q, want %q", what, got, want)
			}
			if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
				t.Errorf("%s: another file (%v)", what, err)
			}
		}
		is("started", added+first)
		appendTo(t, path, "# of a user\n172.18.0.2 box.example.org box\n172.17.0.2\tother")
		const users = "# of a user\n172.18.0.2 box.example.org box\n172.17.0.2\tother\n"
		if err := m.Connect(ctx, "web", "back", nil); err != nil {
			t.Fatal(err)
		}
		is("connected", added+first+users+second)
		if err := m.Disconnect(ctx, "web", "bridge", false); err != nil {
			t.Fatal(err)
		}
		is("disconnected", added+users+second)
		if err := m.Disconnect(ctx, "web", "back", false); err != nil {
			t.Fatal(err)
		}
		is("on no network", added+users)
		// What is too large is not read, nor is it cut.
		large := strings.Repeat("#", maxHosts)
		appendTo(t, path, large)
		if err := m.Connect(ctx, "web", "back", nil); err != nil {
			t.Fatal(err)
		}
		is("large", added+users+large)
	})
}

func appendTo(t *testing.T, path, text string) {
	t.Helper()
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	if _, err := f.WriteString(text); err != nil {
		t.Fatal(err)
	}
}

// TestHostsHalfway: whatever stops the engine before a change of networks is recorded,
// /etc/hosts holds no address that is not the container's for sure.
func TestHostsHalfway(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		ctx := t.Context()
		id := create(t, m, "web", nil)
		if err := m.Start(ctx, "web"); err != nil {
			t.Fatal(err)
		}
		// Without its directory the run's endpoints cannot be written, which comes next.
		if err := os.RemoveAll(m.runDir(id, 1)); err != nil {
			t.Fatal(err)
		}
		if err := m.Connect(ctx, "web", "back", nil); !os.IsNotExist(err) {
			t.Fatalf("connected: %v", err)
		}
		if got, want := hostsOf(t, m, id), "172.17.0.2\t"+id.Short()+"\n"; got != want {
			t.Errorf("half connected: %q, want %q", got, want)
		}
		if err := m.Disconnect(ctx, "web", "bridge", false); !os.IsNotExist(err) {
			t.Fatalf("disconnected: %v", err)
		}
		if got := hostsOf(t, m, id); got != "" {
			t.Errorf("half disconnected: %q", got)
		}
	})
}

func TestHostLines(t *testing.T) {
	c := &container.Config{Hostname: "box"}
	both := hostLines(c, &network.Endpoint{IP: "10.0.0.2", IP6: "fd00::2"})
	if !slices.Equal(both, []string{"10.0.0.2\tbox\n", "fd00::2\tbox\n"}) {
		t.Errorf("of both families: %q", both)
	}
	if none := hostLines(c, &network.Endpoint{}); len(none) != 0 {
		t.Errorf("on none: %q", none)
	}
	for _, c := range []struct{ old, now string }{
		{"", ""}, {"a\n", "a\n"}, {"", "a\n"}, {"a\nb\nc\n", "a\nc\n"}, {"a\nb\n", ""}, {"a", "a\nb\n"}, {"a\nb", "a\n"}, {"10.0.0.1\tx\n10.0.0.11\tx\n", "10.0.0.11\tx\n"},
	} {
		at, write := patch(c.old, c.now)
		half := c.old[:at] + write // the first of the two steps
		if len(half) < len(c.old) || !strings.HasPrefix(half, c.now) || strings.Trim(half[len(c.now):], "\n") != "" {
			t.Errorf("from %q to %q by %q", c.old, c.now, half)
		}
	}
}
