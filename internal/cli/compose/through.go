package compose

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/container"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/tty"
)

// docker does a command of `escale` itself on a container: how streams, terminals and
// signals are joined is its affair.
func (s *session) docker(ctx context.Context, args ...string) error {
	if s.flags.dry {
		s.printf("DRY-RUN MODE - %s %s\n", s.engine.Name, strings.Join(args, " "))
		return nil
	}
	line := []string{s.engine.Name, "--config", s.engine.ConfigDir, "-H", s.engine.Host}
	if s.engine.Debug {
		line = append(line, "-D")
	}
	return exitWith(cli.Main(context.WithoutCancel(ctx), append(line, args...)))
}

// plainly makes a command that leaves signals to what it calls.
func plainly(use, short string, run func(context.Context, []string) error) *cobra.Command {
	return &cobra.Command{Use: use, Short: short, RunE: func(cmd *cobra.Command, args []string) error { return run(cmd.Context(), args) }}
}

func indexFlag(f *pflag.FlagSet, index *int) {
	f.IntVar(index, "index", 0, "Number of the container, where a service has several")
}

func execCommand(s *session) *cobra.Command {
	var detach, noTTY, in, privileged bool
	var env []string
	var user, dir string
	var index int
	cmd := plainly("exec [OPTIONS] SERVICE COMMAND [ARGS...]", "Run a command in a running container of a service", func(ctx context.Context, args []string) error {
		c, err := s.one(ctx, args[0], index, false)
		if err != nil {
			return err
		}
		line := []string{"exec"}
		switch {
		case detach:
			line = append(line, "-d")
		case in:
			line = append(line, "-i")
		}
		if !noTTY {
			line = append(line, "-t")
		}
		if privileged {
			line = append(line, "--privileged")
		}
		if user != "" {
			line = append(line, "-u", user)
		}
		if dir != "" {
			line = append(line, "-w", dir)
		}
		for _, e := range env {
			line = append(line, "-e", e)
		}
		return s.docker(ctx, append(append(line, c.ID), args[1:]...)...)
	})
	f := cmd.Flags()
	f.SetInterspersed(false)
	cmd.Args = cobra.MinimumNArgs(2)
	f.BoolVarP(&detach, "detach", "d", false, "Run the command in the background")
	f.StringArrayVarP(&env, "env", "e", nil, "Set an environment variable")
	indexFlag(f, &index)
	f.BoolVar(&privileged, "privileged", false, "Give the command extended privileges")
	f.StringVarP(&user, "user", "u", "", "User of the command")
	f.StringVarP(&dir, "workdir", "w", "", "Directory of the command")
	s.ttyFlags(f, &noTTY, &in, "no-tty")
	return cmd
}

// ttyFlags are those of exec and run: a terminal and input are there unless told.
func (s *session) ttyFlags(f *pflag.FlagSet, noTTY, in *bool, name string) {
	f.BoolVarP(noTTY, name, "T", !tty.IsTerminal(s.out) || !tty.IsTerminal(s.in), "No terminal (default: where there is one here)")
	f.BoolVarP(in, "interactive", "i", true, "Keep the standard input open")
	f.BoolP("tty", "t", true, "A terminal")
	f.Lookup("interactive").Hidden, f.Lookup("tty").Hidden = true, true
	f.SetNormalizeFunc(func(_ *pflag.FlagSet, n string) pflag.NormalizedName {
		switch n {
		case "no-TTY", "no-tty":
			n = name
		}
		return pflag.NormalizedName(n)
	})
}

func attachCommand(s *session) *cobra.Command {
	var index int
	var keys string
	var noStdin, proxy bool
	cmd := plainly("attach [OPTIONS] SERVICE", "Join the standard streams of a running container of a service", func(ctx context.Context, args []string) error {
		c, err := s.one(ctx, args[0], index, false)
		if err != nil {
			return err
		}
		line := []string{"attach", "--sig-proxy=" + strconv.FormatBool(proxy), "--no-stdin=" + strconv.FormatBool(noStdin)}
		if keys != "" {
			line = append(line, "--detach-keys", keys)
		}
		return s.docker(ctx, append(line, c.ID)...)
	})
	cmd.Args = cobra.ExactArgs(1)
	f := cmd.Flags()
	indexFlag(f, &index)
	f.StringVar(&keys, "detach-keys", "", "Keys that detach")
	f.BoolVar(&noStdin, "no-stdin", false, "Leave the standard input alone")
	f.BoolVar(&proxy, "sig-proxy", true, "Pass signals on")
	return cmd
}

func cpCommand(s *session) *cobra.Command {
	var index int
	var all, follow, archive bool
	cmd := plainly("cp [OPTIONS] SERVICE:SRC_PATH DEST_PATH|- | SRC_PATH|- SERVICE:DEST_PATH", "Copy files between a service's container and this machine", func(ctx context.Context, args []string) error {
		from, _, fromService := servicePath(args[0])
		to, _, toService := servicePath(args[1])
		switch {
		case fromService && toService:
			return errors.New("copying between services is not supported")
		case !fromService && !toService:
			return errors.New("unknown copy direction: one side must be SERVICE:PATH")
		}
		service := cmp.Or(from, to)
		_, name, err := s.named(ctx, service)
		if err != nil {
			return err
		}
		list, err := s.containers(ctx, name, pick{services: []string{service}, index: index, stopped: true, oneOff: all})
		switch {
		case err != nil:
			return err
		case len(list) == 0:
			return fmt.Errorf("no container found for service %q", service)
		case fromService && !all || index > 0 || fromService:
			list = list[:1]
		}
		for i := range list {
			line := []string{"cp"}
			if follow {
				line = append(line, "-L")
			}
			if archive {
				line = append(line, "-a")
			}
			if err := s.docker(ctx, append(line, inContainer(args[0], fromService, &list[i]), inContainer(args[1], toService, &list[i]))...); err != nil {
				return err
			}
		}
		return nil
	})
	cmd.Args = cobra.ExactArgs(2)
	f := cmd.Flags()
	indexFlag(f, &index)
	f.BoolVar(&all, "all", false, "Containers that run made, too")
	f.BoolVarP(&follow, "follow-link", "L", false, "Follow links in SRC_PATH")
	f.BoolVarP(&archive, "archive", "a", false, "Keep owners")
	return cmd
}

// servicePath cuts SERVICE:PATH.
func servicePath(arg string) (service, path string, ok bool) {
	service, path, ok = strings.Cut(arg, ":")
	if !ok || service == "" || strings.ContainsAny(service, "/.") {
		return "", arg, false
	}
	return service, path, true
}

func inContainer(arg string, inside bool, c *container.Summary) string {
	if !inside {
		return arg
	}
	_, path, _ := servicePath(arg)
	return c.ID + ":" + path
}

func exportCommand(s *session) *cobra.Command {
	var index int
	var output string
	cmd := plainly("export [OPTIONS] SERVICE", "Write the file system of a service's container to a tar archive", func(ctx context.Context, args []string) error {
		c, err := s.one(ctx, args[0], index, true)
		if err != nil {
			return err
		}
		line := []string{"export"}
		if output != "" {
			line = append(line, "-o", output)
		}
		return s.docker(ctx, append(line, c.ID)...)
	})
	cmd.Args = cobra.ExactArgs(1)
	indexFlag(cmd.Flags(), &index)
	cmd.Flags().StringVarP(&output, "output", "o", "", "File to write (default: the standard output)")
	return cmd
}

func commitCommand(s *session) *cobra.Command {
	var index int
	var pause bool
	var comment, author string
	var changes []string
	cmd := plainly("commit [OPTIONS] SERVICE [REPOSITORY[:TAG]]", "Make an image of a service's container", func(ctx context.Context, args []string) error {
		c, err := s.one(ctx, args[0], index, true)
		if err != nil {
			return err
		}
		line := []string{"commit", "--pause=" + strconv.FormatBool(pause), "-m", comment, "-a", author}
		for _, ch := range changes {
			line = append(line, "-c", ch)
		}
		return s.docker(ctx, append(append(line, c.ID), args[1:]...)...)
	})
	cmd.Args = cobra.RangeArgs(1, 2)
	f := cmd.Flags()
	indexFlag(f, &index)
	f.BoolVarP(&pause, "pause", "p", true, "Freeze the container meanwhile")
	f.StringVarP(&comment, "message", "m", "", "Message")
	f.StringVarP(&author, "author", "a", "", "Author")
	f.StringArrayVarP(&changes, "change", "c", nil, "Instruction of a Dockerfile to apply")
	return cmd
}

func statsCommand(s *session) *cobra.Command {
	var all, once, noTrunc bool
	var format string
	cmd := plainly("stats [OPTIONS] [SERVICE]", "Show what services use, live", func(ctx context.Context, args []string) error {
		_, name, err := s.named(ctx, args...)
		if err != nil {
			return err
		}
		list, err := s.containers(ctx, name, pick{services: args, stopped: all, oneOff: true})
		if err != nil {
			return err
		}
		if len(list) == 0 {
			return fmt.Errorf("project %q has no container that runs", name)
		}
		line := []string{"stats"}
		for flag, on := range map[string]bool{"--no-stream": once, "--no-trunc": noTrunc, "-a": all} {
			if on {
				line = append(line, flag)
			}
		}
		if format != "" {
			line = append(line, "--format", format)
		}
		for i := range list {
			line = append(line, list[i].ID)
		}
		return s.docker(ctx, line...)
	})
	cmd.Args = cobra.MaximumNArgs(1)
	f := cmd.Flags()
	f.BoolVarP(&all, "all", "a", false, "Those that have stopped, too")
	f.StringVar(&format, "format", "", "Print with a Go template: 'table TEMPLATE', 'TEMPLATE' or 'json'")
	f.BoolVar(&once, "no-stream", false, "Show the first figures, and end")
	f.BoolVar(&noTrunc, "no-trunc", false, "Do not shorten IDs")
	return cmd
}
