package spec

import (
	"context"
	"fmt"
	"slices"
	"sort"
	"strconv"
	"strings"
	"time"

	"github.com/moby/moby/api/types/swarm"
)

// What the cluster takes when a policy does not say.
const (
	defaultRestartDelay = 5 * time.Second
	defaultMonitor      = 5 * time.Second
)

// rollouts are the policies of updates and rollbacks: those that are there, or the
// defaults where a flag asks for one, with what the flags say.
func (o *Options) rollouts(update, rollback *swarm.UpdateConfig) (*swarm.UpdateConfig, *swarm.UpdateConfig) {
	return o.rollout("update", &o.update, update), o.rollout("rollback", &o.rollback, rollback)
}

func (o *Options) rollout(word string, r *rollout, have *swarm.UpdateConfig) *swarm.UpdateConfig {
	set := func(name string) bool { return o.changed(word + "-" + name) }
	if !set("parallelism") && !set("delay") && !set("monitor") && !set("failure-action") && !set("max-failure-ratio") && !set("order") {
		return have
	}
	u := swarm.UpdateConfig{Parallelism: 1, Monitor: defaultMonitor, FailureAction: swarm.UpdateFailureActionPause, Order: swarm.UpdateOrderStopFirst}
	if have != nil {
		u = *have
	}
	if set("parallelism") {
		u.Parallelism = r.parallelism
	}
	if set("delay") {
		u.Delay = r.delay
	}
	if set("monitor") {
		u.Monitor = r.monitor
	}
	if set("failure-action") {
		u.FailureAction = swarm.FailureAction(r.failureAction)
	}
	if set("max-failure-ratio") {
		u.MaxFailureRatio = float32(r.ratio)
	}
	if set("order") {
		u.Order = swarm.UpdateOrder(r.order)
	}
	return &u
}

// restart is the policy of restarts: the one that is there, or the default where a flag
// asks for one, with what the flags say.
func (o *Options) restart(have *swarm.RestartPolicy) *swarm.RestartPolicy {
	if !o.changed("restart-condition", "restart-delay", "restart-max-attempts", "restart-window") {
		return have
	}
	delay, attempts := defaultRestartDelay, uint64(0)
	p := swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionAny, Delay: &delay, MaxAttempts: &attempts}
	if have != nil {
		p = *have
	}
	if o.changed("restart-condition") {
		p.Condition = swarm.RestartPolicyCondition(o.restartCondition)
	}
	if o.changed("restart-delay") {
		p.Delay = o.restartDelay.value
	}
	if o.changed("restart-max-attempts") {
		p.MaxAttempts = o.restartAttempts.value
	}
	if o.changed("restart-window") {
		p.Window = o.restartWindow.value
	}
	return &p
}

// driver is the log driver that a flag names with its options, else the one there is.
func (o *Options) driver(have *swarm.Driver) *swarm.Driver {
	if o.logDriver == "" {
		return have
	}
	return &swarm.Driver{Name: o.logDriver, Options: pairs(o.logOpts.Values)}
}

// attach adds the networks that are asked for, found by name, to those there are, in
// the order of their IDs.
func (o *Options) attach(ctx context.Context, have []swarm.NetworkAttachmentConfig, names Names) ([]swarm.NetworkAttachmentConfig, error) {
	for _, a := range o.networks.Attachments() {
		id, err := names.Network(ctx, a.Target)
		if err != nil {
			return nil, err
		}
		if o.changed("network-add") && slices.ContainsFunc(have, func(n swarm.NetworkAttachmentConfig) bool { return n.Target == id }) {
			return nil, fmt.Errorf("service is already attached to network %s", a.Target)
		}
		have = append(have, swarm.NetworkAttachmentConfig{Target: id, Aliases: a.Aliases, DriverOpts: a.DriverOpts})
	}
	sort.SliceStable(have, func(i, j int) bool { return have[i].Target < have[j].Target })
	return have, nil
}

func checkGeneric(s string) (string, error) {
	if !strings.Contains(s, "=") {
		return "", fmt.Errorf("invalid generic-resource format `%s` expected `name=value`", s)
	}
	return s, nil
}

// parseGeneric reads KIND=NUMBER entries, in the order of kinds.
func parseGeneric(entries []string) ([]swarm.GenericResource, error) {
	const wrong = "invalid generic resource specification: could not parse GenericResource: "
	values := map[string][]string{}
	for _, e := range entries {
		kind, value, _ := strings.Cut(e, "=")
		if strings.Contains(value, "=") {
			return nil, fmt.Errorf(wrong+"incorrect term %s, missing '=' or malformed expression", e)
		}
		kind = strings.TrimSpace(kind)
		values[kind] = append(values[kind], strings.TrimSpace(value))
	}
	var list []swarm.GenericResource
	for kind, v := range values {
		numbers, n := 0, int64(0)
		for _, s := range v {
			if i, err := strconv.ParseInt(s, 10, 64); err == nil {
				numbers, n = numbers+1, i
			}
		}
		switch {
		case len(v) == 1 && numbers == 1 && n < 0:
			return nil, fmt.Errorf(wrong+"cannot ask for negative resource %s", kind)
		case len(v) == 1 && numbers == 1:
			list = append(list, swarm.GenericResource{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: kind, Value: n}})
		case numbers == 0:
			return nil, fmt.Errorf("invalid generic-resource request `%s=%s`, Named Generic Resources is not supported for service create or update", kind, v[0])
		default:
			return nil, fmt.Errorf(wrong+"mixed discrete and named resources in expression '%s=%s'", kind, v)
		}
	}
	sortGeneric(list)
	return list, nil
}

func sortGeneric(list []swarm.GenericResource) {
	slices.SortFunc(list, func(x, y swarm.GenericResource) int {
		return strings.Compare(x.DiscreteResourceSpec.Kind, y.DiscreteResourceSpec.Kind)
	})
}

// updateGeneric changes what is reserved of kinds of resources.
func (o *Options) updateGeneric(have []swarm.GenericResource) ([]swarm.GenericResource, error) {
	more, err := parseGeneric(o.generic.Values)
	if err != nil {
		return nil, err
	}
	kinds := map[string]swarm.GenericResource{}
	for _, r := range have {
		d := r.DiscreteResourceSpec
		switch {
		case d == nil:
			return nil, fmt.Errorf("invalid generic-resource `%+v` for service task", r)
		case kinds[d.Kind].DiscreteResourceSpec != nil:
			return nil, fmt.Errorf("duplicate generic-resource `%s` for service task", d.Kind)
		}
		kinds[d.Kind] = r
	}
	for _, r := range more {
		kinds[r.DiscreteResourceSpec.Kind] = r
	}
	if l := o.removed["generic-resource"]; l != nil {
		for _, kind := range l.Values {
			if _, ok := kinds[kind]; !ok {
				return nil, fmt.Errorf("could not find generic-resource `%s` to remove it", kind)
			}
			delete(kinds, kind)
		}
	}
	var list []swarm.GenericResource
	for _, r := range kinds {
		list = append(list, r)
	}
	sortGeneric(list)
	return list, nil
}
