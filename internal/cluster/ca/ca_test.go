package ca

import (
	"bytes"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/x509"
	"encoding/pem"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/containerd/errdefs"
)

func root(t testing.TB) *Root {
	t.Helper()
	r, err := NewRoot("c1", time.Now())
	if err != nil {
		t.Fatal(err)
	}
	return r
}

func authority(t testing.TB, r *Root, rotation *Rotation) *Authority {
	t.Helper()
	a, err := NewAuthority(r, rotation)
	if err != nil {
		t.Fatal(err)
	}
	return a
}

// node makes the identity of a node of the cluster.
func node(t testing.TB, a *Authority, name string, role Role, cluster string, valid time.Duration) *Keeper {
	t.Helper()
	key, csr, err := NewRequest()
	if err != nil {
		t.Fatal(err)
	}
	chain, err := a.Issue(csr, role, name, cluster, valid)
	if err != nil {
		t.Fatal(err)
	}
	k, err := Keep(filepath.Join(t.TempDir(), "identity.json"), key, chain, a.Trusted())
	if err != nil {
		t.Fatal(err)
	}
	return k
}

// A root comes back as it was; what is none is refused.
func TestLoadRoot(t *testing.T) {
	r := root(t)
	key, err := r.KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	back, err := LoadRoot(r.PEM(), key)
	if err != nil || !back.Same(r) || back.Digest() != r.Digest() {
		t.Fatalf("%v", err)
	}
	if life := time.Until(r.cert.NotAfter); life < rootLife-time.Minute || r.cert.Subject.Organization[0] != "c1" {
		t.Errorf("a root for %s of %s", life, r.cert.Subject)
	}
	trusted, err := LoadRoot(r.PEM(), nil)
	if err != nil {
		t.Fatal(err)
	}
	_, csr, _ := NewRequest()
	if _, err := trusted.Issue(csr, Worker, "n", "c1", 0); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("it signs without a key: %v", err)
	}
	if _, err := trusted.KeyPEM(); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("it has a key: %v", err)
	}
	other, err := root(t).KeyPEM()
	if err != nil {
		t.Fatal(err)
	}
	leaf, err := r.Issue(csr, Worker, "n", "c1", 0)
	if err != nil {
		t.Fatal(err)
	}
	for what, c := range map[string][2][]byte{
		"nothing": {nil, key}, "a key of another": {r.PEM(), other}, "a certificate of a node": {leaf, key}, "two roots": {append(r.PEM(), root(t).PEM()...), key},
		"a key for a certificate": {key, key}, "no PEM": {[]byte("x"), nil}, "no key": {r.PEM(), []byte("x")}, "a certificate for a key": {r.PEM(), r.PEM()},
		"much": {bytes.Repeat(r.PEM(), 1000), nil},
	} {
		if _, err := LoadRoot(c[0], c[1]); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	cross, err := r.CrossSign(root(t))
	if err != nil {
		t.Fatal(err)
	}
	if _, err := LoadRoot(cross, nil); !errdefs.IsInvalidArgument(err) {
		t.Errorf("one that another has signed: %v", err)
	}
}

// Keys as openssl writes them are read, too.
func TestGivenKey(t *testing.T) {
	r := root(t)
	der, err := x509.MarshalECPrivateKey(r.key.(*ecdsa.PrivateKey))
	if err != nil {
		t.Fatal(err)
	}
	key := pem.EncodeToMemory(&pem.Block{Type: "EC PRIVATE KEY", Bytes: der})
	for _, text := range [][]byte{key, append(pem.EncodeToMemory(&pem.Block{Type: "EC PARAMETERS", Bytes: []byte{6, 8}}), key...)} {
		if _, err := LoadRoot(r.PEM(), text); err != nil {
			t.Error(err)
		}
	}
}

// bareCert is a root of openssl's that does not name its own key, from 2026 to 2126.
const bareCert = `-----BEGIN CERTIFICATE-----
MIIBQzCB66ADAgECAhQuJDR8nOBs0ypE7R0KiPj3h3vCejAKBggqhkjOPQQDAjAP
MQ0wCwYDVQQDDARvdXJzMCAXDTI2MTEyMjA0MDgyMloYDzIxMjYxMDI5MDQwODIy
WjAPMQ0wCwYDVQQDDARvdXJzMFkwEwYHKoZIzj0CAQYIKoZIzj0DAQcDQgAEOaVZ
VtrJXAWRPi//Xl5W3On5gQdv3k10QY6HqwYBJo/66be2WyM2d9e0AtciSSZ+Jbu+
yxATiqe2shpRJ2e21KMjMCEwDwYDVR0TAQH/BAUwAwEB/zAOBgNVHQ8BAf8EBAMC
AgQwCgYIKoZIzj0EAwIDRwAwRAIgUI9x1ccEBUIYc72YV8G1JnGZr8f5qaFiDXri
g9xRms4CIFGZF2LoZZc0i/JKYdYX4RK3JjsyrmQCWZnScmXDpNyy
-----END CERTIFICATE-----
`

const bareKey = `-----BEGIN PRIVATE KEY-----
MIGHAgEAMBMGByqGSM49AgEGCCqGSM49AwEHBG0wawIBAQQgfbUXUHL8RlZOnfZW
mbmfyOEulYh5rdIEqANZSwqM4f+hRANCAAQ5pVlW2slcBZE+L/9eXlbc6fmBB2/e
TXRBjoerBgEmj/rpt7ZbIzZ317QC1yJJJn4lu77LEBOKp7ayGlEnZ7bU
-----END PRIVATE KEY-----
`

// What a root signs that has no name for its key says all the same who has signed it.
func TestRootWithoutKeyName(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		time.Sleep(time.Until(time.Date(2040, 1, 1, 0, 0, 0, 0, time.UTC)))
		r, err := LoadRoot([]byte(bareCert), []byte(bareKey))
		if err != nil || r.Issuer() == "" || !r.Ends().After(time.Now().AddDate(80, 0, 0)) {
			t.Fatal(r, err)
		}
		key, csr, err := NewRequest()
		if err != nil {
			t.Fatal(err)
		}
		a, err := NewAuthority(r, nil)
		if err != nil {
			t.Fatal(err)
		}
		cert, err := a.Issue(csr, Worker, "n1", "c1", 0)
		if err != nil {
			t.Fatal(err)
		}
		id, err := newIdentity(key, cert, a.Trusted())
		if err != nil || id.Issuer != r.Issuer() || id.Issuer != a.Issuer() {
			t.Errorf("%+v %v", id, err)
		}
	})
}

// A root is not believed before its time, nor after.
func TestRootExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := root(t)
		time.Sleep(rootLife + time.Hour)
		if _, err := LoadRoot(r.PEM(), nil); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "not valid after") {
			t.Error(err)
		}
		early, err := NewRoot("c1", time.Now().Add(24*time.Hour))
		if err != nil {
			t.Fatal(err)
		}
		if _, err := LoadRoot(early.PEM(), nil); !errdefs.IsInvalidArgument(err) {
			t.Error(err)
		}
	})
}

// A token is written as Docker writes it, and read again; what is none is refused.
func TestToken(t *testing.T) {
	r := root(t)
	s := NewSecret()
	text := Token(r.Digest(), s)
	if !regexp.MustCompile(`^SWMTKN-1-[0-9a-z]{50}-[0-9a-z]{25}$`).MatchString(text) {
		t.Fatalf("the token %s", text)
	}
	tok, err := ParseToken(text)
	if err != nil || tok.Secret != s || !tok.Names(r.PEM()) || tok.Names(root(t).PEM()) {
		t.Errorf("%+v, %v", tok, err)
	}
	if NewSecret() == s || SameSecret("", "") || SameSecret(s, s[1:]) || !SameSecret(s, s) {
		t.Error("secrets")
	}
	for _, bad := range []string{
		"", "SWMTKN-1", text + "-x", text[1:], strings.Replace(text, "-1-", "-2-", 1), strings.ToUpper(text), text + "0", strings.Replace(text, "-1-", "-1--", 1),
		Token(strings.Repeat("z", 50), s), Token(r.Digest(), strings.Repeat("z", 25)), Token(r.Digest(), s[:24]+"é"),
	} {
		if _, err := ParseToken(bad); !errdefs.IsInvalidArgument(err) || !strings.HasPrefix(err.Error(), "invalid join token") {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Of a request only the key counts; what it asks for it does not get.
func TestIssue(t *testing.T) {
	r := root(t)
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	der, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{Subject: r.cert.Subject, DNSNames: []string{"swarm-manager", "evil"}}, key)
	if err != nil {
		t.Fatal(err)
	}
	csr := pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: der})
	text, err := r.Issue(csr, Worker, "n1", "c1", time.Minute)
	if err != nil {
		t.Fatal(err)
	}
	list, err := parseCerts(text)
	if err != nil {
		t.Fatal(err)
	}
	c := list[0]
	if c.Subject.CommonName != "n1" || c.Subject.OrganizationalUnit[0] != "swarm-worker" || c.Subject.Organization[0] != "c1" || strings.Join(c.DNSNames, " ") != "swarm-worker n1" || c.IsCA {
		t.Errorf("issued for %s, %v", c.Subject, c.DNSNames)
	}
	if life := c.NotAfter.Sub(c.NotBefore); life != MinExpiry+backdate {
		t.Errorf("it is valid for %s", life)
	}
	altered := bytes.Clone(der)
	altered[len(altered)-1] ^= 1
	small, err := x509.CreateCertificateRequest(rand.Reader, &x509.CertificateRequest{}, key)
	if err != nil {
		t.Fatal(err)
	}
	for what, bad := range map[string][]byte{
		"nothing": nil, "a certificate": r.PEM(), "much": bytes.Repeat(csr, 1000), "two": append(bytes.Clone(csr), csr...),
		"not signed by its key": pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: altered}),
		"cut off":               pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE REQUEST", Bytes: small[:20]}),
	} {
		if _, err := r.Issue(bad, Worker, "n1", "c1", 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", what, err)
		}
	}
	for _, who := range [][3]string{{"root", "n1", "c1"}, {string(Worker), "", "c1"}, {string(Worker), "n1", ""}} {
		if _, err := r.Issue(csr, Role(who[0]), who[1], who[2], 0); !errdefs.IsInvalidArgument(err) {
			t.Errorf("%v: %v", who, err)
		}
	}
}

// Nothing that a root signs outlives it.
func TestIssueEndsWithRoot(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		r := root(t)
		time.Sleep(rootLife - time.Hour)
		_, csr, _ := NewRequest()
		text, err := r.Issue(csr, Worker, "n", "c1", 0)
		if err != nil {
			t.Fatal(err)
		}
		if list, _ := parseCerts(text); !list[0].NotAfter.Equal(r.cert.NotAfter) {
			t.Errorf("until %s, the root until %s", list[0].NotAfter, r.cert.NotAfter)
		}
	})
}

func TestRenewAt(t *testing.T) {
	now := time.Now()
	p := Peer{Issued: now, Expires: now.Add(100 * time.Hour)}
	seen := map[time.Time]bool{}
	for range 100 {
		at := p.RenewAt()
		seen[at] = true
		if d := at.Sub(now); d < 50*time.Hour || d > 80*time.Hour {
			t.Errorf("after %s", d)
		}
	}
	if len(seen) < 50 {
		t.Error("all renew together")
	}
}

// An identity is kept with its key for nobody else's eyes, and read again; what does not fit
// together is not kept.
func TestKeeper(t *testing.T) {
	a := authority(t, root(t), nil)
	k := node(t, a, "n1", Worker, "c1", 0)
	st, err := os.Stat(k.path)
	if err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("%v, %v", st.Mode(), err)
	}
	again, err := Open(k.path)
	if err != nil || again.Identity().Peer != k.Identity().Peer || again.Identity().Issuer != a.Issuer() {
		t.Fatalf("%v", err)
	}
	other := node(t, authority(t, root(t), nil), "n2", Worker, "c1", 0)
	mine, foreign := k.Identity().kept, other.Identity().kept
	for what, c := range map[string][3]string{
		"another's key": {foreign.Key, mine.Chain, mine.Roots}, "another's root": {mine.Key, mine.Chain, foreign.Roots}, "no root": {mine.Key, mine.Chain, ""},
		"a root's certificate": {mine.Key, mine.Roots, mine.Roots},
	} {
		if err := k.Set([]byte(c[0]), []byte(c[1]), []byte(c[2])); err == nil {
			t.Errorf("%s: kept", what)
		}
	}
	if err := k.Trust([]byte(foreign.Roots)); !errdefs.IsInvalidArgument(err) {
		t.Errorf("roots that would not believe the node: %v", err)
	}
	if k.Identity().Node != "n1" {
		t.Error("what was refused has changed it")
	}
	for text, is := range map[string]func(error) bool{"{}": errdefs.IsDataLoss, "x": errdefs.IsDataLoss, `{"Format":9}`: errdefs.IsFailedPrecondition} {
		path := filepath.Join(t.TempDir(), "i")
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if _, err := Open(path); !is(err) {
			t.Errorf("%s: %v", text, err)
		}
	}
	if err := k.Forget(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(k.path); !errdefs.IsNotFound(err) {
		t.Errorf("forgotten: %v", err)
	}
	if err := k.Forget(); err != nil {
		t.Error(err)
	}
}

// Any text is read as a token or refused.
func FuzzParseToken(f *testing.F) {
	f.Add(Token(root(f).Digest(), NewSecret()))
	f.Add("SWMTKN-1-a-b")
	f.Fuzz(func(t *testing.T, s string) {
		tok, err := ParseToken(s)
		switch {
		case err == nil && Token(tok.Digest, tok.Secret) != s:
			t.Errorf("%q is read as %+v", s, tok)
		case err != nil && !errdefs.IsInvalidArgument(err):
			t.Errorf("an error of no kind: %v", err)
		}
	})
}

// Any bytes are read as certificates, keys, requests and identities, or refused.
func FuzzPEM(f *testing.F) {
	r := root(f)
	key, csr, err := NewRequest()
	if err != nil {
		f.Fatal(err)
	}
	for _, text := range [][]byte{r.PEM(), key, csr, append(r.PEM(), r.PEM()...), []byte(`{"Format":1,"Key":"","Chain":""}`)} {
		f.Add(text)
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		_, e1 := LoadRoot(text, nil)
		_, e2 := LoadRoot(r.PEM(), text)
		_, e3 := r.Issue(text, Worker, "n", "c", 0)
		for _, err := range []error{e1, e2, e3} {
			if err != nil && !errdefs.IsInvalidArgument(err) {
				t.Errorf("an error of no kind: %v", err)
			}
		}
		if _, err := parseIdentity(text); err != nil && !errdefs.IsDataLoss(err) && !errdefs.IsFailedPrecondition(err) {
			t.Errorf("an error of no kind: %v", err)
		}
	})
}

// Who waits is told of each exchange of an identity, and of nothing else.
func TestKeeperChanged(t *testing.T) {
	r := root(t)
	a := authority(t, r, nil)
	k := node(t, a, "n", Manager, "c1", 0)
	one, two := k.Changed(), k.Changed()
	closed := func(c <-chan struct{}) bool {
		select {
		case <-c:
			return true
		default:
			return false
		}
	}
	if err := k.Trust(k.Identity().Roots); err != nil || closed(one) {
		t.Errorf("nothing has changed: %v", err)
	}
	if err := k.Set([]byte("x"), nil, nil); err == nil || closed(one) {
		t.Errorf("what is none was taken: %v", err)
	}
	rotation, err := a.Rotate(root(t))
	if err != nil {
		t.Fatal(err)
	}
	if err := k.Trust(authority(t, r, rotation).Trusted()); err != nil || !closed(one) || !closed(two) {
		t.Errorf("it is not told: %v", err)
	}
	if closed(k.Changed()) {
		t.Error("it is told before")
	}
}
