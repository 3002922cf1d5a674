package spec

import (
	"fmt"

	"github.com/spf13/pflag"

	container "escale.dev/escale/internal/cli/spec"
)

// AddCreateFlags defines the flags of create.
func (o *Options) AddCreateFlags(f *pflag.FlagSet) {
	o.common(f, true)
	f.StringVar(&o.mode, "mode", "replicated", `How many tasks there are: "replicated", "global", "replicated-job", "global-job"`)
	f.StringVar(&o.name, "name", "", "Name of the service")
	f.VarP(&o.labels, "label", "l", "Label of the service: KEY[=VALUE]")
	f.Var(&o.containerLabels, "container-label", "Label of its containers: KEY[=VALUE]")
	f.VarP(&o.env, "env", "e", "Set an environment variable: NAME=VALUE, or NAME to pass it on")
	f.Var(&o.envFile, "env-file", "Read environment variables from a file")
	f.Var(&o.mounts, "mount", "Mount: type=bind|volume|tmpfs|image,src=…,dst=…[,readonly]…")
	f.Var(&o.constraints, "constraint", "Run only on nodes that are such: node.role==worker")
	f.Var(&o.preferences, "placement-pref", "Spread tasks evenly: spread=node.labels.KEY")
	f.Var(&o.networks, "network", "Connect to a network: NAME, or name=NAME,alias=…")
	f.Var(&o.secrets, "secret", "Give tasks a secret: NAME, or source=NAME,target=FILE,uid=…,gid=…,mode=…")
	f.Var(&o.configs, "config", "Give tasks a config: NAME, or source=NAME,target=FILE,uid=…,gid=…,mode=…")
	f.VarP(&o.ports, "publish", "p", "Publish a port on the nodes: [PUBLISHED:]TARGET[/PROTO], or target=…,published=…,protocol=…,mode=ingress|host")
	f.Var(&o.groups, "group", "Join an additional group in the container")
	f.Var(&o.dns, "dns", "Use this DNS server")
	f.Var(&o.dnsOptions, "dns-option", "Set a DNS option")
	f.Var(&o.dnsSearch, "dns-search", "Search this DNS domain")
	f.Var(&o.hosts, "host", "Add a line to /etc/hosts: NAME:IP")
	f.Var(&o.sysctls, "sysctl", "Set a kernel parameter of the container's namespaces")
	f.Var(&o.ulimits, "ulimit", "Set a resource limit: NAME=SOFT[:HARD]")
	f.Var(&o.generic, "generic-resource", "Reserve what nodes have of a kind of resource: KIND=NUMBER")
	f.SetInterspersed(false)
}

// AddUpdateFlags defines the flags of update.
func (o *Options) AddUpdateFlags(f *pflag.FlagSet) {
	o.common(f, false)
	f.StringVar(&o.image, "image", "", "Image of the service")
	f.Var(&o.args, "args", "Arguments of the image's command")
	f.Bool("rollback", false, "Go back to the spec before")
	f.BoolVar(&o.force, "force", false, "Exchange all tasks although nothing has changed")
	f.Var(&o.labels, "label-add", "Add or change a label of the service")
	f.Var(&o.containerLabels, "container-label-add", "Add or change a label of its containers")
	f.Var(&o.env, "env-add", "Add or change an environment variable")
	f.Var(&o.mounts, "mount-add", "Add or change a mount")
	f.Var(&o.constraints, "constraint-add", "Add a constraint on nodes")
	f.Var(&o.preferences, "placement-pref-add", "Add a preference of nodes")
	f.Var(&o.preferencesRemoved, "placement-pref-rm", "Remove a preference of nodes")
	f.Var(&o.networks, "network-add", "Connect to a network")
	f.Var(&o.secrets, "secret-add", "Add or change a secret")
	f.Var(&o.configs, "config-add", "Add or change a config")
	f.Var(&o.ports, "publish-add", "Publish a port on the nodes")
	f.Var(&o.portsRemoved, "publish-rm", "Publish a port no more, by the tasks' port")
	f.Var(&o.groups, "group-add", "Join an additional group in the container")
	f.Var(&o.dns, "dns-add", "Add a DNS server")
	f.Var(&o.dnsOptions, "dns-option-add", "Add a DNS option")
	f.Var(&o.dnsSearch, "dns-search-add", "Add a DNS search domain")
	f.Var(&o.hosts, "host-add", "Add a line to /etc/hosts: NAME:IP")
	f.Var(&o.sysctls, "sysctl-add", "Add or change a kernel parameter")
	f.Var(&o.ulimits, "ulimit-add", "Add or change a resource limit")
	f.Var(&o.generic, "generic-resource-add", "Reserve a kind of resource")
	o.removed = map[string]*container.List{}
	for _, r := range []struct{ name, help string }{
		{"env", "Remove an environment variable"}, {"group", "Leave an additional group"}, {"label", "Remove a label of the service"},
		{"container-label", "Remove a label of its containers"}, {"mount", "Remove a mount, by its place in the container"},
		{"constraint", "Remove a constraint"}, {"dns", "Remove a DNS server"}, {"dns-option", "Remove a DNS option"},
		{"dns-search", "Remove a DNS search domain"}, {"host", "Remove a line from /etc/hosts: NAME[:IP]"}, {"secret", "Remove a secret"},
		{"config", "Remove a config"}, {"network", "Leave a network"}, {"sysctl", "Remove a kernel parameter"},
		{"ulimit", "Remove a resource limit"}, {"generic-resource", "Reserve a kind of resource no more"},
	} {
		l := &container.List{}
		o.removed[r.name] = l
		f.Var(l, r.name+"-rm", r.help)
	}
}

// common defines what both commands have. Only create tells of defaults.
func (o *Options) common(f *pflag.FlagSet, create bool) {
	o.flags = f
	o.secrets.kind, o.configs.kind = "secret", "config"
	o.labels.Check, o.containerLabels.Check = container.CheckLabel, container.CheckLabel
	o.env.Check, o.logOpts.Check = container.CheckEnv, container.CheckEnv
	o.dns.Check, o.dnsSearch.Check, o.hosts.Check = container.CheckIP, container.CheckDNSSearch, container.CheckHost
	o.generic.Check = checkGeneric
	o.healthInterval.positive, o.healthTimeout.positive, o.healthStart.positive, o.healthStarting.positive = true, true, true, true
	def := defaults(create).help
	f.StringVarP(&o.workdir, "workdir", "w", "", "Working directory inside the container")
	f.StringVarP(&o.user, "user", "u", "", "User name or ID: USER[:GROUP]")
	f.Var(&o.credential, "credential-spec", "Credentials of a managed service account (Windows only)")
	f.StringVar(&o.hostname, "hostname", "", "Host name of the containers")
	f.Var(&o.entrypoint, "entrypoint", "Run this instead of the image's ENTRYPOINT")
	f.Var(&o.capAdd, "cap-add", "Add a Linux capability")
	f.Var(&o.capDrop, "cap-drop", "Drop a Linux capability")
	f.BoolVar(&o.init, "init", false, "Run a small init as PID 1 that forwards signals and reaps processes")
	f.StringVar(&o.stopSignal, "stop-signal", "", "Signal that asks a container to stop")
	f.Var(&o.stopGrace, "stop-grace-period", def("Time between that signal and killing (ns|us|ms|s|m|h)", "10s"))
	f.StringVar(&o.isolation, "isolation", "", "Isolation technology of the containers")
	f.BoolVarP(&o.tty, "tty", "t", false, "Give the containers a terminal")
	f.BoolVar(&o.readOnly, "read-only", false, "Mount the containers' root file system read-only")
	f.Int64Var(&o.oomScoreAdj, "oom-score-adj", 0, "Preference of the OOM killer (-1000 to 1000)")
	f.StringVar(&o.logDriver, "log-driver", "", "Logging driver of the containers")
	f.Var(&o.logOpts, "log-opt", "Set an option of the logging driver: KEY=VALUE")
	f.Var(&o.limitCPU, "limit-cpu", "Number of CPUs that a task may use at most")
	f.Var(&o.limitMemory, "limit-memory", "Memory that a task may use at most")
	f.Int64Var(&o.limitPids, "limit-pids", 0, "Processes that a task may have at most (default 0 = unlimited)")
	f.Var(&o.reserveCPU, "reserve-cpu", "Number of CPUs that a node must have left for a task")
	f.Var(&o.reserveMemory, "reserve-memory", "Memory that a node must have left for a task")
	f.Var(&o.replicas, "replicas", "Number of tasks")
	f.Var(&o.maxConcurrent, "max-concurrent", "Tasks of a job that run at a time (default equal to --replicas)")
	f.Uint64Var(&o.maxReplicas, "replicas-max-per-node", 0, "Tasks that a node may have at most (default 0 = unlimited)")
	mode := ""
	if create {
		mode = "vip"
	}
	f.StringVar(&o.endpointMode, "endpoint-mode", mode, "How the service's name is answered: with one address (vip) or those of the tasks (dnsrr)")
	f.Bool("with-registry-auth", false, "Send the login to the registry along, for the nodes")
	f.Bool("no-resolve-image", false, "Do not ask the registry for the image's digest and platforms")
	f.StringVar(&o.restartCondition, "restart-condition", "", def(`When a task that ended gets a successor: "none", "on-failure", "any"`, `"any"`))
	f.Var(&o.restartDelay, "restart-delay", def("Time before that (ns|us|ms|s|m|h)", "5s"))
	f.Var(&o.restartAttempts, "restart-max-attempts", "How often, before it is given up")
	f.Var(&o.restartWindow, "restart-window", "Time in which those are counted (ns|us|ms|s|m|h)")
	o.healthFlags(f)
	o.update.add(f, "update", `"pause", "continue", "rollback"`, defaults(create))
	o.rollback.add(f, "rollback", `"pause", "continue"`, defaults(create))
}

func (o *Options) healthFlags(f *pflag.FlagSet) {
	f.StringVar(&o.healthCmd, "health-cmd", "", "Command that checks a container's health")
	f.Var(&o.healthInterval, "health-interval", "Time between two checks (ms|s|m|h)")
	f.Var(&o.healthTimeout, "health-timeout", "Longest time one check may take (ms|s|m|h)")
	f.IntVar(&o.healthRetries, "health-retries", 0, "Failures in a row that make a container unhealthy")
	f.Var(&o.healthStart, "health-start-period", "Time to start up, in which failures do not count (ms|s|m|h)")
	f.Var(&o.healthStarting, "health-start-interval", "Time between two checks while starting up (ms|s|m|h)")
	f.BoolVar(&o.noHealthcheck, "no-healthcheck", false, "Ignore the image's HEALTHCHECK")
}

// defaults tells whether the flags of a command have any: those of create.
type defaults bool

// help is a flag's help with its default.
func (d defaults) help(help, value string) string {
	if d {
		return fmt.Sprintf("%s (default %s)", help, value)
	}
	return help
}

// add defines the flags of an update, or of a rollback.
func (r *rollout) add(f *pflag.FlagSet, word, actions string, d defaults) {
	parallel := uint64(0)
	if d {
		parallel = 1
	}
	f.Uint64Var(&r.parallelism, word+"-parallelism", parallel, "Tasks that are exchanged at a time by a "+word+" (0: all)")
	f.DurationVar(&r.delay, word+"-delay", 0, d.help("Time between those (ns|us|ms|s|m|h)", "0s"))
	f.DurationVar(&r.monitor, word+"-monitor", 0, d.help("Time that a new task is watched for failure (ns|us|ms|s|m|h)", "5s"))
	f.StringVar(&r.failureAction, word+"-failure-action", "", d.help("What is done when tasks fail: "+actions, `"pause"`))
	f.Var(&r.ratio, word+"-max-failure-ratio", d.help("Share of tasks that may fail", "0"))
	f.StringVar(&r.order, word+"-order", "", d.help(`Which comes first: "start-first", "stop-first"`, `"stop-first"`))
}
