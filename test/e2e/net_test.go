package e2e

import (
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// TestSideBySide runs two engines: the same container names, images and
// guests' ports in both, one killed and removed without harm to the other.
func TestSideBySide(t *testing.T) {
	a, b := start(t, harness.Options{}), start(t, harness.Options{})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	ids := map[*harness.Engine]string{}
	ports := map[*harness.Engine]string{}
	for _, e := range []*harness.Engine{a, b} {
		api := e.API()
		defer api.Close()
		ids[e] = create(t, ctx, api, "same", map[string]any{
			"Image": image, "Cmd": []string{"httpd", "-f", "-h", "/var/www"},
			"HostConfig": map[string]any{"PortBindings": map[string]any{"80/tcp": []map[string]string{{"HostIp": "127.0.0.1"}}}},
		})
		do(t, ctx, api, "POST", "/containers/"+ids[e]+"/start", nil, nil)
		c, err := api.Inspect(ctx, ids[e])
		if err != nil {
			t.Fatal(err)
		}
		if len(c.NetworkSettings.Ports["80/tcp"]) == 0 {
			t.Fatalf("no port published: %+v", c.NetworkSettings)
		}
		ports[e] = c.NetworkSettings.Ports["80/tcp"][0].HostPort
	}
	if ports[a] == ports[b] {
		t.Fatalf("both publish port %s", ports[a])
	}
	served := func(e *harness.Engine) error {
		c := http.Client{Timeout: 3 * time.Second, Transport: &http.Transport{DisableKeepAlives: true}}
		res, err := c.Get("http://127.0.0.1:" + ports[e] + "/")
		if err != nil {
			return err
		}
		defer res.Body.Close()
		body, err := io.ReadAll(res.Body)
		if err == nil && string(body) != "welcome\n" {
			err = fmt.Errorf("body %q", body)
		}
		return err
	}
	for _, e := range []*harness.Engine{a, b} {
		err := served(e)
		for begun := time.Now(); err != nil && time.Since(begun) < harness.Patience(10*time.Second); err = served(e) {
			time.Sleep(20 * time.Millisecond) // the server in it has to listen first
		}
		if err != nil {
			t.Errorf("engine %s: %v", e.Instance, err)
		}
	}
	if err := a.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := a.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*harness.Engine{a, b} {
		if err := served(e); err != nil {
			t.Errorf("engine %s after a restart of the first: %v", e.Instance, err)
		}
	}
	api := a.API()
	defer api.Close()
	do(t, ctx, api, "DELETE", "/containers/same?force=1", nil, nil)
	noLeaks(t, a)
	if err := a.Stop(); err != nil {
		t.Error(err)
	}
	if err := served(b); err != nil {
		t.Errorf("engine %s after the end of the first: %v", b.Instance, err)
	}
	apiB := b.API()
	defer apiB.Close()
	do(t, ctx, apiB, "DELETE", "/containers/same?force=1", nil, nil)
	noLeaks(t, b)
}

// create makes a container and returns its id.
func create(t *testing.T, ctx context.Context, api *harness.API, name string, spec map[string]any) string {
	t.Helper()
	var made struct{ ID string }
	path := "/containers/create"
	if name != "" {
		path += "?name=" + name
	}
	do(t, ctx, api, "POST", path, spec, &made)
	return made.ID
}

func do(t *testing.T, ctx context.Context, api *harness.API, method, path string, body, out any) {
	t.Helper()
	if err := api.Do(ctx, method, path, body, out); err != nil {
		t.Fatal(err)
	}
}

// TestTLS serves over TCP with client certificates: with one it answers,
// without one or with a stranger's it does not.
func TestTLS(t *testing.T) {
	needs(t)
	dir := t.TempDir()
	ca := newCA(t, dir, "ca")
	ca.issue(t, dir, "server", x509.ExtKeyUsageServerAuth)
	ca.issue(t, dir, "client", x509.ExtKeyUsageClientAuth)
	newCA(t, dir, "other").issue(t, dir, "stranger", x509.ExtKeyUsageClientAuth)
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	addr := l.Addr().String()
	l.Close()
	file := func(n string) string { return filepath.Join(dir, n) }
	e := start(t, harness.Options{
		Hosts: []string{"tcp://" + addr},
		Args:  []string{"--tlsverify", "--tlscacert", file("ca.pem"), "--tlscert", file("server.pem"), "--tlskey", file("server.key")},
	})
	roots := x509.NewCertPool()
	raw, err := os.ReadFile(file("ca.pem"))
	if err != nil {
		t.Fatal(err)
	}
	roots.AppendCertsFromPEM(raw)
	ping := func(certs ...tls.Certificate) error {
		c := http.Client{Timeout: 5 * time.Second, Transport: &http.Transport{
			DisableKeepAlives: true, TLSClientConfig: &tls.Config{RootCAs: roots, Certificates: certs},
		}}
		res, err := c.Get("https://" + addr + "/_ping")
		if err != nil {
			return err
		}
		res.Body.Close()
		if res.StatusCode != 200 {
			return fmt.Errorf("status %d", res.StatusCode)
		}
		return nil
	}
	load := func(n string) tls.Certificate {
		c, err := tls.LoadX509KeyPair(file(n+".pem"), file(n+".key"))
		if err != nil {
			t.Fatal(err)
		}
		return c
	}
	if err := ping(load("client")); err != nil {
		t.Errorf("with the right certificate: %v", err)
	}
	if err := ping(); err == nil {
		t.Error("answered a client without certificate")
	}
	if err := ping(load("stranger")); err == nil {
		t.Error("answered a client with another authority's certificate")
	}
	if res, err := http.Get("http://" + addr + "/_ping"); err == nil {
		res.Body.Close()
		if res.StatusCode == 200 {
			t.Error("answered without TLS")
		}
	}
	for name, path := range clients() {
		if _, err := os.Stat(path); err != nil {
			continue
		}
		cmd := exec.Command(path, "-H", "tcp://"+addr, "--tlsverify", "--tlscacert", file("ca.pem"), "--tlscert", file("client.pem"),
			"--tlskey", file("client.key"), "run", "--rm", image, "echo", "over tls")
		if out, err := cmd.CombinedOutput(); err != nil || !strings.Contains(string(out), "over tls") {
			t.Errorf("%s over TLS: %v: %s", name, err, out)
		}
	}
	noLeaks(t, e)
}

// authority signs certificates for the test.
type authority struct {
	cert *x509.Certificate
	key  *ecdsa.PrivateKey
}

func newCA(t *testing.T, dir, name string) authority {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	return authority{cert, key}
}

func (a authority) issue(t *testing.T, dir, name string, use x509.ExtKeyUsage) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(2), Subject: pkix.Name{CommonName: name}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		ExtKeyUsage: []x509.ExtKeyUsage{use}, IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, DNSNames: []string{"localhost"},
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, a.cert, &key.PublicKey, a.key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".pem"), "CERTIFICATE", der)
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	writePEM(t, filepath.Join(dir, name+".key"), "EC PRIVATE KEY", raw)
}

func writePEM(t *testing.T, file, kind string, der []byte) {
	t.Helper()
	if err := os.WriteFile(file, pem.EncodeToMemory(&pem.Block{Type: kind, Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
}
