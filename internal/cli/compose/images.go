package compose

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/builder/plan"
	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/compose/progress"
	composefile "escale.dev/escale/internal/compose"
)

// building is how images are built.
type building struct {
	quiet, pull, noCache, push, check bool
	args                              []string
	ssh, memory                       string
	provenance, sbom                  string
}

func buildCommand(s *session) *cobra.Command {
	var b building
	var deps, print bool
	cmd := command("build [OPTIONS] [SERVICE...]", "Build the images of services", func(ctx context.Context, args []string) error {
		o := s.options()
		o.Enabled = args
		p, err := load(ctx, o)
		if err != nil {
			return err
		}
		names := p.ServiceNames()
		if len(args) > 0 { // of what they are built from the project must know, too
			needed := types.IgnoreDependencies
			if deps {
				needed = types.IncludeDependencies
			}
			meant, err := p.WithSelectedServices(args, needed)
			if err != nil {
				return err
			}
			names = meant.ServiceNames()
		}
		if print {
			return supply{s}.printBake(p, names, b)
		}
		if b.memory != "" {
			s.warnf("--memory means nothing: BuildKit has no limit for steps")
		}
		return supply{s}.build(ctx, p, names, b)
	})
	f := cmd.Flags()
	f.BoolVar(&b.push, "push", false, "Send the images to their registries")
	f.BoolVarP(&b.quiet, "quiet", "q", false, "Show nothing of the build")
	f.BoolVar(&b.pull, "pull", false, "Ask registries for images even when they are here")
	f.StringArrayVar(&b.args, "build-arg", nil, "Set a variable of Dockerfiles: NAME[=VALUE]")
	f.StringVar(&b.ssh, "ssh", "", "Agent or keys for RUN --mount=type=ssh: default|ID[=SOCKET|KEY]")
	f.BoolVar(&deps, "with-dependencies", false, "Build what they depend on, too")
	f.StringVar(&b.provenance, "provenance", "", "Attest how images came about")
	f.StringVar(&b.sbom, "sbom", "", "Attest what is in images")
	f.BoolVar(&b.noCache, "no-cache", false, "Use nothing from the cache")
	f.BoolVar(&b.check, "check", false, "Check Dockerfiles, and build nothing")
	f.StringVarP(&b.memory, "memory", "m", "", "Means nothing: BuildKit has no limit for steps")
	f.BoolVar(&print, "print", false, "Print what would be built, as a bake file of buildx")
	f.String("builder", "", "Means nothing: the engine builds")
	for _, name := range []string{"parallel", "compress", "force-rm"} {
		f.Bool(name, true, "Means nothing")
		f.Lookup(name).Hidden = true
	}
	f.Bool("no-rm", false, "Means nothing")
	for _, name := range []string{"no-rm", "memory", "builder"} {
		f.Lookup(name).Hidden = true
	}
	return cmd
}

// plan is a service's build in the words of `escale build`.
func (s supply) plan(p *types.Project, sv *types.ServiceConfig, o building) (*plan.Build, func(), error) {
	c, undo := sv.Build, func() {}
	b := &plan.Build{
		Host: s.engine.Host, APIVersion: s.engine.APIVersion, UserAgent: s.engine.UserAgent, Headers: s.engine.Headers, ConfigDir: s.engine.ConfigDir, Debug: s.engine.Debug,
		Context: c.Context, Dockerfile: c.Dockerfile, Target: c.Target, Network: cmp.Or(c.Network, "default"), Pull: c.Pull || o.pull, NoCache: c.NoCache || o.noCache,
		NoCacheFor: c.NoCacheFilter, Hosts: c.ExtraHosts.AsList("="), Allow: slices.Clone(c.Entitlements), Progress: cmp.Or(buildProgress(s.flags.progress), "auto"), Quiet: o.quiet,
		Tags: append([]string{composefile.Image(p, sv)}, c.Tags...), Push: o.push, Load: o.push, Limits: map[string]string{}, Args: slices.Clone(s.engine.Proxies),
	}
	if o.check {
		b.Call, b.Push, b.Load = "check", false, false
	}
	if c.Isolation != "" && c.Isolation != "default" {
		return nil, undo, fmt.Errorf("isolation %q is for Windows", c.Isolation)
	}
	if c.Privileged {
		b.Allow = append(b.Allow, "security.insecure")
	}
	b.Platforms = slices.Clone(c.Platforms)
	switch want := cmp.Or(sv.Platform, p.Environment["DOCKER_DEFAULT_PLATFORM"]); {
	case want != "" && len(c.Platforms) > 0 && !slices.Contains(c.Platforms, want):
		return nil, undo, fmt.Errorf("platforms do not include %s, which the service runs on", want)
	case want != "" && !o.push:
		b.Platforms = []string{want}
	}
	if c.DockerfileInline != "" {
		dir, err := os.MkdirTemp("", "escale-compose-")
		if err != nil {
			return nil, undo, err
		}
		undo = func() { _ = os.RemoveAll(dir) }
		b.Dockerfile = filepath.Join(dir, "Dockerfile")
		if err := os.WriteFile(b.Dockerfile, []byte(c.DockerfileInline), 0o600); err != nil {
			undo()
			return nil, func() {}, err
		}
	} else if b.Dockerfile != "" && !filepath.IsAbs(b.Dockerfile) && filepath.IsAbs(b.Context) {
		b.Dockerfile = filepath.Join(b.Context, b.Dockerfile)
	}
	if err := s.planDetails(p, sv, o, b); err != nil {
		undo()
		return nil, func() {}, err
	}
	return b, undo, nil
}

// buildProgress is a mode of ours in the builder's words.
func buildProgress(mode string) string {
	if mode == string(progress.JSON) {
		return "rawjson"
	}
	return mode
}

// planDetails adds what are lists: arguments, labels, caches, secrets, limits.
func (s supply) planDetails(p *types.Project, sv *types.ServiceConfig, o building, b *plan.Build) error {
	c := sv.Build
	args := maps.Clone(c.Args)
	if args == nil {
		args = types.MappingWithEquals{}
	}
	for _, a := range o.args {
		name, value, ok := strings.Cut(a, "=")
		if args[name] = &value; !ok {
			args[name] = nil
		}
	}
	for _, name := range slices.Sorted(maps.Keys(args)) {
		if v := args[name]; v != nil {
			b.Args = append(b.Args, name+"="+*v)
		} else if v, ok := p.Environment[name]; ok {
			b.Args = append(b.Args, name+"="+v)
		}
	}
	labels := map[string]string{composefile.LabelProject: p.Name, composefile.LabelService: sv.Name}
	maps.Copy(labels, c.Labels)
	for _, name := range slices.Sorted(maps.Keys(labels)) {
		b.Labels = append(b.Labels, name+"="+labels[name])
	}
	for _, name := range slices.Sorted(maps.Keys(c.AdditionalContexts)) {
		value := c.AdditionalContexts[name]
		if other, ok := strings.CutPrefix(value, types.ServicePrefix); ok {
			from, err := p.GetService(other)
			if err != nil {
				return fmt.Errorf("additional_contexts: %w", err)
			}
			value = "docker-image://" + composefile.Image(p, &from)
		}
		b.Contexts = append(b.Contexts, name+"="+value)
	}
	b.CacheFrom, b.CacheTo = slices.Clone(c.CacheFrom), slices.Clone(c.CacheTo)
	for _, key := range c.SSH {
		if key.Path != "" {
			b.SSH = append(b.SSH, key.ID+"="+key.Path)
		} else {
			b.SSH = append(b.SSH, key.ID)
		}
	}
	if o.ssh != "" {
		b.SSH = append(b.SSH, o.ssh)
	}
	for _, ref := range c.Secrets {
		secret, err := buildSecret(p, ref)
		if err != nil {
			return err
		}
		b.Secrets = append(b.Secrets, secret)
	}
	for _, a := range []struct{ kind, text string }{{"provenance", cmp.Or(o.provenance, c.Provenance)}, {"sbom", cmp.Or(o.sbom, c.SBOM)}} {
		if on, err := strconv.ParseBool(a.text); err == nil {
			a.text = map[bool]string{true: "", false: "disabled=true"}[on]
		} else if a.text == "" {
			continue
		}
		b.Attests = append(b.Attests, strings.TrimSuffix("type="+a.kind+","+a.text, ","))
	}
	if c.ShmSize > 0 {
		b.Limits["shm-size"] = strconv.FormatInt(int64(c.ShmSize), 10)
	}
	var limits []string
	for _, name := range slices.Sorted(maps.Keys(c.Ulimits)) {
		u := c.Ulimits[name]
		l := units.Ulimit{Name: name, Soft: int64(cmp.Or(u.Single, u.Soft)), Hard: int64(cmp.Or(u.Single, u.Hard))}
		limits = append(limits, l.String())
	}
	if len(limits) > 0 {
		b.Limits["ulimit"] = strings.Join(limits, ",")
	}
	return nil
}

// buildSecret is a secret in the words of --secret.
func buildSecret(p *types.Project, ref types.ServiceSecretConfig) (string, error) {
	def, ok := p.Secrets[ref.Source]
	id := cmp.Or(ref.Target, ref.Source)
	switch {
	case !ok:
		return "", fmt.Errorf("secret %q is not defined", ref.Source)
	case def.Environment != "":
		// The value may stand in .env only.
		if v, ok := p.Environment[def.Environment]; ok {
			if err := os.Setenv(def.Environment, v); err != nil {
				return "", err
			}
		}
		return "id=" + id + ",env=" + def.Environment, nil
	case def.File != "":
		return "id=" + id + ",src=" + def.File, nil
	}
	return "", fmt.Errorf("secret %q: a build can have it from a file or a variable only", ref.Source)
}

// had is an image that the engine has.
type had struct {
	id      string // "" when it is not there
	tagged  time.Time
	volumes bool // it declares volumes
}

// present looks for an image.
func (s supply) present(ctx context.Context, image string) (had, error) {
	c, err := s.client()
	if err != nil {
		return had{}, err
	}
	res, err := c.ImageInspect(ctx, image)
	if errdefs.IsNotFound(err) {
		return had{}, nil
	}
	return had{res.ID, res.Metadata.LastTagTime, res.Config != nil && len(res.Config.Volumes) > 0}, err
}

// pullOne pulls an image, and shows how far it is.
func (s supply) pullOne(ctx context.Context, b *progress.Board, id, image, platform string) error {
	b.Set(id, progress.Working, "Pulling")
	err := s.pulled(ctx, b, id, image, platform)
	switch {
	case err != nil:
		b.Set(id, progress.Failed, "Error "+err.Error())
	default:
		b.Set(id, progress.Done, "Pulled")
	}
	return err
}

func (s supply) pulled(ctx context.Context, b *progress.Board, id, image, platform string) error {
	if s.flags.dry {
		return nil
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return fmt.Errorf("image %q: %w", image, err)
	}
	ref = reference.TagNameOnly(ref)
	auth, err := cli.RegistryAuth(ctx, s.engine.ConfigDir, reference.Domain(ref))
	if err != nil {
		b.Print("WARN " + err.Error())
	}
	o := moby.ImagePullOptions{RegistryAuth: auth}
	if platform != "" {
		want, err := platforms.Parse(platform)
		if err != nil {
			return err
		}
		o.Platforms = []ocispec.Platform{want}
	}
	r, err := c.ImagePull(ctx, ref.String(), o)
	if err != nil {
		return err
	}
	defer r.Close()
	return transfer(r, b, id, "Pulling")
}

// transfer reads the messages of a pull or a push, and shows how many layers are done.
func transfer(r interface{ Read([]byte) (int, error) }, b *progress.Board, id, word string) error {
	layers, d := map[string]bool{}, json.NewDecoder(r)
	for {
		var m struct {
			ID, Status string
			ErrorText  string `json:"error"`
		}
		err := d.Decode(&m)
		switch {
		case err != nil && err.Error() == "EOF":
			return nil
		case err != nil:
			return err
		case m.ErrorText != "":
			return errors.New(m.ErrorText)
		case m.ID == "" || strings.HasPrefix(m.Status, "Pulling from"):
			continue
		}
		layers[m.ID] = layers[m.ID] || slices.Contains([]string{"Pull complete", "Already exists", "Pushed", "Layer already exists", "Mounted from"}, m.Status)
		done := 0
		for _, ok := range layers {
			if ok {
				done++
			}
		}
		b.Set(id, progress.Working, fmt.Sprintf("%s %d/%d", word, done, len(layers)))
	}
}

// supply brings images here: it builds and pulls them, and sends them away.
type supply struct{ *session }
