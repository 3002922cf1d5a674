package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/cli/endpoint"
)

// The groups of the help page.
const (
	groupCommon = "common"
	groupManage = "manage"
	groupOther  = "other"
)

// newRoot builds the tree of commands.
func newRoot(a *app) *cobra.Command {
	root := &cobra.Command{
		Use:                   a.name + " [OPTIONS] COMMAND [ARG...]",
		Short:                 "Run containers, and look after them",
		SilenceUsage:          true,
		SilenceErrors:         true,
		TraverseChildren:      true,
		DisableFlagsInUseLine: true,
		Args:                  cobra.ArbitraryArgs,
		CompletionOptions:     cobra.CompletionOptions{DisableDefaultCmd: true},
	}
	version := root.Flags().BoolP("version", "v", false, "Print the version and quit")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *version:
			a.printf("Escale version %s, build %s\n", Version, commit())
			return nil
		case len(args) == 0:
			return showHelp(a, cmd)
		}
		return fmt.Errorf("%s: unknown command: %[1]s %s%s\n\nRun '%[1]s --help' for more information", a.name, args[0], suggestion(cmd, args[0]))
	}
	root.Flags().SetInterspersed(false) // an unknown verb is unknown with flags behind it too
	a.addGlobalFlags(root.Flags())
	root.PersistentFlags().BoolP("help", "h", false, "Print usage")
	root.PersistentFlags().Lookup("help").Hidden = true
	root.SetOut(a.out)
	root.SetErr(a.err)
	root.SetFlagErrorFunc(flagError)
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { printHelp(a.out, cmd) })
	root.SetHelpCommand(helpCommand(a))
	root.PersistentPreRunE = func(cmd *cobra.Command, _ []string) error {
		return a.finishFlags(cmd.Root().Flags())
	}
	addCommands(a, root)
	return root
}

// addCommands hangs in every verb. Those inside the groups are built a second
// time, as a cobra command has one parent, and only when the line names the
// group: building them all takes longer than asking the engine.
func addCommands(a *app, root *cobra.Command) {
	add := func(group string, cmds ...*cobra.Command) {
		for _, c := range cmds {
			c.DisableFlagsInUseLine = true
			c.GroupID = group
			root.AddCommand(c)
		}
	}
	for _, id := range []string{groupCommon, groupManage, groupOther} {
		root.AddGroup(&cobra.Group{ID: id})
	}
	add(groupCommon, runCommand(a), execCommand(a), psCommand(a), logsCommand(a), stopCommand(a), rmCommand(a),
		imagesCommand(a), importCommand(a), versionCommand(a), infoCommand(a), daemonCommand(a))
	add(groupManage,
		group(a, "container", "Manage containers", containerCommands),
		group(a, "image", "Manage images", imageCommands),
		group(a, "system", "Look at the engine", systemCommands))
	add(groupOther, attachCommand(a), createCommand(a), eventsCommand(a), historyCommand(a), inspectCommand(a),
		killCommand(a), loadCommand(a), pauseCommand(a), renameCommand(a), restartCommand(a), rmiCommand(a),
		saveCommand(a), startCommand(a), tagCommand(a), unpauseCommand(a), waitCommand(a), completionCommand(a))
}

// mentions reports whether a word of the command line is name. A command that
// is not mentioned is not the one that runs, so it may go without its flags.
func (a *app) mentions(name string) bool { return slices.Contains(a.args, name) }

// group makes a command that only holds others.
func group(a *app, name, short string, build func(*app) []*cobra.Command) *cobra.Command {
	g := &cobra.Command{Use: name, Short: short, Args: noArgs}
	g.RunE = func(cmd *cobra.Command, _ []string) error { return showHelp(a, cmd) }
	if !a.mentions(name) {
		return g
	}
	for _, c := range build(a) {
		c.DisableFlagsInUseLine = true
		g.AddCommand(c)
	}
	return g
}

// renamed gives a top command the name it has inside a group.
func renamed(c *cobra.Command, use string, aliases ...string) *cobra.Command {
	c.Use = use
	c.Aliases = aliases
	return c
}

func containerCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		attachCommand(a), createCommand(a), execCommand(a), containerInspectCommand(a), killCommand(a), logsCommand(a),
		renamed(psCommand(a), "ls [OPTIONS]", "ps", "list"), pauseCommand(a), containerPruneCommand(a),
		renameCommand(a), restartCommand(a), rmCommand(a), runCommand(a), startCommand(a), stopCommand(a),
		unpauseCommand(a), waitCommand(a),
	}
}

func imageCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		historyCommand(a), importCommand(a), imageInspectCommand(a), loadCommand(a),
		renamed(imagesCommand(a), "ls [OPTIONS] [REPOSITORY[:TAG]]", "list"), imagePruneCommand(a),
		renamed(rmiCommand(a), "rm [OPTIONS] IMAGE [IMAGE...]", "rmi", "remove"), saveCommand(a), tagCommand(a),
	}
}

func systemCommands(a *app) []*cobra.Command {
	return []*cobra.Command{eventsCommand(a), infoCommand(a), dialStdioCommand(a)}
}

// addGlobalFlags defines what stands before the verb.
func (a *app) addGlobalFlags(f *pflag.FlagSet) {
	dir := endpoint.ConfigDir()
	certs := os.Getenv("DOCKER_CERT_PATH")
	if certs == "" {
		certs = dir
	}
	o := &a.flags
	f.StringVar(&o.ConfigDir, "config", dir, "Folder of the client's configuration")
	f.StringVarP(&o.Context, "context", "c", "", "Name of the context that says which engine to use")
	f.BoolVarP(&a.debug, "debug", "D", false, "Enable debug mode")
	f.VarP(&hostList{&o.Hosts}, "host", "H", "Engine to connect to: unix://PATH, tcp://HOST:PORT or ssh://HOST")
	f.StringP("log-level", "l", "info", `Logging level ("debug", "info", "warn", "error", "fatal")`)
	f.BoolVar(&o.TLS, "tls", os.Getenv("DOCKER_TLS") != "", "Use TLS; implied by --tlsverify")
	f.StringVar(&o.CA, "tlscacert", filepath.Join(certs, "ca.pem"), "Trust only certificates signed by this CA")
	f.StringVar(&o.Cert, "tlscert", filepath.Join(certs, "cert.pem"), "Client certificate")
	f.StringVar(&o.Key, "tlskey", filepath.Join(certs, "key.pem"), "Client key")
	f.BoolVar(&o.TLSVerify, "tlsverify", os.Getenv("DOCKER_TLS_VERIFY") != "", "Use TLS and verify the engine's certificate")
}

// finishFlags settles what the global flags say about one another.
func (a *app) finishFlags(f *pflag.FlagSet) error {
	o := &a.flags
	if f.Changed("tlsverify") || o.TLSVerify {
		o.TLS = true
	}
	o.CertExplicit, o.KeyExplicit = f.Changed("tlscert"), f.Changed("tlskey")
	switch level := f.Lookup("log-level").Value.String(); level {
	case "debug", "info", "warn", "error", "fatal", "panic", "trace", "warning":
	default:
		return fmt.Errorf("Unable to parse logging level: %s", level) //nolint:staticcheck // Docker's words.
	}
	return nil
}

// hostList is -H, which is repeatable only to be refused in plain words.
type hostList struct{ values *[]string }

func (h *hostList) Set(s string) error { *h.values = append(*h.values, s); return nil }
func (h *hostList) String() string     { return "" }
func (h *hostList) Type() string       { return "list" }

// filterFlag is -f NAME=VALUE, repeatable.
type filterFlag map[string]map[string]bool

func (m *filterFlag) Set(s string) error {
	if s == "" {
		return nil
	}
	name, value, ok := cutFilter(s)
	if !ok {
		return fmt.Errorf("bad format of filter (expected name=value)")
	}
	if *m == nil {
		*m = filterFlag{}
	}
	if (*m)[name] == nil {
		(*m)[name] = map[string]bool{}
	}
	(*m)[name][value] = true
	return nil
}

func (m *filterFlag) String() string { return "" }
func (m *filterFlag) Type() string   { return "filter" }
