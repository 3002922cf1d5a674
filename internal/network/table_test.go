package network

import (
	"context"
	"errors"
	"net/netip"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// Who removes a network that another removes waits until that is over: a name that is
// then taken for another network is free, and that other one stays.
func TestRemovedByTwo(t *testing.T) {
	for _, c := range []struct {
		name string
		over func(t *table, a *attached)
		want func(err error) bool // nil: it becomes the second's to remove
	}{
		{"gone", (*table).drop, errdefs.IsNotFound},
		{"exchanged", func(t *table, a *attached) {
			t.drop(a)
			t.put(&attached{info: Info{Name: "lan", ID: "2"}})
		}, errdefs.IsNotFound},
		{"stays", (*table).stay, nil},
		{"never over", func(*table, *attached) {}, errdefs.IsUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
				defer cancel()
				tab := newTable()
				tab.put(&attached{info: Info{Name: "lan", ID: "1"}})
				a, err := tab.leave(ctx, "lan")
				if err != nil {
					t.Fatal(err)
				}
				begun := time.Now()
				go func() {
					time.Sleep(time.Second)
					c.over(tab, a)
				}()
				second, err := tab.leave(ctx, "lan")
				if c.want == nil && (err != nil || second != a) || c.want != nil && !c.want(err) {
					t.Errorf("%v, %v", second, err)
				}
				if time.Since(begun) < time.Second {
					t.Errorf("answered after %s", time.Since(begun))
				}
				if b, err := tab.find("lan"); c.name == "exchanged" && (err != nil || b.going) {
					t.Errorf("the other one: %+v, %v", b, err)
				}
			})
		})
	}
}

// Who asks for an address of a container that has ended gets it when all is over, not
// sooner; nobody waits for one of a container that runs, nor for ever.
func TestAddressOfWhoLeaves(t *testing.T) {
	ep := Endpoint{Network: "lan", NetworkID: "1", EndpointID: "e", IP: "10.1.0.9", IP6: "fd00::9"}
	v4, v6 := netip.MustParseAddr("10.1.0.9"), netip.MustParseAddr("fd00::9")
	for _, c := range []struct {
		name  string
		addr  netip.Addr
		ended bool // the container
		over  time.Duration
		cut   time.Duration
		want  time.Duration
	}{
		{"runs", v4, false, time.Second, time.Minute, 0},
		{"another", netip.MustParseAddr("10.1.0.8"), true, time.Second, time.Minute, 0},
		{"none asked for", netip.Addr{}, true, time.Second, time.Minute, 0},
		{"ended", v4, true, time.Second, time.Minute, 2 * time.Second},
		{"ended, IPv6", v6, true, time.Second, time.Minute, 2 * time.Second},
		{"cut", v4, true, time.Second, 1500 * time.Millisecond, 1500 * time.Millisecond},
		{"never over", v4, true, time.Hour, time.Minute, leavePatience},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.cut)
				defer cancel()
				tab := newTable()
				a := &attached{info: Info{Name: "lan", ID: "1"}, containers: map[string]Endpoint{"c": ep}}
				tab.put(a)
				if c.ended {
					tab.part("c", []Endpoint{ep})
				}
				go func() {
					time.Sleep(c.over)
					if !tab.forget("c", ep) || tab.forget("c", ep) {
						t.Error("its addresses are not to be given back once")
					}
					time.Sleep(time.Second) // somebody gives them back
					tab.released(a, ep)
				}()
				begun := time.Now()
				err := tab.await(ctx, a, netip.Addr{}, c.addr)
				if took := time.Since(begun); took != c.want || (err != nil) != (c.want == c.cut) {
					t.Errorf("%v after %s, want %s", err, took, c.want)
				}
				time.Sleep(2 * time.Hour)
				tab.mu.Lock()
				defer tab.mu.Unlock()
				if len(a.leaving) != 0 {
					t.Errorf("%v is left", a.leaving)
				}
			})
		})
	}
}

// Who asks for any address of a full network gets that of a container that has ended as
// soon as it is free, and waits for none that runs, nor for ever.
func TestAddressOfAFullNetwork(t *testing.T) {
	a10, fd := netip.MustParsePrefix("10.1.0.0/29"), netip.MustParsePrefix("fd00::/126")
	for _, c := range []struct {
		name   string
		subnet netip.Prefix
		ended  int           // of those that fill it
		over   time.Duration // until their ends are done with, one after the other
		cut    time.Duration // the client goes
		want   time.Duration
		err    func(error) bool
	}{
		{"all run", a10, 0, time.Second, time.Minute, 0, errdefs.IsUnavailable},
		{"one ended", a10, 1, time.Second, time.Minute, time.Second, nil},
		{"all ended", a10, 5, time.Second, time.Minute, time.Second, nil},
		{"IPv6", fd, 1, time.Second, time.Minute, time.Second, nil},
		{"cut", a10, 1, time.Second, time.Millisecond, time.Millisecond, func(err error) bool { return errors.Is(err, context.DeadlineExceeded) }},
		{"never over", a10, 1, time.Hour, time.Minute, leavePatience, errdefs.IsUnavailable},
	} {
		t.Run(c.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				ctx, cancel := context.WithTimeout(t.Context(), c.cut)
				defer cancel()
				p, err := newPool(Subnet{Prefix: c.subnet})
				if err != nil {
					t.Fatal(err)
				}
				tab, a := newTable(), &attached{info: Info{Name: "lan", ID: "1"}, containers: map[string]Endpoint{}, pools: []*pool{p}}
				tab.put(a)
				var ended []Endpoint
				v6 := c.subnet.Addr().Is6()
				for n := 0; ; n++ {
					at, err := a.take(ctx, &Join{}, v6, netip.Addr{})
					if err != nil {
						break
					}
					id := strconv.Itoa(n)
					ep := Endpoint{Network: "lan", NetworkID: "1", EndpointID: id}
					ep.setAddresses(at, place{})
					a.containers[id] = ep
					if n < c.ended {
						tab.part(id, []Endpoint{ep})
						ended = append(ended, ep)
					}
				}
				go func() {
					for _, ep := range ended {
						time.Sleep(c.over)
						tab.forget(ep.EndpointID, ep)
						tab.giveBack(t.Context(), a, ep)
					}
				}()
				begun := time.Now()
				at, err := tab.take(ctx, a, &Join{}, v6, netip.Addr{})
				if took := time.Since(begun); took != c.want {
					t.Errorf("answered after %s, want %s", took, c.want)
				}
				if c.err != nil && (err == nil || !c.err(err)) || c.err == nil && (err != nil || at.prefix.Addr().String() != ended[0].IP) {
					t.Errorf("%v, %v", at, err)
				}
				time.Sleep(10 * time.Hour)
			})
		})
	}
}

// Starts that wait for addresses of a full network get each one, however the ends come.
func TestManyWaitForAddresses(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		p, err := newPool(Subnet{Prefix: netip.MustParsePrefix("10.1.0.0/27")})
		if err != nil {
			t.Fatal(err)
		}
		tab, a := newTable(), &attached{info: Info{Name: "lan", ID: "1"}, containers: map[string]Endpoint{}, pools: []*pool{p}}
		tab.put(a)
		var ended []Endpoint
		for {
			at, err := a.take(t.Context(), &Join{}, false, netip.Addr{})
			if err != nil {
				break
			}
			ep := Endpoint{Network: "lan", NetworkID: "1", EndpointID: strconv.Itoa(len(ended))}
			ep.setAddresses(at, place{})
			a.containers[ep.EndpointID] = ep
			tab.part(ep.EndpointID, []Endpoint{ep})
			ended = append(ended, ep)
		}
		waiting := make(chan error)
		for n, ep := range ended {
			go func() {
				time.Sleep(time.Duration(1+n%7) * time.Millisecond)
				tab.forget(ep.EndpointID, ep)
				tab.giveBack(t.Context(), a, ep)
			}()
			go func() {
				at, err := tab.take(t.Context(), a, &Join{}, false, netip.Addr{})
				if err == nil && !at.prefix.IsValid() {
					err = errors.New("no address")
				}
				waiting <- err
			}()
		}
		if len(ended) < 20 {
			t.Errorf("%d addresses", len(ended))
		}
		for range ended {
			if err := <-waiting; err != nil {
				t.Error(err)
			}
		}
	})
}

// refusing is a driver that takes a second to refuse who joins, and as long to let go.
type refusing struct{ absent }

func (d refusing) Join(context.Context, string, *netns.Handle, Join) (Endpoint, error) {
	time.Sleep(time.Second)
	return Endpoint{}, errors.New("refused")
}

func (d refusing) Leave(context.Context, Endpoint) error {
	time.Sleep(time.Second)
	return nil
}

// Who waits for any address of a full network, since somebody is leaving it, gets that of
// a start which comes to nothing sooner.
func TestAddressOfWhoCameToNothing(t *testing.T) {
	for _, family := range []string{"10.1.0.0/29", "fd00::/126"} {
		for name, fails := range map[string]func(*Manager, *part) error{
			"the join": func(m *Manager, p *part) error {
				if _, err := m.join(t.Context(), nil, Request{}, p, Join{EndpointID: "new"}, false, false); err == nil {
					return errors.New("it was not refused")
				}
				return nil
			},
			"the rest": func(m *Manager, p *part) error {
				at4, at6, err := takeBoth(p.net)
				ep := Endpoint{Network: "lan", NetworkID: "1", EndpointID: "new"}
				ep.setAddresses(at4, at6)
				s := &setup{m: m, door: -1, plan: plan{parts: []part{*p}}, box: &Sandbox{Endpoints: []Endpoint{ep}}}
				return errors.Join(err, s.undo(t.Context()))
			},
		} {
			t.Run(family+" "+name, func(t *testing.T) {
				synctest.Test(t, func(t *testing.T) {
					pools, err := newPools([]Subnet{{Prefix: netip.MustParsePrefix(family)}})
					if err != nil {
						t.Fatal(err)
					}
					v6 := pools[0].is6()
					m := &Manager{base: &base{networks: newTable()}}
					a := &attached{driver: refusing{"slow"}, info: Info{Name: "lan", ID: "1"}, containers: map[string]Endpoint{}, pools: pools}
					m.networks.put(a)
					at4, at6, err := takeBoth(a)
					if err != nil {
						t.Fatal(err)
					}
					leaving := Endpoint{Network: "lan", NetworkID: "1", EndpointID: "old"}
					leaving.setAddresses(at4, at6)
					a.containers["c"] = leaving
					m.networks.part("c", []Endpoint{leaving})
					for n := pools[0].Used(); n < map[bool]int{false: 5, true: 2}[v6]; n++ { // all but one
						if _, err := pools[0].Next(); err != nil {
							t.Fatal(err)
						}
					}
					failed := make(chan error)
					go func() { failed <- fails(m, &part{net: a, settings: &network.EndpointSettings{}}) }()
					synctest.Wait()
					begun := time.Now()
					at, err := m.networks.take(t.Context(), a, &Join{}, v6, netip.Addr{})
					if took := time.Since(begun); err != nil || !at.prefix.IsValid() || took != time.Second {
						t.Errorf("%v, %v after %s", at, err, took)
					}
					if err := <-failed; err != nil {
						t.Error(err)
					}
				})
			})
		}
	}
}

func takeBoth(a *attached) (at4, at6 place, err error) {
	if at4, err = a.take(context.Background(), &Join{}, false, netip.Addr{}); err == nil {
		at6, err = a.take(context.Background(), &Join{}, true, netip.Addr{})
	}
	return at4, at6, err
}
