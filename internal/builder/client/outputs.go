package client

import (
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"path/filepath"
	"strconv"
	"strings"

	"escale.dev/escale/internal/builder/plan"
	"github.com/docker/cli/cli/config"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/auth/authprovider"
	"github.com/moby/buildkit/session/secrets/secretsprovider"
	"github.com/moby/buildkit/session/sshforward/sshprovider"
	"golang.org/x/term"
)

// exporterStore leaves the image with the engine.
const exporterStore = "moby"

// outputs decides where results go: to the engine's images unless something else
// is said.
func (b *build) outputs() error {
	p := b.plan
	if p.Call != "" {
		return nil
	}
	list := p.Outputs
	if p.Push {
		list = append(list, "type=registry")
	}
	if p.Load || len(list) == 0 {
		list = append(list, "type=image")
	}
	names, err := b.names()
	if err != nil {
		return err
	}
	for _, s := range list {
		e, err := b.output(s)
		if err != nil {
			return err
		}
		if e == nil {
			continue // nothing but the cache
		}
		named := e.Type == exporterStore || e.Type == client.ExporterOCI || e.Type == client.ExporterDocker
		if named && e.Attrs["name"] == "" && names != "" {
			e.Attrs["name"] = names
		}
		if e.Attrs["push"] == "true" && e.Attrs["name"] == "" {
			return errors.New("tag is needed when pushing to registry")
		}
		b.image = b.image || e.Type == exporterStore
		if err := annotate(e, p.Annotations); err != nil {
			return err
		}
		b.solve.Exports = append(b.solve.Exports, *e)
	}
	return nil
}

// output reads one --output; nil: none.
func (b *build) output(s string) (*client.ExportEntry, error) {
	var f map[string]string
	switch {
	case s == "-":
		f = map[string]string{"type": "tar", "dest": "-"}
	case bare(s):
		f = map[string]string{"type": "local", "dest": s}
	default:
		var err error
		if f, err = fields(s); err != nil {
			return nil, err
		}
	}
	e := &client.ExportEntry{Type: f["type"], Attrs: f}
	delete(f, "type")
	dest, hasDest := f["dest"]
	delete(f, "dest")
	switch e.Type {
	case "":
		return nil, errors.New("type is required for output")
	case "cacheonly":
		return nil, nil
	case "registry":
		e.Type, f["push"] = exporterStore, "true"
		return e, nil
	case client.ExporterImage:
		e.Type = exporterStore
		if hasDest {
			return nil, errors.New("dest is not supported by the image exporter: use type=docker or type=oci")
		}
		return e, nil
	case client.ExporterDocker:
		if !hasDest {
			e.Type = exporterStore
			return e, nil
		}
	case client.ExporterLocal:
		if !hasDest || dest == "" {
			return nil, errors.New("dest is required for local output")
		}
		if dest == "-" {
			return nil, errors.New("dest cannot be stdout for local exporter")
		}
		if info, err := os.Stat(dest); err == nil && !info.IsDir() {
			return nil, fmt.Errorf("destination directory %s is a file", dest)
		}
		e.OutputDir = dest
		return e, nil
	case client.ExporterOCI, client.ExporterTar:
	default:
		return nil, fmt.Errorf("output type %q is not known: want image, registry, docker, oci, local, tar or cacheonly", e.Type)
	}
	if packed, err := strconv.ParseBool(f["tar"]); f["tar"] != "" && err == nil && !packed && e.Type != client.ExporterTar {
		if !hasDest || dest == "-" {
			return nil, fmt.Errorf("dest is required for %s output that is no tar", e.Type)
		}
		e.OutputDir = dest
		return e, nil
	}
	return e, b.toFile(e, dest)
}

// toFile sends a result into a file, or to the standard output.
func (b *build) toFile(e *client.ExportEntry, dest string) error {
	if dest == "" || dest == "-" {
		if f, ok := b.streams.Out.(*os.File); ok && term.IsTerminal(int(f.Fd())) {
			return errors.New("dest file is required for " + e.Type + " exporter. refusing to write to console")
		}
		e.Output = func(map[string]string) (io.WriteCloser, error) { return keptOpen{b.streams.Out}, nil }
		return nil
	}
	if info, err := os.Stat(dest); err == nil && info.IsDir() {
		return fmt.Errorf("destination file %s is a directory", dest)
	}
	if _, err := os.Stat(filepath.Dir(dest)); err != nil {
		return fmt.Errorf("invalid destination file: %w", err)
	}
	e.Output = func(map[string]string) (io.WriteCloser, error) { return os.Create(dest) }
	return nil
}

// keptOpen does not close what it writes to.
type keptOpen struct{ io.Writer }

// Close does nothing.
func (keptOpen) Close() error { return nil }

// annotate adds --annotation [TYPE:]KEY=VALUE.
func annotate(e *client.ExportEntry, list []string) error {
	if e.Type == client.ExporterLocal || e.Type == client.ExporterTar {
		return nil
	}
	for _, s := range list {
		key, value, ok := strings.Cut(s, "=")
		if !ok || key == "" {
			return fmt.Errorf("invalid annotation %q, expected key=value", s)
		}
		prefix := "annotation."
		if kinds, rest, ok := strings.Cut(key, ":"); ok {
			for kind := range strings.SplitSeq(kinds, ",") {
				switch kind {
				case "index", "manifest", "index-descriptor", "manifest-descriptor":
					e.Attrs["annotation-"+kind+"."+rest] = value
				default:
					return fmt.Errorf("unknown annotation type %q", kind)
				}
			}
			continue
		}
		e.Attrs[prefix+key] = value
	}
	return nil
}

// caches reads --cache-from and --cache-to.
func (b *build) caches() error {
	read := func(s string) (client.CacheOptionsEntry, error) {
		if bare(s) {
			return client.CacheOptionsEntry{Type: "registry", Attrs: map[string]string{"ref": s}}, nil
		}
		f, err := fields(s)
		if err != nil {
			return client.CacheOptionsEntry{}, err
		}
		e := client.CacheOptionsEntry{Type: f["type"], Attrs: f}
		delete(f, "type")
		switch e.Type {
		case "registry", "local", "inline":
			return e, nil
		case "":
			return e, fmt.Errorf("type required form> %q", s)
		}
		return e, fmt.Errorf("cache type %q is not known: want registry, local or inline", e.Type)
	}
	for _, s := range b.plan.CacheFrom {
		e, err := read(s)
		if err != nil {
			return err
		}
		b.solve.CacheImports = append(b.solve.CacheImports, e)
	}
	for _, s := range b.plan.CacheTo {
		e, err := read(s)
		if err != nil {
			return err
		}
		if e.Type == "local" {
			e.Attrs = maps.Clone(e.Attrs)
		}
		b.solve.CacheExports = append(b.solve.CacheExports, e)
	}
	return nil
}

// session serves logins, secrets and agents.
func (b *build) session() error {
	file, err := config.Load(config.Dir())
	if err != nil {
		return err
	}
	serve := func(a session.Attachable) { b.solve.Session = append(b.solve.Session, a) }
	serve(authprovider.NewDockerAuthProvider(authprovider.DockerAuthProviderConfig{AuthConfigProvider: authprovider.LoadAuthConfig(file)}))
	secrets, err := secretSources(b.plan)
	if err != nil {
		return err
	}
	store, err := secretsprovider.NewStore(secrets)
	if err != nil {
		return err
	}
	serve(secretsprovider.NewSecretProvider(store))
	agents := make([]sshprovider.AgentConfig, 0, len(b.plan.SSH))
	for _, s := range b.plan.SSH {
		id, paths, _ := strings.Cut(s, "=")
		a := sshprovider.AgentConfig{ID: id}
		if paths != "" {
			a.Paths = strings.Split(paths, ",")
		}
		agents = append(agents, a)
	}
	if len(agents) > 0 {
		provider, err := sshprovider.NewSSHAgentProvider(agents)
		if err != nil {
			return err
		}
		serve(provider)
	}
	return nil
}

// secretSources reads --secret id=ID[,src=FILE|env=NAME].
func secretSources(p *plan.Build) ([]secretsprovider.Source, error) {
	list := make([]secretsprovider.Source, 0, len(p.Secrets))
	for _, s := range p.Secrets {
		f, err := fields(s)
		if err != nil {
			return nil, fmt.Errorf("secret: %w", err)
		}
		var one secretsprovider.Source
		kind := f["type"]
		if kind != "" && kind != "file" && kind != "env" {
			return nil, fmt.Errorf("unsupported secret type %q", kind)
		}
		for name, value := range f {
			switch name {
			case "type":
			case "id":
				one.ID = value
			case "src", "source":
				if kind == "env" {
					one.Env = value
				} else {
					one.FilePath = value
				}
			case "env":
				one.Env = value
			default:
				return nil, fmt.Errorf("unexpected key %q in secret %q", name, s)
			}
		}
		list = append(list, one)
	}
	return list, nil
}
