package registry

import (
	"fmt"
	"net"
	"net/http"
	"net/url"
	"strings"
	"time"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// Hosts tells where the repositories of a registry are reached, mirrors first:
// for a builder, which brings a client of its own that logs in by itself. It is
// a docker.RegistryHosts.
func (c *Client) Hosts(domain string) ([]docker.RegistryHost, error) {
	set := c.now.Load()
	var list []docker.RegistryHost
	if domain == hubName {
		for _, m := range set.mirrors {
			h, err := set.registryHost(*m, docker.HostCapabilityPull|docker.HostCapabilityResolve)
			if err != nil {
				return nil, err
			}
			list = append(list, h)
		}
	}
	all := docker.HostCapabilityPull | docker.HostCapabilityResolve | docker.HostCapabilityPush | docker.HostCapabilityReferrers
	h, err := set.registryHost(url.URL{Scheme: "https", Host: host(domain)}, all)
	if err != nil {
		return nil, err
	}
	return append(list, h), nil
}

// lull is how long a connection of a builder waits for more to do: nobody tells
// when a build has no more use for it.
const lull = time.Second

// registryHost makes the way to a host.
func (s *settings) registryHost(base url.URL, can docker.HostCapabilities) (docker.RegistryHost, error) {
	insecure := s.mayBeInsecure(base.Host)
	conf, err := s.tlsConfig(base.Host, insecure)
	if err != nil {
		return docker.RegistryHost{}, fmt.Errorf("registry %s: %w", base.Host, err)
	}
	plain := insecure || base.Scheme == "http"
	var way http.RoundTripper = guard{plain, &http.Transport{
		Proxy: s.proxyOf, TLSClientConfig: conf, TLSHandshakeTimeout: timeout, ForceAttemptHTTP2: true, MaxIdleConnsPerHost: 16,
		DialContext: (&net.Dialer{Timeout: timeout}).DialContext, ResponseHeaderTimeout: s.Stall, IdleConnTimeout: lull,
	}}
	if insecure {
		way = docker.NewHTTPFallback(way)
	}
	return docker.RegistryHost{
		Client: &http.Client{Transport: explained{way}}, Host: base.Host, Scheme: base.Scheme, Path: base.Path + "/v2", Capabilities: can,
	}, nil
}

// explained tells a client that logs in by itself when its token was refused.
// BuildKit asks for another one only if the registry says error="invalid_token",
// which the token specification recommends and not all do; it would offer the old
// one until it gives up.
type explained struct{ http.RoundTripper }

// RoundTrip implements http.RoundTripper.
func (x explained) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := x.RoundTripper.RoundTrip(req)
	if err != nil || res.StatusCode != http.StatusUnauthorized || !isBearer(req.Header.Get("Authorization")) {
		return res, err
	}
	asked := res.Header["Www-Authenticate"]
	for i, challenge := range asked {
		if isBearer(challenge) && !strings.Contains(strings.ToLower(challenge), "error=") {
			asked[i] = challenge + `,error="invalid_token"`
		}
	}
	return res, nil
}

// isBearer tells whether credentials or a challenge are of tokens.
func isBearer(s string) bool {
	scheme, _, more := strings.Cut(s, " ")
	return more && strings.EqualFold(scheme, "bearer")
}
