package daemon

import (
	"fmt"
	"strings"
	"testing"

	"escale.dev/escale/internal/network"
	"github.com/spf13/pflag"
)

func TestPublishFlags(t *testing.T) {
	for args, want := range map[string]string{
		"":                           "binding invalid IP, publish [], forward true, strict false",
		"--ip 192.0.2.1":             "binding 192.0.2.1, publish [], forward true, strict false",
		"--publish-default loopback": "binding invalid IP, publish [127.0.0.1 ::1], forward true, strict false",
		"--publish-default ::ffff:1.2.3.4 --userland-proxy=false": "binding invalid IP, publish [1.2.3.4], forward false, strict false",
		"--firewall strict":            "binding invalid IP, publish [], forward true, strict true",
		"--ip here":                    `invalid --ip "here": want an IP address`,
		"--publish-default everywhere": `invalid --publish-default "everywhere": want "all", "loopback" or an IP address`,
		"--firewall off":               `invalid --firewall "off": want "auto" or "strict"`,
	} {
		var c publishConfig
		fs := pflag.NewFlagSet("test", pflag.ContinueOnError)
		c.flags(fs)
		if err := fs.Parse(strings.Fields(args)); err != nil {
			t.Fatal(err)
		}
		var to network.Config
		err := c.validate()
		if err == nil {
			err = c.apply(&to)
		}
		got := fmt.Sprintf("binding %s, publish %v, forward %v, strict %v", to.Binding, to.Publish, to.Forward, to.Strict)
		if err != nil {
			got = err.Error()
		}
		if got != want {
			t.Errorf("%q: %s, want %s", args, got, want)
		}
	}
}
