package container

import (
	"os"
	"strings"
	"testing"

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
