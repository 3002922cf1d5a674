package cli

import (
	"cmp"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/moby/moby/api/types/network"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

func portCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use: "port CONTAINER [PRIVATE_PORT[/PROTO]]",
		Example: `escale port web
escale port web 80/tcp`,
		Args:              rangeArgs(1, 2),
		ValidArgsFunction: completeContainers(a, runningContainers, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			res, err := c.ContainerInspect(cmd.Context(), args[0], moby.ContainerInspectOptions{})
			if err != nil {
				return err
			}
			var ports network.PortMap
			if s := res.Container.NetworkSettings; s != nil {
				ports = s.Ports
			}
			if len(args) == 1 {
				a.allPorts(ports)
				return nil
			}
			return a.onePort(ports, args[0], args[1])
		},
	}
}

// allPorts prints every published port, by number and protocol.
func (a *app) allPorts(ports network.PortMap) {
	all := make([]network.Port, 0, len(ports))
	for p := range ports {
		all = append(all, p)
	}
	slices.SortFunc(all, func(p, q network.Port) int {
		return cmp.Or(cmp.Compare(p.Num(), q.Num()), cmp.Compare(p.Proto(), q.Proto()))
	})
	for _, p := range all {
		for _, b := range ports[p] {
			a.printf("%s -> %s\n", p, hostPort(b))
		}
	}
}

// onePort prints where one port is published.
func (a *app) onePort(ports network.PortMap, name, wanted string) error {
	num, proto, _ := strings.Cut(wanted, "/")
	p, err := network.ParsePort(num + "/" + cmp.Or(proto, "tcp"))
	if err != nil {
		return fmt.Errorf("Error: invalid port (%s): a number, perhaps with /tcp, /udp or /sctp, is wanted", wanted) //nolint:staticcheck // Docker's words.
	}
	bindings := ports[p]
	if bindings == nil {
		return fmt.Errorf("Error: No public port '%s' published for %s", wanted, name) //nolint:staticcheck // Docker's words.
	}
	for _, b := range bindings {
		a.println(hostPort(b))
	}
	return nil
}

func hostPort(b network.PortBinding) string {
	host := ""
	if b.HostIP.IsValid() {
		host = b.HostIP.String()
	}
	return net.JoinHostPort(host, b.HostPort)
}
