// Package compose reads compose files, by compose-go, and makes of a project the spec
// of an app: what docker compose would ask of an engine for each service, with its
// names and labels. It knows nothing of engines.
package compose

import (
	"context"
	"fmt"
	"os"
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

	Enabled []string // those that are on whatever their profiles say
	NoDeps  bool     // Services without what they depend on
	Unused  bool     // networks, volumes and others that no service uses, too

	// Verbatim leaves variables as they are written.
	Verbatim bool
	// What compose-go does with a file otherwise: Raw leaves out that defaults are
	// written out, RawPaths that paths are made absolute, RawEnv that the files of
	// env_file are read, and Unchecked that it is checked whether all fits together.
	Raw, RawPaths, RawEnv, Unchecked bool
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

// Model reads a project as it is written, files merged and paths resolved, but not made
// into types: it can hold variables where numbers are wanted.
func Model(ctx context.Context, o Options) (map[string]any, error) {
	r, err := read(ctx, o)
	if err != nil {
		return nil, fmt.Errorf("%w%w", err, silent{errdefs.ErrInvalidArgument})
	}
	m, err := loader.LoadModelWithContext(ctx, *r.details, r.settle)
	if err != nil {
		return nil, fmt.Errorf("%w%w", err, silent{errdefs.ErrInvalidArgument})
	}
	return m, nil
}

// reading is what a load works with: files, environment, and how the loader is set.
type reading struct {
	o        Options
	dir      string
	profiles []string
	named    bool // a file names the project
	details  *types.ConfigDetails
}

func read(ctx context.Context, o Options) (*reading, error) {
	fns := []cli.ProjectOptionsFn{
		cli.WithWorkingDirectory(o.Dir), cli.WithEnv(o.Env), cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv,
		cli.WithConfigFileEnv, cli.WithDefaultConfigPath, cli.WithEnvFiles(o.EnvFiles...), cli.WithDotEnv,
	}
	opts, err := cli.NewProjectOptions(o.Files, fns...)
	if err != nil {
		return nil, err
	}
	r := &reading{o: o, profiles: o.Profiles}
	if r.dir, err = opts.GetWorkingDir(); err != nil {
		return nil, err
	}
	if r.details, err = opts.ReadConfigFiles(ctx, r.dir, opts); err != nil {
		return nil, err
	}
	r.details.Environment = opts.Environment
	if env := opts.Environment["COMPOSE_PROFILES"]; len(r.profiles) == 0 && env != "" {
		for name := range strings.SplitSeq(env, ",") {
			r.profiles = append(r.profiles, strings.TrimSpace(name))
		}
	}
	for i := range r.details.ConfigFiles {
		f := &r.details.ConfigFiles[i]
		if f.Content == nil && f.Config == nil {
			if f.Content, err = os.ReadFile(f.Filename); err != nil {
				return nil, err
			}
		}
		name := false
		if f.Content, name, err = modern(f.Content); err != nil {
			return nil, fmt.Errorf("%s: %w", f.Filename, err)
		}
		r.named = r.named || name
	}
	return r, nil
}

// settle sets the loader.
func (r *reading) settle(l *loader.Options) {
	o := r.o
	l.SkipInterpolation, l.SkipNormalization, l.SkipConsistencyCheck = o.Verbatim, o.Raw, o.Unchecked
	l.ResolvePaths, l.SkipResolveEnvironment = !o.RawPaths, o.RawEnv
	l.Profiles = r.profiles
	switch env := r.details.Environment["COMPOSE_PROJECT_NAME"]; {
	case o.Name != "":
		l.SetProjectName(o.Name, true)
	case env != "":
		l.SetProjectName(env, true)
	case !r.named:
		l.SetProjectName(loader.NormalizeProjectName(filepath.Base(r.dir)), false)
	}
}

func load(ctx context.Context, o Options) (*types.Project, error) {
	r, err := read(ctx, o)
	if err != nil {
		return nil, err
	}
	p, err := loader.LoadWithContext(ctx, *r.details, r.settle)
	if err != nil {
		return nil, err
	}
	for _, f := range r.details.ConfigFiles {
		p.ComposeFiles = append(p.ComposeFiles, f.Filename)
	}
	if len(o.Enabled) > 0 {
		if p, err = p.WithServicesEnabled(o.Enabled...); err != nil {
			return nil, err
		}
	}
	if len(o.Services) > 0 {
		deps := types.IncludeDependencies
		if o.NoDeps {
			deps = types.IgnoreDependencies
		}
		// Whoever names a service means it, whatever its profiles.
		if p, err = p.WithServicesEnabled(o.Services...); err != nil {
			return nil, err
		}
		if p, err = p.WithSelectedServices(o.Services, deps); err != nil {
			return nil, err
		}
	}
	if !o.Unused {
		p = p.WithoutUnnecessaryResources()
	}
	return p, nil
}
