package container

import (
	"strings"
	"testing"

	"github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
)

func TestLinkVariables(t *testing.T) {
	c := &container.Config{
		Env:          []string{"PATH=/bin", "HOME=/root", "PASS=a=b", "BARE"},
		ExposedPorts: apinetwork.PortSet{},
	}
	for _, p := range []string{"53/udp", "81/tcp", "80/tcp", "6379/tcp"} {
		c.ExposedPorts[apinetwork.MustParsePort(p)] = struct{}{}
	}
	got := linkVariables("/web/my-db", "my-db", "172.17.0.3", c)
	want := []string{
		"MY_DB_PORT=tcp://172.17.0.3:80",
		"MY_DB_PORT_80_TCP=tcp://172.17.0.3:80", "MY_DB_PORT_80_TCP_ADDR=172.17.0.3", "MY_DB_PORT_80_TCP_PORT=80", "MY_DB_PORT_80_TCP_PROTO=tcp",
		"MY_DB_PORT_81_TCP=tcp://172.17.0.3:81", "MY_DB_PORT_81_TCP_ADDR=172.17.0.3", "MY_DB_PORT_81_TCP_PORT=81", "MY_DB_PORT_81_TCP_PROTO=tcp",
		"MY_DB_PORT_80_TCP_START=tcp://172.17.0.3:80", "MY_DB_PORT_80_TCP_PORT_START=80", "MY_DB_PORT_80_TCP_END=tcp://172.17.0.3:81", "MY_DB_PORT_80_TCP_PORT_END=81",
		"MY_DB_PORT_6379_TCP=tcp://172.17.0.3:6379", "MY_DB_PORT_6379_TCP_ADDR=172.17.0.3", "MY_DB_PORT_6379_TCP_PORT=6379", "MY_DB_PORT_6379_TCP_PROTO=tcp",
		"MY_DB_PORT_53_UDP=udp://172.17.0.3:53", "MY_DB_PORT_53_UDP_ADDR=172.17.0.3", "MY_DB_PORT_53_UDP_PORT=53", "MY_DB_PORT_53_UDP_PROTO=udp",
		"MY_DB_NAME=/web/my-db", "MY_DB_ENV_PASS=a=b",
	}
	if strings.Join(got, "\n") != strings.Join(want, "\n") {
		t.Errorf("got\n%s\nwant\n%s", strings.Join(got, "\n"), strings.Join(want, "\n"))
	}
}
