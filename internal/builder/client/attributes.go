package client

import (
	"context"
	"fmt"
	"net"
	"slices"
	"strings"

	"github.com/containerd/platforms"
	"github.com/distribution/reference"
	"github.com/moby/buildkit/client"
)

// attributes puts the plan's plain options into the frontend's words.
func (b *build) attributes() error {
	p, attrs := b.plan, b.solve.FrontendAttrs
	set := func(key, value string) {
		if value != "" {
			attrs[key] = value
		}
	}
	set("target", p.Target)
	for key, value := range p.Limits {
		set(key, value)
	}
	for _, pair := range []struct {
		prefix string
		list   []string
	}{{"build-arg:", p.Args}, {"label:", p.Labels}} {
		for _, s := range pair.list {
			name, value, _ := strings.Cut(s, "=")
			attrs[pair.prefix+name] = value
		}
	}
	if p.Pull {
		attrs["image-resolve-mode"] = "pull"
	}
	switch {
	case p.NoCache && len(p.NoCacheFor) > 0:
		return fmt.Errorf("--no-cache and --no-cache-filter cannot currently be used together")
	case p.NoCache:
		attrs["no-cache"] = ""
	case len(p.NoCacheFor) > 0:
		attrs["no-cache"] = strings.Join(p.NoCacheFor, ",")
	}
	var names []string
	for _, list := range p.Platforms {
		for name := range strings.SplitSeq(list, ",") {
			platform := platforms.DefaultSpec()
			if name != "local" {
				var err error
				if platform, err = platforms.Parse(strings.TrimSpace(name)); err != nil {
					return err
				}
			}
			if f := platforms.Format(platforms.Normalize(platform)); !slices.Contains(names, f) {
				names = append(names, f)
			}
		}
	}
	set("platform", strings.Join(names, ","))
	if err := b.attests(); err != nil {
		return err
	}
	return b.rights()
}

// attests reads --attest, --provenance and --sbom.
func (b *build) attests() error {
	for _, s := range b.plan.Attests {
		f, err := fields(s)
		if err != nil {
			return err
		}
		kind := f["type"]
		if kind != "provenance" && kind != "sbom" {
			return fmt.Errorf("attestation type %q is not known: want provenance or sbom", kind)
		}
		key := "attest:" + kind
		if f["disabled"] == "true" {
			delete(b.solve.FrontendAttrs, key)
			continue
		}
		var rest []string
		for name, value := range f {
			if name != "type" && name != "disabled" {
				rest = append(rest, name+"="+value)
			}
		}
		slices.Sort(rest)
		b.solve.FrontendAttrs[key] = strings.Join(rest, ",")
	}
	return nil
}

// rights sets what steps see of networks, and what they are granted.
func (b *build) rights() error {
	switch n := b.plan.Network; n {
	case "", "default", "bridge":
	case "none":
		b.solve.FrontendAttrs["force-network-mode"] = n
	case "host":
		b.solve.FrontendAttrs["force-network-mode"] = n
		b.solve.AllowedEntitlements = append(b.solve.AllowedEntitlements, "network.host")
	default:
		return fmt.Errorf("network mode %q not supported by buildkit: want default, none or host", n)
	}
	for _, a := range b.plan.Allow {
		switch a {
		case "network.host", "security.insecure":
			b.solve.AllowedEntitlements = append(b.solve.AllowedEntitlements, a)
		default:
			return fmt.Errorf("invalid entitlement %q: want network.host", a)
		}
	}
	return nil
}

// hostGateway is the address that stands for this machine, in the plan and in
// the labels of the engine's builder.
const hostGateway, gatewayLabel = "host-gateway", "org.mobyproject.buildkit.worker.moby.host-gateway-ip"

// reachHost sets the names that steps know beside the network's; host-gateway is
// asked of the engine.
func (b *build) reachHost(ctx context.Context, c *client.Client) error {
	var hosts []string
	for _, h := range b.plan.Hosts {
		i := strings.IndexAny(h, "=:")
		if i <= 0 {
			return fmt.Errorf("invalid host mapping: %s", h)
		}
		name, addr := h[:i], strings.Trim(h[i+1:], "[]")
		if addr == hostGateway {
			workers, err := c.ListWorkers(ctx)
			if err != nil {
				return err
			}
			addr = ""
			for _, w := range workers {
				addr = w.Labels[gatewayLabel]
			}
			if addr == "" {
				return fmt.Errorf("unable to derive the IP value for host-gateway")
			}
		}
		if net.ParseIP(addr) == nil {
			return fmt.Errorf("invalid host mapping: %s", h)
		}
		hosts = append(hosts, name+"="+addr)
	}
	if len(hosts) > 0 {
		b.solve.FrontendAttrs["add-hosts"] = strings.Join(hosts, ",")
	}
	return nil
}

// names are the plan's tags in full.
func (b *build) names() (string, error) {
	list := make([]string, 0, len(b.plan.Tags))
	for _, t := range b.plan.Tags {
		named, err := reference.ParseNormalizedNamed(t)
		if err != nil {
			return "", fmt.Errorf("invalid tag %q: %w", t, err)
		}
		if _, ok := named.(reference.Digested); ok {
			return "", fmt.Errorf("invalid tag %q: build tag cannot contain a digest", t)
		}
		list = append(list, reference.TagNameOnly(named).String())
	}
	return strings.Join(list, ","), nil
}
