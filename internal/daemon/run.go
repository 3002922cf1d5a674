package daemon

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/signal"
	"syscall"

	"escale.dev/escale/internal/builder/plan"
	"github.com/spf13/pflag"
	"golang.org/x/sys/unix"
)

// Version of the engine; set by the linker.
var (
	Version   = "0.1.0-dev"
	GitCommit = "unknown"
	BuildTime = ""
)

// Main runs the engine from a command line until a signal ends it, and returns
// the exit code. Errors go to stderr in one line.
func Main(args []string, stdout, stderr io.Writer) int {
	if len(args) == 1 && args[0] == plan.Word {
		return buildClient(stdout, stderr)
	}
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	if len(args) > 0 && args[0] == "registry" {
		if err := registryMain(ctx, args[1:], os.Stdin, stdout, stderr); err != nil {
			fmt.Fprintf(stderr, "escaled: %s\n", err)
			return 1
		}
		return 0
	}
	cfg, err := ParseConfig(args, func(fs *pflag.FlagSet) {
		fmt.Fprintf(stdout, "escaled is Escale's engine: it keeps containers and serves the Docker API.\n\nUsage: escaled [OPTIONS]\n\nOptions:\n%s", fs.FlagUsagesWrapped(100))
	})
	switch {
	case errors.Is(err, pflag.ErrHelp):
		return 0
	case err != nil:
		fmt.Fprintf(stderr, "escaled: %s\nSee 'escaled --help'.\n", err)
		return 1
	case cfg.ShowVersion:
		fmt.Fprintf(stdout, "Escale version %s, build %s\n", Version, GitCommit)
		return 0
	case cfg.ValidateOnly:
		fmt.Fprintln(stdout, "configuration OK")
		return 0
	case os.Geteuid() != 0:
		fmt.Fprintln(stderr, "escaled: needs root: namespaces, mounts and cgroups are made by it. Start it with sudo or by systemctl start escale.")
		return 1
	}
	unix.Umask(0o022) // roots of containers and what is mounted in them are also for others than root
	level := new(slog.LevelVar)
	level.Set(logLevel(cfg.LogLevel))
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	routeLibraries(log)
	hup := make(chan os.Signal, 1) // caught from here on: it must not end the engine while it opens
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	d, err := New(cfg, log, level)
	if err == nil {
		parse := func() (*Config, error) { return ParseConfig(args, func(*pflag.FlagSet) {}) }
		err = errors.Join(d.Run(ctx, hup, parse), d.Close())
	}
	if err != nil {
		fmt.Fprintf(stderr, "escaled: %s\n", err)
		return 1
	}
	return 0
}

func logLevel(name string) slog.Level {
	switch name {
	case "debug":
		return slog.LevelDebug
	case "warn":
		return slog.LevelWarn
	case "error", "fatal":
		return slog.LevelError
	}
	return slog.LevelInfo
}
