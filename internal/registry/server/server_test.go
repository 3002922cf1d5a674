package server

import (
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"encoding/pem"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"net/http/httptest"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"golang.org/x/sys/unix"
)

func TestDeletion(t *testing.T) {
	r := start(t, nil)
	d := r.mustPush("lab/x", "v1", []byte("{}"), []byte("layer"))
	r.mustPush("lab/x", "v2", []byte("{}"), []byte("layer"))
	r.want(202, "DELETE", "/v2/lab/x/manifests/v1", nil)
	r.mustPull("lab/x", "v2")
	r.want(404, "GET", "/v2/lab/x/manifests/v1", nil, "Accept", accept)
	r.want(202, "DELETE", "/v2/lab/x/manifests/"+string(d), nil)
	r.want(404, "GET", "/v2/lab/x/manifests/v2", nil, "Accept", accept)
	r.want(404, "DELETE", "/v2/lab/x/manifests/v2", nil)
	blob := digest.FromString("layer")
	r.want(202, "DELETE", "/v2/lab/x/blobs/"+string(blob), nil)
	r.want(404, "HEAD", "/v2/lab/x/blobs/"+string(blob), nil)
}

func TestConfigRefused(t *testing.T) {
	good := Config{Root: "/r", Addr: "127.0.0.1:0"}
	if err := good.Validate(); err != nil {
		t.Fatal(err)
	}
	for want, change := range map[string]func(*Config){
		"want HOST:PORT":              func(c *Config) { c.Addr = "localhost" },
		"absolute":                    func(c *Config) { c.Root = "r" },
		"needs its key":               func(c *Config) { c.TLSCert = "x" },
		"only loopback":               func(c *Config) { c.Addr = "0.0.0.0:5000" },
		"only loopback addresses":     func(c *Config) { c.Addr = ":5000" },
		"want http(s)://":             func(c *Config) { c.Mirrors = []string{"ftp://x"} },
		"https://u:xxxxx@h":           func(c *Config) { c.Mirrors = []string{"https://u:secret@h?q"} },
		"not negative":                func(c *Config) { c.Every = -1 },
		"no bucket is named":          func(c *Config) { c.S3 = &S3{Endpoint: "h"} },
		"credentials":                 func(c *Config) { c.S3 = &S3{Endpoint: "h", Bucket: "images", Credentials: "/nowhere"} },
		"loopback addresses are used": func(c *Config) { c.S3 = &S3{Endpoint: "10.0.0.1:9000", Plain: true, Bucket: "images"} },
	} {
		c := good
		change(&c)
		if err := c.Validate(); err == nil || !strings.Contains(err.Error(), want) || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", want, err)
		}
	}
	open := good
	open.Addr, open.Insecure = "0.0.0.0:0", true
	if err := open.Validate(); err != nil {
		t.Error(err)
	}
}

// Nothing is opened before the first request, and a root belongs to one registry.
func TestOpensLate(t *testing.T) {
	root := filepath.Join(t.TempDir(), "r")
	r := start(t, func(c *Config) { c.Root = root })
	if _, err := os.Stat(root); !os.IsNotExist(err) {
		t.Errorf("the root is there before anybody asked: %v", err)
	}
	r.want(200, "GET", "/v2/", nil)
	second := start(t, func(c *Config) { c.Root = root })
	second.want(500, "GET", "/v2/", nil)
	second.want(503, "GET", "/healthz", nil)
	r.want(200, "GET", "/healthz", nil)
}

func TestPasswords(t *testing.T) {
	line, err := HashPassword("ann", "secret")
	if err != nil {
		t.Fatal(err)
	}
	file := filepath.Join(t.TempDir(), "htpasswd")
	if err := os.WriteFile(file, []byte("# users\n"+line+"\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	r := start(t, func(c *Config) { c.Htpasswd = file })
	ask := func(user, password, method, path string) int {
		req, err := http.NewRequest(method, r.url+path, nil)
		if err != nil {
			t.Fatal(err)
		}
		if user != "" {
			req.SetBasicAuth(user, password)
		}
		resp, err := client.Do(req)
		if err != nil {
			t.Fatal(err)
		}
		resp.Body.Close()
		if resp.StatusCode == 401 && resp.Header.Get("WWW-Authenticate") == "" {
			t.Error("401 without a challenge")
		}
		return resp.StatusCode
	}
	for range 2 { // the second time from memory
		if got := ask("ann", "secret", "GET", "/v2/"); got != 200 {
			t.Errorf("right: %d", got)
		}
	}
	for _, path := range []string{"/v2/", "/v2/_catalog", gcPath, "/v2/x/referrers/" + string(digest.FromString("x"))} {
		for _, who := range [][2]string{{"", ""}, {"ann", "wrong"}, {"bob", "secret"}, {"ann", ""}} {
			if got := ask(who[0], who[1], "GET", path); got != 401 {
				t.Errorf("%s as %v: %d", path, who, got)
			}
		}
	}
	// Who is taken out of the file is out at once.
	if err := os.WriteFile(file, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if got := ask("ann", "secret", "GET", "/v2/"); got != 401 {
		t.Errorf("removed: %d", got)
	}
	for _, bad := range []string{"ann", "ann:{SHA}x", ":x"} {
		if _, err := parsePasswords([]byte(bad)); err == nil {
			t.Errorf("%q is taken", bad)
		}
	}
	if _, err := HashPassword("a:b", "x"); err == nil {
		t.Error("a user with a colon")
	}
	if _, err := HashPassword("a", strings.Repeat("x", 100)); err == nil {
		t.Error("a password of which bcrypt sees a part only")
	}
}

func FuzzPasswords(f *testing.F) {
	f.Add([]byte("ann:$2a$10$7EqJtq98hPqEX7fNZaFWoOhi5BqS8b1fVJ0h5wH6aZ0l5PZ0cX0Fa\n# x\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		users, err := parsePasswords(b)
		if _, ok := users[""]; ok && err == nil {
			t.Error("a user without a name")
		}
	})
}

// certificate makes one for 127.0.0.1 that signs itself.
func certificate(t *testing.T) (cert, key string, pool *x509.CertPool) {
	t.Helper()
	k, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour), IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, &k.PublicKey, k)
	if err != nil {
		t.Fatal(err)
	}
	pk, err := x509.MarshalPKCS8PrivateKey(k)
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	cert, key = filepath.Join(dir, "cert.pem"), filepath.Join(dir, "key.pem")
	certPEM := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der})
	if err := errors.Join(os.WriteFile(cert, certPEM, 0o600), os.WriteFile(key, pem.EncodeToMemory(&pem.Block{Type: "PRIVATE KEY", Bytes: pk}), 0o600)); err != nil {
		t.Fatal(err)
	}
	pool = x509.NewCertPool()
	pool.AppendCertsFromPEM(certPEM)
	return cert, key, pool
}

func TestTLS(t *testing.T) {
	cert, key, pool := certificate(t)
	c := Config{Root: t.TempDir(), Addr: "127.0.0.1:0", TLSCert: cert, TLSKey: key}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: pool}, ForceAttemptHTTP2: true}}
	resp, err := client.Get("https://" + l.Addr().String() + "/v2/")
	if err != nil || resp.StatusCode != 200 {
		t.Fatalf("%v %v", resp, err)
	}
	resp.Body.Close()
	first := resp.TLS.PeerCertificates[0]
	// A certificate is renewed: what is no pair is passed over, and then there is one.
	newCert, newKey, newPool := certificate(t)
	for _, step := range []struct {
		from, to string
		pool     *x509.CertPool
		renewed  bool
	}{{newCert, cert, pool, false}, {newKey, key, newPool, true}} {
		b, err := os.ReadFile(step.from)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(step.to, b, 0o600); err != nil {
			t.Fatal(err)
		}
		client := &http.Client{Transport: &http.Transport{TLSClientConfig: &tls.Config{RootCAs: step.pool}, DisableKeepAlives: true}}
		resp, err := client.Get("https://" + l.Addr().String() + "/v2/")
		if err != nil {
			t.Fatalf("%s: %v", step.to, err)
		}
		resp.Body.Close()
		if renewed := !resp.TLS.PeerCertificates[0].Equal(first); renewed != step.renewed {
			t.Errorf("after %s: renewed %v", step.to, renewed)
		}
	}
	cancel()
	if err := <-done; err != nil {
		t.Errorf("end: %v", err)
	}
	if _, err := net.Dial("tcp", l.Addr().String()); err == nil {
		t.Error("still listening")
	}
	c.TLSKey = cert
	if _, err := Listen(c); err == nil {
		t.Error("a key that is none")
	}
}

func TestThousandTags(t *testing.T) {
	r := start(t, nil)
	r.mustBlob("many", []byte("{}"))
	m := image([]byte("{}"))
	for i := range 1000 {
		r.want(201, "PUT", fmt.Sprintf("/v2/many/manifests/t%04d", i), m, "Content-Type", ocispec.MediaTypeImageManifest)
	}
	var all []string
	for path := "/v2/many/tags/list?n=300"; path != ""; {
		h, b := r.want(200, "GET", path, nil)
		var page struct{ Tags []string }
		if err := json.Unmarshal(b, &page); err != nil {
			t.Fatal(err)
		}
		all = append(all, page.Tags...)
		path, _, _ = strings.Cut(strings.TrimPrefix(h.Get("Link"), "<"), ">")
	}
	if len(all) != 1000 || all[0] != "t0000" || all[999] != "t0999" {
		t.Errorf("%d tags in pages", len(all))
	}
	if _, b := r.want(200, "GET", "/v2/many/tags/list?n=2&last=t0500", nil); !strings.Contains(string(b), `["t0501","t0502"]`) {
		t.Errorf("after t0500: %s", b)
	}
	if _, b := r.want(200, "GET", "/v2/_catalog", nil); !strings.Contains(string(b), `"many"`) {
		t.Errorf("catalog: %s", b)
	}
}

// An upload that broke off goes on where it was, after a restart too; a chunk
// out of order is refused.
func TestUploadResumed(t *testing.T) {
	r := start(t, nil)
	content := random(3000)
	h, _ := r.want(202, "POST", "/v2/x/blobs/uploads/", nil)
	patch := func(status int, at, end int) {
		t.Helper()
		h2, _ := r.want(status, "PATCH", h.Get("Location"), content[at:end], "Content-Type", "application/octet-stream", "Content-Range", fmt.Sprintf("%d-%d", at, end-1))
		if status == 202 {
			h = h2
		}
	}
	patch(202, 0, 1000)
	patch(416, 2000, 3000)
	root := r.s.cfg.Root
	if err := r.s.close(); err != nil {
		t.Fatal(err)
	}
	r = start(t, func(c *Config) { c.Root = root })
	h, _ = r.want(204, "GET", h.Get("Location"), nil)
	if h.Get("Range") != "0-999" {
		t.Errorf("range %q", h.Get("Range"))
	}
	patch(202, 1000, 3000)
	u, err := url.Parse(r.url + h.Get("Location"))
	if err != nil {
		t.Fatal(err)
	}
	q := u.Query()
	q.Set("digest", string(digest.FromString("a lie")))
	lie := *u
	lie.RawQuery = q.Encode()
	r.want(400, "PUT", lie.String(), nil)
	r.want(404, "HEAD", "/v2/x/blobs/"+string(digest.FromString("a lie")), nil)
	if n := r.onDisk(); n != 0 {
		t.Errorf("%d blobs after a lie", n)
	}
}

func TestRefused(t *testing.T) {
	r := start(t, nil)
	r.mustBlob("x", []byte("{}"))
	m := image([]byte("{}"))
	r.want(400, "PUT", "/v2/x/manifests/"+string(digest.FromString("a lie")), m, "Content-Type", ocispec.MediaTypeImageManifest)
	r.want(413, "PUT", "/v2/x/manifests/huge", bytes.Repeat([]byte(" "), maxManifest+1), "Content-Type", ocispec.MediaTypeImageManifest)
	r.want(400, "PUT", "/v2/x/manifests/bad", []byte("no JSON"), "Content-Type", ocispec.MediaTypeImageManifest)
	r.want(400, "PUT", "/v2/x/manifests/-bad", m, "Content-Type", ocispec.MediaTypeImageManifest)
	r.want(400, "PUT", "/v2/x/manifests/nothere", image([]byte("not pushed")), "Content-Type", ocispec.MediaTypeImageManifest)
	for _, name := range []string{"..%2f..%2fetc", "a/..%2fb", "_escale", "A", "a//b", "a/_manifests/b", strings.Repeat("a", 300)} {
		req := httptest.NewRequest("PUT", "http://x/v2/y/manifests/t", bytes.NewReader(m))
		req.URL.Path, req.URL.RawPath = "/v2/"+mustUnescape(name)+"/manifests/t", "/v2/"+name+"/manifests/t"
		req.Header.Set("Content-Type", ocispec.MediaTypeImageManifest)
		w := httptest.NewRecorder()
		r.s.ServeHTTP(w, req)
		if w.Code != 400 {
			t.Errorf("name %.20q: %d %s", name, w.Code, w.Body)
		}
	}
	for _, id := range []string{"..", "..%2f..%2fx"} {
		req := httptest.NewRequest("GET", "http://x/", nil)
		req.URL.Path, req.URL.RawPath = "/v2/x/blobs/uploads/"+mustUnescape(id), "/v2/x/blobs/uploads/"+id
		w := httptest.NewRecorder()
		if r.s.ServeHTTP(w, req); w.Code < 300 {
			t.Errorf("upload %q: %d %s", id, w.Code, w.Body)
		}
	}
	for _, path := range []string{"/v2/x", "/v2/x/manifests/t/", "/", "/v2/x/manifests/t/y"} {
		r.want(404, "PUT", path, m, "Content-Type", ocispec.MediaTypeImageManifest)
	}
	entries, err := os.ReadDir(r.s.cfg.Root)
	if err != nil {
		t.Fatal(err)
	}
	for _, e := range entries {
		if !strings.Contains(" docker lock upload-secret tmp used bucket-owner ", " "+e.Name()+" ") {
			t.Errorf("%s is in the root", e.Name())
		}
	}
	if _, b := r.want(200, "GET", "/v2/_catalog", nil); strings.Contains(string(b), "etc") {
		t.Errorf("catalog %s", b)
	}
}

func mustUnescape(s string) string {
	u, err := url.PathUnescape(s)
	if err != nil {
		panic(err)
	}
	return u
}

// A disk that is full refuses a push, harms nothing, and takes the push when
// there is room again.
func TestDiskFull(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: it mounts a small file system")
	}
	root := t.TempDir()
	if err := unix.Mount("tmpfs", root, "tmpfs", 0, "size=2m"); err != nil {
		t.Skip("needs mounts: ", err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(root, unix.MNT_DETACH); err != nil {
			t.Error(err)
		}
		for range 200 { // a container that starts with the machine's root in it holds a copy for a moment
			if os.Remove(root) == nil {
				return
			}
			time.Sleep(20 * time.Millisecond)
		}
	})
	r := start(t, func(c *Config) { c.Root = root })
	r.mustPush("x", "v1", []byte("{}"), random(1000))
	big := random(4 << 20)
	if _, err := r.blob("x", big); err == nil {
		t.Fatal("4 MB went into 2 MB")
	}
	r.want(404, "HEAD", "/v2/x/blobs/"+string(digest.FromBytes(big)), nil)
	r.mustPull("x", "v1")
	if open := openBelow(t, filepath.Join(root, "docker")); len(open) != 0 {
		t.Errorf("left open: %v", open)
	}
	r.withClock().turn(2 * time.Hour)
	if c := r.collect(Options{Grace: time.Hour}); r.onDisk() != 3 {
		t.Errorf("collected %+v, %d blobs left", c, r.onDisk())
	}
	r.mustPush("x", "v2", []byte("{}"), random(1<<20))
	r.mustPull("x", "v2")
}

// openBelow are the files in a directory that this process has open.
func openBelow(t *testing.T, dir string) (out []string) {
	t.Helper()
	const fds = "/proc/self/fd"
	list, err := os.ReadDir(fds)
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if name, err := os.Readlink(filepath.Join(fds, fd.Name())); err == nil && strings.HasPrefix(name, dir+"/") {
			out = append(out, name)
		}
	}
	return out
}

// A request that is under way when the registry stops is answered rightly.
func TestAnswersWhenItStops(t *testing.T) {
	c := Config{Root: t.TempDir(), Addr: "127.0.0.1:0"}
	s, err := New(c)
	if err != nil {
		t.Fatal(err)
	}
	l, err := Listen(c)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, l) }()
	r := &rig{t, s, "http://" + l.Addr().String()}
	r.mustBlob("x", []byte("{}"))
	m := image([]byte("{}"))
	slow, body := io.Pipe()
	req, err := http.NewRequest("PUT", r.url+"/v2/x/manifests/t", slow)
	if err != nil {
		t.Fatal(err)
	}
	req.Header.Set("Content-Type", ocispec.MediaTypeImageManifest)
	req.Header.Set("Expect", "100-continue") // so the body is not read before the server reads it
	patient := &http.Client{Transport: &http.Transport{ExpectContinueTimeout: time.Minute}}
	go func() {
		_, _ = body.Write(m[:1])
		cancel()
		for { // until nobody new is let in
			c, err := net.Dial("tcp", l.Addr().String())
			if err != nil {
				break
			}
			c.Close()
		}
		_, _ = body.Write(m[1:])
		body.Close()
	}()
	resp, err := patient.Do(req)
	if err != nil {
		t.Fatal(err)
	}
	resp.Body.Close()
	if resp.StatusCode != 201 {
		t.Errorf("answered %d", resp.StatusCode)
	}
	if err := <-done; err != nil {
		t.Error(err)
	}
	start(t, func(c *Config) { c.Root = s.cfg.Root }).mustPull("x", "t")
}

func TestSkopeo(t *testing.T) {
	skopeo, err := exec.LookPath("skopeo")
	if err != nil {
		t.Skip("needs skopeo (apt-get install skopeo)")
	}
	r := start(t, nil)
	r.mustPush("lab/x", "v1", []byte(`{"architecture":"amd64","os":"linux","rootfs":{"type":"layers","diff_ids":["`+string(digest.FromString("layer"))+`"]}}`), []byte("layer"))
	host := strings.TrimPrefix(r.url, "http://")
	dir := t.TempDir()
	for _, args := range [][]string{
		{"copy", "--src-tls-verify=false", "docker://" + host + "/lab/x:v1", "oci:" + dir + ":v1"},
		{"copy", "--dest-tls-verify=false", "oci:" + dir + ":v1", "docker://" + host + "/copy/y:v2"},
		{"list-tags", "--tls-verify=false", "docker://" + host + "/copy/y"},
		{"delete", "--tls-verify=false", "docker://" + host + "/copy/y:v2"},
	} {
		if args[0] == "copy" {
			args = append([]string{"--insecure-policy"}, args...)
		}
		if out, err := exec.CommandContext(t.Context(), skopeo, args...).CombinedOutput(); err != nil {
			t.Fatalf("skopeo %v: %v\n%s", args, err, out)
		}
	}
	r.want(404, "GET", "/v2/copy/y/manifests/v2", nil, "Accept", accept)
}
