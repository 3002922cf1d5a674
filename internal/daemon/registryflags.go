package daemon

import (
	"encoding/json"
	"fmt"
	"net/netip"

	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/registry"
	apiregistry "github.com/moby/moby/api/types/registry"
	"github.com/spf13/pflag"
)

// registryConfig is how registries are reached.
type registryConfig struct {
	Insecure, Mirrors                 []string
	HTTPProxy, HTTPSProxy, NoProxy    string
	Downloads, Uploads, LayerAttempts int
}

func (c *registryConfig) flags(fs *pflag.FlagSet) {
	fs.StringArrayVar(&c.Insecure, "insecure-registry", nil, "Registry that need not have TLS, or a good certificate: HOST[:PORT] or a range of addresses")
	fs.StringArrayVar(&c.Mirrors, "registry-mirror", nil, "Mirror of Docker Hub, as a URL")
	fs.StringVar(&c.HTTPProxy, "http-proxy", "", "Proxy to reach registries without TLS (default $HTTP_PROXY)")
	fs.StringVar(&c.HTTPSProxy, "https-proxy", "", "Proxy to reach registries (default $HTTPS_PROXY)")
	fs.StringVar(&c.NoProxy, "no-proxy", "", "Hosts and ranges of addresses to reach without a proxy (default $NO_PROXY)")
	fs.IntVar(&c.Downloads, "max-concurrent-downloads", 3, "Layers to pull at once")
	fs.IntVar(&c.Uploads, "max-concurrent-uploads", 5, "Layers to push at once")
	fs.IntVar(&c.LayerAttempts, "max-download-attempts", 5, "Attempts at a layer")
}

func (c *registryConfig) validate() error {
	for key, n := range map[string]int{"max-concurrent-downloads": c.Downloads, "max-concurrent-uploads": c.Uploads, "max-download-attempts": c.LayerAttempts} {
		if n < 1 {
			return fmt.Errorf("invalid %s: %d: want 1 or more", key, n)
		}
	}
	return registry.Check(c.client())
}

// client is how a registry client is to be.
func (c *registryConfig) client() registry.Config {
	return registry.Config{
		Insecure: c.Insecure, Mirrors: c.Mirrors, HTTPProxy: c.HTTPProxy, HTTPSProxy: c.HTTPSProxy, NoProxy: c.NoProxy,
		CertDirs: []string{"/etc/escale/certs.d", "/etc/docker/certs.d"}, UserAgent: "Escale/" + Version, Attempts: c.LayerAttempts,
	}
}

func (c *registryConfig) transfers() image.Transfers {
	return image.Transfers{Downloads: c.Downloads, Uploads: c.Uploads, Attempts: c.LayerAttempts}
}

// service is what info tells of it.
func (c *registryConfig) service() *apiregistry.ServiceConfig {
	s := &apiregistry.ServiceConfig{
		InsecureRegistryCIDRs: []netip.Prefix{netip.MustParsePrefix("::1/128"), netip.MustParsePrefix("127.0.0.0/8")},
		Mirrors:               append([]string{}, c.Mirrors...),
		IndexConfigs:          map[string]*apiregistry.IndexInfo{"docker.io": {Name: "docker.io", Mirrors: append([]string{}, c.Mirrors...), Secure: true, Official: true}},
	}
	for _, entry := range c.Insecure {
		if p, err := netip.ParsePrefix(entry); err == nil {
			s.InsecureRegistryCIDRs = append(s.InsecureRegistryCIDRs, p.Masked())
		} else {
			s.IndexConfigs[entry] = &apiregistry.IndexInfo{Name: entry, Mirrors: []string{}}
		}
	}
	return s
}

// openProxies makes what "proxies" in daemon.json holds keys of their own.
func openProxies(keys map[string]json.RawMessage) error {
	raw, ok := keys["proxies"]
	if !ok {
		return nil
	}
	var proxies map[string]json.RawMessage
	if err := json.Unmarshal(raw, &proxies); err != nil {
		return fmt.Errorf("proxies: %w", err)
	}
	delete(keys, "proxies")
	for _, key := range []string{"http-proxy", "https-proxy", "no-proxy"} {
		if v, ok := proxies[key]; ok {
			keys[key] = v
			delete(proxies, key)
		}
	}
	for key := range proxies {
		return fmt.Errorf("the following directives don't match any configuration option: proxies.%s", key)
	}
	return nil
}
