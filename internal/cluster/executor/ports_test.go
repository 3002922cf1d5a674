package executor

import (
	"fmt"
	"slices"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/moby/moby/api/types/network"
)

// A task has the ports on its node that it was placed with, whatever its service has by now.
func TestOwnPorts(t *testing.T) {
	r := begin(t)
	host := func(published uint16) []cluster.Port {
		return []cluster.Port{{Proto: network.TCP, Target: 443, Published: published, Host: true}}
	}
	web, err := store.Find[*cluster.Service](r.s.View(), "web")
	if err != nil {
		t.Fatal(err)
	}
	web = store.Copy(web)
	web.Spec.Ports = append(web.Spec.Ports, host(8444)...)
	if _, err := r.s.Commit(t.Context(), store.Update(web)); err != nil {
		t.Fatal(err)
	}
	for id, c := range map[string]struct {
		ports []cluster.Port
		want  string
	}{"t1": {host(8443), "[{invalid IP 8443}]"}, "t2": {nil, "[{invalid IP 8444}]"}} {
		if err := r.task(id, func(t *cluster.Task) { t.Ports = c.ports }).Prepare(t.Context()); err != nil {
			t.Fatal(err)
		}
		b := r.e.list[len(r.e.list)-1].host.PortBindings
		if got := fmt.Sprint(b[network.MustParsePort("443/tcp")]); got != c.want || len(b) != 3 {
			t.Errorf("%s: %s of %v, want %s", id, got, b, c.want)
		}
	}
}

// Of a range the engine chooses, for each container by itself.
func TestPublishRange(t *testing.T) {
	r := begin(t)
	web, err := store.Find[*cluster.Service](r.s.View(), "web")
	if err != nil {
		t.Fatal(err)
	}
	web = store.Copy(web)
	web.Spec.Ports = []cluster.Port{{Proto: network.TCP, Target: 80, Published: 8000, Last: 8002, Address: "127.0.0.1"}}
	if _, err := r.s.Commit(t.Context(), store.Update(web)); err != nil {
		t.Fatal(err)
	}
	if err := r.task("t1", func(*cluster.Task) {}).Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	m := r.e.list[len(r.e.list)-1]
	if got := fmt.Sprint(m.host.PortBindings); got != "map[80/tcp:[{127.0.0.1 8000-8002}]]" || m.config.Labels[LabelBalance] != "" {
		t.Errorf("%s, labels %v", got, m.config.Labels)
	}
}

func TestPublished(t *testing.T) {
	has := network.PortMap{network.MustParsePort("80/tcp"): {{HostPort: "8080"}, {HostPort: "49153"}, {HostPort: "49153"}}, network.MustParsePort("90/tcp"): {{HostPort: "90"}}}
	has[network.MustParsePort("53/udp")] = []network.PortBinding{{HostPort: "7041"}, {HostPort: "9000"}}
	asked := []cluster.Port{{Proto: "tcp", Target: 80, Published: 8080, Host: true}, {Proto: "tcp", Target: 81, Host: true}, {Proto: "tcp", Target: 90, Host: true},
		{Proto: "udp", Target: 53, Published: 7040, Last: 7042, Host: true}}
	want := []cluster.Port{{Proto: "tcp", Target: 80, Published: 8080, Host: true}, {Proto: "tcp", Target: 90, Published: 90, Host: true}, {Proto: "udp", Target: 53, Published: 7041, Host: true}}
	if got := published(asked, has); !slices.Equal(got, want) {
		t.Errorf("%+v", got)
	}
}

// A program is told which resources it has got.
func TestResources(t *testing.T) {
	r := begin(t)
	c := r.task("t1", func(t *cluster.Task) {
		t.Spec.Container.Env = []string{"A=b"}
		t.Spec.Reserved.Generic = map[string]int64{"ssd": 2, "Gpu": 2}
		t.Claimed = map[string][]string{"Gpu": {"x", "y"}}
	})
	if err := c.Prepare(t.Context()); err != nil {
		t.Fatal(err)
	}
	want := []string{"A=b", "DOCKER_RESOURCE_GPU=x,y", "DOCKER_RESOURCE_SSD=2"}
	if got := r.e.list[0].config.Env; !slices.Equal(got, want) || len(c.t.Spec.Container.Env) != 1 {
		t.Errorf("%v, want %v", got, want)
	}
}
