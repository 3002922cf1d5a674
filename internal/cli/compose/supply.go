package compose

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/distribution/reference"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli"
	"escale.dev/escale/internal/cli/compose/progress"
	composefile "escale.dev/escale/internal/compose"
)

// wanted says how images come here.
type wanted struct {
	build, noBuild, quietPull, quietBuild bool
	pull                                  string // instead of what services say
}

// policy is how the image of a service comes here: always, missing, never, build, or
// refresh, when it is older than age.
func (o *wanted) policy(sv *types.ServiceConfig) (policy string, age time.Duration, err error) {
	switch o.pull {
	case "", "policy":
		policy, age, err = sv.GetPullPolicy()
	case types.PullPolicyAlways, types.PullPolicyMissing, types.PullPolicyNever, types.PullPolicyBuild:
		policy = o.pull
	default:
		return "", 0, &exit{exitUsage, fmt.Errorf("--pull %q: always, missing, never, build or policy wanted", o.pull)}
	}
	if policy == types.PullPolicyRefresh && age == 0 && sv.PullRefreshAfter != "" {
		every := types.ServiceConfig{ContainerSpec: types.ContainerSpec{PullPolicy: "every_" + sv.PullRefreshAfter}}
		_, age, err = every.GetPullPolicy()
	}
	if policy == types.PullPolicyIfNotPresent {
		policy = types.PullPolicyMissing
	}
	return policy, age, err
}

// images brings the images of services here, built or pulled, and gives them by
// service.
func (s supply) images(ctx context.Context, p *types.Project, names []string, o wanted) (map[string]had, error) {
	var build, pull []string
	for _, name := range names {
		sv := p.Services[name]
		policy, age, err := o.policy(&sv)
		if err != nil {
			return nil, err
		}
		img, err := s.present(ctx, composefile.Image(p, &sv))
		if err != nil {
			return nil, err
		}
		here, buildable := img.id != "", sv.Build != nil && !o.noBuild
		switch {
		case buildable && (o.build || policy == types.PullPolicyBuild):
			build = append(build, name)
		case policy == types.PullPolicyAlways && sv.Image != "", policy == types.PullPolicyRefresh && (!here || time.Since(img.tagged) > age):
			pull = append(pull, name)
		case here:
		case buildable:
			build = append(build, name)
		case policy == types.PullPolicyNever || sv.Image == "":
			return nil, fmt.Errorf("service %q: no such image: %s: build it with '%s compose build %s'", name, composefile.Image(p, &sv), s.engine.Name, name)
		default:
			pull = append(pull, name)
		}
	}
	pull = slices.DeleteFunc(pull, func(name string) bool { // what another's build makes
		by := builder(p, name)
		return by != name && slices.Contains(build, by)
	})
	failed, err := s.pullAll(ctx, p, pull, o.quietPull, false)
	for name := range failed {
		// What cannot be pulled may be built.
		if by := builder(p, name); by != "" && !o.noBuild {
			if !slices.Contains(build, by) { // for another of its users
				build = append(build, by)
			}
			delete(failed, name)
		}
	}
	if len(failed) > 0 {
		return nil, err
	}
	if len(build) > 0 {
		if err := s.build(ctx, p, build, building{quiet: o.quietBuild}); err != nil {
			return nil, err
		}
	}
	out := map[string]had{}
	for _, name := range names {
		sv := p.Services[name]
		img, err := s.present(ctx, composefile.Image(p, &sv))
		switch {
		case err != nil:
			return nil, err
		case img.id == "" && !s.flags.dry:
			return nil, fmt.Errorf("service %q: image %s has gone", name, composefile.Image(p, &sv))
		}
		out[name] = img
	}
	return out, nil
}

// builder is the service whose build makes the image of a service: itself, or another that
// builds under that name; "" when there is none.
func builder(p *types.Project, name string) string {
	sv := p.Services[name]
	if sv.Build != nil {
		return name
	}
	for _, other := range p.ServiceNames() {
		if o := p.Services[other]; o.Build != nil && sv.Image != "" && fullName(composefile.Image(p, &o)) == fullName(sv.Image) {
			return other
		}
	}
	return ""
}

// fullName is an image's name with all that may be left out of it, so that names of one image are
// equal; what is no name stays as it is.
func fullName(image string) string {
	ref, err := reference.ParseDockerRef(image)
	if err != nil {
		return image
	}
	return ref.String()
}

// pullAll pulls the images of services, each image once, and gives the services of
// those that could not be had.
func (s supply) pullAll(ctx context.Context, p *types.Project, names []string, quiet, ignore bool) (map[string]error, error) {
	if len(names) == 0 {
		return nil, nil
	}
	mode := s.flags.progress
	if quiet {
		s.flags.progress = string(progress.Quiet)
	}
	b := s.board("Pulling")
	s.flags.progress = mode
	defer b.Close()
	type key struct{ image, platform string }
	var keys []key
	by := map[key][]string{}
	for _, name := range names {
		sv := p.Services[name]
		k := key{fullName(sv.Image), sv.Platform}
		if by[k] = append(by[k], name); len(by[k]) == 1 {
			keys = append(keys, k)
		}
	}
	written := func(k key) string { return p.Services[by[k][0]].Image }
	errs := make([]error, len(keys))
	_ = s.parallel(len(keys), func(i int) error {
		errs[i] = s.pullOne(ctx, b, by[keys[i]][0], written(keys[i]), keys[i].platform)
		return nil
	})
	failed := map[string]error{}
	var all []error
	for i, err := range errs {
		if err == nil {
			continue
		}
		all = append(all, fmt.Errorf("image %s: %w", written(keys[i]), err))
		for _, name := range by[keys[i]] {
			failed[name] = err
		}
	}
	if ignore {
		return failed, nil
	}
	return failed, errors.Join(all...)
}

func pullCommand(s *session) *cobra.Command {
	var quiet, deps, ignore, noBuildable bool
	var policy string
	cmd := command("pull [OPTIONS] [SERVICE...]", "Bring the images of services from their registries", func(ctx context.Context, args []string) error {
		o := s.options(args...)
		o.NoDeps = !deps
		p, err := load(ctx, o)
		if err != nil {
			return err
		}
		if policy != "" && policy != types.PullPolicyAlways && policy != types.PullPolicyMissing {
			return &exit{exitUsage, fmt.Errorf("--policy %q: missing or always wanted", policy)}
		}
		var names []string
		b := s.board("Pulling")
		for _, name := range p.ServiceNames() {
			sv := p.Services[name]
			skip := ""
			img, err := supply{s}.present(ctx, composefile.Image(p, &sv))
			switch {
			case err != nil:
				b.Close()
				return err
			case sv.Image == "":
				skip = "No image to be pulled"
			case sv.Build != nil && noBuildable:
				skip = "Image can be built"
			case sv.PullPolicy == types.PullPolicyNever, sv.PullPolicy == types.PullPolicyBuild:
				skip = "Its pull_policy is " + sv.PullPolicy
			case img.id != "" && (policy == types.PullPolicyMissing || policy == "" && sv.PullPolicy == types.PullPolicyMissing):
				skip = "Image is already present locally"
			}
			if skip != "" {
				b.Set(name, progress.Done, "Skipped - "+skip)
				continue
			}
			names = append(names, name)
		}
		b.Close()
		failed, err := supply{s}.pullAll(ctx, p, names, quiet, ignore)
		if err == nil || len(failed) == 0 {
			return err
		}
		buildable := true
		for name := range failed {
			buildable = buildable && builder(p, name) != ""
		}
		if buildable {
			s.warnf("some images could not be pulled and can be built: %s compose build", s.engine.Name)
			return nil
		}
		return &exit{18, err}
	})
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Show no progress")
	f.BoolVar(&deps, "include-deps", false, "Those that they depend on, too")
	f.BoolVar(&ignore, "ignore-pull-failures", false, "Go on when an image cannot be had")
	f.BoolVar(&noBuildable, "ignore-buildable", false, "Leave out what can be built")
	f.StringVar(&policy, "policy", "", "missing or always, instead of what services say")
	for _, name := range []string{"parallel", "no-parallel"} {
		f.Bool(name, true, "Means nothing: see --parallel of compose")
		f.Lookup(name).Hidden = true
	}
	return cmd
}

func pushCommand(s *session) *cobra.Command {
	var quiet, deps, ignore bool
	cmd := command("push [OPTIONS] [SERVICE...]", "Send the images of services to their registries", func(ctx context.Context, args []string) error {
		o := s.options(args...)
		o.NoDeps = !deps
		p, err := load(ctx, o)
		if err != nil {
			return err
		}
		if quiet {
			s.flags.progress = string(progress.Quiet)
		}
		b := s.board("Pushing")
		defer b.Close()
		var names, tags []string
		for _, name := range p.ServiceNames() {
			sv := p.Services[name]
			if sv.Build == nil || sv.Image == "" {
				b.Set(name, progress.Done, "Skipped")
				continue
			}
			for _, tag := range append([]string{sv.Image}, sv.Build.Tags...) {
				names, tags = append(names, name), append(tags, tag)
			}
		}
		return s.parallel(len(names), func(i int) error {
			b.Set(tags[i], progress.Working, "Pushing")
			err := supply{s}.pushed(ctx, b, tags[i])
			switch {
			case err == nil:
				b.Set(tags[i], progress.Done, "Pushed")
			case ignore:
				b.Set(tags[i], progress.Warning, "Not pushed: "+err.Error())
				return nil
			default:
				b.Set(tags[i], progress.Failed, "Error")
				return fmt.Errorf("service %q: image %s: %w", names[i], tags[i], err)
			}
			return err
		})
	})
	f := cmd.Flags()
	f.BoolVarP(&quiet, "quiet", "q", false, "Show no progress")
	f.BoolVar(&deps, "include-deps", false, "Those that they depend on, too")
	f.BoolVar(&ignore, "ignore-push-failures", false, "Go on when an image cannot be sent")
	return cmd
}

func (s supply) pushed(ctx context.Context, b *progress.Board, tag string) error {
	if s.flags.dry {
		return nil
	}
	ref, err := reference.ParseNormalizedNamed(tag)
	if err != nil {
		return err
	}
	ref = reference.TagNameOnly(ref)
	auth, err := cli.RegistryAuth(ctx, s.engine.ConfigDir, reference.Domain(ref))
	if err != nil {
		b.Print("WARN " + err.Error())
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	r, err := c.ImagePush(ctx, ref.String(), moby.ImagePushOptions{RegistryAuth: auth})
	if err != nil {
		return err
	}
	defer r.Close()
	return transfer(r, b, tag, "Pushing")
}

// orphans are services of which there are containers, but which the file has not.
func orphans(p *types.Project, there []string) (out []string) {
	all := p.AllServices()
	for _, name := range there {
		if _, ok := all[name]; !ok && !slices.Contains(out, name) {
			out = append(out, name)
		}
	}
	return out
}
