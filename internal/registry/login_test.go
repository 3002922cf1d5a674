package registry

import (
	"context"
	"encoding/json"
	"encoding/pem"
	"fmt"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/registry"
)

// server is a small registry; kind is how it asks who is there: "basic",
// "token", "open", "broken". ann's password is secret.
func server(t *testing.T, kind string, secure bool) *httptest.Server {
	t.Helper()
	var s *httptest.Server
	known := func(r *http.Request) bool {
		user, password, ok := r.BasicAuth()
		return ok && user == "ann" && password == "secret"
	}
	mux := http.NewServeMux()
	mux.HandleFunc("/v2/", func(w http.ResponseWriter, r *http.Request) {
		switch {
		case kind == "open", kind == "basic" && known(r), kind == "token" && r.Header.Get("Authorization") == "Bearer t0ken":
			w.WriteHeader(http.StatusOK)
			return
		case kind == "broken":
			w.WriteHeader(http.StatusBadGateway)
			return
		case kind == "basic":
			w.Header().Set("WWW-Authenticate", `Basic realm="here"`)
		case kind == "token":
			w.Header().Set("WWW-Authenticate", fmt.Sprintf(`Bearer realm="%s/token",service="here"`, s.URL))
		}
		w.WriteHeader(http.StatusUnauthorized)
	})
	mux.HandleFunc("/token", func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodPost {
			if r.FormValue("refresh_token") != "ident" || r.FormValue("grant_type") != "refresh_token" {
				w.WriteHeader(http.StatusUnauthorized)
				return
			}
			_ = json.NewEncoder(w).Encode(map[string]any{"access_token": "t0ken"})
			return
		}
		if !known(r) || r.FormValue("service") != "here" {
			w.WriteHeader(http.StatusUnauthorized)
			return
		}
		_ = json.NewEncoder(w).Encode(map[string]any{"token": "t0ken", "refresh_token": "ident"})
	})
	if secure {
		s = httptest.NewTLSServer(mux)
	} else {
		s = httptest.NewServer(mux)
	}
	t.Cleanup(s.Close)
	return s
}

func TestLogin(t *testing.T) {
	c, err := New(Config{UserAgent: "test"})
	if err != nil {
		t.Fatal(err)
	}
	for _, secure := range []bool{false, true} {
		for _, tc := range []struct {
			kind         string
			auth         registry.AuthConfig
			token, want  string // want: the error
			unauthorized bool
		}{
			{"basic", registry.AuthConfig{Username: "ann", Password: "secret"}, "", "", false},
			{"basic", registry.AuthConfig{Username: "ann", Password: "guess"}, "", "/v2/ failed with status: 401 Unauthorized", true},
			{"basic", registry.AuthConfig{}, "", "no basic auth credentials", true},
			{"token", registry.AuthConfig{Username: "ann", Password: "secret"}, "ident", "", false},
			{"token", registry.AuthConfig{Username: "bob", Password: "secret"}, "", "unauthorized: incorrect username or password", true},
			{"token", registry.AuthConfig{IdentityToken: "ident"}, "ident", "", false},
			{"token", registry.AuthConfig{IdentityToken: "old"}, "", "unauthorized", true},
			{"token", registry.AuthConfig{RegistryToken: "t0ken"}, "", "", false},
			{"open", registry.AuthConfig{Username: "ann", Password: "any"}, "", "", false},
			{"broken", registry.AuthConfig{Username: "ann", Password: "secret"}, "", "502 Bad Gateway", false},
		} {
			s := server(t, tc.kind, secure)
			tc.auth.ServerAddress = strings.TrimPrefix(strings.TrimPrefix(s.URL, "http://"), "https://")
			token, err := c.Login(context.Background(), tc.auth)
			switch {
			case tc.want == "" && err != nil, token != tc.token:
				t.Errorf("tls=%v %s %+v: %q, %v", secure, tc.kind, tc.auth, token, err)
			case tc.want != "" && (err == nil || !strings.Contains(err.Error(), tc.want) || errdefs.IsUnauthorized(err) != tc.unauthorized):
				t.Errorf("tls=%v %s %+v: %v, want %s", secure, tc.kind, tc.auth, err, tc.want)
			}
		}
	}
}

// A registry that is not said to be insecure proves who it is; with its
// certificate in the folder it can.
func TestLoginChecksCertificates(t *testing.T) {
	s := server(t, "basic", true)
	name := strings.TrimPrefix(s.URL, "https://")
	c, err := New(Config{CertDirs: []string{t.TempDir()}})
	if err != nil {
		t.Fatal(err)
	}
	c.now.Load().ranges = nil // as if it were not at 127.0.0.1
	auth := registry.AuthConfig{ServerAddress: "https://" + name + "/v1/", Username: "ann", Password: "secret"}
	if _, err := c.Login(context.Background(), auth); err == nil || !strings.Contains(err.Error(), "certificate") {
		t.Errorf("unknown certificate: %v", err)
	}
	dir := filepath.Join(c.now.Load().CertDirs[0], name)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	cert := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: s.Certificate().Raw})
	if err := os.WriteFile(filepath.Join(dir, "ca.crt"), cert, 0o644); err != nil {
		t.Fatal(err)
	}
	if _, err := c.Login(context.Background(), auth); err != nil {
		t.Errorf("known certificate: %v", err)
	}
	plain := server(t, "basic", false)
	auth.ServerAddress = strings.TrimPrefix(plain.URL, "http://")
	if _, err := c.Login(context.Background(), auth); err == nil {
		t.Error("the password went without TLS")
	}
}

func TestHosts(t *testing.T) {
	for in, want := range map[string]string{
		"": hubHost, Hub: hubHost, "docker.io": hubHost, "index.docker.io": hubHost,
		"r.example": "r.example", "https://r.example:5000/v1/": "r.example:5000", "r.example/x": "r.example",
	} {
		if got := host(in); got != want {
			t.Errorf("%q: %q, want %q", in, got, want)
		}
	}
	c, err := New(Config{Insecure: []string{"10.1.0.0/16", "lan.example", "r.example:5000"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, want := range map[string]bool{
		"127.0.0.1:5000": true, "localhost:1": true, "[::1]:5000": true, "10.1.2.3": true, "10.2.0.1": false,
		"lan.example:5000": true, "LAN.example": true, "r.example:5000": true, "r.example": false, "127.example": false,
	} {
		if got := c.now.Load().mayBeInsecure(name); got != want {
			t.Errorf("%s: %v, want %v", name, got, want)
		}
	}
	if _, err := New(Config{Insecure: []string{"http://x"}}); !errdefs.IsInvalidArgument(err) {
		t.Errorf("an address as a host: %v", err)
	}
	for _, bad := range []string{"a b", "a@b", "/", "%zz"} {
		if _, err := c.Login(context.Background(), registry.AuthConfig{ServerAddress: bad}); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%q: %v", bad, err)
		}
	}
}
