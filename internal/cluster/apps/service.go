package apps

import (
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/network"
)

var containerName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9_.-]+$`)

func checkService(app *cluster.AppSpec, s *cluster.ServiceSpec) error {
	t := &s.Task
	if t.Container == nil || t.Host == nil || t.Container.Image == "" {
		return bad("a container with an image and a host's part is wanted")
	}
	if err := checkMode(s.Mode); err != nil {
		return err
	}
	if m := s.Mode.Replicated; m != nil && t.Name != "" && m.Replicas > 1 {
		return bad("%d containers cannot all be named %q", m.Replicas, t.Name)
	}
	if _, err := cluster.ParseConstraints(t.Placement.Constraints); err != nil {
		return bad("%s", errtext.Of(err))
	}
	if err := checkTask(t); err != nil {
		return err
	}
	for what, refs := range map[string][]cluster.FileRef{"secret": t.Secrets, "config": t.Configs} {
		for _, r := range refs {
			_, secret := app.Secrets[r.Name]
			_, config := app.Configs[r.Name]
			if r.ID != "" || what == "secret" && !secret || what == "config" && !config {
				return bad("%s %q is not the app's", what, r.Name)
			}
			if err := checkRef(what, r); err != nil {
				return err
			}
		}
	}
	for _, p := range s.Ports {
		if err := checkPort(p); err != nil {
			return err
		}
	}
	seen := map[string]bool{}
	for _, a := range s.Networks {
		if a.Network == "" || seen[a.Network] {
			return bad("network %q: a name is wanted, once", a.Network)
		}
		seen[a.Network] = true
	}
	if e := s.Endpoint; e != "" && e != cluster.EndpointVIP && e != cluster.EndpointDNSRR {
		return bad("endpoint %q: vip or dnsrr wanted", e)
	}
	for what, r := range map[string]*cluster.Rollout{"update": s.Update, "rollback": s.Rollback} {
		if err := checkRollout(what, r); err != nil {
			return err
		}
	}
	return nil
}

// checkTask looks at what a task is made from. What its container is to be is judged by
// who makes it.
func checkTask(t *cluster.TaskSpec) error {
	if _, err := reference.ParseAnyReference(t.Container.Image); err != nil {
		return bad("image %q: %s", t.Container.Image, err)
	}
	if t.Name != "" && !containerName.MatchString(t.Name) {
		return bad("Invalid container name (%s), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed", t.Name)
	}
	if t.Platform != "" {
		if _, err := platforms.Parse(t.Platform); err != nil {
			return bad("platform %q: %s", t.Platform, errtext.Of(err))
		}
	}
	for _, h := range slices.Concat(t.PostStart, t.PreStop) {
		if len(h.Command) == 0 {
			return bad("a hook without a command")
		}
	}
	r := t.Restart
	switch r.Condition {
	case "", cluster.RestartAny, cluster.RestartOnFailure, cluster.RestartNone:
	default:
		return bad("restart %q: any, on-failure or none wanted", r.Condition)
	}
	for _, n := range t.Needs {
		switch n.Condition {
		case cluster.Started, cluster.Healthy, cluster.Completed:
		default:
			return bad("need of %q: condition %q: %s, %s or %s wanted", n.Service, n.Condition, cluster.Started, cluster.Healthy, cluster.Completed)
		}
	}
	if t.Reserved.NanoCPUs < 0 || t.Reserved.Memory < 0 {
		return bad("less than nothing cannot be reserved")
	}
	return spans(map[string]time.Duration{"restart: delay": r.Delay, "restart: window": r.Window, "grace": t.Grace})
}

// spans refuses times that are negative.
func spans(list map[string]time.Duration) error {
	for _, what := range sortedKeys(list) {
		if list[what] < 0 {
			return bad("%s: %s is negative", what, list[what])
		}
	}
	return nil
}

func checkRollout(what string, r *cluster.Rollout) error {
	if r == nil {
		return nil
	}
	switch r.OnFailure {
	case "", cluster.FailurePause, cluster.FailureContinue, cluster.FailureRollback:
	default:
		return bad("%s: failure action %q: pause, continue or rollback wanted", what, r.OnFailure)
	}
	if r.MaxFailureRatio < 0 || r.MaxFailureRatio > 1 {
		return bad("%s: failure ratio %g: 0 to 1 wanted", what, r.MaxFailureRatio)
	}
	return spans(map[string]time.Duration{what + ": delay": r.Delay, what + ": monitor": r.Monitor})
}

func checkPort(p cluster.Port) error {
	if p.Target == 0 {
		return bad("port 0 is none")
	}
	if !slices.Contains([]network.IPProtocol{network.TCP, network.UDP, network.SCTP}, network.IPProtocol(strings.ToLower(string(p.Proto)))) {
		return bad("port %d: protocol %q: tcp, udp or sctp wanted", p.Target, p.Proto)
	}
	if p.Last != 0 && (p.Published == 0 || p.Last < p.Published) {
		return bad("port %d: published at %d-%d, which is no range", p.Target, p.Published, p.Last)
	}
	if p.Address != "" {
		if _, err := netip.ParseAddr(p.Address); err != nil {
			return bad("port %d: address %q: %s", p.Target, p.Address, err)
		}
	}
	return nil
}

// checkRef looks at where a secret or config is put, and whose it is there.
func checkRef(what string, r cluster.FileRef) error {
	if !path.IsAbs(r.Target) {
		return bad("%s %q: target %q is not absolute", what, r.Name, r.Target)
	}
	if r.Mode > 0o7777 {
		return bad("%s %q: mode %o is none", what, r.Name, r.Mode)
	}
	for _, id := range []string{r.UID, r.GID} {
		if _, err := strconv.ParseUint(id, 10, 32); id != "" && err != nil {
			return bad("%s %q: %q is no id of a user or group", what, r.Name, id)
		}
	}
	return nil
}

// checkCircles refuses services that would wait for each other for ever.
func checkCircles(name string, s *cluster.AppSpec) error {
	const open, done = 1, 2
	state := map[string]int{}
	var visit func(part string) error
	visit = func(part string) error {
		service, ours := s.Services[part]
		switch {
		case !ours || state[part] == done:
			return nil
		case state[part] == open:
			return bad("service %q: it would wait for itself", part)
		}
		state[part] = open
		for _, n := range service.Task.Needs {
			if needed, ours := strings.CutPrefix(n.Service, cluster.Full(name, "")); ours {
				if err := visit(needed); err != nil {
					return err
				}
			}
		}
		state[part] = done
		return nil
	}
	for _, part := range sortedKeys(s.Services) {
		if err := visit(part); err != nil {
			return err
		}
	}
	return nil
}
