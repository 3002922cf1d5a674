package cli

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"strings"

	"escale.dev/escale/client"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/spec"
)

// networkCreateOptions are those of network create, as they were written.
type networkCreateOptions struct {
	moby.NetworkCreateOptions
	ipv4, ipv6                     bool
	options, labels                []string
	ipamDriver                     string
	subnets, ranges, gateways, aux []string
	ipamOptions                    []string
}

func networkCreateCommand(a *app) *cobra.Command {
	var o networkCreateOptions
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] NETWORK",
		Short: "Create a network",
		Example: `escale network create front
escale network create --subnet 10.77.0.0/24 --gateway 10.77.0.254 --ip-range 10.77.0.128/25 back
escale network create --ipv6 --internal -o com.docker.network.bridge.name=br-lab lab
escale network create -d macvlan --subnet 192.168.1.0/24 -o parent=eth0.50 office`,
		Args:              exactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if cmd.Flags().Changed("ipv4") {
				o.EnableIPv4 = &o.ipv4
			}
			if cmd.Flags().Changed("ipv6") {
				o.EnableIPv6 = &o.ipv6
			}
			return o.run(cmd.Context(), a, args[0])
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.Driver, "driver", "d", "bridge", "Name of the driver")
	f.StringArrayVarP(&o.options, "opt", "o", nil, "Option of the driver: KEY=VALUE")
	f.StringArrayVar(&o.labels, "label", nil, "Label of the network: KEY[=VALUE]")
	f.BoolVar(&o.Internal, "internal", false, "Nothing outside can be reached from it, nor reaches it")
	f.BoolVar(&o.ipv4, "ipv4", true, "Containers get IPv4 addresses")
	f.BoolVar(&o.ipv6, "ipv6", false, "Containers get IPv6 addresses")
	f.BoolVar(&o.Attachable, "attachable", false, "Containers of users may join it though services do")
	f.BoolVar(&o.Ingress, "ingress", false, "Make the network that spreads published ports of a cluster")
	f.StringVar(&o.Scope, "scope", "", "How far it reaches")
	f.BoolVar(&o.ConfigOnly, "config-only", false, "It only lends others its configuration")
	f.StringVar(&o.ConfigFrom, "config-from", "", "Network whose configuration it has")
	f.StringVar(&o.ipamDriver, "ipam-driver", "default", "Driver that manages the addresses")
	f.StringArrayVar(&o.ipamOptions, "ipam-opt", nil, "Option of that driver: KEY=VALUE")
	f.StringSliceVar(&o.subnets, "subnet", nil, "Subnet in CIDR form")
	f.StringSliceVar(&o.ranges, "ip-range", nil, "Part of the subnet that addresses are chosen from")
	f.StringSliceVar(&o.gateways, "gateway", nil, "Address of the gateway in the subnet")
	f.StringArrayVar(&o.aux, "aux-address", nil, "Address in the subnet that is another's: NAME=ADDRESS")
	return cmd
}

func (o *networkCreateOptions) run(ctx context.Context, a *app, name string) error {
	ipam, err := o.ipam()
	if err != nil {
		return err
	}
	o.IPAM, o.Options, o.Labels = ipam, spec.KeyValues(o.options), spec.KeyValues(o.labels)
	c, err := a.client()
	if err != nil {
		return err
	}
	res, err := c.NetworkCreate(ctx, name, o.NetworkCreateOptions)
	if err != nil {
		return err
	}
	for _, w := range res.Warning {
		a.complain(w)
	}
	a.println(res.ID)
	return nil
}

// ipam puts ranges, gateways and auxiliary addresses to the subnets they are in.
func (o *networkCreateOptions) ipam() (*network.IPAM, error) {
	if len(o.subnets) < len(o.ranges) || len(o.subnets) < len(o.gateways) {
		return nil, errors.New("every ip-range or gateway must have a corresponding subnet")
	}
	list := make([]network.IPAMConfig, 0, len(o.subnets))
	for _, s := range o.subnets {
		p, err := netip.ParsePrefix(s)
		if err != nil {
			return nil, fmt.Errorf("invalid subnet: invalid CIDR address: %s", s)
		}
		for _, other := range list {
			if other.Subnet.Overlaps(p) {
				return nil, errors.New("multiple overlapping subnet configuration is not supported")
			}
		}
		list = append(list, network.IPAMConfig{Subnet: p})
	}
	of := func(addr netip.Addr) *network.IPAMConfig {
		for i := range list {
			if list[i].Subnet.Contains(addr) {
				return &list[i]
			}
		}
		return nil
	}
	for _, r := range o.ranges {
		p, err := netip.ParsePrefix(r)
		if err != nil {
			return nil, fmt.Errorf("invalid CIDR address: %s", r)
		}
		c := of(p.Addr())
		switch {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for range %s", r)
		case c.IPRange.IsValid():
			return nil, fmt.Errorf("cannot configure multiple ranges (%s, %s) on the same subnet (%s)", r, c.IPRange, c.Subnet)
		}
		c.IPRange = p
	}
	for _, g := range o.gateways {
		addr, _ := netip.ParseAddr(g) // what is none is in no subnet
		c := of(addr)
		switch {
		case c == nil:
			return nil, fmt.Errorf("no matching subnet for gateway %s", g)
		case c.Gateway.IsValid():
			return nil, fmt.Errorf("cannot configure multiple gateways (%s, %s) for the same subnet (%s)", g, c.Gateway, c.Subnet)
		}
		c.Gateway = addr
	}
	for _, pair := range o.aux {
		name, value, _ := strings.Cut(pair, "=")
		addr, _ := netip.ParseAddr(value)
		c := of(addr)
		if c == nil {
			return nil, fmt.Errorf("no matching subnet for aux-address %s", value)
		}
		if c.AuxAddress == nil {
			c.AuxAddress = map[string]netip.Addr{}
		}
		c.AuxAddress[name] = addr
	}
	return &network.IPAM{Driver: o.ipamDriver, Config: list, Options: spec.KeyValues(o.ipamOptions)}, nil
}

func networkRmCommand(a *app) *cobra.Command {
	var force bool
	cmd := &cobra.Command{
		Use:               "rm NETWORK [NETWORK...]",
		Aliases:           []string{"remove"},
		Short:             "Remove networks that no container is on",
		Args:              minArgs(1),
		ValidArgsFunction: completeNetworkNames(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				_, err := c.NetworkRemove(ctx, name, moby.NetworkRemoveOptions{})
				return err
			}, func(err error) error {
				if force && errdefs.IsNotFound(err) {
					return nil
				}
				return err
			})
		},
	}
	cmd.Flags().BoolVarP(&force, "force", "f", false, "A network that is not there is no error")
	return cmd
}

// networkConnectOptions are those of network connect.
type networkConnectOptions struct {
	ip, ip6            string
	links, aliases     []string
	linkLocal, options []string
	priority           int
}

func networkConnectCommand(a *app) *cobra.Command {
	var o networkConnectOptions
	cmd := &cobra.Command{
		Use:   "connect [OPTIONS] NETWORK CONTAINER",
		Short: "Put a container on one more network",
		Example: `escale network connect back web
escale network connect --ip 10.77.0.20 --alias db back store`,
		Args:              exactArgs(2),
		ValidArgsFunction: completeNetworkAndContainer(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			settings, err := spec.Connection(o.ip, o.ip6, o.linkLocal, o.links, o.aliases, o.options, o.priority)
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			_, err = c.NetworkConnect(cmd.Context(), args[0], moby.NetworkConnectOptions{Container: args[1], EndpointConfig: settings})
			return err
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.ip, "ip", "", "IPv4 address on the network")
	f.StringVar(&o.ip6, "ip6", "", "IPv6 address on the network")
	f.StringArrayVar(&o.links, "link", nil, "Name of another container that only this one uses: CONTAINER[:ALIAS]")
	f.StringSliceVar(&o.aliases, "alias", nil, "Further name of the container on the network")
	f.StringSliceVar(&o.linkLocal, "link-local-ip", nil, "Link-local address of the container")
	f.StringSliceVar(&o.options, "driver-opt", nil, "Option of the driver: KEY=VALUE")
	f.IntVar(&o.priority, "gw-priority", 0, "The network with the highest has the default route")
	return cmd
}

func networkDisconnectCommand(a *app) *cobra.Command {
	var o moby.NetworkDisconnectOptions
	cmd := &cobra.Command{
		Use:               "disconnect [OPTIONS] NETWORK CONTAINER",
		Short:             "Take a container from a network",
		Args:              exactArgs(2),
		ValidArgsFunction: completeNetworkAndContainer(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			o.Container = args[1]
			_, err = c.NetworkDisconnect(cmd.Context(), args[0], o)
			return err
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "Also from a network that is no more")
	return cmd
}

// completeNetworkNames offers the names of networks.
func completeNetworkNames(a *app) completer {
	return completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.NetworkList(ctx, moby.NetworkListOptions{})
		var names []string
		for i := range res.Items {
			names = append(names, res.Items[i].Name)
		}
		return names, err
	})
}

// completeNetworkAndContainer offers a network first, then containers.
func completeNetworkAndContainer(a *app) completer {
	networks, containers := completeNetworkNames(a), completeContainers(a, allContainers, 2)
	return func(cmd *cobra.Command, args []string, prefix string) ([]string, cobra.ShellCompDirective) {
		if len(args) == 0 {
			return networks(cmd, args, prefix)
		}
		return containers(cmd, args, prefix)
	}
}
