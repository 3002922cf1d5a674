// Package registry talks to image registries: it logs in, pulls, pushes and
// searches. Protocol: OCI distribution specification 1.1.
package registry

import (
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/net/http/httpproxy"
)

const (
	// Hub is the address by which Docker Hub is logged in to.
	Hub = "https://index.docker.io/v1/"

	hubName  = "docker.io"
	hubHost  = "registry-1.docker.io"
	hubIndex = "index.docker.io"
	timeout  = 15 * time.Second // for one answer
	clientID = "docker"
)

// What Config's zero values mean.
const (
	DefaultAttempts = 5
	DefaultStall    = 30 * time.Second
	DefaultPause    = 500 * time.Millisecond
)

// Config says how registries are reached.
type Config struct {
	// Insecure are the registries, as host, host:port or range of addresses,
	// whose certificates are not checked and that may answer without TLS. Those
	// at 127.0.0.0/8, ::1 and localhost are always among them.
	Insecure []string
	// Mirrors of Docker Hub, as URLs, asked before it. They get no password.
	Mirrors []string
	// HTTPProxy, HTTPSProxy and NoProxy win over the environment's.
	HTTPProxy, HTTPSProxy, NoProxy string
	// CertDirs hold for each registry a folder HOST[:PORT] with *.crt, CAs to
	// trust, and *.cert with *.key, certificates of our own.
	CertDirs  []string
	UserAgent string
	Attempts  int           // for one request that failed for no fault of its own
	Stall     time.Duration // for which a registry may be silent
	Pause     time.Duration // before the second attempt; it doubles with each
}

// Client talks to registries. Safe for concurrent use.
type Client struct {
	now atomic.Pointer[settings]
}

// settings are a configuration, read.
type settings struct {
	Config
	insecure map[string]bool
	ranges   []netip.Prefix
	mirrors  []*url.URL
	proxy    func(*url.URL) (*url.URL, error)
}

// New makes a Client. Kind: InvalidArgument for an entry of c.
func New(c Config) (*Client, error) {
	cl := &Client{}
	return cl, cl.Set(c)
}

// Set changes how registries are reached; what is under way goes on as it was.
// After an error, of kind InvalidArgument, nothing is changed.
func (c *Client) Set(conf Config) error {
	set, err := read(conf)
	if err == nil {
		c.now.Store(set)
	}
	return err
}

// Check tells what Set would refuse.
func Check(conf Config) error {
	_, err := read(conf)
	return err
}

func read(c Config) (*settings, error) {
	if c.Attempts <= 0 {
		c.Attempts = DefaultAttempts
	}
	if c.Stall <= 0 {
		c.Stall = DefaultStall
	}
	if c.Pause <= 0 {
		c.Pause = DefaultPause
	}
	s := &settings{Config: c, insecure: map[string]bool{"localhost": true}, ranges: []netip.Prefix{
		netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128"),
	}}
	for _, entry := range c.Insecure {
		if p, err := netip.ParsePrefix(entry); err == nil {
			s.ranges = append(s.ranges, p.Masked())
			continue
		}
		if entry == "" || strings.ContainsAny(entry, "/ ") {
			return nil, fmt.Errorf("insecure registry %s is not valid: give host, host:port or a range of addresses: %w", entry, errdefs.ErrInvalidArgument)
		}
		s.insecure[strings.ToLower(entry)] = true
	}
	for _, m := range c.Mirrors {
		u, err := url.Parse(m)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" || u.User != nil {
			return nil, fmt.Errorf("invalid mirror: %q: want http:// or https://, a host and no more than a path: %w", m, errdefs.ErrInvalidArgument)
		}
		u.Path = strings.TrimSuffix(u.Path, "/")
		s.mirrors = append(s.mirrors, u)
	}
	proxy := httpproxy.FromEnvironment()
	for from, to := range map[*string]string{&proxy.HTTPProxy: c.HTTPProxy, &proxy.HTTPSProxy: c.HTTPSProxy, &proxy.NoProxy: c.NoProxy} {
		if to != "" {
			*from = to
		}
	}
	s.proxy = proxy.ProxyFunc()
	return s, nil
}

func (s *settings) proxyOf(r *http.Request) (*url.URL, error) { return s.proxy(r.URL) }

// host is the registry that an address means.
func host(address string) string {
	if address == "" || address == Hub {
		return hubHost
	}
	if _, rest, ok := strings.Cut(address, "://"); ok {
		address = rest
	}
	name, _, _ := strings.Cut(address, "/")
	switch name {
	case hubName, hubIndex:
		return hubHost
	}
	return name
}

// mayBeInsecure tells whether a registry need not prove who it is.
func (s *settings) mayBeInsecure(host string) bool {
	host = strings.ToLower(host)
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	if s.insecure[host] || s.insecure[name] {
		return true
	}
	addr, err := netip.ParseAddr(strings.Trim(name, "[]"))
	if err != nil {
		return false
	}
	for _, r := range s.ranges {
		if r.Contains(addr.Unmap()) {
			return true
		}
	}
	return false
}

// tlsConfig trusts what the machine trusts, and what lies in the registry's folders.
func (s *settings) tlsConfig(host string, insecure bool) (*tls.Config, error) {
	conf := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure}
	for _, dir := range s.CertDirs {
		files, err := os.ReadDir(filepath.Join(dir, host))
		if errors.Is(err, os.ErrNotExist) {
			continue
		}
		if err != nil {
			return nil, err
		}
		for _, f := range files {
			path := filepath.Join(dir, host, f.Name())
			switch filepath.Ext(f.Name()) {
			case ".crt":
				if err := trust(conf, path); err != nil {
					return nil, err
				}
			case ".cert":
				pair, err := tls.LoadX509KeyPair(path, strings.TrimSuffix(path, ".cert")+".key")
				if err != nil {
					return nil, err
				}
				conf.Certificates = append(conf.Certificates, pair)
			}
		}
	}
	return conf, nil
}

func trust(conf *tls.Config, path string) error {
	if conf.RootCAs == nil {
		pool, err := x509.SystemCertPool()
		if err != nil {
			pool = x509.NewCertPool()
		}
		conf.RootCAs = pool
	}
	pem, err := os.ReadFile(path)
	if err == nil && !conf.RootCAs.AppendCertsFromPEM(pem) {
		err = fmt.Errorf("%s: there is no certificate in it", path)
	}
	return err
}
