package deploy

import (
	"errors"
	"fmt"
	"math/big"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/docker/cli/cli/compose/types"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

func modeOf(d *types.DeployConfig) (swarm.ServiceMode, error) {
	var m swarm.ServiceMode
	switch d.Mode {
	case "", "replicated":
		m.Replicated = &swarm.ReplicatedService{Replicas: d.Replicas}
		return m, nil
	case "replicated-job":
		m.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: d.Replicas, TotalCompletions: d.Replicas}
		return m, nil
	case "global":
		m.Global = &swarm.GlobalService{}
	case "global-job":
		m.GlobalJob = &swarm.GlobalJob{}
	default:
		return m, fmt.Errorf("unknown mode: %s", d.Mode)
	}
	if d.Replicas != nil {
		return m, errors.New("replicas can only be used with replicated or replicated-job mode")
	}
	return m, nil
}

func placementOf(p *types.Placement) *swarm.Placement {
	out := &swarm.Placement{Constraints: p.Constraints, MaxReplicas: p.MaxReplicas}
	for _, x := range p.Preferences {
		out.Preferences = append(out.Preferences, swarm.PlacementPreference{Spread: &swarm.SpreadOver{SpreadDescriptor: x.Spread}})
	}
	return out
}

func endpointOf(s *types.ServiceConfig) *swarm.EndpointSpec {
	e := &swarm.EndpointSpec{Mode: swarm.ResolutionMode(strings.ToLower(s.Deploy.EndpointMode))}
	for _, p := range s.Ports {
		e.Ports = append(e.Ports, swarm.PortConfig{
			Protocol: network.IPProtocol(p.Protocol), TargetPort: p.Target, PublishedPort: p.Published, PublishMode: swarm.PortConfigPublishMode(p.Mode),
		})
	}
	slices.SortFunc(e.Ports, swarm.PortConfig.Compare)
	return e
}

func rolloutOf(u *types.UpdateConfig) *swarm.UpdateConfig {
	if u == nil {
		return nil
	}
	out := &swarm.UpdateConfig{
		Parallelism: 1, Delay: time.Duration(u.Delay), FailureAction: swarm.FailureAction(u.FailureAction), Monitor: time.Duration(u.Monitor),
		MaxFailureRatio: u.MaxFailureRatio, Order: swarm.UpdateOrder(u.Order),
	}
	if u.Parallelism != nil {
		out.Parallelism = *u.Parallelism
	}
	return out
}

// cpus reads a decimal number of CPUs, in billionths.
func cpus(s string) (int64, error) {
	if s == "" {
		return 0, nil
	}
	r, ok := new(big.Rat).SetString(s)
	if !ok {
		return 0, fmt.Errorf("failed to parse %v as a rational number", s)
	}
	if r.Mul(r, big.NewRat(1e9, 1)); !r.IsInt() {
		return 0, errors.New("value is too precise")
	}
	return r.Num().Int64(), nil
}

func resourcesOf(r *types.Resources) (*swarm.ResourceRequirements, error) {
	out := &swarm.ResourceRequirements{}
	var err error
	if l := r.Limits; l != nil {
		out.Limits = &swarm.Limit{MemoryBytes: int64(l.MemoryBytes), Pids: l.Pids}
		if out.Limits.NanoCPUs, err = cpus(l.NanoCPUs); err != nil {
			return nil, err
		}
	}
	if l := r.Reservations; l != nil {
		out.Reservations = &swarm.Resources{MemoryBytes: int64(l.MemoryBytes)}
		if out.Reservations.NanoCPUs, err = cpus(l.NanoCPUs); err != nil {
			return nil, err
		}
		for _, g := range l.GenericResources {
			if d := g.DiscreteResourceSpec; d != nil {
				out.Reservations.GenericResources = append(out.Reservations.GenericResources, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: d.Kind, Value: d.Value}})
			}
		}
	}
	return out, nil
}

func healthOf(h *types.HealthCheckConfig) (*container.HealthConfig, error) {
	switch {
	case h == nil:
		return nil, nil
	case h.Disable && len(h.Test) > 0:
		return nil, errors.New("test and disable can't be set at the same time")
	case h.Disable:
		return &container.HealthConfig{Test: []string{"NONE"}}, nil
	}
	span := func(d *types.Duration) time.Duration {
		if d == nil {
			return 0
		}
		return time.Duration(*d)
	}
	out := &container.HealthConfig{Test: h.Test, Timeout: span(h.Timeout), Interval: span(h.Interval), StartPeriod: span(h.StartPeriod), StartInterval: span(h.StartInterval)}
	if h.Retries != nil {
		out.Retries = int(*h.Retries)
	}
	return out, nil
}

// restartOf is deploy's policy of restarts, or what the older word restart means.
func restartOf(s *types.ServiceConfig) (*swarm.RestartPolicy, error) {
	if p := s.Deploy.RestartPolicy; p != nil {
		return &swarm.RestartPolicy{
			Condition: swarm.RestartPolicyCondition(p.Condition), Delay: types.ConvertDurationPtr(p.Delay), MaxAttempts: p.MaxAttempts,
			Window: types.ConvertDurationPtr(p.Window),
		}, nil
	}
	name, times, counted := strings.Cut(s.Restart, ":")
	var most *uint64
	if counted {
		n, err := strconv.Atoi(times)
		switch {
		case name == "":
			return nil, errors.New("invalid restart policy format: no policy provided before colon")
		case err != nil:
			return nil, errors.New("invalid restart policy format: maximum retry count must be an integer")
		case n < 0:
			return nil, errors.New("invalid restart policy: maximum retry count cannot be negative")
		case n > 0:
			u := uint64(n)
			most = &u
		}
	}
	switch name {
	case "", "no":
		return nil, nil
	case "always", "unless-stopped":
		return &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, MaxAttempts: most}, nil
	case "on-failure":
		return &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionOnFailure, MaxAttempts: most}, nil
	}
	return nil, fmt.Errorf("unknown restart policy: %s", name)
}
