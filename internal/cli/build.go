package cli

import (
	"context"
	"errors"
	"fmt"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/docker/go-units"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/builder/plan"
)

// building is a build as the command line has it.
type building struct {
	plan.Build
	args, labels, ulimits []string
	shm, memory, swap     string
	check                 bool
	provenance, sbom      string
	keep                  bool // --rm=false
	numbers               map[string]*int64
	cpuset, mems, cgroup  string
}

func buildCommand(a *app) *cobra.Command {
	var b building
	cmd := &cobra.Command{
		Use: "build [OPTIONS] PATH | URL | -",
		Example: `escale build -t app .
escale build --target test --output out .
escale build -t app https://git.example/app.git#main`,
		Args: exactArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			b.Context = args[0]
			return b.run(cmd.Context(), a)
		},
	}
	b.flags(cmd.Flags())
	return cmd
}

// flags defines the options.
func (b *building) flags(f *pflag.FlagSet) {
	// StringArray where a value may hold commas, as the stock client has it.
	f.StringVarP(&b.Dockerfile, "file", "f", "", "The Dockerfile: a path, a URL, or - (default PATH/Dockerfile)")
	f.StringArrayVarP(&b.Tags, "tag", "t", nil, "Name of the image: NAME[:TAG]")
	f.StringVar(&b.Target, "target", "", "Build this stage and what it needs")
	f.StringArrayVar(&b.args, "build-arg", nil, "Set a variable of the Dockerfile: NAME[=VALUE]")
	f.StringArrayVar(&b.labels, "label", nil, "Give the image a label: KEY=VALUE")
	f.StringSliceVar(&b.Platforms, "platform", defaultPlatforms(), "Build for these platforms: OS/ARCH[/VARIANT]")
	f.BoolVar(&b.Pull, "pull", false, "Ask registries for images even when they are here")
	f.BoolVar(&b.NoCache, "no-cache", false, "Use nothing from the cache")
	f.StringSliceVar(&b.NoCacheFor, "no-cache-filter", nil, "Use nothing from the cache for these stages")
	f.StringArrayVar(&b.Contexts, "build-context", nil, "Another context, by a name: NAME=PATH|URL")
	f.StringArrayVarP(&b.Outputs, "output", "o", nil, "Where the result goes: DIR, or type=TYPE[,dest=PATH]")
	f.BoolVar(&b.Load, "load", false, "Keep the image with the engine: --output type=docker")
	f.BoolVar(&b.Push, "push", false, "Send the image to its registry: --output type=registry")
	f.StringArrayVar(&b.Annotations, "annotation", nil, "Add an annotation to the image's manifest: KEY=VALUE")
	f.StringArrayVar(&b.Attests, "attest", nil, "Attest something of the result: type=sbom|provenance")
	f.StringVar(&b.provenance, "provenance", "", "Short for --attest type=provenance")
	f.StringVar(&b.sbom, "sbom", "", "Short for --attest type=sbom")
	f.StringArrayVar(&b.CacheFrom, "cache-from", nil, "Caches to use: NAME, or type=local,src=PATH")
	f.StringArrayVar(&b.CacheTo, "cache-to", nil, "Where the cache goes: type=registry|local|inline")
	f.StringArrayVar(&b.Secrets, "secret", nil, "Secret for RUN --mount=type=secret: id=ID[,src=FILE|env=NAME]")
	f.StringArrayVar(&b.SSH, "ssh", nil, "Agent or keys for RUN --mount=type=ssh: default|ID[=SOCKET|KEY[,KEY]]")
	f.StringVar(&b.Network, "network", "default", "Network of RUN: default, none or host")
	f.StringSliceVar(&b.Hosts, "add-host", nil, "Let RUN know a name: HOST:IP")
	f.StringSliceVar(&b.Allow, "allow", nil, "Grant a right: network.host")
	f.StringVar(&b.Progress, "progress", "auto", "How to show progress: auto, plain, tty, quiet or rawjson")
	f.BoolVarP(&b.Quiet, "quiet", "q", false, "Show nothing but the image's ID at the end")
	f.StringVar(&b.IDFile, "iidfile", "", "Write the image's ID to this file")
	f.StringVar(&b.MetadataFile, "metadata-file", "", "Write what is known of the result to this file")
	f.StringVar(&b.Call, "call", "build", "What to do with the Dockerfile: build, check, outline or targets")
	f.BoolVar(&b.check, "check", false, "Short for --call=check")
	f.StringVar(&b.cgroup, "cgroup-parent", "", "Cgroup that steps run below")
	f.StringVar(&b.shm, "shm-size", "", "Size of /dev/shm of steps")
	f.StringArrayVar(&b.ulimits, "ulimit", nil, "Limit of a resource of steps: NAME=SOFT[:HARD]")
	b.limits(f)
	// What the stock client takes without effect has none here either.
	f.BoolVar(&b.keep, "rm", true, "Nothing is left of steps, always")
	f.Bool("force-rm", false, "Nothing is left of steps, always")
	for _, name := range []string{"rm", "force-rm"} {
		f.Lookup(name).Hidden = true
	}
}

// limits defines those of the classic builder.
func (b *building) limits(f *pflag.FlagSet) {
	f.StringVarP(&b.memory, "memory", "m", "", "Memory of each step")
	f.StringVar(&b.swap, "memory-swap", "", "Memory and swap of each step; -1: no limit")
	f.StringVar(&b.cpuset, "cpuset-cpus", "", "Processors that steps may use")
	f.StringVar(&b.mems, "cpuset-mems", "", "Memory nodes that steps may use")
	b.numbers = map[string]*int64{
		"cpushares": f.Int64P("cpu-shares", "c", 0, "Share of the processors, to others'"),
		"cpuperiod": f.Int64("cpu-period", 0, "Period of the processors' scheduler, in microseconds"),
		"cpuquota":  f.Int64("cpu-quota", 0, "Microseconds of a period that a step may use"),
	}
}

func defaultPlatforms() []string {
	if p := os.Getenv("DOCKER_DEFAULT_PLATFORM"); p != "" {
		return []string{p}
	}
	return nil
}

// run checks the plan and has the engine's program build it.
func (b *building) run(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	if err := b.settle(a.config.ProxyEnv(c.Host())); err != nil {
		return err
	}
	// An engine that cannot be reached is told in the words of all commands.
	if _, err := c.Ping(ctx, moby.PingOptions{NegotiateAPIVersion: true}); err != nil {
		return err
	}
	o := a.endpoint.Options
	b.APIVersion, b.Headers, b.UserAgent = o.APIVersion, o.Headers, "Escale-Client/"+Version+" (linux)"
	b.ConfigDir, b.Debug = a.flags.ConfigDir, a.debug
	host, done, err := local(ctx, c)
	if err != nil {
		return err
	}
	defer done()
	b.Build.Host = host
	return a.hand(ctx, heavy{who: "build", args: []string{plan.Word}, payload: b.Build})
}

// settle brings options into the plan's form.
func (b *building) settle(proxies map[string]string) error {
	b.Args = nil
	for name, value := range proxies {
		b.Args = append(b.Args, name+"="+value)
	}
	slices.Sort(b.Args)
	for _, s := range b.args {
		if strings.Contains(s, "=") {
			b.Args = append(b.Args, s)
		} else if value, ok := os.LookupEnv(s); ok {
			b.Args = append(b.Args, s+"="+value)
		}
	}
	b.Labels = b.labels
	for _, l := range b.labels {
		if strings.HasPrefix(l, "=") || l == "" {
			return fmt.Errorf("invalid label %q: empty name", l)
		}
	}
	for _, one := range []struct{ kind, text string }{{"provenance", b.provenance}, {"sbom", b.sbom}} {
		if one.text == "" {
			continue
		}
		rest := "," + one.text
		if on, err := strconv.ParseBool(one.text); err == nil {
			rest = map[bool]string{true: "", false: ",disabled=true"}[on]
		}
		b.Attests = append(b.Attests, "type="+one.kind+rest)
	}
	switch {
	case !b.keep:
		return errors.New("--rm=false is not supported: nothing is left of steps that could be kept")
	case b.check && b.Call != "build" && b.Call != "check":
		return fmt.Errorf("--check and --call=%s cannot be used together", b.Call)
	case b.check:
		b.Call = "check"
	case b.Call == "build":
		b.Call = ""
	}
	return b.settleLimits()
}

// settleLimits reads sizes and numbers.
func (b *building) settleLimits() error {
	b.Limits = map[string]string{}
	set := func(key, value string) {
		if value != "" {
			b.Limits[key] = value
		}
	}
	for _, size := range []struct{ flag, key, text string }{{"shm-size", "shm-size", b.shm}, {"memory", "memory", b.memory}, {"memory-swap", "memswap", b.swap}} {
		if size.text == "" {
			continue
		}
		n, err := units.RAMInBytes(size.text)
		if size.flag == "memory-swap" && size.text == "-1" {
			n, err = -1, nil
		}
		if err != nil {
			return fmt.Errorf("invalid argument %q for --%s flag: %w", size.text, size.flag, err)
		}
		set(size.key, strconv.FormatInt(n, 10))
	}
	var limits []string
	for _, s := range b.ulimits {
		u, err := units.ParseUlimit(s)
		if err != nil {
			return fmt.Errorf("invalid argument %q for --ulimit flag: %w", s, err)
		}
		limits = append(limits, u.String())
	}
	set("ulimit", strings.Join(limits, ","))
	for key, n := range b.numbers {
		if *n != 0 {
			set(key, strconv.FormatInt(*n, 10))
		}
	}
	set("cpusetcpus", b.cpuset)
	set("cpusetmems", b.mems)
	set("cgroup-parent", b.cgroup)
	return nil
}
