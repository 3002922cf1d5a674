// Package swarm holds the commands about a cluster of machines: `swarm` itself here,
// and in packages below those about its nodes, services, stacks, secrets and configs.
package swarm

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"strings"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/swarm/node"
	"escale.dev/escale/internal/cli/swarm/progress"
	"escale.dev/escale/internal/cli/swarm/secret"
	"escale.dev/escale/internal/cli/swarm/service"
	"escale.dev/escale/internal/cli/swarm/stack"
	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/cli/verb"
)

// Family is a group of commands.
type Family struct {
	Name, Short string
	Commands    func(*verb.App) []*cobra.Command
}

// Families are the groups of commands about clusters.
func Families() []Family {
	return []Family{
		{"config", "Manage configs: files that the cluster gives to tasks", secret.Configs},
		{"node", "Manage the nodes of a cluster", node.Commands},
		{"secret", "Manage secrets: files that only tasks that need them see", secret.Secrets},
		{"service", "Manage services", service.Commands},
		{"stack", "Manage stacks: services of a compose file", stack.Commands},
		{"swarm", "Make machines a cluster", Commands},
	}
}

// Commands are those of `swarm`.
func Commands(a *verb.App) []*cobra.Command {
	return []*cobra.Command{
		caCommand(a), initCommand(a), joinCommand(a), joinTokenCommand(a), leaveCommand(a), unlockCommand(a), unlockKeyCommand(a), updateCommand(a),
	}
}

// member are the options of init and join about this machine.
type member struct {
	listen                            listenAddr
	advertise, dataPath, availability string
}

func (m *member) addFlags(cmd *cobra.Command) {
	f := cmd.Flags()
	m.listen.addr = defaultListen
	f.Var(&m.listen, "listen-addr", "Where other managers reach this one: ADDRESS|INTERFACE[:PORT]")
	f.StringVar(&m.advertise, "advertise-addr", "", "Address that others are told: ADDRESS|INTERFACE[:PORT]")
	f.StringVar(&m.dataPath, "data-path-addr", "", "Address for what containers send each other: ADDRESS|INTERFACE")
	f.StringVar(&m.availability, "availability", "active", `Whether this node gets tasks: "active", "pause", "drain"`)
	_ = cmd.RegisterFlagCompletionFunc("availability", verb.Words("active", "pause", "drain"))
}

// wanted is the availability that was asked for, or none.
func (m *member) wanted(cmd *cobra.Command) (swarm.NodeAvailability, error) {
	if !cmd.Flags().Changed("availability") {
		return "", nil
	}
	switch v := swarm.NodeAvailability(strings.ToLower(m.availability)); v {
	case swarm.NodeAvailabilityActive, swarm.NodeAvailabilityPause, swarm.NodeAvailabilityDrain:
		return v, nil
	}
	return "", fmt.Errorf("invalid availability %q, only active, pause and drain are supported", m.availability)
}

func initCommand(a *verb.App) *cobra.Command {
	var m member
	var s settings
	var o moby.SwarmInitOptions
	var pools []net.IPNet
	cmd := &cobra.Command{
		Use:               "init [OPTIONS]",
		Short:             "Make this machine the first of a cluster",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	m.addFlags(cmd)
	f := cmd.Flags()
	f.Uint32Var(&o.DataPathPort, "data-path-port", 0, "UDP port for what containers send each other: 1024 to 49151 (0: 4789)")
	f.BoolVar(&o.ForceNewCluster, "force-new-cluster", false, "Make a new cluster of what this manager knows, without the others")
	f.BoolVar(&s.autolock, "autolock", false, "Ask for a key when a manager was restarted")
	f.IPNetSliceVar(&pools, "default-addr-pool", nil, "Pool that subnets of networks are taken from, in CIDR form")
	f.Uint32Var(&o.SubnetSize, "default-addr-pool-mask-length", 24, "Bits of such a subnet's prefix")
	s.addFlags(f)
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		for _, p := range pools {
			ones, _ := p.Mask.Size()
			if addr, ok := netip.AddrFromSlice(p.IP); ok {
				o.DefaultAddrPool = append(o.DefaultAddrPool, netip.PrefixFrom(addr.Unmap(), ones))
			}
		}
		o.ListenAddr, o.AdvertiseAddr, o.DataPathAddr, o.AutoLockManagers = m.listen.String(), m.advertise, m.dataPath, s.autolock
		s.merge(&o.Spec, nil)
		var err error
		if o.Availability, err = m.wanted(cmd); err != nil {
			return err
		}
		return initialize(cmd.Context(), a, o)
	}
	return cmd
}

func initialize(ctx context.Context, a *verb.App, o moby.SwarmInitOptions) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	res, err := c.SwarmInit(ctx, o)
	if err != nil {
		if text := err.Error(); strings.Contains(text, "could not choose an IP address to advertise") || strings.Contains(text, "could not find the system's IP address") {
			return fmt.Errorf("%w - specify one with --advertise-addr", err)
		}
		return err
	}
	a.Printf("Swarm initialized: current node (%s) is now a manager.\n\n", res.NodeID)
	if err := printJoin(ctx, a, c, res.NodeID, "worker"); err != nil {
		return err
	}
	a.Printf("To add a manager to this swarm, run '%s swarm join-token manager' and follow the instructions.\n", a.Name)
	if !o.AutoLockManagers {
		return nil
	}
	return printKey(ctx, a, c, false)
}

// printJoin says how another machine joins in a role.
func printJoin(ctx context.Context, a *verb.App, c *client.Client, nodeID, role string) error {
	n, err := c.NodeInspect(ctx, nodeID, moby.NodeInspectOptions{})
	if err != nil {
		return err
	}
	res, err := c.SwarmInspect(ctx, moby.SwarmInspectOptions{})
	if err != nil || n.Node.ManagerStatus == nil {
		return err
	}
	a.Printf("To add a %s to this swarm, run the following command:\n\n    %s swarm join --token %s %s\n\n", role, a.Name, token(&res.Swarm, role), n.Node.ManagerStatus.Addr)
	return nil
}

func token(s *swarm.Swarm, role string) string {
	if role == "manager" {
		return s.JoinTokens.Manager
	}
	return s.JoinTokens.Worker
}

func joinCommand(a *verb.App) *cobra.Command {
	var m member
	var secret string
	cmd := &cobra.Command{
		Use:               "join [OPTIONS] HOST:PORT",
		Short:             "Make this machine a node of a cluster",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	m.addFlags(cmd)
	cmd.Flags().StringVar(&secret, "token", "", "What lets it in, and says as what: see join-token")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		availability, err := m.wanted(cmd)
		if err != nil {
			return err
		}
		c, err := a.Connect()
		if err != nil {
			return err
		}
		_, err = c.SwarmJoin(cmd.Context(), moby.SwarmJoinOptions{
			JoinToken: secret, ListenAddr: m.listen.String(), AdvertiseAddr: m.advertise, DataPathAddr: m.dataPath,
			RemoteAddrs: args, Availability: availability,
		})
		if err != nil {
			return err
		}
		res, err := c.Info(cmd.Context(), moby.InfoOptions{})
		if err != nil {
			return err
		}
		role := "worker"
		if res.Info.Swarm.ControlAvailable {
			role = "manager"
		}
		a.Printf("This node joined a swarm as a %s.\n", role)
		return nil
	}
	return cmd
}

func joinTokenCommand(a *verb.App) *cobra.Command {
	var rotate, quiet bool
	cmd := &cobra.Command{
		Use:               "join-token [OPTIONS] (worker|manager)",
		Short:             "Show what lets machines join, or change it",
		Args:              verb.ExactArgs(1),
		ValidArgsFunction: verb.Words("worker", "manager"),
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "Make a new token; the old one lets nobody in any more")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only the token")
	cmd.RunE = func(cmd *cobra.Command, args []string) error {
		role := args[0]
		if role != "worker" && role != "manager" {
			return errors.New("unknown role " + role)
		}
		return joinToken(cmd.Context(), a, role, rotate, quiet)
	}
	return cmd
}

func joinToken(ctx context.Context, a *verb.App, role string, rotate, quiet bool) error {
	c, err := a.Connect()
	if err != nil {
		return err
	}
	res, err := c.SwarmInspect(ctx, moby.SwarmInspectOptions{})
	if err != nil {
		return err
	}
	if rotate {
		_, err := c.SwarmUpdate(ctx, moby.SwarmUpdateOptions{
			Version: res.Swarm.Version, Spec: res.Swarm.Spec, RotateWorkerToken: role == "worker", RotateManagerToken: role == "manager",
		})
		if err != nil {
			return err
		}
		if !quiet {
			a.Printf("Successfully rotated %s join token.\n\n", role)
		}
		if res, err = c.SwarmInspect(ctx, moby.SwarmInspectOptions{}); err != nil {
			return err
		}
	}
	if quiet {
		a.Println(token(&res.Swarm, role))
		return nil
	}
	info, err := c.Info(ctx, moby.InfoOptions{})
	if err != nil {
		return err
	}
	return printJoin(ctx, a, c, info.Info.Swarm.NodeID, role)
}

func leaveCommand(a *verb.App) *cobra.Command {
	var o moby.SwarmLeaveOptions
	cmd := &cobra.Command{
		Use:               "leave [OPTIONS]",
		Short:             "Take this machine out of its cluster",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			if _, err = c.SwarmLeave(cmd.Context(), o); err == nil {
				a.Println("Node left the swarm.")
			}
			return err
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "Although it is a manager, whatever is lost")
	return cmd
}

func unlockCommand(a *verb.App) *cobra.Command {
	return &cobra.Command{
		Use:               "unlock",
		Short:             "Give a manager that was restarted its key",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			res, err := c.Info(cmd.Context(), moby.InfoOptions{})
			if err != nil {
				return err
			}
			switch res.Info.Swarm.LocalNodeState {
			case swarm.LocalNodeStateLocked:
			case swarm.LocalNodeStateInactive:
				return errors.New("Error: This node is not part of a swarm") //nolint:staticcheck // Docker's words.
			default:
				return errors.New("Error: swarm is not locked") //nolint:staticcheck // Docker's words.
			}
			key, err := readKey(a)
			if err != nil {
				return err
			}
			_, err = c.SwarmUnlock(cmd.Context(), moby.SwarmUnlockOptions{Key: key})
			return err
		},
	}
}

// readKey reads the key of a swarm, unseen when it is typed.
func readKey(a *verb.App) (string, error) {
	if f, ok := a.In.(*os.File); ok && tty.IsTerminal(f) {
		a.Printf("Enter unlock key: ")
		key, err := tty.ReadPassword(f)
		a.Println()
		return key, err
	}
	key, err := bufio.NewReader(a.In).ReadString('\n')
	if errors.Is(err, io.EOF) {
		err = nil
	}
	return strings.TrimSpace(key), err
}

func unlockKeyCommand(a *verb.App) *cobra.Command {
	var rotate, quiet bool
	cmd := &cobra.Command{
		Use:               "unlock-key [OPTIONS]",
		Short:             "Show the key that managers ask for, or change it",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			c, err := a.Connect()
			if err != nil {
				return err
			}
			if rotate {
				if err := rotateKey(cmd.Context(), a, c, quiet); err != nil {
					return err
				}
			}
			return printKey(cmd.Context(), a, c, quiet)
		},
	}
	cmd.Flags().BoolVar(&rotate, "rotate", false, "Make a new key")
	cmd.Flags().BoolVarP(&quiet, "quiet", "q", false, "Print only the key")
	return cmd
}

func rotateKey(ctx context.Context, a *verb.App, c *client.Client, quiet bool) error {
	res, err := c.SwarmInspect(ctx, moby.SwarmInspectOptions{})
	if err != nil {
		return err
	}
	if !res.Swarm.Spec.EncryptionConfig.AutoLockManagers {
		return errors.New("cannot rotate because autolock is not turned on")
	}
	_, err = c.SwarmUpdate(ctx, moby.SwarmUpdateOptions{Version: res.Swarm.Version, Spec: res.Swarm.Spec, RotateManagerUnlockKey: true})
	if err == nil && !quiet {
		a.Println("Successfully rotated manager unlock key.")
	}
	return err
}

// printKey prints the key that managers ask for.
func printKey(ctx context.Context, a *verb.App, c *client.Client, quiet bool) error {
	res, err := c.SwarmGetUnlockKey(ctx)
	switch {
	case err != nil:
		return fmt.Errorf("could not fetch unlock key: %w", err)
	case res.Key == "":
		return errors.New("no unlock key is set")
	case quiet:
		a.Println(res.Key)
		return nil
	}
	a.Printf("To unlock a swarm manager after it restarts, run the `%s swarm unlock`\ncommand and provide the following key:\n\n    %s\n\n"+
		"Remember to store this key in a password manager, since without it you\nwill not be able to restart the manager.\n", a.Name, res.Key)
	return nil
}

func caCommand(a *verb.App) *cobra.Command {
	var s settings
	var cert, key pemFile
	var rotate, detach, quiet bool
	cmd := &cobra.Command{
		Use:               "ca [OPTIONS]",
		Short:             "Show the root that nodes trust, or change it",
		Args:              verb.NoArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
	}
	f := cmd.Flags()
	s.addCAFlags(f)
	f.BoolVar(&rotate, "rotate", false, "Make a new root, unless one is given")
	f.Var(&cert, "ca-cert", "PEM file of the certificate to use")
	f.Var(&key, "ca-key", "PEM file of its key")
	f.BoolVarP(&detach, "detach", "d", false, "Do not wait until all nodes trust it")
	f.BoolVarP(&quiet, "quiet", "q", false, "Do not show how far that is")
	cmd.RunE = func(cmd *cobra.Command, _ []string) error {
		ctx := cmd.Context()
		c, err := a.Connect()
		if err != nil {
			return err
		}
		res, err := c.SwarmInspect(ctx, moby.SwarmInspectOptions{})
		if err != nil {
			return err
		}
		if err := checkCA(cmd, rotate, len(s.externalCA.list) > 0); err != nil {
			return err
		}
		if !rotate {
			return printRoot(a, &res.Swarm)
		}
		s.mergeCA(&res.Swarm.Spec, &cert.text)
		config := &res.Swarm.Spec.CAConfig
		config.SigningCACert, config.SigningCAKey = cert.text, key.text
		if cert.text == "" && key.text == "" {
			config.ForceRotate++
		}
		_, err = c.SwarmUpdate(ctx, moby.SwarmUpdateOptions{Version: res.Swarm.Version, Spec: res.Swarm.Spec})
		if err != nil || detach {
			return err
		}
		if err := progress.Root(ctx, c, a.Name, a.Out, quiet); err != nil || quiet {
			return err
		}
		if res, err = c.SwarmInspect(ctx, moby.SwarmInspectOptions{}); err != nil {
			return err
		}
		return printRoot(a, &res.Swarm)
	}
	return cmd
}

// checkCA refuses options of ca that make no sense together.
func checkCA(cmd *cobra.Command, rotate, external bool) error {
	f := cmd.Flags()
	if !rotate {
		for _, name := range []string{"ca-cert", "ca-key", "cert-expiry", "external-ca"} {
			if f.Changed(name) {
				return fmt.Errorf("`--%s` flag requires the `--rotate` flag to update the CA", name)
			}
		}
		return nil
	}
	switch given := f.Changed("ca-cert"); {
	case external && !given:
		return errors.New("rotating to an external CA requires the `--ca-cert` flag to specify the external CA's cert - " +
			"to add an external CA with the current root CA certificate, use the `update` command instead")
	case given && !external && !f.Changed("ca-key"):
		return errors.New("the --ca-cert flag requires that a --ca-key flag and/or --external-ca flag be provided as well")
	}
	return nil
}

func printRoot(a *verb.App, s *swarm.Swarm) error {
	if s.TLSInfo.TrustRoot == "" {
		return errors.New("No CA information available") //nolint:staticcheck // Docker's words.
	}
	a.Println(strings.TrimSpace(s.TLSInfo.TrustRoot))
	return nil
}
