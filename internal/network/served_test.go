package network_test

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/dns"
	"escale.dev/escale/internal/sys/netns"
)

// register is a Resolver that notes what is asked of it.
type register struct {
	mu    sync.Mutex
	boxes map[string]dns.Names // that are served
	up    dns.Upstream         // of the last
	files int                  // handed out
	fail  error                // of Serve
}

func (r *register) Listen(*netns.Handle) ([]*os.File, error) {
	f, err := os.Open(os.DevNull)
	if err != nil {
		return nil, err
	}
	r.files++
	return []*os.File{f}, nil
}

func (r *register) Serve(box string, _ []*os.File, names dns.Names, up dns.Upstream) error {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.fail != nil {
		return r.fail
	}
	r.boxes[box], r.up = names, up
	return nil
}

func (r *register) Forget(box string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	delete(r.boxes, box)
}

// serving are the containers that are served, by the beginning of their handles.
func (r *register) serving() (list []string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	for box := range r.boxes {
		id, _, _ := strings.Cut(box, ".")
		list = append(list, id)
	}
	slices.Sort(list)
	return list
}

func newServed(t *testing.T) (*host, *register) {
	r := &register{boxes: map[string]dns.Names{}}
	conf := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(conf, []byte("nameserver 127.0.0.53\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	h := newHost(t, func(c *network.Config) { c.Resolver, c.ResolvConf = r, conf })
	h.make(network.Create{Name: "front"})
	return h, r
}

// Names are answered where a container has a network of a user's, from then on and until
// its end; the next start's are not forgotten with the last one's.
func TestWhoIsServed(t *testing.T) {
	h, r := newServed(t)
	plain := h.start("plain")
	if got := r.serving(); len(got) != 0 {
		t.Errorf("on the default network: %v", got)
	}
	a := h.startAs(on("a", "front"))
	if got := r.serving(); !slices.Equal(got, []string{a.ID}) || len(a.Held) != 1 {
		t.Errorf("served: %v, held: %v", got, a.Held)
	}
	if s := r.up.Now(); len(s) != 1 || s[0].Addr != netip.MustParseAddrPort("127.0.0.53:53") || s[0].InContainer {
		t.Errorf("upstream: %v", s)
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	for b, want := range map[*box]string{plain: "nameserver 8.8.8.8\n", a: "nameserver 127.0.0.11\n"} {
		if err := h.m.WriteResolvConf(path, network.Resolve{}, false, b.ID, b.Endpoints); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(path); err != nil || !strings.Contains(string(text), want) {
			t.Errorf("%s: %s, %v", b.ID, text, err)
		}
	}
	change, err := h.m.Connect(t.Context(), on("plain", "front"), plain.Endpoints)
	if err != nil {
		t.Fatal(err)
	}
	plain.Endpoints = change.Endpoints
	if got := r.serving(); len(got) != 2 || len(change.Held) != 1 {
		t.Errorf("connected: %v, held: %v", got, change.Held)
	}
	for _, f := range change.Held {
		f.Close()
	}
	again := on("a", "front")
	again.Resolve.Servers = []string{"192.0.2.53"}
	next := h.startAs(again)
	if r.up.Now != nil || len(r.up.Servers) != 1 || !r.up.Servers[0].InContainer {
		t.Errorf("upstream: %+v", r.up)
	}
	if err := h.m.Teardown(t.Context(), a.ID, a.Endpoints); err != nil {
		t.Fatal(err)
	}
	if got := r.serving(); !slices.Contains(got, next.ID) {
		t.Errorf("after the last run was taken down: %v", got)
	}
	h.again(map[string][]network.Endpoint{next.ID: next.Endpoints, plain.ID: plain.Endpoints})
	made, err := h.m.TakeUp(t.Context(), network.Survivor{ContainerID: next.ID, Endpoints: next.Endpoints})
	if err != nil || len(made) != 1 || !slices.Contains(r.serving(), next.ID) {
		t.Errorf("taken up: %v, %v; serving %v", made, err, r.serving())
	}
	for _, f := range made {
		f.Close()
	}
	for _, b := range []*box{next, plain} {
		if err := h.m.Teardown(t.Context(), b.ID, b.Endpoints); err != nil {
			t.Fatal(err)
		}
	}
	if got := r.serving(); len(got) != 0 {
		t.Errorf("in the end: %v", got)
	}
}

func TestServingFails(t *testing.T) {
	h, r := newServed(t)
	before := h.count()
	r.fail = errors.New("no way")
	if s, err := h.m.Setup(t.Context(), on("a", "front")); !errors.Is(err, r.fail) {
		t.Fatalf("%v, %v", s, err)
	}
	if after := h.count(); after != before {
		t.Errorf("left: %+v, before: %+v", after, before)
	}
	if info, err := h.m.Inspect("front"); err != nil || len(info.Containers) != 0 {
		t.Errorf("%v, %v", info.Containers, err)
	}
}

// One that has a health check and is not healthy yet has its name as long as nobody else has.
func TestNamesOfTheStarting(t *testing.T) {
	h, _ := newServed(t)
	start := func(name string, probed bool) *box {
		r := on(name, "front")
		r.Networks["front"].Aliases, r.Probed = []string{"svc"}, probed
		return h.startAs(r)
	}
	b := start("b", true)
	svc := func(want ...string) {
		t.Helper()
		addrs, _ := h.m.Names(b.ID).Addrs("svc")
		var got []string
		for _, a := range addrs {
			if a.Is4() {
				got = append(got, a.String())
			}
		}
		if slices.Sort(got); !slices.Equal(got, want) {
			t.Errorf("svc is %v, want %v", got, want)
		}
	}
	svc(b.ip())
	a := start("a", false)
	svc(a.ip())
	h.m.SetHealth(t.Context(), b.ID, "healthy")
	both := []string{a.ip(), b.ip()}
	slices.Sort(both)
	svc(both...)
}
