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

	ctdlog "github.com/containerd/log"
	"github.com/spf13/pflag"
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
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM, syscall.SIGINT)
	defer stop()
	level := new(slog.LevelVar)
	level.Set(logLevel(cfg.LogLevel))
	log := slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: level}))
	_ = ctdlog.SetLevel("error") // containerd's libraries warn of what is no concern of ours
	go reloads(ctx, args, level, log)
	if err := run(ctx, cfg, log); err != nil {
		fmt.Fprintf(stderr, "escaled: %s\n", err)
		return 1
	}
	return 0
}

func run(ctx context.Context, cfg *Config, log *slog.Logger) error {
	d, err := New(cfg, log)
	if err != nil {
		return err
	}
	return errors.Join(d.Run(ctx), d.Close())
}

// reloads reads the configuration again at each SIGHUP and applies what can be
// changed while the engine runs: debug and log-level.
func reloads(ctx context.Context, args []string, level *slog.LevelVar, log *slog.Logger) {
	hup := make(chan os.Signal, 1)
	signal.Notify(hup, syscall.SIGHUP)
	defer signal.Stop(hup)
	for {
		select {
		case <-hup:
		case <-ctx.Done():
			return
		}
		cfg, err := ParseConfig(args, func(*pflag.FlagSet) {})
		if err != nil {
			log.Error("configuration not reloaded", "error", err)
			continue
		}
		level.Set(logLevel(cfg.LogLevel))
		log.Info("configuration reloaded: debug and log-level; other keys take a restart", "file", cfg.ConfigFile, "log-level", cfg.LogLevel)
	}
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
