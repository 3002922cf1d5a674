package compose

import (
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/compose/progress"
	"escale.dev/escale/internal/cluster"
	composefile "escale.dev/escale/internal/compose"
)

// upOptions are the flags of up and create.
type upOptions struct {
	wanted
	detach, noStart, noDeps, removeOrphans, forceRecreate, noRecreate, recreateDeps, renew, yes bool
	wait                                                                                        bool
	waitSeconds                                                                                 int
	stop                                                                                        timeout
	scale                                                                                       []string
	attach, noAttach                                                                            []string
	attachDeps, noColor, noPrefix, times, watch, menu                                           bool
	abortOnExit, abortOnFailure                                                                 bool
	exitFrom                                                                                    string
}

// makeFlags are those that up and create share.
func (o *upOptions) makeFlags(f *pflag.FlagSet) {
	f.BoolVar(&o.build, "build", false, "Build images first")
	f.BoolVar(&o.noBuild, "no-build", false, "Build no image, even when one is missing")
	f.StringVar(&o.pull, "pull", "policy", "When to pull images: always, missing, never, build, or policy: as services say")
	f.BoolVar(&o.quietPull, "quiet-pull", false, "Show no progress of pulls")
	f.BoolVar(&o.quietBuild, "quiet-build", false, "Show nothing of builds")
	f.BoolVar(&o.forceRecreate, "force-recreate", false, "Make containers anew though nothing has changed")
	f.BoolVar(&o.noRecreate, "no-recreate", false, "Leave containers that are there as they are")
	f.BoolVar(&o.removeOrphans, "remove-orphans", boolEnv("COMPOSE_REMOVE_ORPHANS"), "Remove services that the file does not have")
	f.StringArrayVar(&o.scale, "scale", nil, "How many containers: SERVICE=NUMBER")
	f.BoolVarP(&o.yes, "yes", "y", false, "Ask nothing (nothing is asked)")
}

func upCommand(s *session) *cobra.Command {
	var o upOptions
	cmd := plainly("up [OPTIONS] [SERVICE...]", "Make an app as its compose file has it, and keep it so", func(ctx context.Context, args []string) error {
		return apps{s}.up(ctx, o, args)
	})
	cmd.Example = "  escale up -d\n  escale up --dry-run\n  escale up -d --scale web=5"
	f := cmd.Flags()
	o.makeFlags(f)
	f.BoolVarP(&o.detach, "detach", "d", false, "Come back once all is up")
	f.BoolVar(&o.noStart, "no-start", false, "Make containers, and start none")
	f.BoolVar(&o.noDeps, "no-deps", false, "Leave what the services depend on alone")
	f.BoolVar(&o.recreateDeps, "always-recreate-deps", false, "Make containers of what they depend on anew, too")
	f.BoolVarP(&o.renew, "renew-anon-volumes", "V", false, "New anonymous volumes instead of those of the containers before")
	f.BoolVar(&o.wait, "wait", false, "Wait until services run and are healthy; means -d")
	f.IntVar(&o.waitSeconds, "wait-timeout", 0, "Seconds to wait at most")
	f.StringArrayVar(&o.attach, "attach", nil, "Show only what these services write")
	f.StringArrayVar(&o.noAttach, "no-attach", nil, "Do not show what these services write")
	f.BoolVar(&o.attachDeps, "attach-dependencies", false, "Show what dependencies write, too")
	f.BoolVar(&o.noColor, "no-color", false, "No colors")
	f.BoolVar(&o.noPrefix, "no-log-prefix", false, "No names before lines")
	f.BoolVar(&o.times, "timestamps", false, "The time before each line")
	f.BoolVarP(&o.watch, "watch", "w", false, "Bring changes of the sources into containers, as develop.watch says")
	f.BoolVar(&o.menu, "menu", boolEnv("COMPOSE_MENU"), "Refused: there is no menu of keys")
	f.BoolVar(&o.abortOnExit, "abort-on-container-exit", false, "Stop all when one container ends")
	f.BoolVar(&o.abortOnFailure, "abort-on-container-failure", false, "Stop all when one container fails")
	f.StringVar(&o.exitFrom, "exit-code-from", "", "End with this service's code; means --abort-on-container-exit")
	o.stop.flags = f
	f.IntVarP(&o.stop.seconds, "timeout", "t", 0, "Seconds until what does not stop is killed")
	f.Lookup("menu").Hidden = true
	return cmd
}

func createCommand(s *session) *cobra.Command {
	var o upOptions
	cmd := command("create [OPTIONS] [SERVICE...]", "Make the containers of services, and start none", func(ctx context.Context, args []string) error {
		o.noStart = true
		return apps{s}.up(ctx, o, args)
	})
	o.makeFlags(cmd.Flags())
	return cmd
}

// check refuses what does not go together.
func (o *upOptions) check() error {
	usage := func(text string) error { return &exit{1, fmt.Errorf("%s", text)} }
	if o.exitFrom != "" {
		o.abortOnExit = true
	}
	if o.wait {
		if len(o.attach) > 0 || o.abortOnExit || o.abortOnFailure {
			return usage("--wait cannot be combined with --abort-on-container-exit, --abort-on-container-failure or --attach")
		}
		o.detach = true
	}
	switch {
	case o.menu:
		return usage("there is no menu of keys: leave out --menu and unset COMPOSE_MENU")
	case o.build && o.noBuild:
		return usage("--build and --no-build are incompatible")
	case o.detach && (o.attachDeps || o.abortOnExit || o.abortOnFailure || len(o.attach) > 0 || o.watch):
		if o.wait {
			return usage("--wait cannot be combined with --abort-on-container-exit, --abort-on-container-failure, --attach, --attach-dependencies or --watch")
		}
		return usage("--detach cannot be combined with --abort-on-container-exit, --abort-on-container-failure, --attach, --attach-dependencies or --watch")
	case o.attachDeps && len(o.attach) > 0:
		return usage("--attach and --attach-dependencies are incompatible")
	case o.abortOnExit && o.abortOnFailure:
		return usage("--abort-on-container-exit and --abort-on-container-failure are incompatible")
	case o.forceRecreate && o.noRecreate:
		return usage("--force-recreate and --no-recreate are incompatible")
	case o.recreateDeps && o.noRecreate:
		return usage("--always-recreate-deps and --no-recreate are incompatible")
	case o.noStart && o.watch:
		return usage("--no-start and --watch are incompatible")
	}
	return nil
}

// change is an app that is asked for: its project, and the services that are meant.
type change struct {
	project *types.Project
	names   []string // services
	spec    *cluster.AppSpec
	put     client.AppPutOptions
	orphans []string
	left    []string // services that are there and are left as they are: --no-recreate
}

// up is the command.
func (s apps) up(ctx context.Context, o upOptions, args []string) error {
	if err := o.check(); err != nil {
		return err
	}
	ctx, stop := whole(ctx)
	defer stop()
	ch, err := s.prepare(ctx, o, args)
	if err != nil {
		return cut(ctx, err)
	}
	if s.flags.dry {
		return cut(ctx, s.show(ctx, ch))
	}
	if err := s.yield(ctx, ch); err != nil {
		return cut(ctx, err)
	}
	if o.detach || o.noStart {
		return cut(ctx, s.place(ctx, ch, o))
	}
	stop() // from here on signals are an affair of its own
	return s.attached(context.WithoutCancel(ctx), ch, o, args)
}

// cut makes an error of what a signal has ended.
func cut(ctx context.Context, err error) error {
	if err != nil && ctx.Err() != nil {
		return interrupted
	}
	return err
}

// place asks for the change and follows it until all is as it is to be.
func (s apps) place(ctx context.Context, ch *change, o upOptions) error {
	plan, err := s.put(ctx, ch)
	if err != nil {
		return err
	}
	b := s.board("Running")
	defer b.Close()
	if len(ch.left) > 0 && !o.noStart {
		if err := s.wake(ctx, b, ch); err != nil {
			return err
		}
	}
	if err := s.until(ctx, b, plan, detached(o.waitSeconds, o.noStart)); err != nil || !o.wait {
		return err
	}
	return s.badEnds(ctx, b, ch)
}

// badEnds tells of the first container of the services that are meant which has ended badly and
// is left so: who waits for services wants them up.
func (s apps) badEnds(ctx context.Context, b *progress.Board, ch *change) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	app, err := c.App(ctx, ch.project.Name)
	if err != nil {
		return err
	}
	for _, sv := range app.Services {
		if !slices.Contains(ch.names, sv.Name) || sv.Mode == "schedule" {
			continue
		}
		for i := range sv.Tasks {
			t := &sv.Tasks[i]
			if newest(&sv, i) && t.State == "failed" {
				b.Set("Service "+sv.Name, progress.Failed, "Error")
				return fmt.Errorf("container %s exited (%d)", t.Name, t.ExitCode)
			}
		}
	}
	return nil
}

// wake starts what was stopped of services that are left as they are.
func (s apps) wake(ctx context.Context, b *progress.Board, ch *change) error {
	list, err := s.containers(ctx, ch.project.Name, pick{services: ch.left, stopped: true})
	if err != nil {
		return err
	}
	if list, err = s.current(ctx, ch.project.Name, list); err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(c container.Summary) bool {
		return c.State != container.StateCreated && c.State != container.StateExited
	})
	return s.apply(ctx, b, layers(list), false, s.starting(ch.project))
}

// prepare reads the project, brings images here, and makes the spec.
func (s apps) prepare(ctx context.Context, o upOptions, args []string) (*change, error) {
	lo := s.options()
	lo.Enabled = args
	p, err := load(ctx, lo)
	if err != nil {
		return nil, err
	}
	ch := &change{project: p, names: p.ServiceNames()}
	if len(args) > 0 {
		deps := types.IncludeDependencies
		if o.noDeps {
			deps = types.IgnoreDependencies
		}
		meant, err := p.WithSelectedServices(args, deps)
		if err != nil {
			return nil, err
		}
		ch.names = meant.ServiceNames()
	}
	if len(ch.names) == 0 {
		return nil, fmt.Errorf("no service selected")
	}
	if p, err = scaled(p, o.scale); err != nil {
		return nil, err
	}
	ch.project = p
	if o.exitFrom != "" && !slices.Contains(ch.names, o.exitFrom) {
		return nil, fmt.Errorf("no such service: %s", o.exitFrom)
	}
	if err := composefile.Check(p, s.swarm(ctx, p)); err != nil {
		return nil, &exit{exitParse, err}
	}
	images, err := supply(s).images(ctx, p, ch.names, o.wanted)
	if err != nil {
		return nil, err
	}
	if ch.spec, err = composefile.App(p, s.swarm(ctx, p)); err != nil {
		return nil, &exit{exitParse, err}
	}
	if err := s.unlike(ctx, ch.spec.Volumes); err != nil {
		return nil, err
	}
	return ch, s.arrange(ctx, ch, o, args, images)
}

// unlike tells of volumes that are there with other options than the file has for them.
// Their data is nobody's to throw away unasked.
func (s apps) unlike(ctx context.Context, volumes map[string]cluster.VolumeSpec) error {
	c, err := s.client()
	if err != nil {
		return err
	}
	for _, part := range slices.Sorted(maps.Keys(volumes)) {
		want := volumes[part]
		if want.External {
			continue
		}
		is, err := c.VolumeInspect(ctx, want.Name, moby.VolumeInspectOptions{})
		switch {
		case err != nil: // what it is when it is wanted, the engine tells
		case is.Volume.Driver != cmp.Or(want.Driver, "local") || !maps.Equal(is.Volume.Options, want.Options):
			s.warnf("Volume %q is there with other options than the file has for it. It stays as it is, with its data; to have it made anew, without it: %s down, then %[2]s volume rm %[3]s and %[2]s up", part, s.engine.Name, want.Name)
		}
	}
	return nil
}

// scaled is the project with the numbers of --scale.
func scaled(p *types.Project, list []string) (*types.Project, error) {
	counts, err := scaleArgs(list)
	if err != nil {
		return nil, err
	}
	for name, n := range counts {
		sv, err := p.GetService(name)
		if err != nil {
			return nil, err
		}
		sv.SetScale(int(n))
		p.Services[name] = sv
	}
	return p, nil
}

// arrange puts what the flags say into the spec and the options of its change.
func (s apps) arrange(ctx context.Context, ch *change, o upOptions, args []string, images map[string]had) error {
	there, over := map[string]bool{}, map[string]bool{}
	c, err := s.client()
	if err != nil {
		return err
	}
	app, err := c.App(ctx, ch.project.Name)
	switch {
	case err == nil:
		for i := range app.Services {
			sv := &app.Services[i]
			there[sv.Name], over[sv.Name] = true, done(sv)
		}
	case !errdefs.IsNotFound(err):
		return err
	}
	for name := range maps.Clone(ch.spec.Services) {
		if meant := slices.Contains(ch.names, name); !meant || o.noRecreate && there[name] {
			if delete(ch.spec.Services, name); meant {
				ch.left = append(ch.left, name)
			}
			continue
		}
		sv := ch.spec.Services[name]
		written := ch.project.Services[name]
		place(&sv, &written, images[name])
		ch.spec.Services[name] = sv
	}
	if err := s.externals(ctx, ch.project, slices.Collect(maps.Keys(ch.spec.Services))); err != nil {
		return err
	}
	ch.put = client.AppPutOptions{DryRun: s.flags.dry, Merge: true, Create: o.noStart, RenewVolumes: o.renew}
	for name := range ch.spec.Services {
		if o.forceRecreate && (len(args) == 0 || slices.Contains(args, name)) || o.recreateDeps && !slices.Contains(args, name) && len(args) > 0 ||
			(o.abortOnExit || o.abortOnFailure) && over[name] { // whose end is waited for has to begin
			ch.put.Replace = append(ch.put.Replace, name)
		}
	}
	slices.Sort(ch.put.Replace)
	ch.orphans = orphans(ch.project, slices.Sorted(maps.Keys(there)))
	if o.removeOrphans {
		ch.put.Remove, ch.orphans = ch.orphans, nil
	}
	return nil
}

// done tells whether a service has ended and does not begin again by itself.
func done(sv *client.AppService) bool {
	for i := range sv.Tasks {
		if !ended(&sv.Tasks[i]) {
			return false
		}
	}
	return len(sv.Tasks) > 0
}

// place settles in a spec which image is meant: the one that is here under the name. An
// image that was built or pulled anew is another one, and makes new containers.
func place(sv *cluster.ServiceSpec, written *types.ServiceConfig, img had) {
	if img.id != "" {
		sv.Task.Container.Labels = maps.Clone(sv.Task.Container.Labels)
		sv.Task.Container.Labels[composefile.LabelImage], sv.Task.ImageID = img.id, img.id
	}
	if sv.Task.Pull != types.PullPolicyNever {
		sv.Task.Pull = types.PullPolicyMissing // it was pulled here, with the login of who asks
	}
	d := written.Deploy
	if ordered := d != nil && d.UpdateConfig != nil && d.UpdateConfig.Order != ""; img.volumes && !ordered && sv.Update != nil {
		sv.Update.StartFirst = false // the new one takes over the volumes of the old
	}
}

// put asks the engine for the change.
func (s apps) put(ctx context.Context, ch *change) (*client.AppPlan, error) {
	c, err := s.client()
	if err != nil {
		return nil, err
	}
	if len(ch.orphans) > 0 && !boolEnv("COMPOSE_IGNORE_ORPHANS") {
		s.warnf("Found orphan services (%s) in app %s that the compose file does not have; --remove-orphans removes them", strings.Join(ch.orphans, ", "), ch.project.Name)
	}
	text, err := json.Marshal(ch.spec)
	if err != nil {
		return nil, err
	}
	plan, err := c.AppPut(ctx, ch.project.Name, text, ch.put)
	if errdefs.IsNotFound(err) && strings.Contains(err.Error(), "page not found") {
		return nil, fmt.Errorf("the engine at %s keeps no apps: up, down, scale, rollback and release need an Escale engine", s.engine.Host)
	}
	return plan, err
}

// show prints what a change would do.
func (s apps) show(ctx context.Context, ch *change) error {
	plan, err := s.put(ctx, ch)
	if err != nil {
		return err
	}
	s.planned(plan)
	return nil
}

// planned prints a plan.
func (s apps) planned(plan *client.AppPlan) {
	changed := false
	for _, st := range plan.Steps {
		if st.Action == "keep" {
			continue
		}
		changed = true
		s.printf("%-8s %-8s %s\n", st.Action, st.Kind, st.Name)
		for _, why := range st.Why {
			s.printf("%17s  %s\n", "", why)
		}
	}
	if !changed {
		s.printf("app %s is as it is asked: nothing would change\n", plan.App)
	}
}

// yield removes containers of the project that the engine does not keep: their names,
// ports and volumes are wanted by those that it makes.
func (s apps) yield(ctx context.Context, ch *change) error {
	list, err := s.containers(ctx, ch.project.Name, pick{stopped: true})
	if err != nil {
		return err
	}
	list = slices.DeleteFunc(list, func(c container.Summary) bool {
		_, meant := ch.spec.Services[serviceOf(&c)]
		orphan := slices.Contains(orphans(ch.project, []string{serviceOf(&c)}), serviceOf(&c))
		return c.Labels[cluster.LabelTask] != "" || !meant && !(orphan && len(ch.put.Remove) > 0)
	})
	if len(list) == 0 {
		return nil
	}
	b := s.board("Taking over")
	defer b.Close()
	b.Print(fmt.Sprintf("Project %s has containers that were made by hand or by docker compose: the engine makes its own instead", ch.project.Name))
	if err := s.apply(ctx, b, layers(list), true, s.stopping(ch.project, nil)); err != nil {
		return err
	}
	return s.apply(ctx, b, [][]container.Summary{list}, false, removing(false, true))
}

// apps asks the engine for what apps are to be.
type apps struct{ *session }
