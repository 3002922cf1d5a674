package keys

import (
	"bytes"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/loop/looptest"
	"github.com/moby/moby/api/types/network"
)

func overlay(id string, options map[string]string) *cluster.Network {
	return &cluster.Network{Meta: cluster.Meta{ID: id, Name: id}, Spec: cluster.NetworkSpec{Name: id, Create: &network.CreateRequest{Driver: "overlay", Options: options}}}
}

// An encrypted network has keys; each is with the nodes for a whole period before anybody sends
// by it, and one after. They go with the network.
func TestRotation(t *testing.T) {
	b := looptest.New(t, Loop{})
	b.Commit(store.Create(overlay("net", map[string]string{"encrypted": ""})))
	b.Commit(store.Create(overlay("open", map[string]string{"encrypted": "false"})))
	get := func() (cluster.NetworkKeys, bool) {
		t.Helper()
		s, err := store.Named[*cluster.Secret](b.Store.View(), cluster.KeysOf("net"))
		if err != nil {
			return cluster.NetworkKeys{}, false
		}
		k, err := cluster.ReadNetworkKeys(s.Spec.Data)
		if err != nil || !s.Internal() {
			t.Fatal(err, s)
		}
		return k, true
	}
	b.Look()
	last, ok := get()
	if !ok || last.Current.ID != 1 || last.Next.ID != 2 || last.Previous.ID != 0 || bytes.Equal(last.Current.Secret, last.Next.Secret) {
		t.Fatalf("the first keys: %+v", last)
	}
	b.Pass(Period - time.Minute)
	b.Look()
	if k, _ := get(); k.Current.ID != 1 {
		t.Errorf("before its time the key is another: %+v", k)
	}
	for range 3 {
		b.Pass(Period)
		b.Look()
		k, _ := get()
		if k.Previous.ID != last.Current.ID || !bytes.Equal(k.Previous.Secret, last.Current.Secret) || k.Current.ID != last.Next.ID || !bytes.Equal(k.Current.Secret, last.Next.Secret) ||
			k.Next.ID != last.Next.ID+1 || bytes.Equal(k.Next.Secret, last.Next.Secret) {
			t.Errorf("after %+v came %+v", last, k)
		}
		last = k
	}
	if list := store.List[*cluster.Secret](b.Store.View()); len(list) != 1 {
		t.Errorf("%d secrets, want those of one network", len(list))
	}
	n, err := store.Find[*cluster.Network](b.Store.View(), "net")
	if err != nil {
		t.Fatal(err)
	}
	b.Commit(store.Delete(n))
	b.Look()
	if _, ok := get(); ok {
		t.Error("keys of a network that has gone are left")
	}
}
