// Package compose reads compose files, by compose-go, and makes of a project the spec
// of an app: what docker compose would ask of an engine for each service, with its
// names and labels. It knows nothing of engines.
package compose

import (
	"context"
	"fmt"
	"path/filepath"
	"strings"

	"github.com/compose-spec/compose-go/v2/cli"
	"github.com/compose-spec/compose-go/v2/loader"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
)

// Options say which project is meant, as the flags of docker compose do.
type Options struct {
	Files    []string // -f; empty: compose.yaml and its like, here or further up
	Name     string   // -p
	Dir      string   // --project-directory
	EnvFiles []string // --env-file; empty: .env of the project's directory
	Profiles []string // --profile; "*" is all
	Env      []string // "NAME=value"; what COMPOSE_FILE and its like are taken from, too
	Services []string // those that are meant, with what they depend on; empty: all

	// Verbatim leaves variables as they are written.
	Verbatim bool
}

// Load reads a project. Files of the first version of compose, with services at the
// top, are read as well. It blocks for the disk. InvalidArgument when a file cannot be
// read or is wrong; the words are compose-go's, with the place.
func Load(ctx context.Context, o Options) (*types.Project, error) {
	p, err := load(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%w%w", err, silent{errdefs.ErrInvalidArgument})
	}
	return p, nil
}

// silent is a kind without words.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

func load(ctx context.Context, o Options) (*types.Project, error) {
	fns := []cli.ProjectOptionsFn{
		cli.WithWorkingDirectory(o.Dir), cli.WithEnv(o.Env), cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv,
		cli.WithConfigFileEnv, cli.WithDefaultConfigPath, cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv,
	}
	opts, err := cli.NewProjectOptions(o.Files, fns...)
	if err != nil {
		return nil, err
	}
	dir, err := opts.GetWorkingDir()
	if err != nil {
		return nil, err
	}
	details, err := opts.ReadConfigFiles(ctx, dir, opts)
	if err != nil {
		return nil, err
	}
	details.Environment = opts.Environment
	profiles := o.Profiles
	if env := opts.Environment["COMPOSE_PROFILES"]; len(profiles) == 0 && env != "" {
		for name := range strings.SplitSeq(env, ",") {
			profiles = append(profiles, strings.TrimSpace(name))
		}
	}
	named := false
	for i := range details.ConfigFiles {
		f := &details.ConfigFiles[i]
		name := false
		if f.Content, name, err = modern(f.Content); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Filename, err)
		}
		named = named || name
	}
	p, err := loader.LoadWithContext(ctx, *details, func(l *loader.Options) {
		l.SkipInterpolation = o.Verbatim
		l.Profiles = profiles
		switch env := opts.Environment["COMPOSE_PROJECT_NAME"]; {
		case o.Name != "":
			l.SetProjectName(o.Name, true)
		case env != "":
			l.SetProjectName(env, true)
		case !named:
			l.SetProjectName(loader.NormalizeProjectName(filepath.Base(dir)), false)
		}
	})
	if err != nil {
		return nil, err
	}
	for _, f := range details.ConfigFiles {
		p.ComposeFiles = append(p.ComposeFiles, f.Filename)
	}
	if len(o.Services) > 0 {
		if p, err = p.WithSelectedServices(o.Services); err != nil {
			return nil, err
		}
	}
	return p, nil
}
