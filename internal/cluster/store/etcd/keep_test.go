package etcd

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"github.com/containerd/errdefs"
	clientv3 "go.etcd.io/etcd/client/v3"
	"golang.org/x/sys/unix"
)

// A database that has reached its quota by what was overwritten has place again by itself;
// one that is full of what there is says so, answers, and lets things be removed.
func TestQuota(t *testing.T) {
	cfg := config(t, "m1")
	cfg.Quota = 8 << 20
	r := start(t, cfg).ready(t)
	s := r.open(t, func(c *Config) { c.Patience = 2 * time.Second })
	data := bytes.Repeat([]byte{'x'}, 200_000)
	one := &cluster.Secret{Meta: cluster.Meta{Name: "one"}, Spec: cluster.SecretSpec{Data: data}}
	must(t, s, store.Create(one))
	alarmed := false
	for range 60 { // of each, base64 makes 270 kB: twice the quota
		eventually(t, func() string {
			is, err := store.Named[*cluster.Secret](s.View(), "one")
			if err != nil {
				return err.Error()
			}
			if _, err = s.Commit(t.Context(), store.Update(store.Copy(is))); err != nil {
				alarmed = alarmed || strings.Contains(err.Error(), "quota")
				return err.Error()
			}
			return ""
		})
	}
	if !alarmed {
		t.Error("its quota was never reached")
	}
	var err error
	made := 0
	eventually(t, func() string {
		if _, err = s.Commit(t.Context(), store.Create(&cluster.Secret{Meta: cluster.Meta{Name: cluster.NewID()}, Spec: cluster.SecretSpec{Data: data}})); err == nil {
			made++
			return "there is always place"
		}
		if strings.Contains(err.Error(), "nearly full") {
			return ""
		}
		return "it does not say that it is full: " + err.Error()
	})
	if !errdefs.IsUnavailable(err) || made < 5 {
		t.Errorf("after %d: %v", made, err)
	}
	if n := len(store.List[*cluster.Secret](s.View())); n < made {
		t.Errorf("%d of %d are seen", n, made)
	}
	is, err := s.Sizes(t.Context())
	if err != nil || is.Quota != cfg.Quota || is.Used < cfg.Quota/2 || is.File < is.Used {
		t.Errorf("%+v, %v", is, err)
	}
	for _, o := range store.List[*cluster.Secret](s.View()) {
		eventually(t, func() string {
			if _, err := s.Commit(t.Context(), store.Delete(o)); err != nil && !errdefs.IsNotFound(err) {
				return err.Error()
			}
			return ""
		})
	}
	eventually(t, func() string {
		if _, err := s.Commit(t.Context(), store.Create(&cluster.Secret{Meta: cluster.Meta{Name: "last"}})); err != nil {
			return err.Error()
		}
		return ""
	})
}

// On a full disk the server ends, and nothing else does: commits are refused with words,
// views answer; when there is place again, it goes on by itself.
func TestFullDisk(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: a disk of its own that can be filled")
	}
	cfg := config(t, "m1")
	disk := filepath.Dir(cfg.Dir)
	if err := unix.Mount("disk", disk, "tmpfs", 0, "size=48m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = unix.Unmount(disk, unix.MNT_DETACH) })
	r := start(t, cfg).ready(t)
	s := r.open(t, func(c *Config) { c.Patience = time.Second })
	must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "before"}}))
	filler := filepath.Join(disk, "filler")
	f, err := os.Create(filler)
	if err != nil {
		t.Fatal(err)
	}
	block := make([]byte, 1<<20)
	for err == nil {
		_, err = f.Write(block)
	}
	_ = f.Close()
	data := bytes.Repeat([]byte{'x'}, 300_000)
	made := 0
	eventually(t, func() string {
		_, err := s.Commit(t.Context(), store.Create(&cluster.Secret{Meta: cluster.Meta{Name: fmt.Sprint("s", made)}, Spec: cluster.SecretSpec{Data: data}}))
		if err == nil {
			made++
			return "there is always place"
		}
		if !errdefs.IsUnavailable(err) {
			t.Fatal(err)
		}
		return ""
	})
	eventually(t, func() string {
		state, _ := r.State()
		if state.Reason == nil || !strings.Contains(state.Reason.Error(), "no space left on device") {
			return fmt.Sprintf("why it does not answer: %v", state.Reason)
		}
		return ""
	})
	if _, err := store.Named[*cluster.Service](s.View(), "before"); err != nil {
		t.Error(err)
	}
	if err := os.Remove(filler); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if _, err := s.Commit(t.Context(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: cluster.NewID()}})); err != nil {
			return err.Error()
		}
		return ""
	})
	if n := len(store.List[*cluster.Secret](r.open(t).View())); n < made || n > made+1 { // the last is in doubt
		t.Errorf("%d were acknowledged, %d are there", made, n)
	}
}

// What was overwritten is let go: a store that had followed no further reads all anew, and who
// watches is told.
func TestCompacted(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	s, other := r.open(t), r.open(t)
	must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "first"}}))
	alike(t, []*manager{{r, s}, {r, other}})
	w, err := other.Watch(1)
	if err != nil {
		t.Fatal(err)
	}
	// It follows nothing while it is held, and its server has let go when it is not.
	other.mu.Lock()
	for i := range 20 {
		must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("s", i)}}))
	}
	s.mu.Lock()
	rev := s.at.head
	s.mu.Unlock()
	if _, err := s.client.Compact(t.Context(), rev, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	other.at.seen = 1 // as if it had heard of nothing yet
	other.mu.Unlock()
	if err := other.watch(t.Context()); err == nil {
		t.Fatal("a revision that was let go can be watched")
	}
	if err := other.list(t.Context(), false); err != nil {
		t.Fatal(err)
	}
	alike(t, []*manager{{r, s}, {r, other}})
	for {
		list, err := w.Next(t.Context())
		if errdefs.IsOutOfRange(err) {
			break
		}
		if err != nil || len(list) > 20 {
			t.Fatalf("%v, %v", list, err)
		}
	}
	must(t, other, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "last"}}))
}

// A database with holes is made smaller, while everything goes on.
func TestShrink(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	s := r.open(t)
	data := bytes.Repeat([]byte{'x'}, 400_000)
	one := &cluster.Secret{Meta: cluster.Meta{Name: "one"}, Spec: cluster.SecretSpec{Data: data}}
	must(t, s, store.Create(one))
	for range 20 {
		must(t, s, store.Update(one))
	}
	if _, err := s.client.Compact(t.Context(), s.at.head, clientv3.WithCompactPhysical()); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string { // it is written a moment later
		is, err := s.Sizes(t.Context())
		if err != nil {
			return err.Error()
		}
		if is.File-is.Used < 8<<20 {
			return fmt.Sprintf("no holes: %+v", is)
		}
		return ""
	})
	if err := s.shrink(t.Context()); err != nil {
		t.Fatal(err)
	}
	if is, err := s.Sizes(t.Context()); err != nil || is.File > 4<<20 {
		t.Errorf("%+v, %v", is, err)
	}
	must(t, s, store.Update(one))
}

// filled is a store with some of all, in memory.
func filled(t *testing.T, n int) store.Store {
	t.Helper()
	s := mem.New(store.NewState())
	for i := 0; i < n; i += 50 {
		var all []store.Change
		for j := i; j < i+50; j++ {
			all = append(all, store.Create(&cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("s", j)}}), store.Create(&cluster.Task{Slot: uint64(j)}))
		}
		must(t, s, all...)
	}
	return s
}

// Objects are carried over as they are; killed at any step, it is begun again; what is there
// already is left.
func TestCarry(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	from := filled(t, 400)
	cfg := Config{Socket: r.cfg.Socket, Prefix: "carried", Seal: ring(t)}
	patient := func() (context.Context, context.CancelFunc) { return context.WithTimeout(t.Context(), soon) }
	for cut := time.Millisecond; ; cut += cut / 2 { // killed later each time
		ctx, cancel := context.WithTimeout(t.Context(), cut)
		err := Carry(ctx, cfg, "this host", from.View())
		cancel()
		if err == nil {
			break
		}
		open := cfg
		open.Log, open.Name, open.Patience = logged(t), "m1", soon
		ctx, cancel = patient()
		s, err := Open(ctx, open)
		switch {
		case err == nil: // it had not begun, or had just ended
			if n := s.View().Revision(); n != 0 && n != from.View().Revision() {
				t.Errorf("cut after %v there is a store at revision %d", cut, n)
			}
			_ = s.Close()
		case !errdefs.IsUnavailable(err):
			t.Error(err)
		}
		cancel()
	}
	s := r.open(t, func(c *Config) { c.Prefix, c.Seal = cfg.Prefix, cfg.Seal })
	if a, b := saved(t, from), saved(t, s); a != b {
		t.Errorf("carried over it is another:\n%s\n%s", a, b)
	}
	must(t, s, store.Create(&cluster.Task{}))
	ctx, cancel := patient()
	defer cancel()
	if err := Carry(ctx, cfg, "this host", from.View()); err != nil {
		t.Errorf("again: %v", err)
	}
	if err := Carry(ctx, cfg, "another", from.View()); !errdefs.IsAlreadyExists(err) {
		t.Errorf("over what is there: %v", err)
	}
	if n := s.View().Revision(); n != from.View().Revision()+1 {
		t.Errorf("revision %d", n)
	}
}

// A backup is what Save writes; a cluster that is made of it has the same.
func TestBackup(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	s := r.open(t)
	for i := range 120 {
		must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("s", i)}}), store.Create(&cluster.Task{}))
	}
	var backup bytes.Buffer
	if err := store.Save(&backup, s.View()); err != nil {
		t.Fatal(err)
	}
	state, err := store.Load(bytes.NewReader(backup.Bytes()))
	if err != nil {
		t.Fatal(err)
	}
	anew := Config{Socket: r.cfg.Socket, Prefix: "anew"}
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	if err := Carry(ctx, anew, "a backup", state.View()); err != nil {
		t.Fatal(err)
	}
	if got := saved(t, r.open(t, func(c *Config) { c.Prefix = anew.Prefix })); got != backup.String() {
		t.Errorf("restored it is another:\n%s", got)
	}
}

// Nothing that was sealed can be read in the database or the log; without the key there is no
// store.
func TestSealed(t *testing.T) {
	r := start(t, config(t, "m1")).ready(t)
	key := ring(t)
	s := r.open(t, func(c *Config) { c.Seal = key })
	must(t, s, store.Create(&cluster.Secret{Meta: cluster.Meta{Name: "a-name-to-hide"}, Spec: cluster.SecretSpec{Data: []byte("a-password-to-hide")}}))
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	for name, seal := range map[string]*Config{"another key": {Seal: ring(t)}, "no key": {}} {
		cfg := Config{Socket: r.cfg.Socket, Name: "m1", Seal: seal.Seal, Log: logged(t), Patience: soon}
		if _, err := Open(ctx, cfg); !errdefs.IsFailedPrecondition(err) && !errdefs.IsDataLoss(err) {
			t.Errorf("%s: %v", name, err)
		}
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	r.stop()
	seen := 0
	err := filepath.WalkDir(r.cfg.Dir, func(path string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		raw, err := os.ReadFile(path)
		for _, hidden := range []string{"a-name-to-hide", "a-password-to-hide", "YS1wYXNzd29yZC10by1oaWRl"} {
			if bytes.Contains(raw, []byte(hidden)) {
				t.Errorf("%s holds %s", path, hidden)
			}
		}
		if bytes.Contains(raw, []byte("escale/s/o/secret/")) {
			seen++
		}
		return err
	})
	if err != nil || seen == 0 {
		t.Errorf("%d files hold the secret's key, %v", seen, err)
	}
}
