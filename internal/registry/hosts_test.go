package registry

import (
	"net/http"
	"net/http/httptest"
	"strings"
	"testing"

	"github.com/containerd/containerd/v2/core/remotes/docker"
)

// A builder's client is sent to the mirrors of Docker Hub first, to insecure
// registries with TLS or without, and to others with good TLS only.
func TestHostsOfBuilds(t *testing.T) {
	c, err := New(Config{Mirrors: []string{"http://mirror.example/hub"}, NoProxy: "*"})
	if err != nil {
		t.Fatal(err)
	}
	list, err := c.Hosts("docker.io")
	if err != nil || len(list) != 2 {
		t.Fatalf("docker.io: %v %v", list, err)
	}
	if m := list[0]; m.Host != "mirror.example" || m.Scheme != "http" || m.Path != "/hub/v2" || m.Capabilities.Has(docker.HostCapabilityPush) {
		t.Errorf("the mirror: %+v", m)
	}
	if h := list[1]; h.Host != hubHost || h.Scheme != "https" || h.Path != "/v2" || !h.Capabilities.Has(docker.HostCapabilityPush) {
		t.Errorf("the Hub: %+v", h)
	}
	answers := http.HandlerFunc(func(http.ResponseWriter, *http.Request) {})
	plain, secure := httptest.NewServer(answers), httptest.NewTLSServer(answers)
	defer plain.Close()
	defer secure.Close()
	for _, s := range []*httptest.Server{plain, secure} {
		_, name, _ := strings.Cut(s.URL, "://")
		for _, insecure := range []bool{true, false} {
			if !insecure {
				c.now.Load().ranges = nil // as if it were not at 127.0.0.1
			} else if err := c.Set(Config{NoProxy: "*"}); err != nil {
				t.Fatal(err)
			}
			list, err := c.Hosts(name)
			if err != nil || len(list) != 1 {
				t.Fatalf("%s: %v %v", name, list, err)
			}
			res, err := list[0].Client.Get("https://" + name + "/v2/")
			if err == nil {
				res.Body.Close()
			}
			if (err == nil) != insecure {
				t.Errorf("%s, insecure %t: %v", s.URL, insecure, err)
			}
		}
	}
}
