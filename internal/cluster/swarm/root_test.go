package swarm

import (
	"bytes"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// cluster is the swarm as it is stored.
func (r *rig) cluster() *cluster.Cluster {
	r.Helper()
	c, err := the(r.Store.View())
	if err != nil {
		r.Fatal(err)
	}
	return c
}

// ask changes the swarm, as a client that has just looked at it.
func (r *rig) ask(f func(*swarm.CAConfig)) error {
	r.Helper()
	is, err := r.Inspect()
	if err != nil {
		r.Fatal(err)
	}
	f(&is.Spec.CAConfig)
	return r.Update(r.Context(), is.Version.Index, is.Spec, Rotate{})
}

// While a root is exchanged the old one is trusted, tokens name it, and the next one signs.
func TestRotateRoot(t *testing.T) {
	r := newRig(t).init()
	r.commit(store.Create(&cluster.Node{Meta: cluster.Meta{ID: "node2", Name: "host2"}}))
	before, err := r.Inspect()
	if err != nil {
		t.Fatal(err)
	}
	force := func(ca *swarm.CAConfig) { ca.ForceRotate++ }
	if err := r.ask(force); err != nil {
		t.Fatal(err)
	}
	amid, err := r.Inspect()
	if err != nil || !amid.RootRotationInProgress || amid.JoinTokens != before.JoinTokens || amid.TLSInfo.TrustRoot != before.TLSInfo.TrustRoot ||
		bytes.Equal(amid.TLSInfo.CertIssuerPublicKey, before.TLSInfo.CertIssuerPublicKey) || amid.Spec.CAConfig.ForceRotate != 1 {
		t.Errorf("%+v %v", amid, err)
	}
	rotation := r.cluster().Status.RootRotation
	if string(rotation.Cross) != "by "+before.TLSInfo.TrustRoot {
		t.Errorf("%s", rotation.Cross)
	}
	// Each node is told as the certificate has it that it shows.
	n, err := store.Find[*cluster.Node](r.Store.View(), "node2")
	if err != nil {
		t.Fatal(err)
	}
	n = store.Copy(n)
	n.Status.CertIssuer = "next"
	r.commit(store.Update(n))
	for id, want := range map[string][]byte{"node1": before.TLSInfo.CertIssuerPublicKey, "node2": amid.TLSInfo.CertIssuerPublicKey} {
		if is, err := r.GetNode(id); err != nil || !bytes.Equal(is.Description.TLSInfo.CertIssuerPublicKey, want) || is.Description.TLSInfo.TrustRoot != before.TLSInfo.TrustRoot {
			t.Errorf("%s: %+v %v", id, is.Description.TLSInfo, err)
		}
	}
	// Asked for something else, it goes on; forced again, for another.
	if err := r.ask(func(ca *swarm.CAConfig) { ca.NodeCertExpiry *= 2 }); err != nil || !bytes.Equal(r.cluster().Status.RootRotation.Cert, rotation.Cert) {
		t.Error("it was begun anew", err)
	}
	if err := r.ask(force); err != nil || bytes.Equal(r.cluster().Status.RootRotation.Cert, rotation.Cert) {
		t.Error("it was not begun anew", err)
	}
}

// A root that somebody gives becomes the swarm's; its key is told to nobody.
func TestGivenRoot(t *testing.T) {
	r := newRig(t).init()
	mine, err := r.paper.NewRoot("mine", r.Now())
	if err != nil {
		t.Fatal(err)
	}
	give := func(ca *swarm.CAConfig) {
		ca.SigningCACert, ca.SigningCAKey = "a root of ours\n"+string(mine.Cert), string(mine.Key)
	}
	first := r.cluster().Status.RootCA
	if err := r.ask(give); err != nil {
		t.Fatal(err)
	}
	rotation := r.cluster().Status.RootRotation
	if rotation == nil || !bytes.Equal(rotation.Cert, mine.Cert) {
		t.Fatalf("%+v", rotation)
	}
	is, err := r.Inspect()
	if ca := is.Spec.CAConfig; err != nil || ca.SigningCACert != "" || ca.SigningCAKey != "" || r.cluster().Spec.CAConfig.SigningCAKey != "" {
		t.Errorf("%+v %v", ca, err)
	}
	if err := r.ask(give); err != nil || !bytes.Equal(r.cluster().Status.RootRotation.Cross, rotation.Cross) {
		t.Error("the same again is something else", err)
	}
	// Whoever gives the one that is trusted calls it off.
	key := r.cluster().Status.Key
	if err := r.ask(func(ca *swarm.CAConfig) { ca.SigningCACert, ca.SigningCAKey = string(first), string(key) }); err != nil || r.cluster().Status.RootRotation != nil {
		t.Error(err)
	}
	other, _ := r.paper.NewRoot("other", r.Now())
	for words, f := range map[string]func(*swarm.CAConfig){
		"if a signing CA key is provided, the signing CA cert must also be provided": func(ca *swarm.CAConfig) { ca.SigningCAKey = "x" },
		"needs an external certificate authority":                                    func(ca *swarm.CAConfig) { ca.SigningCACert = string(mine.Cert) },
		"no PEM of certificates":                                                     func(ca *swarm.CAConfig) { ca.SigningCACert, ca.SigningCAKey = "x", "y" },
		"2 certificates, one is wanted": func(ca *swarm.CAConfig) {
			ca.SigningCACert, ca.SigningCAKey = string(mine.Cert)+string(other.Cert), "y"
		},
		"it is not the key of the certificate":               func(ca *swarm.CAConfig) { ca.SigningCACert, ca.SigningCAKey = string(mine.Cert), string(other.Key) },
		"minimum certificate expiry time is: 1h0m0s":         func(ca *swarm.CAConfig) { ca.NodeCertExpiry = 1 },
		"external certificate authorities are not supported": func(ca *swarm.CAConfig) { ca.ExternalCAs = []*swarm.ExternalCA{{}} },
	} {
		err := r.ask(f)
		wants(t, err, nil, words)
		if err != nil && strings.Contains(err.Error(), "invalid argument") {
			t.Error(err)
		}
	}
	if r.cluster().Status.RootRotation != nil {
		t.Error("what is refused leaves something behind")
	}
}

// A swarm can begin with a root that somebody gives, if that lasts.
func TestInitWithRoot(t *testing.T) {
	r := newRig(t)
	mine, err := r.paper.NewRoot("mine", r.Now())
	if err != nil {
		t.Fatal(err)
	}
	ca := swarm.CAConfig{SigningCACert: string(mine.Cert), SigningCAKey: string(mine.Key)}
	now := r.Now
	r.Now = func() time.Time { return mine.Ends.AddDate(0, -11, 0) }
	_, err = r.Init(t.Context(), swarm.InitRequest{Spec: swarm.Spec{CAConfig: ca}})
	wants(t, err, errdefs.IsInvalidArgument, "CA certificate expires too soon")
	r.Now = now
	if _, err = r.Init(t.Context(), swarm.InitRequest{Spec: swarm.Spec{CAConfig: ca}}); err != nil {
		t.Fatal(err)
	}
	c := r.cluster()
	if !bytes.Equal(c.Status.RootCA, mine.Cert) || !bytes.Equal(c.Status.Key, mine.Key) || c.Spec.CAConfig.SigningCAKey != "" {
		t.Errorf("%+v", c)
	}
}
