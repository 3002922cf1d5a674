package compose

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/compose-spec/compose-go/v2/dotenv"
	"github.com/compose-spec/compose-go/v2/format"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/containerd/platforms"
	"github.com/mattn/go-shellwords"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/tty"
	"escale.dev/escale/internal/cluster"
	composefile "escale.dev/escale/internal/compose"
)

// oneOff are the flags of run.
type oneOff struct {
	wanted
	detach, remove, noTTY, in, noDeps, aliases, ports, quiet, orphans bool
	env, envFiles, labels, volumes, publish, capAdd, capDrop          []string
	name, user, dir, entrypoint                                       string
	entrypointGiven                                                   bool
}

func runCommand(s *session) *cobra.Command {
	var o oneOff
	var cmd *cobra.Command
	cmd = plainly("run [OPTIONS] SERVICE [COMMAND] [ARGS...]", "Run a command in a new container of a service, for once", func(ctx context.Context, args []string) error {
		if o.ports && len(o.publish) > 0 {
			return errors.New("--service-ports and --publish are incompatible")
		}
		o.entrypointGiven = cmd.Flags().Changed("entrypoint")
		return once{s}.oneOff(ctx, &o, args[0], args[1:])
	})
	cmd.Args = cobra.MinimumNArgs(1)
	f := cmd.Flags()
	f.SetInterspersed(false)
	f.BoolVarP(&o.detach, "detach", "d", false, "Leave the container in the background, and print its ID")
	f.StringArrayVarP(&o.env, "env", "e", nil, "Set an environment variable")
	f.StringArrayVar(&o.envFiles, "env-from-file", nil, "Set the variables of a file")
	f.StringArrayVarP(&o.labels, "label", "l", nil, "Set a label")
	f.BoolVar(&o.remove, "rm", false, "Remove the container when it ends")
	f.StringVar(&o.name, "name", "", "Name of the container")
	f.StringVarP(&o.user, "user", "u", "", "User of the command")
	f.StringVarP(&o.dir, "workdir", "w", "", "Directory of the command")
	f.StringVar(&o.entrypoint, "entrypoint", "", "Instead of the image's entrypoint")
	f.StringSliceVar(&o.capAdd, "cap-add", nil, "Add Linux capabilities")
	f.StringSliceVar(&o.capDrop, "cap-drop", nil, "Drop Linux capabilities")
	f.BoolVar(&o.noDeps, "no-deps", false, "Do not start what the service depends on")
	f.StringArrayVarP(&o.volumes, "volume", "v", nil, "Mount a path or a volume")
	f.StringArrayVarP(&o.publish, "publish", "p", nil, "Publish a port")
	f.BoolVar(&o.aliases, "use-aliases", false, "Be found by the service's names on its networks")
	f.BoolVarP(&o.ports, "service-ports", "P", false, "Publish the service's ports")
	f.StringVar(&o.pull, "pull", "policy", "When to pull the image: always, missing, never, or policy: as the service says")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Show no progress")
	f.BoolVar(&o.quietBuild, "quiet-build", false, "Show nothing of the build")
	f.BoolVar(&o.quietPull, "quiet-pull", false, "Show no progress of pulls")
	f.BoolVar(&o.build, "build", false, "Build the image first")
	f.BoolVar(&o.orphans, "remove-orphans", boolEnv("COMPOSE_REMOVE_ORPHANS"), "Remove services that the file does not have")
	s.ttyFlags(f, &o.noTTY, &o.in, "no-TTY")
	return cmd
}

// oneOff is the command: it makes the container, puts files into it, and starts it.
func (s once) oneOff(ctx context.Context, o *oneOff, name string, command []string) error {
	signaled, stop := whole(ctx)
	defer stop()
	id, err := s.makeOneOff(signaled, o, name, command)
	if err != nil || s.flags.dry {
		return cut(signaled, err)
	}
	stop()
	if o.detach {
		c, err := s.client()
		if err != nil {
			return err
		}
		if _, err := c.ContainerStart(ctx, id, moby.ContainerStartOptions{}); err != nil {
			return err
		}
		s.printf("%s\n", id)
		return nil
	}
	line := []string{"start", "-a"}
	if o.in {
		line = append(line, "-i")
	}
	return s.docker(ctx, append(line, id)...)
}

func (s once) makeOneOff(ctx context.Context, o *oneOff, name string, command []string) (string, error) {
	lo := s.options()
	lo.Enabled = []string{name}
	p, err := load(ctx, lo)
	if err != nil {
		return "", err
	}
	sv, err := p.GetService(name)
	if err != nil {
		return "", err
	}
	if err := o.change(p, &sv, command); err != nil {
		return "", err
	}
	p.Services[name] = sv
	if o.quiet {
		s.flags.progress = "quiet"
	}
	if err := s.dependencies(ctx, o, name, &sv); err != nil {
		return "", err
	}
	images, err := supply(s).images(ctx, p, []string{name}, o.wanted)
	if err != nil {
		return "", err
	}
	app, err := composefile.App(p, false)
	if err != nil {
		return "", &exit{exitParse, err}
	}
	if s.flags.dry {
		s.printf("DRY-RUN MODE - run %s %s\n", name, strings.Join(command, " "))
		return "", nil
	}
	spec := app.Services[name]
	place(&spec, &sv, images[name])
	return s.createOneOff(ctx, o, p, app, &spec, name)
}

// change puts what the flags say into the service.
func (o *oneOff) change(p *types.Project, sv *types.ServiceConfig, command []string) error {
	if len(command) > 0 {
		sv.Command = command
	}
	if o.entrypointGiven {
		words, err := shellwords.Parse(o.entrypoint)
		if err != nil {
			return fmt.Errorf("--entrypoint %q: %w", o.entrypoint, err)
		}
		sv.Entrypoint = words
		if len(words) == 0 {
			sv.Entrypoint = []string{""}
		}
		if len(command) == 0 {
			sv.Command = []string{}
		}
	}
	sv.ContainerName, sv.Restart, sv.Scale, sv.Profiles = "", "", nil, nil
	if sv.Deploy != nil {
		d := *sv.Deploy
		d.Replicas, d.RestartPolicy, d.Mode = nil, nil, ""
		sv.Deploy = &d
	}
	if o.user != "" {
		sv.User = o.user
	}
	if o.dir != "" {
		sv.WorkingDir = o.dir
	}
	sv.CapAdd, sv.CapDrop = append(slices.Clone(sv.CapAdd), o.capAdd...), append(slices.Clone(sv.CapDrop), o.capDrop...)
	sv.Tty, sv.StdinOpen = !o.noTTY && !o.detach, o.in && !o.detach
	env := maps.Clone(sv.Environment)
	if env == nil {
		env = types.MappingWithEquals{}
	}
	lookup := func(name string) (string, bool) { v, ok := p.Environment[name]; return v, ok }
	if len(o.envFiles) > 0 {
		vars, err := dotenv.GetEnvFromFile(p.Environment, o.envFiles)
		if err != nil {
			return err
		}
		for k, v := range vars {
			env[k] = &v
		}
	}
	maps.Copy(env, types.NewMappingWithEquals(o.env).Resolve(lookup).RemoveEmpty())
	sv.Environment = env
	sv.Labels = maps.Clone(sv.Labels)
	if sv.Labels == nil {
		sv.Labels = types.Labels{}
	}
	for _, l := range o.labels {
		k, v, _ := strings.Cut(l, "=")
		sv.Labels[k] = v
	}
	for _, v := range o.volumes {
		volume, err := format.ParseVolume(v)
		if err != nil {
			return fmt.Errorf("--volume %q: %w", v, err)
		}
		if volume.Type == "bind" {
			volume.Source = absolute(volume.Source)
		}
		sv.Volumes = append(slices.DeleteFunc(slices.Clone(sv.Volumes), func(x types.ServiceVolumeConfig) bool { return x.Target == volume.Target }), volume)
	}
	return o.changePorts(sv)
}

func (o *oneOff) changePorts(sv *types.ServiceConfig) error {
	if !o.ports {
		for _, p := range sv.Ports {
			sv.Expose = append(slices.Clone(sv.Expose), fmt.Sprintf("%d/%s", p.Target, p.Protocol))
		}
		sv.Ports = nil
	}
	for _, text := range o.publish {
		list, err := types.ParsePortConfig(text)
		if err != nil {
			return fmt.Errorf("--publish %q: %w", text, err)
		}
		sv.Ports = append(slices.Clone(sv.Ports), list...)
	}
	return nil
}

// dependencies brings up what the service depends on.
func (s once) dependencies(ctx context.Context, o *oneOff, name string, sv *types.ServiceConfig) error {
	deps := slices.Sorted(maps.Keys(sv.DependsOn))
	if o.noDeps || len(deps) == 0 {
		return nil
	}
	up := upOptions{detach: true, removeOrphans: o.orphans, wanted: wanted{pull: "policy", quietPull: o.quietPull, quietBuild: o.quietBuild}}
	ch, err := apps(s).prepare(ctx, up, deps)
	if err != nil {
		return fmt.Errorf("what service %q depends on: %w", name, err)
	}
	if s.flags.dry {
		return apps(s).show(ctx, ch)
	}
	if err := apps(s).yield(ctx, ch); err != nil {
		return err
	}
	if err := apps(s).place(ctx, ch, up); err != nil {
		return fmt.Errorf("what service %q depends on: %w", name, err)
	}
	return nil
}

// createOneOff makes the container by the Docker API, as docker compose does.
func (s once) createOneOff(ctx context.Context, o *oneOff, p *types.Project, app *cluster.AppSpec, spec *cluster.ServiceSpec, name string) (string, error) {
	c, err := s.client()
	if err != nil {
		return "", err
	}
	cfg, host := spec.Task.Container, spec.Task.Host
	var slug [6]byte
	_, _ = rand.Read(slug[:]) // never fails: see crypto/rand
	cfg.Labels[composefile.LabelOneOff], cfg.Labels[composefile.LabelNumber] = "True", "1"
	cfg.Labels["com.docker.compose.slug"] = hex.EncodeToString(slug[:]) + strings.Repeat("0", 52)
	cfg.AttachStdin, cfg.AttachStdout, cfg.AttachStderr = cfg.OpenStdin, !o.detach, !o.detach
	cfg.StdinOnce = cfg.OpenStdin
	host.AutoRemove, host.RestartPolicy = o.remove, container.RestartPolicy{}
	if rows, cols := tty.Size(s.out); cfg.Tty && rows > 0 {
		host.ConsoleSize = [2]uint{rows, cols}
	}
	if err := bind(host, spec.Ports); err != nil {
		return "", err
	}
	if err := s.ensure(ctx, c, app); err != nil {
		return "", err
	}
	nets := map[string]*network.EndpointSettings{}
	for i, a := range spec.Networks {
		set := a.Settings.Copy()
		if !o.aliases {
			set.Aliases = nil
		}
		if i == 0 {
			host.NetworkMode = container.NetworkMode(a.Network)
		}
		nets[a.Network] = set
	}
	opts := moby.ContainerCreateOptions{Config: cfg, HostConfig: host, NetworkingConfig: &network.NetworkingConfig{EndpointsConfig: nets}, Name: o.name}
	if opts.Name == "" {
		opts.Name = p.Name + "-" + name + "-run-" + hex.EncodeToString(slug[:])
	}
	if spec.Task.Platform != "" {
		want, err := platforms.Parse(spec.Task.Platform)
		if err != nil {
			return "", err
		}
		opts.Platform = &want
	}
	made, err := c.ContainerCreate(ctx, opts)
	if err != nil {
		return "", err
	}
	if err := inject(ctx, c, made.ID, app, spec); err != nil {
		_, _ = c.ContainerRemove(context.WithoutCancel(ctx), made.ID, moby.ContainerRemoveOptions{Force: true, RemoveVolumes: true})
		return "", err
	}
	return made.ID, nil
}

// bind publishes ports.
func bind(host *container.HostConfig, ports []cluster.Port) error {
	for _, p := range ports {
		port, err := network.ParsePort(fmt.Sprintf("%d/%s", p.Target, p.Proto))
		if err != nil {
			return err
		}
		b := network.PortBinding{HostPort: p.Range()}
		if p.Address != "" {
			if b.HostIP, err = netip.ParseAddr(p.Address); err != nil {
				return err
			}
		}
		if host.PortBindings == nil {
			host.PortBindings = network.PortMap{}
		}
		host.PortBindings[port] = append(host.PortBindings[port], b)
	}
	return nil
}

// ensure makes the networks and volumes that the project has, where they are not there.
func (s once) ensure(ctx context.Context, c *client.Client, app *cluster.AppSpec) error {
	for _, n := range app.Networks {
		_, err := c.NetworkInspect(ctx, n.Name, moby.NetworkInspectOptions{})
		if err == nil || n.External || n.Create == nil {
			continue
		}
		r := n.Create
		_, err = c.NetworkCreate(ctx, n.Name, moby.NetworkCreateOptions{
			Driver: r.Driver, Internal: r.Internal, Attachable: r.Attachable, EnableIPv4: r.EnableIPv4, EnableIPv6: r.EnableIPv6, IPAM: r.IPAM, Options: r.Options, Labels: r.Labels,
		})
		if err != nil {
			return fmt.Errorf("network %s: %w", n.Name, err)
		}
	}
	for _, v := range app.Volumes {
		if v.External {
			continue
		}
		if _, err := c.VolumeCreate(ctx, moby.VolumeCreateOptions{Name: v.Name, Driver: v.Driver, DriverOpts: v.Options, Labels: v.Labels}); err != nil {
			return fmt.Errorf("volume %s: %w", v.Name, err)
		}
	}
	return nil
}

// inject puts secrets and configs into a container that has not started.
func inject(ctx context.Context, c *client.Client, id string, app *cluster.AppSpec, spec *cluster.ServiceSpec) error {
	if len(spec.Task.Secrets)+len(spec.Task.Configs) == 0 {
		return nil
	}
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	add := func(ref cluster.FileRef, data []byte) error {
		uid, _ := strconv.Atoi(ref.UID) // they were checked: numbers, or nothing
		gid, _ := strconv.Atoi(ref.GID)
		err := w.WriteHeader(&tar.Header{Name: strings.TrimPrefix(ref.Target, "/"), Size: int64(len(data)), Mode: int64(ref.Mode), Uid: uid, Gid: gid})
		if err == nil {
			_, err = w.Write(data)
		}
		return err
	}
	for _, ref := range spec.Task.Secrets {
		if err := add(ref, app.Secrets[ref.Name].Data); err != nil {
			return err
		}
	}
	for _, ref := range spec.Task.Configs {
		if err := add(ref, app.Configs[ref.Name].Data); err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	_, err := c.CopyToContainer(ctx, id, moby.CopyToContainerOptions{DestinationPath: "/", Content: &b, CopyUIDGID: true})
	return err
}

// absolute is a path seen from here.
func absolute(path string) string {
	if home, err := os.UserHomeDir(); err == nil && (path == "~" || strings.HasPrefix(path, "~/")) {
		return filepath.Join(home, strings.TrimPrefix(path, "~"))
	}
	if abs, err := filepath.Abs(path); err == nil {
		return abs
	}
	return path
}

// once runs commands in containers of their own.
type once struct{ *session }
