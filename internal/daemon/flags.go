package daemon

import (
	"crypto/x509"
	"fmt"
	"net/netip"
	"os"
	"strconv"
	"strings"

	"escale.dev/escale/internal/network/ipam"
	"github.com/docker/go-units"
)

// mapFlag is a repeatable key=value flag.
type mapFlag struct{ m *map[string]string }

func (f mapFlag) String() string { return "" }
func (f mapFlag) Type() string   { return "key=value" }
func (f mapFlag) Set(s string) error {
	k, v, ok := strings.Cut(s, "=")
	if !ok || k == "" {
		return fmt.Errorf("%q: want key=value", s)
	}
	(*f.m)[k] = v
	return nil
}

// ulimitFlag is a repeatable name=soft[:hard] flag.
type ulimitFlag struct{ m *map[string]*units.Ulimit }

func (f ulimitFlag) String() string { return "" }
func (f ulimitFlag) Type() string   { return "ulimit" }
func (f ulimitFlag) Set(s string) error {
	u, err := units.ParseUlimit(s)
	if err != nil {
		return err
	}
	(*f.m)[u.Name] = u
	return nil
}

// pools reads --default-address-pool.
func (c *Config) pools() ([]ipam.Range, error) {
	var out []ipam.Range
	for _, s := range c.Pools {
		var p ipam.Range
		for _, part := range strings.Split(s, ",") {
			k, v, _ := strings.Cut(part, "=")
			var err error
			switch k {
			case "base":
				p.Base, err = netip.ParsePrefix(v)
			case "size":
				p.Size, err = strconv.Atoi(v)
			default:
				err = fmt.Errorf("unrecognised field %q", k)
			}
			if err != nil {
				return nil, fmt.Errorf("invalid --default-address-pool %q: %w", s, err)
			}
		}
		if !p.Base.IsValid() || p.Size < p.Base.Bits() || p.Size > p.Base.Addr().BitLen()-2 {
			return nil, fmt.Errorf("invalid --default-address-pool %q: want base=172.30.0.0/16,size=24 with size at least the base's", s)
		}
		p.Base = p.Base.Masked()
		out = append(out, p)
	}
	return out, nil
}

func certPool(path string) (*x509.CertPool, error) {
	pem, err := os.ReadFile(path)
	if err != nil {
		return nil, fmt.Errorf("could not read CA certificate %q: %w", path, err)
	}
	pool := x509.NewCertPool()
	if !pool.AppendCertsFromPEM(pem) {
		return nil, fmt.Errorf("CA certificate %q: no certificate in it", path)
	}
	return pool, nil
}
