package esp

import (
	"bytes"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"testing"

	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// fake is a kernel of which one can be killed away at any step.
type fake struct {
	states   map[stateKey]netlink.XfrmState
	policies map[policyKey]netlink.XfrmPolicy
	steps    int // that are left until it refuses; negative: it never does
	done     []string
}

func newFake() *fake {
	return &fake{states: map[stateKey]netlink.XfrmState{}, policies: map[policyKey]netlink.XfrmPolicy{}, steps: -1}
}

var errKilled = errors.New("killed")

func (f *fake) step(format string, args ...any) error {
	if f.steps == 0 {
		return errKilled
	}
	f.steps--
	f.done = append(f.done, fmt.Sprintf(format, args...))
	return nil
}

func (f *fake) States() ([]netlink.XfrmState, error) {
	return slices.Collect(maps.Values(f.states)), nil
}

func (f *fake) Policies() ([]netlink.XfrmPolicy, error) {
	return slices.Collect(maps.Values(f.policies)), nil
}

func (f *fake) AddState(s *netlink.XfrmState) error {
	if _, there := f.states[keyOfState(s)]; there {
		return unix.EEXIST
	}
	if err := f.step("+state %s>%s", s.Src, s.Dst); err != nil {
		return err
	}
	f.states[keyOfState(s)] = *s
	return nil
}

func (f *fake) DelState(s *netlink.XfrmState) error {
	if err := f.step("-state %s>%s", s.Src, s.Dst); err != nil {
		return err
	}
	delete(f.states, keyOfState(s))
	return nil
}

func (f *fake) SetPolicy(p *netlink.XfrmPolicy) error {
	if err := f.step("+policy %s %s>%s", p.Dir, p.Src, p.Dst); err != nil {
		return err
	}
	f.policies[keyOfPolicy(p)] = *p
	return nil
}

func (f *fake) DelPolicy(p *netlink.XfrmPolicy) error {
	if err := f.step("-policy %s %s>%s", p.Dir, p.Src, p.Dst); err != nil {
		return err
	}
	delete(f.policies, keyOfPolicy(p))
	return nil
}

func at(n int) netip.Addr { return netip.MustParseAddr(fmt.Sprintf("192.0.2.%d", n)) }

func key(n uint64) Key { return Key{ID: n, Secret: bytes.Repeat([]byte{byte(n)}, 32)} }

func network(local int, keys Keys, peers ...int) Network {
	n := Network{ID: "net", VNI: 4099, To: 4789, Local: at(local), Keys: keys}
	for _, p := range peers {
		n.Peers = append(n.Peers, at(p))
	}
	return n
}

// understand checks that what host 1 sends host 2 is decrypted there, and that nothing goes clear.
func understand(t *testing.T, when string, one, two *fake) {
	t.Helper()
	for _, p := range one.policies {
		if p.Dir != netlink.XFRM_DIR_OUT || p.Action == netlink.XFRM_POLICY_BLOCK || addr(p.Dst.IP) != at(2) {
			continue
		}
		k := stateKey{at(1), at(2), uint32(p.Tmpls[0].Spi)}
		out, ok := one.states[k]
		in, there := two.states[k]
		if !ok || !there || !bytes.Equal(out.Aead.Key, in.Aead.Key) || out.Reqid != p.Tmpls[0].Reqid {
			t.Errorf("%s: host 1 sends by a state %v that it has: %t, and host 2: %t", when, k, ok, there)
		}
		return
	}
	t.Errorf("%s: host 1 has no policy for host 2", when)
}

// Keys are exchanged while packets flow: at every moment of it each host understands the other,
// whichever of them is first, and one that was killed in between takes up where it was.
func TestRotation(t *testing.T) {
	first, second := Keys{Current: key(1), Next: key(2)}, Keys{Previous: key(1), Current: key(2), Next: key(3)}
	one, two := newFake(), newFake()
	a, b := New("i", one), New("i", two)
	if err := errors.Join(a.Set(network(1, first, 2, 3)), b.Set(network(2, first, 1))); err != nil {
		t.Fatal(err)
	}
	understand(t, "at first", one, two)
	understand2 := func(when string) {
		t.Helper()
		understand(t, when, one, two)
		for k, s := range one.states {
			if s.Dst.Equal(at(1).AsSlice()) && !s.Src.Equal(at(2).AsSlice()) && !s.Src.Equal(at(3).AsSlice()) {
				t.Errorf("%s: a state from nowhere: %v", when, k)
			}
		}
	}
	// Host 1 goes first, killed at each step and beginning anew.
	for n := 0; ; n++ {
		one.steps = n
		err := New("i", one).Set(network(1, second, 2, 3))
		one.steps = -1
		understand2(fmt.Sprint("after a kill at step ", n))
		if err == nil {
			break
		}
		if !errors.Is(err, errKilled) {
			t.Fatal(err)
		}
	}
	if err := b.Set(network(2, second, 1)); err != nil {
		t.Fatal(err)
	}
	understand2("both have the new ones")
	if len(one.states) != 2*3+2 || len(one.policies) != 2*2+2 {
		t.Errorf("%d states and %d policies with two peers, want 8 and 6", len(one.states), len(one.policies))
	}
	// Again the same: nothing is touched.
	one.done = nil
	if err := a.Set(network(1, second, 2, 3)); err != nil || len(one.done) > 0 {
		t.Errorf("what is so already: %v, %v", one.done, err)
	}
}

// What is made is taken back, of this instance and network only, also by one that comes after
// a kill.
func TestUndo(t *testing.T) {
	k := newFake()
	c, other := New("i", k), New("other", k)
	keys := Keys{Current: key(1), Next: key(2)}
	foreign := network(1, keys, 2)
	foreign.ID, foreign.VNI = "theirs", 5000
	second := network(1, keys, 3)
	second.ID, second.VNI = "second", 4100
	if err := errors.Join(c.Set(network(1, keys, 2, 3)), c.Set(second), other.Set(foreign)); err != nil {
		t.Fatal(err)
	}
	count := func(c *Cipher, vni uint32) (n int) {
		for _, s := range k.states {
			if s.Reqid == c.reqid(vni) {
				n++
			}
		}
		for _, p := range k.policies {
			if p.Tmpls[0].Reqid == c.reqid(vni) {
				n++
			}
		}
		return n
	}
	if err := c.Set(network(1, keys, 3)); err != nil { // one peer has gone
		t.Fatal(err)
	}
	for key := range k.states {
		if key.src == at(2) && k.states[key].Reqid == c.reqid(4099) {
			t.Errorf("of a peer that has gone: %v", key)
		}
	}
	before := count(other, 5000)
	if err := New("i", k).Sweep([]uint32{4100}); err != nil {
		t.Fatal(err)
	}
	if count(c, 4099) != 0 || count(c, 4100) == 0 || count(other, 5000) != before {
		t.Errorf("after a sweep: %d of a network that has gone, %d of one that is, %d of another instance's %d", count(c, 4099), count(c, 4100), count(other, 5000), before)
	}
	if err := errors.Join(c.Remove(4100), c.Remove(4100), other.Remove(5000)); err != nil || len(k.states)+len(k.policies) > 0 {
		t.Errorf("left: %v %v, %v", k.states, k.policies, err)
	}
}

func TestRefusals(t *testing.T) {
	k := newFake()
	if err := New("i", k).Set(network(1, Keys{Next: key(1)}, 2)); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("without a key: %v", err)
	}
	keys := Keys{Current: key(1)}
	if err := New("i", k).Set(network(1, keys, 2)); err != nil {
		t.Fatal(err)
	}
	if err := New("other", k).Set(network(1, keys, 2)); err == nil {
		t.Error("another engine takes the same ports between the same hosts")
	}
}

// Each direction, pair of hosts, network and key has a key of its own.
func TestDerive(t *testing.T) {
	seen := map[string]string{}
	for _, id := range []uint64{1, 2} {
		for _, net := range []string{"a", "b"} {
			for _, pair := range [][2]int{{1, 2}, {2, 1}, {1, 3}} {
				spi, secret, err := derive(key(id), net, at(pair[0]), at(pair[1]))
				if err != nil || spi < 256 || len(secret) != 36 {
					t.Fatalf("%d %d %v", spi, len(secret), err)
				}
				who := fmt.Sprint(id, net, pair)
				for _, part := range []string{fmt.Sprint(spi), string(secret)} {
					if seen[part] != "" {
						t.Errorf("%s and %s are the same", seen[part], who)
					}
					seen[part] = who
				}
			}
		}
	}
}

// The kernel gives back what it was given: by that the next engine knows it again.
func TestKernelKnowsPolicies(t *testing.T) {
	netnstest.Root(t)
	for _, local := range []string{"192.0.2.1", "2001:db8::1"} {
		c := New("i", noStates{})
		n := network(1, Keys{Current: key(1), Next: key(2)})
		n.Local = netip.MustParseAddr(local)
		n.Peers = []netip.Addr{n.Local.Next()}
		if err := c.Set(n); errors.Is(err, ErrNone) {
			t.Skip(err)
		} else if err != nil {
			t.Fatal(err)
		}
		_, want, err := c.wanted(n)
		if err != nil {
			t.Fatal(err)
		}
		list, err := real{}.Policies()
		if err != nil {
			t.Fatal(err)
		}
		got := map[policyKey]bool{}
		for _, p := range list {
			got[keyOfPolicy(&p)] = true
			if w := want[keyOfPolicy(&p)]; len(p.Tmpls) != 1 || len(w.Tmpls) != 1 || p.Tmpls[0].Reqid != w.Tmpls[0].Reqid || p.Action != w.Action || p.Priority != w.Priority {
				t.Errorf("the kernel has %v, was given %v", p, w)
			}
		}
		if len(got) != len(want) {
			t.Errorf("the kernel has %d policies, was given %d", len(got), len(want))
		}
		if err := New("i", noStates{}).Sweep(nil); err != nil {
			t.Fatal(err)
		}
		if list, err := (real{}).Policies(); err != nil || len(list) > 0 {
			t.Errorf("after a sweep: %v, %v", list, err)
		}
	}
}

// noStates is the kernel, of which states are not asked: it may have no ESP.
type noStates struct{ real }

func (noStates) States() ([]netlink.XfrmState, error) { return nil, nil }
func (noStates) AddState(*netlink.XfrmState) error    { return nil }
func (noStates) DelState(*netlink.XfrmState) error    { return nil }

// The kernel says whether it encrypts, and why not, and nothing is left of the question.
func TestProbe(t *testing.T) {
	netnstest.Root(t)
	err := Probe()
	if err != nil && !errors.Is(err, ErrNone) {
		t.Fatal(err)
	}
	t.Logf("this kernel encrypts: %v", err)
	if list, e := (real{}).Policies(); e == nil && len(list) > 0 {
		t.Errorf("left: %v", list)
	}
}
