package compose

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/cli/compose/progress"
)

// globals are the flags that all commands have.
type globals struct {
	files, profiles, envFiles []string
	name, dir, workdir        string
	progress, ansi            string
	parallel                  int
	all, compatible, dry      bool
}

// newRoot builds the tree of commands.
func newRoot(s *session) *cobra.Command {
	formats()
	name := s.engine.Name + " compose"
	root := &cobra.Command{
		Use: "compose [OPTIONS] COMMAND", Short: "Apps of compose files, which the engine keeps as they are written",
		Annotations:  map[string]string{cobra.CommandDisplayNameAnnotation: name},
		SilenceUsage: true, SilenceErrors: true, TraverseChildren: true, DisableFlagsInUseLine: true,
		CompletionOptions: cobra.CompletionOptions{DisableDefaultCmd: true},
		Args:              cobra.ArbitraryArgs,
	}
	version := root.Flags().BoolP("version", "v", false, "Show the version")
	root.RunE = func(cmd *cobra.Command, args []string) error {
		switch {
		case *version:
			return lists{s}.version("pretty", false)
		case len(args) == 0:
			return cmd.Help()
		}
		return &exit{exitUsage, fmt.Errorf("unknown command: %q\n\nRun '%s --help' for the commands", name+" "+args[0], name)}
	}
	root.SetOut(s.out)
	root.SetErr(s.err)
	root.SetFlagErrorFunc(func(cmd *cobra.Command, err error) error {
		return &exit{exitUsage, fmt.Errorf("%w\n\nUsage:  %s\n\nRun '%s --help' for more information", err, cmd.UseLine(), cmd.CommandPath())}
	})
	root.SetHelpFunc(func(cmd *cobra.Command, _ []string) { help(s.out, cmd) })
	s.addGlobals(root.Flags(), nil)
	root.PersistentPreRunE = func(*cobra.Command, []string) error { return s.settle() }
	for _, make := range verbs() {
		c := make(s)
		c.DisableFlagsInUseLine = true
		if c.ValidArgsFunction == nil {
			c.ValidArgsFunction = s.completeServices
		}
		// What stands before the verb may stand behind it, too, where it means
		// nothing else there: escale up has nothing before it.
		s.addGlobals(c.Flags(), root.Flags())
		root.AddCommand(c)
	}
	return root
}

func verbs() []func(*session) *cobra.Command {
	return []func(*session) *cobra.Command{
		attachCommand, buildCommand, commitCommand, configCommand, cpCommand, createCommand, downCommand, eventsCommand, execCommand,
		exportCommand, historyCommand, imagesCommand, killCommand, lsCommand, logsCommand, pauseCommand, unpauseCommand, portCommand, psCommand,
		pullCommand, pushCommand, releaseCommand, restartCommand, rmCommand, rollbackCommand, runCommand, scaleCommand, startCommand,
		statsCommand, stopCommand, topCommand, upCommand, versionCommand, volumesCommand, waitCommand, watchCommand,
	}
}

// addGlobals defines the global flags in f: where they are those of a verb, hidden,
// and only those that the verb has no other use for.
func (s *session) addGlobals(f, root *pflag.FlagSet) {
	g := &s.flags
	all := pflag.NewFlagSet("", pflag.ContinueOnError)
	all.StringArrayVarP(&g.files, "file", "f", g.files, "Compose files; - is the standard input")
	all.StringVarP(&g.name, "project-name", "p", g.name, "Name of the project")
	all.StringArrayVar(&g.profiles, "profile", g.profiles, "Services of this profile are meant, too; * is all")
	all.StringArrayVar(&g.envFiles, "env-file", defaultEnvFiles(), "Files of variables, instead of .env")
	all.StringVar(&g.dir, "project-directory", "", "Directory of the project (default: of the first compose file)")
	all.StringVar(&g.workdir, "workdir", "", "Directory of the project")
	all.StringVar(&g.progress, "progress", os.Getenv("COMPOSE_PROGRESS"), "How to show progress: auto, tty, plain, json or quiet")
	all.StringVar(&g.ansi, "ansi", ansiDefault(), "When to write colors and boards: never, always or auto")
	all.IntVar(&g.parallel, "parallel", parallelDefault(), "How many things are done at once; -1 is without bound")
	all.BoolVar(&g.compatible, "compatibility", false, "Names as of Compose 1: refused")
	all.BoolVar(&g.all, "all-resources", false, "Networks and volumes that no service uses are meant, too")
	all.BoolVar(&g.dry, "dry-run", false, "Tell what would be done, and do nothing")
	all.Bool("verbose", false, "Show more output")
	all.Bool("no-ansi", false, "No colors and boards: --ansi never")
	for _, name := range []string{"workdir", "verbose", "no-ansi", "compatibility"} {
		all.Lookup(name).Hidden = true
	}
	all.VisitAll(func(flag *pflag.Flag) {
		if root == nil {
			f.AddFlag(flag)
			return
		}
		same := *root.Lookup(flag.Name)
		same.Hidden = true
		if f.Lookup(same.Name) != nil {
			return
		}
		if same.Shorthand != "" && f.ShorthandLookup(same.Shorthand) != nil {
			same.Shorthand = ""
		}
		f.AddFlag(&same)
	})
}

func defaultEnvFiles() []string {
	if v := os.Getenv("COMPOSE_ENV_FILES"); v != "" {
		return strings.Split(v, ",")
	}
	return nil
}

func ansiDefault() string {
	if v := os.Getenv("COMPOSE_ANSI"); v != "" {
		return v
	}
	return "auto"
}

func parallelDefault() int {
	if n, err := strconv.Atoi(os.Getenv("COMPOSE_PARALLEL_LIMIT")); err == nil && n > 0 {
		return n
	}
	return -1
}

// settle checks the global flags.
func (s *session) settle() error {
	g := &s.flags
	usage := func(format string, args ...any) error { return &exit{exitUsage, fmt.Errorf(format, args...)} }
	switch {
	case g.workdir != "" && g.dir != "":
		return usage("--workdir and --project-directory are the same: use --project-directory")
	case g.workdir != "":
		g.dir = g.workdir
	case g.compatible || boolEnv("COMPOSE_COMPATIBILITY"):
		return usage("--compatibility is not possible: the engine names containers PROJECT-SERVICE-NUMBER; unset COMPOSE_COMPATIBILITY, too")
	case !slices.Contains([]string{"never", "always", "auto"}, g.ansi):
		return usage("--ansi %q: never, always or auto wanted", g.ansi)
	case g.progress != "" && !slices.Contains(progress.Modes, progress.Mode(g.progress)):
		return usage("--progress %q: auto, tty, plain, json or quiet wanted", g.progress)
	case g.parallel == 0 || g.parallel < -1:
		return usage("--parallel %d: a number of things, or -1, wanted", g.parallel)
	}
	if g.dir != "" {
		abs, err := filepath.Abs(g.dir)
		if err != nil {
			return err
		}
		g.dir = abs
	}
	if g.ansi == "never" && g.progress == "" {
		g.progress = string(progress.Plain)
	}
	return nil
}

// boolEnv tells whether a variable says yes.
func boolEnv(name string) bool {
	v, _ := strconv.ParseBool(os.Getenv(name)) // what is no such word says no
	return v
}

// board shows how things go on, on the standard error.
func (s *session) board(title string) *progress.Board {
	note := ""
	if s.flags.dry {
		note = " DRY-RUN MODE - "
	}
	return progress.New(s.err, progress.Mode(s.flags.progress), s.colored(s.err), note, title)
}
