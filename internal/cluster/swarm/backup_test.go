package swarm

import (
	"bytes"
	"errors"
	"io"
	"strings"
	"testing"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/backup"
	"escale.dev/escale/internal/cluster/store/seal"
	"github.com/containerd/errdefs"
)

// backedUp is a backup of the rig's swarm.
func (r *rig) backedUp(passphrase string) (raw []byte, stale bool) {
	r.Helper()
	var out bytes.Buffer
	if err := (Backups{r.Swarm}).Backup(r.Context(), passphrase, func(s bool) io.Writer { stale = s; return &out }); err != nil {
		r.Fatal(err)
	}
	return out.Bytes(), stale
}

// A backup is sealed with the passphrase, or what managers are unlocked with; without either
// there is none, and nothing is begun.
func TestBackup(t *testing.T) {
	r := newRig(t)
	never := func(bool) io.Writer { t.Error("begun"); return io.Discard }
	if err := (Backups{r.Swarm}).Backup(t.Context(), "correct horse", never); !errors.Is(err, errNoManager) {
		t.Errorf("no swarm: %v", err)
	}
	r.init()
	if err := (Backups{r.Swarm}).Backup(t.Context(), "", never); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), "sealed with a passphrase") {
		t.Errorf("with nothing: %v", err)
	}
	if err := (Backups{r.Swarm}).Backup(t.Context(), "short", never); !errdefs.IsInvalidArgument(err) {
		t.Errorf("with little: %v", err)
	}
	raw, stale := r.backedUp("correct horse")
	state, h, err := backup.Read(bytes.NewReader(raw), backup.Secret{Passphrase: "correct horse"})
	if err != nil || stale || h.Made.Unix() != 1e9 || state.Revision() != r.Store.View().Revision() {
		t.Errorf("%+v, %v, stale %v", h, err, stale)
	}
	r.membership().behind = errdefs.ErrUnavailable
	if _, stale = r.backedUp("correct horse"); !stale {
		t.Error("it says that it is current")
	}
	c, err := the(r.Store.View())
	if err != nil {
		t.Fatal(err)
	}
	c = store.Copy(c)
	c.Spec.EncryptionConfig.AutoLockManagers, c.Status.UnlockKey = true, seal.NewKey().String()
	r.commit(store.Update(c))
	raw, _ = r.backedUp("")
	if _, _, err := backup.Read(bytes.NewReader(raw), backup.Secret{UnlockKey: c.Status.UnlockKey}); err != nil {
		t.Error(err)
	}
}

// A host that is alone takes its place in what is restored; a manager is set back when that is asked.
func TestRestore(t *testing.T) {
	from := newRig(t).init()
	raw, _ := from.backedUp("correct horse")
	o := Restoration{Passphrase: "correct horse", AdvertiseAddr: "192.0.2.7"}
	r := newRig(t)
	m := r.membership()
	out, err := (Backups{r.Swarm}).Restore(t.Context(), bytes.NewReader(raw), o)
	if err != nil || m.saved == nil || m.placed == nil {
		t.Fatalf("%v, %+v", err, m.placed)
	}
	if n := m.placed; n.ID != "node1" || !n.Spec.Manager || n.Spec.Availability != cluster.Active || n.Status.Manager.Addr != "192.0.2.7:2377" || n.Status.ListenAddr != "0.0.0.0:2377" {
		t.Errorf("%+v", n)
	}
	c, err := the(from.Store.View())
	if err != nil || out.Cluster != c.ID || out.Node != "node1" || out.Objects != len(store.Writes(from.Store.View())) || out.Revision != from.Store.View().Revision() {
		t.Errorf("%+v, %v", out, err)
	}
	m.saved, m.placed = nil, nil
	for what, x := range map[string]struct {
		raw []byte
		o   Restoration
		is  func(error) bool
	}{
		"another passphrase": {raw, Restoration{Passphrase: "correct cow", AdvertiseAddr: "192.0.2.7"}, errdefs.IsPermissionDenied},
		"cut off":            {raw[:len(raw)-1], o, errdefs.IsInvalidArgument},
		"no address":         {raw, Restoration{Passphrase: "correct horse", AdvertiseAddr: "nosuch0"}, errdefs.IsInvalidArgument},
	} {
		if _, err := (Backups{r.Swarm}).Restore(t.Context(), bytes.NewReader(x.raw), x.o); !x.is(err) || m.saved != nil {
			t.Errorf("%s: %v", what, err)
		}
	}
	m.part = Part{Node: "node1", In: true}
	if _, err := (Backups{r.Swarm}).Restore(t.Context(), bytes.NewReader(raw), Restoration{Passphrase: "correct horse", Force: true}); !errors.Is(err, errInSwarm) {
		t.Errorf("a worker: %v", err)
	}
	m.part.Manager = true
	if _, err := (Backups{r.Swarm}).Restore(t.Context(), bytes.NewReader(raw), o); !errdefs.IsConflict(err) || m.saved != nil {
		t.Errorf("a manager, not forced: %v", err)
	}
	for _, o := range []Restoration{{ListenAddr: "192.0.2.7"}, {AdvertiseAddr: "192.0.2.7"}, {DataPathAddr: "192.0.2.7"}} {
		o.Passphrase, o.Force = "correct horse", true
		if _, err := (Backups{r.Swarm}).Restore(t.Context(), bytes.NewReader(raw), o); !errdefs.IsInvalidArgument(err) || m.saved != nil {
			t.Errorf("a manager, at another address: %v", err)
		}
	}
	if _, err := (Backups{r.Swarm}).Restore(t.Context(), bytes.NewReader(raw), Restoration{Passphrase: "correct horse", Force: true}); err != nil || m.saved == nil || m.placed != nil {
		t.Errorf("a manager: %v", err)
	}
}
