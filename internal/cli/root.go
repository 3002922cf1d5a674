package cli

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"

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

// single is a command without a group before it.
type single struct {
	name, group, short string
	build              func(*app) *cobra.Command
}

func verbs() []single {
	return []single{
		{"run", groupCommon, "Create a container from an image and start it", runCommand},
		{"exec", groupCommon, "Run a command in a running container", execCommand},
		{"ps", groupCommon, "List containers", psCommand},
		{"build", groupCommon, "Build an image from a Dockerfile", buildCommand},
		{"up", groupCommon, "Make an app as its compose file has it, and keep it so", upCommand},
		{"down", groupCommon, "Remove an app: its containers and networks", downCommand},
		{"apps", groupCommon, "List apps", appsCommand},
		{"logs", groupCommon, "Show what a container has written", logsCommand},
		{"stop", groupCommon, "Stop running containers", stopCommand},
		{"rm", groupCommon, "Remove containers", rmCommand},
		{"images", groupCommon, "List images", imagesCommand},
		{"pull", groupCommon, "Bring an image from a registry", pullCommand},
		{"import", groupCommon, "Make an image from an archive of a file system tree", importCommand},
		{"version", groupCommon, "Show the versions of client and engine", versionCommand},
		{"info", groupCommon, "Show what the engine is, has and can do", infoCommand},
		{"daemon", groupCommon, "Run the engine in the foreground", daemonCommand},
		{"attach", groupOther, "Join the standard streams of a running container", attachCommand},
		{"commit", groupOther, "Make an image of a container", commitCommand},
		{"cp", groupOther, "Copy files between a container and this machine", cpCommand},
		{"create", groupOther, "Create a container without starting it", createCommand},
		{"diff", groupOther, "Show what a container has changed in its file system", diffCommand},
		{"events", groupOther, "Show what happens in the engine, as it happens", eventsCommand},
		{"export", groupOther, "Write a container's file system to a tar archive", exportCommand},
		{"history", groupOther, "Show how an image came about, layer by layer", historyCommand},
		{"inspect", groupOther, "Show everything the engine knows about an object", inspectCommand},
		{"kill", groupOther, "Send a signal to running containers: KILL unless told", killCommand},
		{"load", groupOther, "Load images from an archive that save or another tool has made", loadCommand},
		{"login", groupOther, "Log in to a registry", loginCommand},
		{"logout", groupOther, "Forget the login to a registry", logoutCommand},
		{"pause", groupOther, "Freeze all processes of containers", pauseCommand},
		{"port", groupOther, "Show where the ports of a container are published", portCommand},
		{"push", groupOther, "Send an image to a registry", pushCommand},
		{"release", groupOther, "Leave an app's containers to you: the engine keeps them no more", releaseCommand},
		{"rename", groupOther, "Rename a container", renameCommand},
		{"restart", groupOther, "Stop containers and start them again", restartCommand},
		{"rmi", groupOther, "Remove images", rmiCommand},
		{"rollback", groupOther, "Bring back what an app was before", rollbackCommand},
		{"save", groupOther, "Write images to an archive (to STDOUT unless told)", saveCommand},
		{"search", groupOther, "Look for images on Docker Hub", searchCommand},
		{"start", groupOther, "Start stopped containers", startCommand},
		{"stats", groupOther, "Show what containers use, live", statsCommand},
		{"tag", groupOther, "Give an image one more name", tagCommand},
		{"top", groupOther, "Show the processes of a container", topCommand},
		{"unpause", groupOther, "Let the processes of paused containers go on", unpauseCommand},
		{"update", groupOther, "Change the limits of containers", updateCommand},
		{"wait", groupOther, "Wait until containers stop and print their exit codes", waitCommand},
		{"compose", groupManage, "Everything that concerns apps of compose files", composeCommand},
		{"completion", groupOther, "Print a script that completes commands in a shell", completionCommand},
	}
}

// addCommands hangs in every verb. A cobra command with its flags takes time
// to build, all of them together more than the engine takes to answer, so only
// those that the line mentions are built; the others are names for the help.
func addCommands(a *app, root *cobra.Command) {
	for _, id := range []string{groupCommon, groupManage, groupOther} {
		root.AddGroup(&cobra.Group{ID: id})
	}
	for _, v := range verbs() {
		c := &cobra.Command{Use: v.name, Run: func(*cobra.Command, []string) {}}
		if a.mentions(v.name) || v.name == "rm" && a.mentions("remove") {
			c = v.build(a)
		}
		c.GroupID = v.group
		root.AddCommand(described(c, v.short))
	}
	for _, g := range append(swarmGroups(a),
		group(a, "builder", "Build images, and look after the cache", builderCommands, "build"),
		group(a, "container", "Manage containers", containerCommands, "attach", "commit", "cp", "create", "diff", "exec", "export", "kill", "logs", "ps",
			"pause", "port", "rename", "restart", "rm", "run", "start", "stats", "stop", "top", "unpause", "update", "wait"),
		group(a, "image", "Manage images", imageCommands, "build", "history", "import", "load", "images", "pull", "push", "rmi", "save", "tag"),
		group(a, "cluster", "Look at a cluster, or try one on this machine", clusterCommands),
		group(a, "network", "Manage networks", networkCommands),
		group(a, "plugin", "Manage plugins", pluginCommands),
		group(a, "registry", "Serve and look after a registry of images", registryCommands),
		group(a, "system", "Look at the engine and what it keeps", systemCommands, "events", "info"),
		group(a, "volume", "Manage volumes", volumeCommands),
	) {
		g.GroupID = groupManage
		root.AddCommand(g)
	}
	plugin := group(a, "buildx", "Build images: what the stock client's plugin is called", builderCommands, "build")
	plugin.Hidden = true
	root.AddCommand(plugin)
	if len(a.args) > 0 && strings.HasPrefix(a.args[0], "__complete") {
		completeFlags(a, root)
	}
}

// mentions reports whether a word of the command line is name. A command that
// is not mentioned is not the one that runs.
func (a *app) mentions(name string) bool { return slices.Contains(a.args, name) }

func described(c *cobra.Command, short string) *cobra.Command {
	c.Short = short
	c.DisableFlagsInUseLine = true
	return c
}

// group makes a command that only holds others: verbs by their names, and
// commands of its own.
func group(a *app, name, short string, build func(*app) []*cobra.Command, held ...string) *cobra.Command {
	g := &cobra.Command{Use: name, Args: noArgs}
	g.RunE = func(cmd *cobra.Command, _ []string) error { return showHelp(a, cmd) }
	if a.mentions(name) {
		for _, v := range verbs() {
			if slices.Contains(held, v.name) {
				g.AddCommand(described(grouped(v.build(a)), v.short))
			}
		}
		for _, c := range build(a) {
			g.AddCommand(described(c, c.Short))
		}
	}
	return described(g, short)
}

// grouped gives a verb the name it has inside its group.
func grouped(c *cobra.Command) *cobra.Command {
	switch c.Name() {
	case "ps":
		c.Use, c.Aliases = "ls [OPTIONS]", []string{"list", "ps"}
	case "images":
		c.Use, c.Aliases = "ls [OPTIONS] [REPOSITORY[:TAG]]", []string{"list"}
	case "rmi":
		c.Use, c.Aliases = "rm [OPTIONS] IMAGE [IMAGE...]", []string{"remove", "rmi"}
	}
	return c
}

func containerCommands(a *app) []*cobra.Command {
	return []*cobra.Command{containerInspectCommand(a), containerPruneCommand(a)}
}

func imageCommands(a *app) []*cobra.Command {
	return []*cobra.Command{imageInspectCommand(a), imagePruneCommand(a)}
}

func systemCommands(a *app) []*cobra.Command {
	return []*cobra.Command{dfCommand(a), dialStdioCommand(a), safeModeCommand(a), systemPruneCommand(a)}
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
