package endpoint

import (
	"crypto/sha256"
	"encoding/hex"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

func clean(t *testing.T) {
	for _, v := range []string{"ESCALE_HOST", "DOCKER_HOST", "DOCKER_CONTEXT", "DOCKER_API_VERSION"} {
		t.Setenv(v, "")
	}
}

func TestParseHost(t *testing.T) {
	for _, c := range []struct {
		in   string
		tls  bool
		want string
	}{
		{"unix:///x", false, "unix:///x"},
		{"unix://", false, "unix:///var/run/docker.sock"},
		{"tcp://1.2.3.4", false, "tcp://1.2.3.4:2375"},
		{"tcp://1.2.3.4", true, "tcp://1.2.3.4:2376"},
		{"h:1/path", false, "tcp://h:1/path"},
		{":7", false, "tcp://localhost:7"},
		{"tcp://[::1]", false, "tcp://[::1]:2375"},
		{"tcp://[::1]:9", false, "tcp://[::1]:9"},
		{"", true, "tcp://localhost:2376"},
		{" ssh://a@b ", false, "ssh://a@b"},
		{"foo://x", false, "invalid bind address format: foo://x"},
		{"unix://a://b", false, "invalid proto, expected unix: a://b"},
		{"tcp://tcp://b", false, "invalid proto, expected tcp: tcp://b"},
	} {
		got, err := ParseHost(c.in, c.tls)
		if err != nil {
			got = err.Error()
		}
		if got != c.want {
			t.Errorf("%q: %q, want %q", c.in, got, c.want)
		}
	}
	if h, err := ParseHost("", false); err != nil || !strings.HasPrefix(h, "unix:///") {
		t.Errorf("default: %q, %v", h, err)
	}
}

func writeContext(t *testing.T, dir, name, host string, skip bool) string {
	t.Helper()
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	meta := filepath.Join(dir, "contexts", "meta", id)
	if err := os.MkdirAll(meta, 0o700); err != nil {
		t.Fatal(err)
	}
	verify := "false"
	if skip {
		verify = "true"
	}
	text := `{"Name":"` + name + `","Metadata":{},"Endpoints":{"docker":{"Host":"` + host + `","SkipTLSVerify":` + verify + `}}}`
	if err := os.WriteFile(filepath.Join(meta, "meta.json"), []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	return filepath.Join(dir, "contexts", "tls", id, "docker")
}

func TestResolveOrder(t *testing.T) {
	clean(t)
	dir := t.TempDir()
	writeContext(t, dir, "lab", "tcp://lab:1", false)
	writeContext(t, dir, "cur", "tcp://cur:1", false)
	f, c := Flags{ConfigDir: dir}, Config{CurrentContext: "cur"}
	want := func(what, context, host string) {
		t.Helper()
		ep, err := Resolve(f, c)
		if err != nil || ep.Context != context || ep.Options.Host != host {
			t.Errorf("%s: %+v, %v; want %s %s", what, ep, err, context, host)
		}
	}
	want("current context", "cur", "tcp://cur:1")
	t.Setenv("DOCKER_CONTEXT", "lab")
	want("DOCKER_CONTEXT", "lab", "tcp://lab:1")
	t.Setenv("DOCKER_HOST", "tcp://d:1")
	want("DOCKER_HOST", "default", "tcp://d:1")
	t.Setenv("ESCALE_HOST", "tcp://e:1")
	want("ESCALE_HOST", "default", "tcp://e:1")
	f.Hosts = []string{"tcp://h:1"}
	want("-H", "default", "tcp://h:1")
	f.Hosts, f.Context = nil, "lab"
	want("--context", "lab", "tcp://lab:1")
}

func TestContextTLS(t *testing.T) {
	clean(t)
	dir := t.TempDir()
	tlsDir := writeContext(t, dir, "sec", "tcp://h:2376", false)
	ep, err := Resolve(Flags{ConfigDir: dir, Context: "sec"}, Config{})
	if err != nil || ep.Options.TLS != nil {
		t.Fatalf("without files: %+v, %v", ep, err)
	}
	if err := os.MkdirAll(tlsDir, 0o700); err != nil {
		t.Fatal(err)
	}
	cert, key := selfSigned(t)
	for name, b := range map[string][]byte{"ca.pem": cert, "cert.pem": cert, "key.pem": key} {
		if err := os.WriteFile(filepath.Join(tlsDir, name), b, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	ep, err = Resolve(Flags{ConfigDir: dir, Context: "sec"}, Config{})
	if err != nil {
		t.Fatal(err)
	}
	if o := ep.Options.TLS; o == nil || o.InsecureSkipVerify || len(o.Certificates) != 1 || o.RootCAs == nil {
		t.Errorf("TLS %+v", o)
	}
	if err := os.Remove(filepath.Join(tlsDir, "key.pem")); err != nil {
		t.Fatal(err)
	}
	if _, err = Resolve(Flags{ConfigDir: dir, Context: "sec"}, Config{}); err == nil {
		t.Error("a certificate without its key")
	}
	writeContext(t, dir, "skip", "tcp://h", true)
	ep, err = Resolve(Flags{ConfigDir: dir, Context: "skip"}, Config{})
	if err != nil || ep.Options.TLS == nil || !ep.Options.TLS.InsecureSkipVerify {
		t.Errorf("skip: %+v, %v", ep, err)
	}
}

func TestFlagTLS(t *testing.T) {
	clean(t)
	dir := t.TempDir()
	cert, key := selfSigned(t)
	path := func(name string, b []byte) string {
		p := filepath.Join(dir, name)
		if err := os.WriteFile(p, b, 0o600); err != nil {
			t.Fatal(err)
		}
		return p
	}
	f := Flags{Hosts: []string{"h"}, TLS: true, TLSVerify: true, CA: path("ca", cert), Cert: path("cert", cert), Key: path("key", key)}
	ep, err := Resolve(f, Config{})
	if err != nil || ep.Options.Host != "tcp://h:2376" || ep.Options.TLS.InsecureSkipVerify {
		t.Fatalf("%+v, %v", ep, err)
	}
	f.Cert, f.Key = dir+"/no", dir+"/no" // the defaults, not there
	if ep, err = Resolve(f, Config{}); err != nil || len(ep.Options.TLS.Certificates) != 0 {
		t.Errorf("no client certificate: %+v, %v", ep, err)
	}
	f.CertExplicit = true
	if _, err = Resolve(f, Config{}); err == nil {
		t.Error("a named file that is not there")
	}
	f = Flags{Hosts: []string{"h"}, TLS: true, CA: dir + "/no"}
	if ep, err = Resolve(f, Config{}); err != nil || !ep.Options.TLS.InsecureSkipVerify {
		t.Errorf("--tls alone: %+v, %v", ep, err)
	}
	f.CA = path("junk", []byte("junk"))
	if _, err = Resolve(f, Config{}); err == nil {
		t.Error("junk for a CA")
	}
}

func TestConfig(t *testing.T) {
	dir := t.TempDir()
	if c, err := LoadConfig(dir); err != nil || c.CurrentContext != "" {
		t.Errorf("no file: %+v, %v", c, err)
	}
	name := filepath.Join(dir, "config.json")
	if err := os.WriteFile(name, []byte(`{"auths":{},"detachKeys":"ctrl-a","proxies":{"default":{"httpProxy":"p"},"tcp://h:1":{"noProxy":"n"}}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	c, err := LoadConfig(dir)
	if err != nil || c.DetachKeys != "ctrl-a" {
		t.Fatalf("%+v, %v", c, err)
	}
	if e := c.ProxyEnv("tcp://h:1"); len(e) != 2 || e["NO_PROXY"] != "n" || e["no_proxy"] != "n" {
		t.Errorf("own: %v", e)
	}
	if e := c.ProxyEnv("other"); len(e) != 2 || e["http_proxy"] != "p" {
		t.Errorf("default: %v", e)
	}
	if err := os.WriteFile(name, []byte(`{`), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := LoadConfig(dir); err == nil || !strings.Contains(err.Error(), name) {
		t.Errorf("broken: %v", err)
	}
}
