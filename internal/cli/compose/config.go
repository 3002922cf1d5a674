package compose

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"os"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/template"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
	moby "github.com/moby/moby/client"
	"github.com/opencontainers/go-digest"
	"github.com/spf13/cobra"
	"go.yaml.in/yaml/v4"

	"escale.dev/escale/internal/cli"
	composefile "escale.dev/escale/internal/compose"
)

type configOptions struct {
	format, hash, output                                  string
	digests, lock, quiet                                  bool
	noInterpolate, noNormalize, noPaths, noCheck, noEnv   bool
	services, volumes, networks, models, profiles, images bool
	variables, environment                                bool
}

func configCommand(s *session) *cobra.Command {
	var o configOptions
	cmd := command("config [OPTIONS] [SERVICE...]", "Show the compose file as it was understood", func(ctx context.Context, args []string) error { return lists{s}.config(ctx, o, args) })
	cmd.Aliases = []string{"convert"}
	f := cmd.Flags()
	f.StringVar(&o.format, "format", "", "yaml or json")
	f.BoolVar(&o.digests, "resolve-image-digests", false, "Name images by their digests")
	f.BoolVar(&o.lock, "lock-image-digests", false, "Nothing but images by their digests, as a file to put over this one")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Only check")
	f.BoolVar(&o.noInterpolate, "no-interpolate", false, "Leave variables as they are written")
	f.BoolVar(&o.noNormalize, "no-normalize", false, "Leave out defaults")
	f.BoolVar(&o.noPaths, "no-path-resolution", false, "Leave paths as they are written")
	f.BoolVar(&o.noCheck, "no-consistency", false, "Do not check whether all fits together")
	f.BoolVar(&o.noEnv, "no-env-resolution", false, "Do not read env_file")
	f.BoolVar(&o.services, "services", false, "Print the names of services")
	f.BoolVar(&o.volumes, "volumes", false, "Print the names of volumes")
	f.BoolVar(&o.networks, "networks", false, "Print the names of networks")
	f.BoolVar(&o.models, "models", false, "Print the names of models")
	f.BoolVar(&o.profiles, "profiles", false, "Print the names of profiles")
	f.BoolVar(&o.images, "images", false, "Print the names of images")
	f.StringVar(&o.hash, "hash", "", "Print the hash of services; * is all")
	f.BoolVar(&o.variables, "variables", false, "Print the variables that files use, and their defaults")
	f.BoolVar(&o.environment, "environment", false, "Print the variables that there are")
	f.StringVarP(&o.output, "output", "o", "", "File to write (default: the standard output)")
	return cmd
}

func (s lists) config(ctx context.Context, o configOptions, services []string) error {
	if o.lock {
		o.digests = true
	}
	load0 := s.options(services...)
	load0.Verbatim, load0.Raw, load0.RawPaths, load0.Unchecked, load0.RawEnv = o.noInterpolate, o.noNormalize, o.noPaths, o.noCheck, o.noEnv
	switch {
	case o.variables:
		return s.variables(ctx, load0, o.format)
	case o.noInterpolate:
		return s.model(ctx, o, load0)
	}
	p, err := load(ctx, load0)
	if err != nil {
		return err
	}
	if names, ok, err := o.names(p); ok || err != nil {
		if err == nil && len(names) > 0 {
			s.printf("%s\n", strings.Join(names, "\n"))
		}
		return err
	}
	if o.digests {
		if p, err = p.WithImagesResolved(s.digestOf(ctx)); err != nil {
			return err
		}
	}
	if o.lock {
		only := types.Services{}
		for name, sv := range p.Services {
			only[name] = types.ServiceConfig{ContainerSpec: types.ContainerSpec{Image: sv.Image}}
		}
		p = &types.Project{Services: only}
	}
	if err := p.CheckContainerNameUnicity(); err != nil && !o.noCheck {
		return err
	}
	if !o.noCheck && !o.lock {
		// What the engine cannot do is told here, not by up.
		if err := composefile.Check(p, s.swarm(ctx, p)); err != nil {
			return &exit{exitParse, err}
		}
	}
	var content []byte
	switch o.format {
	case "", "yaml":
		content, err = p.MarshalYAML()
	case "json":
		content, err = p.MarshalJSON()
		content = append(content, '\n')
	default:
		return fmt.Errorf("unsupported format %q", o.format)
	}
	if err != nil {
		return err
	}
	return s.write(o, bytes.ReplaceAll(content, []byte("$"), []byte("$$")))
}

// names are what a flag asks for instead of the file.
func (o *configOptions) names(p *types.Project) ([]string, bool, error) {
	var out []string
	switch {
	case o.services:
		out = p.ServiceNames()
	case o.volumes:
		out = p.VolumeNames()
	case o.networks:
		out = p.NetworkNames()
	case o.models:
		out = p.ModelNames()
	case o.profiles:
		seen := map[string]bool{}
		for _, sv := range p.AllServices() {
			for _, name := range sv.Profiles {
				seen[name] = true
			}
		}
		out = slices.Sorted(maps.Keys(seen))
	case o.images:
		for _, name := range p.ServiceNames() {
			sv := p.Services[name]
			out = append(out, composefile.Image(p, &sv))
		}
	case o.environment:
		for _, name := range slices.Sorted(maps.Keys(p.Environment)) {
			out = append(out, name+"="+p.Environment[name])
		}
	case o.hash != "":
		names := p.ServiceNames()
		if o.hash != "*" {
			names = strings.Split(o.hash, ",")
		}
		slices.Sort(names)
		for _, name := range names {
			sv, err := p.GetService(name)
			if err != nil {
				return nil, true, err
			}
			sum, err := composefile.Hash(&sv)
			if err != nil {
				return nil, true, err
			}
			out = append(out, name+" "+sum)
		}
	default:
		return nil, false, nil
	}
	return out, true, nil
}

// write puts the file out.
func (s lists) write(o configOptions, content []byte) error {
	switch {
	case o.quiet:
		return nil
	case o.output != "":
		return os.WriteFile(o.output, content, 0o666)
	}
	_, err := s.out.Write(content)
	return err
}

// model shows the file with its variables.
func (s lists) model(ctx context.Context, o configOptions, l composefile.Options) error {
	m, err := composefile.Model(ctx, l)
	if err != nil {
		return &exit{exitParse, err}
	}
	services, _ := m["services"].(map[string]any)
	if o.services {
		s.printf("%s\n", strings.Join(slices.Sorted(maps.Keys(services)), "\n"))
		return nil
	}
	resolve := s.digestOf(ctx)
	for _, sv := range services {
		keys, _ := sv.(map[string]any)
		image, ok := keys["image"].(string)
		if ok && o.digests {
			ref, err := reference.ParseDockerRef(image)
			if err != nil {
				return err
			}
			sum, err := resolve(ref)
			if err != nil {
				return err
			}
			keys["image"] = ref.String() + "@" + sum.String()
		}
		if o.lock {
			maps.DeleteFunc(keys, func(k string, _ any) bool { return k != "image" })
		}
	}
	if o.lock {
		maps.DeleteFunc(m, func(k string, _ any) bool { return k != "services" })
	}
	var b bytes.Buffer
	switch o.format {
	case "", "yaml":
		e := yaml.NewEncoder(&b)
		e.SetIndent(2)
		err = e.Encode(m)
	case "json":
		e := json.NewEncoder(&b)
		e.SetIndent("", "  ")
		err = e.Encode(m)
	default:
		return fmt.Errorf("unsupported format %q", o.format)
	}
	if err != nil {
		return err
	}
	return s.write(o, b.Bytes())
}

// digestOf asks the engine for the digests that registries have for images.
func (s lists) digestOf(ctx context.Context) func(reference.Named) (digest.Digest, error) {
	return func(ref reference.Named) (digest.Digest, error) {
		c, err := s.client()
		if err != nil {
			return "", err
		}
		auth, err := cli.RegistryAuth(ctx, s.engine.ConfigDir, reference.Domain(ref))
		if err != nil {
			s.warnf("%s", err)
		}
		res, err := c.DistributionInspect(ctx, ref.String(), moby.DistributionInspectOptions{EncodedRegistryAuth: auth})
		if err != nil {
			return "", fmt.Errorf("image %s: %w", ref, err)
		}
		return res.Descriptor.Digest, nil
	}
}

// variables shows the variables of the files.
func (s lists) variables(ctx context.Context, l composefile.Options, format string) error {
	l.Verbatim = true
	m, err := composefile.Model(ctx, l)
	if err != nil {
		return &exit{exitParse, err}
	}
	found := template.ExtractVariables(m, template.DefaultPattern)
	if format == "json" {
		return s.json(found)
	}
	return s.columns([]string{"NAME", "REQUIRED", "DEFAULT VALUE", "ALTERNATE VALUE"}, func(line func(...string)) {
		for _, name := range slices.Sorted(maps.Keys(found)) {
			v := found[name]
			line(v.Name, fmt.Sprint(v.Required), v.DefaultValue, v.PresenceValue)
		}
	})
}
