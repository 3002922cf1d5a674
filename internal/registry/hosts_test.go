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

// A registry that refuses a token and does not say that this is why is understood
// to mean it; all else is passed on as it is.
func TestRefusedTokenIsRenewed(t *testing.T) {
	const bearer, renew = `Bearer realm="http://r/token",service="s"`, `,error="invalid_token"`
	for _, c := range []struct {
		name, sent, challenge, want string
		status                      int
	}{
		{"refused", "Bearer x", bearer, bearer + renew, 401},
		{"in lower case", "bearer x", "bearer realm=r", "bearer realm=r" + renew, 401},
		{"no token sent", "", bearer, bearer, 401},
		{"a password sent", "Basic x", bearer, bearer, 401},
		{"it says why", "Bearer x", bearer + `,error="insufficient_scope"`, bearer + `,error="insufficient_scope"`, 401},
		{"it wants a password", "Bearer x", `Basic realm="r"`, `Basic realm="r"`, 401},
		{"no scheme", "Bearer x", "Bearer", "Bearer", 401},
		{"another status", "Bearer x", bearer, bearer, 403},
	} {
		server := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
			w.Header().Set("WWW-Authenticate", c.challenge)
			w.WriteHeader(c.status)
		}))
		req, err := http.NewRequest("GET", server.URL, nil)
		if err != nil {
			t.Fatal(err)
		}
		if c.sent != "" {
			req.Header.Set("Authorization", c.sent)
		}
		res, err := explained{http.DefaultTransport}.RoundTrip(req)
		if err != nil {
			t.Fatal(err)
		}
		res.Body.Close()
		if got := res.Header.Get("WWW-Authenticate"); got != c.want || res.StatusCode != c.status {
			t.Errorf("%s: %d %s, want %d %s", c.name, res.StatusCode, got, c.status, c.want)
		}
		server.Close()
	}
}
