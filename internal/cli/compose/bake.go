package compose

import (
	"encoding/json"
	"fmt"
	"slices"
	"strings"

	"github.com/compose-spec/compose-go/v2/types"

	"escale.dev/escale/internal/builder/plan"
)

// bakeFile is what `docker buildx bake` reads, in JSON:
// https://docs.docker.com/build/bake/reference/.
type bakeFile struct {
	Group  map[string]bakeGroup  `json:"group"`
	Target map[string]bakeTarget `json:"target"`
}

type bakeGroup struct {
	Targets []string `json:"targets"`
}

type bakeTarget struct {
	Context          string            `json:"context,omitempty"`
	Contexts         map[string]string `json:"contexts,omitempty"`
	Dockerfile       string            `json:"dockerfile,omitempty"`
	DockerfileInline string            `json:"dockerfile-inline,omitempty"`
	Args             map[string]string `json:"args,omitempty"`
	Labels           map[string]string `json:"labels,omitempty"`
	Tags             []string          `json:"tags,omitempty"`
	CacheFrom        []string          `json:"cache-from,omitempty"`
	CacheTo          []string          `json:"cache-to,omitempty"`
	Target           string            `json:"target,omitempty"`
	Secret           []string          `json:"secret,omitempty"`
	SSH              []string          `json:"ssh,omitempty"`
	Platforms        []string          `json:"platforms,omitempty"`
	Pull             bool              `json:"pull,omitempty"`
	NoCache          bool              `json:"no-cache,omitempty"`
	NoCacheFilter    []string          `json:"no-cache-filter,omitempty"`
	Network          string            `json:"network,omitempty"`
	ShmSize          string            `json:"shm-size,omitempty"`
	Ulimits          []string          `json:"ulimits,omitempty"`
	Call             string            `json:"call,omitempty"`
	Entitlements     []string          `json:"entitlements,omitempty"`
	ExtraHosts       map[string]string `json:"extra-hosts,omitempty"`
	Attest           []string          `json:"attest,omitempty"`
	Output           []string          `json:"output,omitempty"`
}

// printBake writes what would be built as a bake file.
func (s supply) printBake(p *types.Project, names []string, o building) error {
	names, err := buildOrder(p, names)
	if err != nil {
		return err
	}
	slices.Sort(names)
	out, all := bakeFile{Target: map[string]bakeTarget{}}, []string{}
	for _, name := range names {
		sv := p.Services[name]
		b, done, err := s.plan(p, &sv, o)
		if err != nil {
			return fmt.Errorf("service %q: build: %w", name, err)
		}
		done()
		out.Target[bakeName(name)] = target(b, &sv)
		all = append(all, bakeName(name))
	}
	out.Group = map[string]bakeGroup{"default": {Targets: all}}
	e := json.NewEncoder(s.out)
	e.SetEscapeHTML(false)
	e.SetIndent("", "  ")
	return e.Encode(out)
}

// bakeName is a service's name as one of a target, in which there is no dot.
func bakeName(service string) string { return strings.ReplaceAll(service, ".", "_") }

// target is a service's build as a target.
func target(b *plan.Build, sv *types.ServiceConfig) bakeTarget {
	t := bakeTarget{
		Context: b.Context, Dockerfile: b.Dockerfile, Target: b.Target, Args: pairs(b.Args), Labels: pairs(b.Labels), Tags: b.Tags, Contexts: pairs(b.Contexts),
		CacheFrom: b.CacheFrom, CacheTo: b.CacheTo, Secret: b.Secrets, SSH: b.SSH, Platforms: b.Platforms, Pull: b.Pull, NoCache: b.NoCache, NoCacheFilter: b.NoCacheFor,
		ShmSize: b.Limits["shm-size"], Call: b.Call, Entitlements: b.Allow, ExtraHosts: pairs(b.Hosts), Attest: b.Attests, Output: []string{"type=docker"},
	}
	if inline := sv.Build.DockerfileInline; inline != "" {
		t.Dockerfile, t.DockerfileInline = "", inline
	}
	for name, value := range sv.Build.AdditionalContexts {
		if other, ok := strings.CutPrefix(value, types.ServicePrefix); ok {
			t.Contexts[name] = "target:" + bakeName(other)
		}
	}
	if b.Network != "default" {
		t.Network = b.Network
	}
	if l := b.Limits["ulimit"]; l != "" {
		t.Ulimits = strings.Split(l, ",")
	}
	switch {
	case b.Call != "":
		t.Output = nil
	case b.Push:
		t.Output = []string{"type=registry"}
	}
	return t
}

// pairs are NAME=VALUE, the last of a name counts.
func pairs(list []string) map[string]string {
	out := map[string]string{}
	for _, kv := range list {
		name, value, _ := strings.Cut(kv, "=")
		out[name] = value
	}
	return out
}
