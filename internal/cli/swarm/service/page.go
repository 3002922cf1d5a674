package service

import (
	"fmt"
	"io"
	"maps"
	"slices"
	"strings"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/swarm"

	"escale.dev/escale/internal/cli/swarm/inspect"
)

// page is a service for people, line by line as Docker's client has it, blanks too.
type page struct {
	io.Writer
	s        *swarm.Service
	networks []string
}

func (p *page) printf(f string, v ...any) { fmt.Fprintf(p, f, v...) }

// known prints a line unless its value is none.
func known[T comparable](p *page, label string, v T) {
	var none T
	if v != none {
		p.printf("%s%v\n", label, v)
	}
}

func (p *page) write() {
	p.printf("\nID:\t\t%s\nName:\t\t%s\n", p.s.ID, p.s.Spec.Name)
	inspect.Labels(p, "Labels:", " ", p.s.Spec.Labels)
	p.mode()
	p.placement()
	p.rollout("Update", p.s.Spec.UpdateConfig)
	p.rollout("Rollback", p.s.Spec.RollbackConfig)
	if c := p.s.Spec.TaskTemplate.ContainerSpec; c != nil {
		p.container(c)
		p.rights(c)
		p.files(c)
	}
	p.driver(p.s.Spec.TaskTemplate.LogDriver)
	if r := p.s.Spec.TaskTemplate.Resources; r != nil {
		p.resources(r)
	}
	p.endpoint()
	p.printf("\n")
}

func (p *page) mode() {
	p.printf("Service Mode:")
	switch m := p.s.Spec.Mode; {
	case m.Global != nil:
		p.printf("\tGlobal\n")
	case m.Replicated != nil:
		p.printf("\tReplicated\n")
		if n := m.Replicated.Replicas; n != nil {
			p.printf(" Replicas:\t%d\n", *n)
		}
	default:
		p.printf("\n")
	}
	u := p.s.UpdateStatus
	if u == nil || u.State == "" {
		return
	}
	p.printf("UpdateStatus:\n State:\t\t%s\n", u.State)
	if u.StartedAt != nil {
		p.printf(" Started:\t%s ago\n", units.HumanDuration(time.Since(*u.StartedAt)))
	}
	if u.State == swarm.UpdateStateCompleted && u.CompletedAt != nil {
		p.printf(" Completed:\t%s ago\n", units.HumanDuration(time.Since(*u.CompletedAt)))
	}
	p.printf(" Message:\t%s\n", u.Message)
}

func (p *page) placement() {
	p.printf("Placement:\n")
	l := p.s.Spec.TaskTemplate.Placement
	if l == nil {
		return
	}
	if len(l.Constraints) > 0 {
		p.printf(" Constraints:\t%s\n", l.Constraints)
	}
	var spread []string
	for _, x := range l.Preferences {
		if x.Spread != nil {
			spread = append(spread, "spread="+x.Spread.SpreadDescriptor)
		}
	}
	if len(spread) > 0 {
		p.printf(" Preferences:   %s\n", spread)
	}
	known(p, " Max Replicas Per Node:   ", l.MaxReplicas)
}

func (p *page) rollout(word string, u *swarm.UpdateConfig) {
	if u == nil {
		return
	}
	p.printf("%sConfig:\n Parallelism:\t%d\n", word, u.Parallelism)
	if u.Delay > 0 {
		p.printf(" Delay:\t\t%s\n", u.Delay)
	}
	p.printf(" On failure:\t%s\n", u.FailureAction)
	if u.Monitor > 0 {
		p.printf(" Monitoring Period: %s\n", u.Monitor)
	}
	p.printf(" Max failure ratio: %v\n %-18s %s\n", u.MaxFailureRatio, word+" order:", u.Order)
}

func (p *page) container(c *swarm.ContainerSpec) {
	p.printf("ContainerSpec:\n Image:\t\t%s\n", c.Image)
	for _, l := range []struct {
		label string
		words []string
	}{{" Args:\t\t", c.Args}, {" Env:\t\t", c.Env}} {
		if len(l.words) > 0 {
			p.printf("%s%s \n", l.label, strings.Join(l.words, " "))
		}
	}
	known(p, " Dir:\t\t", c.Dir)
	if c.Init != nil {
		p.printf(" Init:\t\t%t\n", *c.Init)
	}
	known(p, " User: ", c.User)
}

func (p *page) rights(c *swarm.ContainerSpec) {
	if len(c.CapabilityAdd)+len(c.CapabilityDrop) > 0 {
		p.printf("Capabilities:\n")
		known(p, " Add: ", strings.Join(c.CapabilityAdd, ", "))
		known(p, " Drop: ", strings.Join(c.CapabilityDrop, ", "))
	}
	if len(c.Sysctls) > 0 {
		p.printf("SysCtls:\n")
		for _, k := range slices.Sorted(maps.Keys(c.Sysctls)) {
			p.pair(" "+k, ": ", c.Sysctls[k])
		}
	}
	if len(c.Ulimits) > 0 {
		p.printf("Ulimits:\n")
		list := slices.Clone(c.Ulimits)
		slices.SortFunc(list, func(x, y *units.Ulimit) int { return strings.Compare(x.Name, y.Name) })
		for _, u := range list {
			p.printf(" %s: %d:%d\n", u.Name, u.Soft, u.Hard)
		}
	}
}

// pair prints a key, and its value when it has one.
func (p *page) pair(key, between, value string) {
	if value != "" {
		key += between + value
	}
	p.printf("%s\n", key)
}

func (p *page) files(c *swarm.ContainerSpec) {
	if len(c.Mounts) > 0 {
		p.printf("Mounts:\n")
	}
	for _, m := range c.Mounts {
		p.printf(" Target:\t%s\n  Source:\t%s\n  ReadOnly:\t%t\n  Type:\t\t%s\n", m.Target, m.Source, m.ReadOnly, m.Type)
	}
	if len(c.Configs) > 0 {
		p.printf("Configs:\n")
	}
	for _, f := range c.Configs {
		target := ""
		if f.File != nil {
			target = f.File.Name
		}
		p.printf(" Target:\t%s\n  Source:\t%s\n", target, f.ConfigName)
	}
	if len(c.Secrets) > 0 {
		p.printf("Secrets:\n")
	}
	for _, f := range c.Secrets {
		target := ""
		if f.File != nil {
			target = f.File.Name
		}
		p.printf(" Target:\t%s\n  Source:\t%s\n", target, f.SecretName)
	}
}

func (p *page) driver(d *swarm.Driver) {
	if d == nil {
		return
	}
	p.printf("Log Driver:\n")
	known(p, " Name:\t\t", d.Name)
	if len(d.Options) > 0 {
		p.printf(" LogOpts:\n")
		for _, k := range slices.Sorted(maps.Keys(d.Options)) {
			p.pair("  "+k, ":       ", d.Options[k])
		}
	}
	p.printf("\n")
}

func (p *page) resources(r *swarm.ResourceRequirements) {
	p.printf("Resources:\n")
	amount := func(cpus, memory int64) {
		if cpus > 0 {
			p.printf("  CPU:\t\t%v\n", float64(cpus)/1e9)
		}
		if memory != 0 {
			p.printf("  Memory:\t%s\n", units.BytesSize(float64(memory)))
		}
	}
	if x := r.Reservations; x != nil && (x.NanoCPUs > 0 || x.MemoryBytes > 0) {
		p.printf(" Reservations:\n")
		amount(x.NanoCPUs, x.MemoryBytes)
	}
	if x := r.Limits; x != nil && (x.NanoCPUs > 0 || x.MemoryBytes > 0 || x.Pids > 0) {
		p.printf(" Limits:\n")
		amount(x.NanoCPUs, x.MemoryBytes)
		if x.Pids > 0 {
			p.printf("  PIDs:\t\t%d\n", x.Pids)
		}
	}
}

func (p *page) endpoint() {
	if len(p.networks) > 0 {
		p.printf("Networks: %s \n", strings.Join(p.networks, " "))
	}
	mode := ""
	if e := p.s.Spec.EndpointSpec; e != nil {
		mode = string(e.Mode)
	}
	p.printf("Endpoint Mode:\t%s\n", mode)
	if ports := p.s.Endpoint.Ports; len(ports) > 0 {
		p.printf("Ports:")
		for _, x := range ports {
			p.printf("\n PublishedPort = %d\n  Protocol = %s\n  TargetPort = %d\n  PublishMode = %s", x.PublishedPort, x.Protocol, x.TargetPort, x.PublishMode)
		}
		p.printf(" \n")
	}
	if p.s.Spec.TaskTemplate.ContainerSpec == nil || p.s.Spec.TaskTemplate.ContainerSpec.Healthcheck == nil {
		return
	}
	h := p.s.Spec.TaskTemplate.ContainerSpec.Healthcheck
	p.printf(" Healthcheck:\n  Interval = %s\n  Retries = %d\n  StartPeriod =\t%s\n  Timeout =\t%s\n", h.Interval, h.Retries, h.StartPeriod, h.Timeout)
	if len(h.Test) > 0 {
		p.printf("  Tests:")
		for _, t := range h.Test {
			p.printf("\n\t Test = %s", t)
		}
		p.printf(" \n")
	}
}
