package compose

import (
	"cmp"
	"slices"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/compose-spec/compose-go/v2/types"
	"github.com/moby/moby/api/types/container"
)

// watched is for how long a new container of a service without update_config is watched
// for failure: whoever waits at a terminal shall not wait for Docker's five seconds.
const watched = time.Second

// rollout is how tasks are exchanged. What is not written: one at a time, the new one
// first where two may run side by side, and back again when it fails
// (docs/decisions/0016).
func rollout(what string, s *types.ServiceConfig, u *types.UpdateConfig) (*cluster.Rollout, error) {
	side := sideBySide(s)
	if u == nil {
		return &cluster.Rollout{Parallelism: 1, StartFirst: side == "", OnFailure: cluster.FailureRollback, Monitor: watched}, nil
	}
	out := &cluster.Rollout{
		Parallelism: 1, Delay: time.Duration(u.Delay), Monitor: time.Duration(u.Monitor), MaxFailureRatio: float64(u.MaxFailureRatio),
		StartFirst: u.Order == "start-first" || u.Order == "" && side == "", OnFailure: cluster.FailureAction(cmp.Or(u.FailureAction, "rollback")),
	}
	if what == "rollback_config" && u.FailureAction == "" {
		out.OnFailure = cluster.FailurePause
	}
	if u.Parallelism != nil {
		out.Parallelism = *u.Parallelism
	}
	key := "deploy." + what
	switch {
	case !slices.Contains([]string{"", "start-first", "stop-first"}, u.Order):
		return nil, refused(key+".order", "%q: start-first or stop-first wanted", u.Order)
	case u.Order == "start-first" && s.ContainerName != "":
		return nil, refused(key+".order", "start-first is not possible: %s", side)
	case !slices.Contains([]cluster.FailureAction{cluster.FailurePause, cluster.FailureContinue, cluster.FailureRollback}, out.OnFailure):
		return nil, refused(key+".failure_action", "%q: pause, continue or rollback wanted", u.FailureAction)
	case what == "rollback_config" && out.OnFailure == cluster.FailureRollback:
		return nil, refused(key+".failure_action", "a rollback that fails cannot be rolled back: pause or continue wanted")
	}
	return out, nil
}

// sideBySide says why two containers of a service cannot run at once, while one takes
// the place of the other; "" when they can.
func sideBySide(s *types.ServiceConfig) string {
	if s.ContainerName != "" {
		return "container_name gives both one name"
	}
	switch mode, _, _ := strings.Cut(s.NetworkMode, ":"); mode {
	case "host", "service", "container":
		return "network_mode " + s.NetworkMode + " gives both the same ports"
	}
	for _, p := range s.Ports {
		if p.Mode == "host" {
			return "a port of mode host is one container's"
		}
		if ranged(p) {
			return "a port of a range is one container's"
		}
	}
	for _, v := range s.Volumes {
		if !v.ReadOnly && (v.Type == "volume" || v.Type == "bind") {
			return "volume " + v.Target + " would be written by both"
		}
	}
	for name, n := range s.Networks {
		if n != nil && (n.Ipv4Address != "" || n.Ipv6Address != "" || n.MacAddress != "") {
			return "network " + name + " gives both one address"
		}
	}
	if s.MacAddress != "" {
		return "mac_address gives both one address"
	}
	return ""
}

// restartPolicy is that of deploy, else what restart says. A service without either is
// replaced when it fails: an app is kept as it is written, and what ended well has done
// its work (docs/decisions/0016).
func restartPolicy(s *types.ServiceConfig) (cluster.RestartPolicy, error) {
	if s.Deploy != nil && s.Deploy.RestartPolicy != nil {
		return deployed(s.Deploy.RestartPolicy)
	}
	word, n, numbered := strings.Cut(s.Restart, ":")
	attempts := uint64(0) // without a number it is without bound
	if numbered {
		var err error
		if attempts, err = strconv.ParseUint(n, 10, 31); err != nil || word != "on-failure" {
			return cluster.RestartPolicy{}, refused("restart", "%q: no, always, unless-stopped, on-failure or on-failure:NUMBER wanted", s.Restart)
		}
	}
	switch word {
	case "no":
		return cluster.RestartPolicy{Condition: cluster.RestartNone}, nil
	case "", "on-failure":
		return cluster.RestartPolicy{Condition: cluster.RestartOnFailure, Attempts: attempts}, nil
	case "always", "unless-stopped":
		return cluster.RestartPolicy{Condition: cluster.RestartAny}, nil
	}
	return cluster.RestartPolicy{}, refused("restart", "%q: no, always, unless-stopped, on-failure or on-failure:NUMBER wanted", s.Restart)
}

// deployed is the policy of deploy.
func deployed(r *types.RestartPolicy) (cluster.RestartPolicy, error) {
	out := cluster.RestartPolicy{Condition: cluster.RestartCondition(cmp.Or(r.Condition, "any"))}
	switch out.Condition {
	case cluster.RestartAny, cluster.RestartOnFailure, cluster.RestartNone:
	default:
		return out, refused("deploy.restart_policy.condition", "%q: any, on-failure or none wanted", r.Condition)
	}
	if r.Delay != nil {
		out.Delay = time.Duration(*r.Delay)
	}
	if r.MaxAttempts != nil {
		out.Attempts = *r.MaxAttempts
	}
	if r.Window != nil {
		out.Window = time.Duration(*r.Window)
	}
	return out, nil
}

// ownPolicy is what a container of the service has when nobody keeps it any more: the
// policy that docker compose would give it.
func ownPolicy(s *types.ServiceConfig) container.RestartPolicy {
	word, n, _ := strings.Cut(s.Restart, ":")
	if s.Deploy != nil && s.Deploy.RestartPolicy != nil && word == "" {
		r := s.Deploy.RestartPolicy
		switch r.Condition {
		case "none":
			return container.RestartPolicy{Name: container.RestartPolicyDisabled}
		case "on-failure":
			attempts := 0
			if r.MaxAttempts != nil {
				attempts = int(*r.MaxAttempts)
			}
			return container.RestartPolicy{Name: container.RestartPolicyOnFailure, MaximumRetryCount: attempts}
		}
		return container.RestartPolicy{Name: container.RestartPolicyUnlessStopped}
	}
	attempts, _ := strconv.Atoi(n) // was checked
	return container.RestartPolicy{Name: container.RestartPolicyMode(word), MaximumRetryCount: attempts}
}
