// Package spec turns the words of `escale service create` and `escale service update`
// into the spec of a service: the one that Docker 28's own client sends for the same
// line. All that it asks of an engine is the IDs of what is named ([Names]).
package spec

import (
	"context"
	"time"

	"github.com/spf13/pflag"

	container "escale.dev/escale/internal/cli/spec"
)

// Names finds the IDs of what is asked for by name.
type Names interface {
	// Network gives the ID of a network of the cluster, by its name or ID.
	Network(ctx context.Context, name string) (string, error)
	// Secrets gives the IDs of those secrets that are there, by name.
	Secrets(ctx context.Context, names []string) (map[string]string, error)
	// Configs does so with configs.
	Configs(ctx context.Context, names []string) (map[string]string, error)
}

// rollout are the options of an update, or of a rollback.
type rollout struct {
	parallelism    uint64
	delay, monitor time.Duration
	failureAction  string
	ratio          ratio
	order          string
}

// Options are the flags of one command. Add them to a flag set with
// [Options.AddCreateFlags] or [Options.AddUpdateFlags], and parse it.
type Options struct {
	flags *pflag.FlagSet

	name, mode, workdir, user, hostname, stopSignal, isolation  string
	endpointMode, restartCondition, logDriver, healthCmd, image string
	entrypoint, args                                            command
	labels, containerLabels, env, envFile, groups, logOpts      container.List
	constraints, dns, dnsSearch, dnsOptions, hosts              container.List
	sysctls, capAdd, capDrop, generic                           container.List
	removed                                                     map[string]*container.List
	mounts                                                      container.Mounts
	ulimits                                                     container.Ulimits
	networks                                                    container.Networks
	ports, portsRemoved                                         ports
	preferences, preferencesRemoved                             preferences
	secrets, configs                                            references
	credential                                                  credential
	limitCPU, reserveCPU                                        container.NanoCPUs
	limitMemory, reserveMemory                                  container.Size
	limitPids, oomScoreAdj                                      int64
	replicas, maxConcurrent, restartAttempts                    number
	maxReplicas                                                 uint64
	stopGrace, restartDelay, restartWindow                      duration
	healthInterval, healthTimeout, healthStart, healthStarting  duration
	healthRetries                                               int
	update, rollback                                            rollout
	init, tty, readOnly, noHealthcheck, force                   bool
}

func (o *Options) changed(names ...string) bool {
	for _, n := range names {
		if o.flags.Changed(n) {
			return true
		}
	}
	return false
}

// gone are the values of --NAME-rm.
func (o *Options) gone(name string) map[string]bool {
	set := map[string]bool{}
	if l := o.removed[name]; l != nil {
		for _, v := range l.Values {
			set[v] = true
		}
	}
	return set
}
