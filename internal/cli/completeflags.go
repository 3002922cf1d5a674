package cli

import (
	"cmp"
	"context"
	"os"
	"slices"
	"strings"

	"escale.dev/escale/client"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/endpoint"
)

// completeFlags offers values for the flags of a command and of those below it.
func completeFlags(a *app, cmd *cobra.Command) {
	for _, c := range cmd.Commands() {
		completeFlags(a, c)
	}
	if filters := filtersOf(cmd); filters != nil {
		_ = cmd.RegisterFlagCompletionFunc("filter", completeFilter(filters...))
	}
	if !cmd.HasParent() {
		_ = cmd.RegisterFlagCompletionFunc("context", completeContexts(a))
		_ = cmd.RegisterFlagCompletionFunc("log-level", completeWords("debug", "info", "warn", "error", "fatal"))
	}
	for name, f := range flagCompleters(a) {
		if cmd.Flags().Lookup(name) != nil {
			_ = cmd.RegisterFlagCompletionFunc(name, f)
		}
	}
}

// filtersOf are the filters of a command, and the values of those that have
// few.
func filtersOf(cmd *cobra.Command) []string {
	if cmd.Flags().Lookup("filter") == nil {
		return nil
	}
	switch full := cmp.Or(longForm(cmd), strings.TrimPrefix(cmd.CommandPath(), cmd.Root().Name()+" ")); full {
	case "container ls":
		return []string{"ancestor", "before", "exited", "expose", "health=healthy,none,starting,unhealthy", "id", "is-task=true,false", "label",
			"name", "network", "publish", "since", "status=created,dead,exited,paused,removing,restarting,running", "volume"}
	case "image ls":
		return []string{"before", "dangling=true,false", "label", "reference", "since", "until"}
	case "system events":
		return []string{"container", "daemon", "event=attach,create,destroy,die,exec_start,health_status,kill,oom,pause,rename,restart,start,stop,unpause,update",
			"image", "label", "network", "scope=local", "type=container,daemon,image,network,volume", "volume"}
	case "network ls":
		return []string{"dangling=true,false", "driver", "id", "label", "name", "scope=local", "type=builtin,custom"}
	case "volume ls":
		return []string{"dangling=true,false", "driver", "label", "name"}
	}
	return []string{"label", "label!", "until"} // what prunes
}

func flagCompleters(a *app) map[string]completer {
	return map[string]completer{
		"attach":        completeWords("stdin", "stdout", "stderr"),
		"cap-add":       completeWords(capabilities()...),
		"cap-drop":      completeWords(capabilities()...),
		"cgroupns":      completeWords("host", "private"),
		"env":           completeEnv,
		"ipc":           completeBefore(a, "host", "none", "private", "shareable"),
		"link":          completeContainers(a, runningContainers, -1),
		"log-driver":    completeInfo(a, func(i moby.SystemInfoResult) []string { return i.Info.Plugins.Log }),
		"network":       completeNetworks(a),
		"pid":           completeBefore(a, "host"),
		"platform":      completeWords("linux/amd64", "linux/arm64", "linux/arm/v7", "linux/386", "linux/riscv64"),
		"pull":          completeWords("always", "missing", "never"),
		"restart":       completeWords("no", "always", "on-failure", "unless-stopped"),
		"runtime":       completeInfo(a, runtimes),
		"security-opt":  completeOpen("apparmor=", "label=", "no-new-privileges", "seccomp=", "systempaths=unconfined"),
		"signal":        completeWords(signals...),
		"stop-signal":   completeWords(signals...),
		"ulimit":        completeOpen("core=", "cpu=", "data=", "fsize=", "memlock=", "nofile=", "nproc=", "rss=", "stack="),
		"userns":        completeWords("host"),
		"uts":           completeWords("host"),
		"volumes-from":  completeContainers(a, allContainers, -1),
		"mount":         completeOpen("type=bind,src=", "type=volume,src=", "type=tmpfs,dst="),
		"detach-keys":   completeOpen("ctrl-p,ctrl-q", "ctrl-"),
		"health-cmd":    completeNothing,
		"name":          completeNothing,
		"publish":       completeNothing,
		"hostname":      completeNothing,
		"label":         completeNothing,
		"memory":        completeNothing,
		"cpus":          completeNothing,
		"user":          completeNothing,
		"workdir":       completeNothing,
		"expose":        completeNothing,
		"add-host":      completeNothing,
		"network-alias": completeNothing,
	}
}

func completeNothing(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	return nil, cobra.ShellCompDirectiveNoFileComp
}

// completeOpen offers words that go on behind what is offered.
func completeOpen(words ...string) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return words, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// completeFilter offers the filters of a list, and the values of those that
// have few: KEY, or KEY=VALUE,VALUE.
func completeFilter(filters ...string) completer {
	return func(_ *cobra.Command, _ []string, typed string) ([]string, cobra.ShellCompDirective) {
		key, _, valued := strings.Cut(typed, "=")
		var out []string
		for _, f := range filters {
			name, values, _ := strings.Cut(f, "=")
			switch {
			case !valued:
				out = append(out, name+"=")
			case name == key && values != "":
				for v := range strings.SplitSeq(values, ",") {
					out = append(out, name+"="+v)
				}
			}
		}
		if valued {
			return out, cobra.ShellCompDirectiveNoFileComp
		}
		return out, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
	}
}

// completeEnv offers the variables that NAME alone would pass on.
func completeEnv(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
	var names []string
	for _, kv := range os.Environ() {
		name, _, _ := strings.Cut(kv, "=")
		names = append(names, name)
	}
	return names, cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
}

// completeBefore offers words and, in front of the names of containers,
// "container:".
func completeBefore(a *app, words ...string) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if !strings.HasPrefix(typed, "container:") {
			return append(slices.Clone(words), "container:"), cobra.ShellCompDirectiveNoFileComp | cobra.ShellCompDirectiveNoSpace
		}
		names, d := completeContainers(a, runningContainers, -1)(cmd, args, typed)
		for i, n := range names {
			names[i] = "container:" + n
		}
		return names, d
	}
}

// completeNetworks offers the engine's networks beside what every engine has.
func completeNetworks(a *app) completer {
	words, listed := []string{"bridge", "host", "none"}, completeNetworkNames(a)
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		all := slices.Clone(words)
		names, _ := listed(cmd, args, typed) // without an engine there are the words
		for _, n := range names {
			if !slices.Contains(all, n) {
				all = append(all, n)
			}
		}
		return completeBefore(a, all...)(cmd, args, typed)
	}
}

// completeInfo offers a list that the engine tells of itself.
func completeInfo(a *app, list func(moby.SystemInfoResult) []string) completer {
	return completeListed(a, func(ctx context.Context, c *client.Client) ([]string, error) {
		res, err := c.Info(ctx, moby.InfoOptions{})
		if err != nil {
			return nil, err
		}
		return list(res), nil
	})
}

func runtimes(i moby.SystemInfoResult) []string {
	var names []string
	for n := range i.Info.Runtimes {
		names = append(names, n)
	}
	slices.Sort(names)
	return names
}

// completeCopy offers containers, with the colon that a path follows; where
// none begins like that, the shell offers files.
func completeCopy(a *app) completer {
	return func(cmd *cobra.Command, args []string, typed string) ([]string, cobra.ShellCompDirective) {
		if len(args) > 1 || strings.ContainsAny(typed, ":/.") {
			return nil, cobra.ShellCompDirectiveDefault
		}
		names, _ := completeContainers(a, allContainers, 2)(cmd, args, typed)
		for i, n := range names {
			names[i] = n + ":"
		}
		return names, cobra.ShellCompDirectiveNoSpace
	}
}

// completeContexts offers the names of stored contexts.
func completeContexts(a *app) completer {
	return func(*cobra.Command, []string, string) ([]string, cobra.ShellCompDirective) {
		return append([]string{"default"}, endpoint.Contexts(a.flags.ConfigDir)...), cobra.ShellCompDirectiveNoFileComp
	}
}

func capabilities() []string {
	return strings.Fields(`ALL AUDIT_CONTROL AUDIT_READ AUDIT_WRITE BLOCK_SUSPEND BPF CHECKPOINT_RESTORE CHOWN DAC_OVERRIDE
DAC_READ_SEARCH FOWNER FSETID IPC_LOCK IPC_OWNER KILL LEASE LINUX_IMMUTABLE MAC_ADMIN MAC_OVERRIDE MKNOD NET_ADMIN
NET_BIND_SERVICE NET_BROADCAST NET_RAW PERFMON SETFCAP SETGID SETPCAP SETUID SYSLOG SYS_ADMIN SYS_BOOT SYS_CHROOT
SYS_MODULE SYS_NICE SYS_PACCT SYS_PTRACE SYS_RAWIO SYS_RESOURCE SYS_TIME SYS_TTY_CONFIG WAKE_ALARM`)
}
