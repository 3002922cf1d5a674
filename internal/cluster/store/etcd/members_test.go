package etcd

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
	"math/big"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/etcd/child"
	"github.com/containerd/errdefs"
)

// manager is a server and its store.
type manager struct {
	*running
	s *Store
}

// kill ends a server at once, for good.
func (r *running) kill() {
	state, _ := r.State()
	if state.PID != 0 {
		_ = syscall.Kill(state.PID, syscall.SIGKILL)
	}
	r.stop()
}

// join adds a manager to others.
func join(t *testing.T, to *Store, cfg child.Config, change ...func(*Config)) *manager {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), soon)
	defer cancel()
	j, err := to.Add(ctx, cfg.Name, cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	cfg.Join, cfg.Cluster = true, j.Cluster
	r := start(t, cfg).ready(t)
	if err := to.Promote(ctx, j.ID); err != nil {
		t.Fatal(err)
	}
	return &manager{r, r.open(t, change...)}
}

// managers makes a cluster of some, all of which are there from the beginning.
func managers(t *testing.T, n int, change ...func(*Config)) (out []*manager) {
	t.Helper()
	cfgs := make([]child.Config, n)
	var all []string
	for i := range cfgs {
		cfgs[i] = config(t, fmt.Sprint("m", i+1))
		all = append(all, cfgs[i].Name+"="+cfgs[i].Listen)
	}
	for _, cfg := range cfgs {
		cfg.Cluster = strings.Join(all, ",")
		out = append(out, &manager{running: start(t, cfg)})
	}
	for _, m := range out {
		m.s = m.ready(t).open(t, change...)
	}
	return out
}

// leading finds the manager through whose server writes go.
func leading(t *testing.T, all []*manager) int {
	t.Helper()
	at := -1
	eventually(t, func() string {
		at = slices.IndexFunc(all, func(m *manager) bool { leads, _ := m.Leads(); return leads })
		if at < 0 {
			return "no server leads"
		}
		return ""
	})
	return at
}

// alike waits until all stores have the same, and tells when they never do.
func alike(t *testing.T, all []*manager) {
	t.Helper()
	most := uint64(0)
	for _, m := range all {
		most = max(most, m.s.View().Revision())
	}
	for _, m := range all {
		eventually(t, func() string {
			if at := m.s.View().Revision(); at < most {
				return fmt.Sprintf("%s is at revision %d, others at %d", m.cfg.Name, at, most)
			}
			return ""
		})
	}
	for _, m := range all[1:] {
		if a, b := saved(t, all[0].s), saved(t, m.s); a != b {
			t.Errorf("%s and %s differ:\n%s\n%s", all[0].cfg.Name, m.cfg.Name, a, b)
		}
	}
}

// Three managers write at once and see the same; the loss of one, also of that through which
// writes go, costs a moment, and nothing that was acknowledged.
func TestManagers(t *testing.T) {
	all := managers(t, 3)
	var group sync.WaitGroup
	for i, m := range all {
		group.Go(func() {
			for n := range 40 {
				if _, err := m.s.Commit(t.Context(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("w", i, "-", n)}})); err != nil {
					t.Error(err)
				}
			}
		})
	}
	group.Wait()
	alike(t, all)
	if at := all[0].s.View().Revision(); at != 120 {
		t.Errorf("120 commits led to revision %d", at)
	}
	members, err := all[1].s.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	leaders := 0
	for i, m := range members {
		if m.Leads {
			leaders++
		}
		if !m.Reachable || m.Learner || !strings.HasPrefix(m.Name, "m") {
			t.Errorf("member %d: %+v", i, m)
		}
	}
	if len(members) != 3 || leaders != 1 {
		t.Errorf("members: %+v", members)
	}

	at := leading(t, all)
	lost := all[at]
	rest := slices.Delete(slices.Clone(all), at, at+1)
	w, err := rest[0].s.Watch(120)
	if err != nil {
		t.Fatal(err)
	}
	var began time.Time
	acked := storm(t, []*Store{rest[0].s}, 4, 1, func() { lost.kill(); began = time.Now() })
	t.Logf("the first manager was lost; written again after %v at most", time.Since(began))
	alike(t, rest)
	watched := 0
	for watched < len(acked) {
		list, err := w.Next(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		watched += len(list)
	}
	for _, name := range acked {
		if _, err := store.Named[*cluster.Service](rest[1].s.View(), name); err != nil {
			t.Errorf("%s was acknowledged: %v", name, err)
		}
	}
	members, err = rest[0].s.Members(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	for _, m := range members {
		if m.Reachable != (m.Name != lost.cfg.Name) {
			t.Errorf("of the lost manager is told: %+v", m)
		}
	}
	// It comes back with what it had, and learns the rest.
	back := start(t, lost.cfg).ready(t)
	alike(t, append(rest, &manager{back, lost.s}))
}

// Without the others a manager refuses to write in bounded time, and answers what it knows,
// also when its engine opens the store anew; but its server, once started anew, answers
// nothing until there is a majority. When that is back, all goes on. Forced, it is a cluster by itself.
func TestMinority(t *testing.T) {
	all := managers(t, 3)
	must(t, all[0].s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "before"}}))
	alike(t, all)
	all[1].kill()
	all[2].kill()
	const patience = time.Second
	short := func(c *Config) { c.Patience = patience }
	for i := range 3 {
		s := all[0].open(t, short) // as an engine that starts
		if _, err := store.Named[*cluster.Service](s.View(), "before"); err != nil {
			t.Error(err)
		}
		began := time.Now()
		_, err := s.Commit(t.Context(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: "alone"}}))
		if took := time.Since(began); !errdefs.IsUnavailable(err) || took > patience+soon/2 {
			t.Errorf("attempt %d: after %v: %v", i, took, err)
		}
		members, err := s.Members(t.Context())
		if err != nil || len(members) != 3 {
			t.Errorf("members: %+v, %v", members, err)
		}
		if err := s.Close(); err != nil {
			t.Error(err)
		}
	}
	alone(t, all[0], all[0].open(t, short))
	second := start(t, all[1].cfg).ready(t)
	all[0].ready(t)
	must(t, all[0].s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "after"}}))
	alike(t, []*manager{all[0], {second, all[1].s}})

	// Two are lost for good.
	second.kill()
	all[0].stop()
	cfg := all[0].cfg
	cfg.Force = true
	forced := start(t, cfg).ready(t)
	s := forced.open(t)
	for _, name := range []string{"before", "after"} {
		if _, err := store.Named[*cluster.Service](s.View(), name); err != nil {
			t.Error(err)
		}
	}
	must(t, s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "forced"}}))
	if members, err := s.Members(t.Context()); err != nil || len(members) != 1 || members[0].Name != "m1" {
		t.Errorf("members: %+v, %v", members, err)
	}
	// It was forced once: killed and started again it has who joined meanwhile.
	third := join(t, s, config(t, "m4"))
	state, _ := forced.State()
	if err := syscall.Kill(state.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if now, _ := forced.State(); now.Ready && now.PID != state.PID {
			return ""
		}
		return "it is not started again"
	})
	must(t, third.s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "with two"}}))
	if members, err := s.Members(t.Context()); err != nil || len(members) != 2 {
		t.Errorf("members: %+v, %v", members, err)
	}
}

// alone starts the server of a manager anew that is no majority: it does not answer, which is
// said in bounded time; the engine's store goes on with what it knows.
func alone(t *testing.T, m *manager, s *Store) {
	t.Helper()
	state, _ := m.State()
	if err := syscall.Kill(state.PID, syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if now, _ := m.State(); now.Starts > state.Starts && now.PID != 0 {
			return ""
		}
		return "it is not started again"
	})
	within := func(d time.Duration) context.Context {
		ctx, cancel := context.WithTimeout(t.Context(), d)
		t.Cleanup(cancel)
		return ctx
	}
	if err := m.Ready(within(2 * time.Second)); !errdefs.IsUnavailable(err) || errdefs.IsFailedPrecondition(err) {
		t.Errorf("a server that is no majority: %v", err)
	}
	cfg := Config{Socket: m.cfg.Socket, Name: m.cfg.Name, Patience: time.Second, Log: logged(t)}
	if _, err := Open(within(2*time.Second), cfg); !errdefs.IsUnavailable(err) {
		t.Errorf("opened by it: %v", err)
	}
	if _, err := store.Named[*cluster.Service](s.View(), "before"); err != nil {
		t.Error(err)
	}
	began := time.Now()
	if _, err := s.Commit(t.Context(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: "anew"}})); !errdefs.IsUnavailable(err) || time.Since(began) > soon/2 {
		t.Errorf("after %v: %v", time.Since(began), err)
	}
}

// Members come one at a time and go for good.
func TestJoinAndLeave(t *testing.T) {
	all := managers(t, 1)
	s := all[0].s
	cfg := config(t, "m2")
	first, err := s.Add(t.Context(), "m2", cfg.Listen)
	if err != nil {
		t.Fatal(err)
	}
	if again, err := s.Add(t.Context(), "m2", cfg.Listen); err != nil || again.ID != first.ID || again.Cluster != first.Cluster {
		t.Errorf("asked again: %+v, then %+v, %v", first, again, err)
	}
	if _, err := s.Add(t.Context(), "m3", peerURL()); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "another manager is joining") {
		t.Errorf("while another joins: %v", err)
	}
	short, cancel := context.WithTimeout(t.Context(), 100*time.Millisecond)
	if err := s.Promote(short, first.ID); err == nil || errdefs.IsNotFound(err) {
		t.Errorf("one that has not come: %v", err)
	}
	cancel()
	must(t, s, store.Create(&cluster.Task{})) // it has no vote
	two := join(t, s, cfg)
	all = append(all, two)
	if err := s.Promote(t.Context(), first.ID); err != nil {
		t.Errorf("promoted again: %v", err)
	}
	for name, c := range map[string]struct {
		err  error
		kind func(error) bool
	}{
		"a name twice":   {second(s.Add(t.Context(), "m2", peerURL())), errdefs.IsAlreadyExists},
		"a URL twice":    {second(s.Add(t.Context(), "m5", cfg.Listen)), errdefs.IsAlreadyExists},
		"no name":        {second(s.Add(t.Context(), "", peerURL())), errdefs.IsInvalidArgument},
		"a bad name":     {second(s.Add(t.Context(), "a=b", peerURL())), errdefs.IsInvalidArgument},
		"no such member": {s.Remove(t.Context(), 42), errdefs.IsNotFound},
		"nobody":         {s.Promote(t.Context(), 42), errdefs.IsNotFound},
	} {
		if !c.kind(c.err) {
			t.Errorf("%s: %v", name, c.err)
		}
	}
	if err := s.Remove(t.Context(), first.ID); err != nil {
		t.Fatal(err)
	}
	eventually(t, func() string {
		if state, _ := two.State(); state.Removed {
			return ""
		}
		return "the removed member's server does not know of it"
	})
	if err := two.Ready(t.Context()); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("removed: %v", err)
	}
	must(t, s, store.Create(&cluster.Task{}))
	if members, err := s.Members(t.Context()); err != nil || len(members) != 1 {
		t.Errorf("members: %+v, %v", members, err)
	}
	state, _ := all[0].State()
	short, cancel = context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if err := s.Remove(short, state.Member); !errdefs.IsFailedPrecondition(err) && !errdefs.IsUnavailable(err) {
		t.Errorf("the last one: %v", err)
	}
	must(t, s, store.Create(&cluster.Task{}))
}

func second[T any](_ T, err error) error { return err }

// The manager through whose server writes go leads; when it is lost with all that it has, the
// next does in a moment, and the lost one's commits are refused.
func TestLeaderLost(t *testing.T) {
	all := managers(t, 3, func(c *Config) { c.Lease = soon })
	leads := make([]chan *Leader, len(all))
	for i, m := range all {
		leads[i] = make(chan *Leader, 100)
		group, ctx := m, t.Context()
		go func() {
			for ctx.Err() == nil {
				l, err := group.s.Lead(ctx)
				if err != nil {
					return
				}
				leads[i] <- l
				<-l.Done()
			}
		}()
	}
	// The one to be preferred has come to lead.
	var at int
	var l *Leader
	eventually(t, func() string {
		at = leading(t, all)
		select {
		case l = <-leads[at]:
			select {
			case <-l.Done():
			default:
				return ""
			}
		default:
		}
		return "the manager whose server leads does not"
	})
	must(t, l.Store(), store.Create(&cluster.Task{}))
	state, _ := all[at].State()
	began := time.Now()
	all[at].kill()
	rest := slices.Delete(slices.Clone(all), at, at+1)
	// What its server has not heard of yet is who led before.
	for is := (Leading{all[at].cfg.Name, l.Term()}); is.Term <= l.Term(); {
		var err error
		if is, err = rest[0].s.Leading(t.Context(), is); err != nil {
			t.Fatal(err)
		}
	}
	t.Logf("another leads after %v", time.Since(began))
	if took := time.Since(began); took > soon/2 {
		t.Errorf("it took %v: as long as the lease", took)
	}
	back := start(t, all[at].cfg).ready(t)
	if now, _ := back.State(); now.Member != state.Member {
		t.Errorf("it came back as %x, was %x", now.Member, state.Member)
	}
	if _, err := (led{all[at].s, &Leader{s: all[at].s, fence: l.fence, lost: make(chan struct{})}}).Commit(t.Context(), store.Create(&cluster.Task{})); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("the one that led commits: %v", err)
	}
}

// A server that is frozen for longer than members wait for one that leads: others lead and write
// on; thawed it learns what it has missed, and its manager's commits as the leader are refused.
func TestFrozenServer(t *testing.T) {
	all := managers(t, 3, func(c *Config) { c.Lease = soon })
	at := leading(t, all)
	frozen := all[at]
	first, err := frozen.s.Lead(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	must(t, first.Store(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: "before"}}))
	state, _ := frozen.State()
	if err := syscall.Kill(state.PID, syscall.SIGSTOP); err != nil {
		t.Fatal(err)
	}
	defer func() { _ = syscall.Kill(state.PID, syscall.SIGCONT) }()
	rest := slices.Delete(slices.Clone(all), at, at+1)
	leads := make(chan *Leader, 2)
	ctx, stop := context.WithCancel(t.Context())
	defer stop()
	for _, m := range rest {
		go func() {
			if l, err := m.s.Lead(ctx); err == nil {
				leads <- l
			}
		}()
	}
	// What is written meanwhile is on its way through the frozen server, and goes another as soon as
	// there is one.
	was, _ := rest[0].State()
	began := time.Now()
	must(t, rest[0].s, store.Create(&cluster.Service{Meta: cluster.Meta{Name: "meanwhile"}}))
	t.Logf("it was written after %v", time.Since(began))
	eventually(t, func() string {
		if now, _ := rest[0].State(); now.Choices <= was.Choices {
			return fmt.Sprintf("that another leads is not told: %d choices before, now %d", was.Choices, now.Choices)
		}
		return ""
	})
	second := <-leads
	if second.Term() <= first.Term() {
		t.Errorf("term %d after %d", second.Term(), first.Term())
	}
	late := make(chan error, 1) // it is on its way while the server is frozen
	go func() {
		_, err := first.Store().Commit(context.Background(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: "late"}}))
		late <- err
	}()
	must(t, second.Store(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: "after"}}))
	if err := syscall.Kill(state.PID, syscall.SIGCONT); err != nil {
		t.Fatal(err)
	}
	if err := <-late; !errdefs.IsFailedPrecondition(err) {
		t.Errorf("what was on its way: %v", err)
	}
	<-first.Done()
	alike(t, all)
	if _, err := store.Named[*cluster.Service](frozen.s.View(), "late"); !errdefs.IsNotFound(err) {
		t.Errorf("it was done all the same: %v", err)
	}
}

// Members talk by TLS; certificates that the same CA has given to others than managers are
// refused.
func TestTLS(t *testing.T) {
	dir := t.TempDir()
	ca, key := issue(t, dir, "ca", nil, nil)
	files := func(cfg *child.Config, name, role string) *tls.Config {
		issue(t, dir, name, ca, key, role)
		cfg.Cert, cfg.Key, cfg.CA, cfg.Role = filepath.Join(dir, name+".crt"), filepath.Join(dir, name+".key"), filepath.Join(dir, "ca.crt"), "swarm-manager"
		cfg.Listen = strings.Replace(cfg.Listen, "http:", "https:", 1)
		pair, err := tls.LoadX509KeyPair(cfg.Cert, cfg.Key)
		if err != nil {
			t.Fatal(err)
		}
		pool := x509.NewCertPool()
		pool.AddCert(ca)
		return &tls.Config{Certificates: []tls.Certificate{pair}, RootCAs: pool, ServerName: cfg.Role}
	}
	cfg := config(t, "m1")
	good := files(&cfg, "m1", "swarm-manager")
	r := start(t, cfg).ready(t)
	s := r.open(t, func(c *Config) { c.TLS = func() *tls.Config { return good } })
	must(t, s, store.Create(&cluster.Task{}))
	cfg = config(t, "m2")
	files(&cfg, "m2", "swarm-manager")
	two := join(t, s, cfg)
	must(t, two.s, store.Create(&cluster.Task{}))
	members, err := s.Members(t.Context())
	if err != nil || len(members) != 2 || !members[0].Reachable || !members[1].Reachable {
		t.Errorf("members: %+v, %v", members, err)
	}
	cfg = config(t, "m3")
	worker := files(&cfg, "m3", "swarm-worker")
	for name, c := range map[string]*tls.Config{"worker's": worker, "no": {RootCAs: worker.RootCAs, ServerName: "swarm-manager"}} {
		worker.ServerName = "swarm-manager"
		conn, err := tls.Dial("tcp", strings.TrimPrefix(r.cfg.Listen, "https://"), c)
		if err == nil { // in TLS 1.3 the server refuses after the client is content
			_ = conn.SetDeadline(time.Now().Add(soon))
			_, err = conn.Read(make([]byte, 1))
			_ = conn.Close()
		}
		if err == nil || !strings.Contains(err.Error(), "tls:") {
			t.Errorf("with %s certificate: %v", name, err)
		}
	}
}

// issue makes a certificate and its key, of a CA or signed by one, in files of a name.
func issue(t *testing.T, dir, name string, ca *x509.Certificate, by *ecdsa.PrivateKey, roles ...string) (*x509.Certificate, *ecdsa.PrivateKey) {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{
		SerialNumber: big.NewInt(time.Now().UnixNano()), Subject: pkix.Name{CommonName: name}, NotAfter: time.Now().Add(time.Hour), DNSNames: append(roles, name),
		KeyUsage: x509.KeyUsageDigitalSignature, ExtKeyUsage: []x509.ExtKeyUsage{x509.ExtKeyUsageClientAuth, x509.ExtKeyUsageServerAuth},
	}
	if ca == nil {
		template.IsCA, template.BasicConstraintsValid, template.KeyUsage = true, true, x509.KeyUsageCertSign
		ca, by = template, key
	}
	der, err := x509.CreateCertificate(rand.Reader, template, ca, key.Public(), by)
	if err != nil {
		t.Fatal(err)
	}
	cert, err := x509.ParseCertificate(der)
	if err != nil {
		t.Fatal(err)
	}
	raw, err := x509.MarshalECPrivateKey(key)
	if err != nil {
		t.Fatal(err)
	}
	for suffix, b := range map[string]*pem.Block{".crt": {Type: "CERTIFICATE", Bytes: der}, ".key": {Type: "EC PRIVATE KEY", Bytes: raw}} {
		if err := os.WriteFile(filepath.Join(dir, name+suffix), pem.EncodeToMemory(b), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	return cert, key
}
