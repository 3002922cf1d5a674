package e2e

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/miekg/dns"
)

// inNetns runs fn in the network namespace of a process.
func inNetns(pid int, fn func() error) error {
	return harness.Within(fmt.Sprintf("/proc/%d/ns/net", pid), fn)
}

// askIn asks the name server that a container sees.
func askIn(pid int, network, name string, typ uint16) (m *dns.Msg, err error) {
	err = inNetns(pid, func() error {
		c := dns.Client{Net: network, Timeout: harness.Patience(20 * time.Second)}
		m, _, err = c.Exchange(new(dns.Msg).SetQuestion(dns.Fqdn(name), typ), "127.0.0.11:53")
		return err
	})
	return m, err
}

// told is an answer in one line: its code if it is not 0, else its records.
func told(m *dns.Msg) string {
	if m.Rcode != dns.RcodeSuccess {
		return dns.RcodeToString[m.Rcode]
	}
	var list []string
	for _, rr := range m.Answer {
		list = append(list, strings.TrimPrefix(rr.String(), rr.Header().String()))
	}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// fakeUpstream answers on the host's loopback, which no container reaches, at port 53:
// x.example has this address, dead ones get no answer, nothing else is there.
func fakeUpstream(t *testing.T, x string) (addr string) {
	t.Helper()
	var pc net.PacketConn
	var l net.Listener
	var err error
	for i := range 200 {
		addr = fmt.Sprintf("127.53.%d.%d", os.Getpid()%250, i+1)
		if pc, err = net.ListenPacket("udp4", addr+":53"); err != nil {
			continue
		}
		if l, err = net.Listen("tcp4", addr+":53"); err == nil {
			break
		}
		pc.Close()
	}
	if err != nil {
		t.Fatal(err)
	}
	handler := dns.HandlerFunc(func(w dns.ResponseWriter, q *dns.Msg) {
		m := new(dns.Msg).SetReply(q)
		switch name := q.Question[0].Name; {
		case strings.HasSuffix(name, ".dead.example."):
			return
		case name == "x.example." && q.Question[0].Qtype == dns.TypeA:
			rr, _ := dns.NewRR("x.example. 60 IN A " + x)
			m.Answer = append(m.Answer, rr)
		case name == "x.example.":
		default:
			m.Rcode = dns.RcodeNameError
		}
		_ = w.WriteMsg(m) // who asked may have gone
	})
	for _, s := range []*dns.Server{{PacketConn: pc, Handler: handler}, {Listener: l, Handler: handler}} {
		started := make(chan struct{})
		s.NotifyStartedFunc = func() { close(started) }
		go s.ActivateAndServe()
		<-started
		t.Cleanup(func() { _ = s.Shutdown() })
	}
	return addr
}

// village is an engine with networks and containers on them, for tests of names.
type village struct {
	t   *testing.T
	ctx context.Context
	e   *harness.Engine
	api *harness.API
	dns string // the machine's resolv.conf, as the engine sees it
}

// newVillage starts an engine whose machine has these name servers.
func newVillage(t *testing.T, servers ...string) *village {
	t.Helper()
	needs(t)
	conf := "search corp.example\n"
	for _, s := range servers {
		conf += "nameserver " + s + "\n"
	}
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(conf), 0o644); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(3*time.Minute))
	t.Cleanup(cancel)
	v := &village{t: t, ctx: ctx, e: start(t, harness.Options{Args: []string{"--resolv-conf", path}}), dns: path}
	v.api = v.e.API()
	t.Cleanup(v.api.Close)
	return v
}

func (v *village) network(name string, internal bool) {
	v.t.Helper()
	do(v.t, v.ctx, v.api, "POST", "/networks/create", map[string]any{"Name": name, "Internal": internal}, nil)
}

// house is a running container.
type house struct {
	id, ip string
	pid    int
}

// run starts a container on a network; more is for its configuration.
func (v *village) run(name, network string, endpoint, more map[string]any) house {
	v.t.Helper()
	spec := map[string]any{"Image": image, "Cmd": []string{"sleep", "1000"}, "StopSignal": "SIGKILL"}
	host := map[string]any{"NetworkMode": network}
	for k, x := range more {
		if k == "HostConfig" {
			for k, x := range x.(map[string]any) {
				host[k] = x
			}
			continue
		}
		spec[k] = x
	}
	spec["HostConfig"] = host
	if !strings.HasPrefix(network, "container:") {
		spec["NetworkingConfig"] = map[string]any{"EndpointsConfig": map[string]any{network: endpoint}}
	}
	id := create(v.t, v.ctx, v.api, name, spec)
	do(v.t, v.ctx, v.api, "POST", "/containers/"+id+"/start", nil, nil)
	var in struct {
		State           struct{ Pid int }
		NetworkSettings struct {
			Networks map[string]struct{ IPAddress string }
		}
	}
	do(v.t, v.ctx, v.api, "GET", "/containers/"+id+"/json", nil, &in)
	return house{id: id, ip: in.NetworkSettings.Networks[network].IPAddress, pid: in.State.Pid}
}

func (v *village) remove(h house) {
	v.t.Helper()
	do(v.t, v.ctx, v.api, "DELETE", "/containers/"+h.id+"?force=1", nil, nil)
}

// clear removes networks and what is on them.
func (v *village) clear(networks ...string) {
	v.t.Helper()
	var list []struct{ ID string }
	do(v.t, v.ctx, v.api, "GET", "/containers/json?all=1", nil, &list)
	for _, c := range list {
		v.remove(house{id: c.ID})
	}
	for _, n := range networks {
		do(v.t, v.ctx, v.api, "DELETE", "/networks/"+n, nil, nil)
	}
	noLeaks(v.t, v.e)
}

// expects asks by UDP and by TCP.
func (v *village) expects(from house, name string, typ uint16, want string) {
	v.t.Helper()
	for _, network := range []string{"udp", "tcp"} {
		m, err := askIn(from.pid, network, name, typ)
		if err != nil {
			v.t.Errorf("%s %s by %s: %v", dns.TypeToString[typ], name, network, err)
		} else if got := told(m); got != want {
			v.t.Errorf("%s %s by %s: %q, want %q", dns.TypeToString[typ], name, network, got, want)
		}
	}
}

// both are two addresses as told gives them.
func both(a, b house) string {
	list := []string{a.ip, b.ip}
	slices.Sort(list)
	return strings.Join(list, " ")
}

// TestNames asks the name server of containers on networks of users for everything.
func TestNames(t *testing.T) {
	v := newVillage(t, fakeUpstream(t, "192.0.2.1"))
	v.network("mynet", false)
	v.network("inner", true)
	alias := map[string]any{"Aliases": []string{"svc"}}
	web := v.run("web", "mynet", alias, map[string]any{"Hostname": "Box"})
	two := v.run("two", "mynet", alias, nil)
	cli := v.run("cli", "mynet", map[string]any{"Links": []string{"web:db"}}, nil)
	beside := v.run("beside", "container:"+cli.id, nil, nil)
	in := v.run("in", "inner", nil, nil)

	reverse, err := dns.ReverseAddr(web.ip)
	if err != nil {
		t.Fatal(err)
	}
	for _, from := range []house{cli, beside} {
		for name, want := range map[string]string{
			"web": web.ip, "WEB.": web.ip, "web.mynet": web.ip, web.id[:12]: web.ip, "box": web.ip, "svc": both(web, two), "svc.mynet": both(web, two),
			"two": two.ip, "cli": cli.ip, "db": web.ip, "web.corp.example": web.ip,
			"in": "NXDOMAIN", "web.inner": "NXDOMAIN", "none": "NXDOMAIN", "x.example": "192.0.2.1", "y.example": "NXDOMAIN",
		} {
			v.expects(from, name, dns.TypeA, want)
		}
		v.expects(from, "web", dns.TypeAAAA, "")
		v.expects(from, "web", dns.TypeTXT, "")
		v.expects(from, "x.example", dns.TypeAAAA, "")
		v.expects(from, reverse, dns.TypePTR, "web.mynet.")
	}
	v.expects(two, "db", dns.TypeA, "NXDOMAIN") // a link is its container's alone
	v.expects(in, "in", dns.TypeA, in.ip)
	v.expects(in, "web", dns.TypeA, "SERVFAIL")
	v.expects(in, "x.example", dns.TypeA, "SERVFAIL")

	// The machine comes to another network.
	if err := os.WriteFile(v.dns, []byte("nameserver "+fakeUpstream(t, "192.0.2.2")+"\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	for begun := time.Now(); ; time.Sleep(50 * time.Millisecond) {
		m, err := askIn(cli.pid, "udp", "x.example", dns.TypeA)
		if err != nil {
			t.Fatal(err)
		}
		if told(m) == "192.0.2.2" {
			break
		}
		if time.Since(begun) > harness.Patience(20*time.Second) {
			t.Fatalf("the old server is asked: %s", told(m))
		}
	}

	// One more network while it runs; another name.
	do(t, v.ctx, v.api, "POST", "/networks/inner/connect", map[string]any{"Container": cli.id}, nil)
	v.expects(cli, "in", dns.TypeA, in.ip)
	v.expects(cli, "in.inner", dns.TypeA, in.ip)
	do(t, v.ctx, v.api, "POST", "/containers/two/rename?name=deux", nil, nil)
	v.expects(cli, "deux", dns.TypeA, two.ip)
	v.expects(cli, "two", dns.TypeA, "NXDOMAIN")
	do(t, v.ctx, v.api, "POST", "/networks/inner/disconnect", map[string]any{"Container": cli.id}, nil)
	v.expects(cli, "in", dns.TypeA, "NXDOMAIN")

	// From the default network to one that has names.
	late := v.run("late", "bridge", nil, nil)
	do(t, v.ctx, v.api, "POST", "/networks/mynet/connect", map[string]any{"Container": late.id}, nil)
	v.expects(late, "web", dns.TypeA, web.ip)

	// An engine that was killed: who is held by monitors goes on, all of it.
	if err := v.e.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := v.e.Start(v.ctx); err != nil {
		t.Fatal(err)
	}
	for _, from := range []house{cli, beside, late} {
		v.expects(from, "svc", dns.TypeA, both(web, two))
		v.expects(from, "x.example", dns.TypeA, "192.0.2.2")
	}
	v.expects(cli, "db", dns.TypeA, web.ip)
	v.expects(in, "x.example", dns.TypeA, "SERVFAIL")
	v.remove(web)
	v.expects(cli, "svc", dns.TypeA, two.ip)
	v.expects(cli, "db", dns.TypeA, "NXDOMAIN")
	v.clear("mynet", "inner")
}

// TestNamesOfTheUnhealthy: who is ill is left out while another has the same name.
func TestNamesOfTheUnhealthy(t *testing.T) {
	v := newVillage(t, fakeUpstream(t, "192.0.2.1"))
	v.network("mynet", false)
	alias := map[string]any{"Aliases": []string{"svc"}}
	check := map[string]any{"Healthcheck": map[string]any{"Test": []string{"CMD-SHELL", "test ! -f /ill"}, "Interval": int64(100 * time.Millisecond), "Retries": 1}}
	one, two := v.run("one", "mynet", alias, check), v.run("two", "mynet", alias, check)
	health := func(h house, touch bool, want string) {
		t.Helper()
		file := fmt.Sprintf("/proc/%d/root/ill", h.pid)
		if touch {
			if err := os.WriteFile(file, nil, 0o644); err != nil {
				t.Fatal(err)
			}
		} else if err := os.RemoveAll(file); err != nil {
			t.Fatal(err)
		}
		for begun := time.Now(); ; time.Sleep(20 * time.Millisecond) {
			var in struct {
				State struct{ Health struct{ Status string } }
			}
			do(t, v.ctx, v.api, "GET", "/containers/"+h.id+"/json", nil, &in)
			if in.State.Health.Status == want {
				return
			}
			if time.Since(begun) > harness.Patience(20*time.Second) {
				t.Fatalf("%s, want %s", in.State.Health.Status, want)
			}
		}
	}
	health(one, false, "healthy")
	health(two, false, "healthy")
	v.expects(one, "svc", dns.TypeA, both(one, two))
	health(one, true, "unhealthy")
	v.expects(one, "svc", dns.TypeA, two.ip)
	v.expects(two, "one", dns.TypeA, one.ip) // it is the only one of that name
	if err := v.e.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := v.e.Start(v.ctx); err != nil {
		t.Fatal(err)
	}
	v.expects(one, "svc", dns.TypeA, two.ip)
	health(two, true, "unhealthy")
	v.expects(one, "svc", dns.TypeA, both(one, two)) // better than nobody
	health(one, false, "healthy")
	v.expects(two, "svc", dns.TypeA, one.ip)
	v.clear("mynet")
}

// TestDeadResolver: a machine's first server that is dead holds up nobody, and no server
// at all only who asks for the outside.
func TestDeadResolver(t *testing.T) {
	needs(t)
	pc, err := net.ListenPacket("udp4", fmt.Sprintf("127.53.%d.250:53", os.Getpid()%250)) // it never answers
	if err != nil {
		t.Fatal(err)
	}
	defer pc.Close()
	dead := netip.MustParseAddrPort(pc.LocalAddr().String()).Addr().String()
	v := newVillage(t, dead, fakeUpstream(t, "192.0.2.1"))
	v.network("mynet", false)
	web := v.run("web", "mynet", nil, nil)
	v.expects(web, "x.example", dns.TypeA, "192.0.2.1")
	var stop atomic.Bool
	var wg sync.WaitGroup
	for i := range 20 { // they wait for nobody
		wg.Go(func() {
			for !stop.Load() {
				_ = inNetns(web.pid, func() error {
					c := dns.Client{Timeout: 100 * time.Millisecond}
					_, _, _ = c.Exchange(new(dns.Msg).SetQuestion(fmt.Sprintf("n%d.dead.example.", i), dns.TypeA), "127.0.0.11:53")
					return nil
				})
			}
		})
	}
	for range 50 {
		v.expects(web, "web", dns.TypeA, web.ip)
	}
	stop.Store(true)
	wg.Wait()
	v.clear("mynet")
}

// TestNamesUnderLoad asks a thousand times a second while containers come and go and
// the engine is killed: no answer is wrong, none is missing.
func TestNamesUnderLoad(t *testing.T) {
	v := newVillage(t, fakeUpstream(t, "192.0.2.1"))
	v.network("mynet", false)
	web := v.run("web", "mynet", nil, nil)
	cli := v.run("cli", "mynet", nil, nil)
	var asked atomic.Int64
	var stop atomic.Bool
	wrong := make(chan string, 100)
	var wg sync.WaitGroup
	const workers = 8
	for range workers {
		wg.Go(func() {
			tick := time.NewTicker(workers * time.Millisecond)
			defer tick.Stop()
			err := inNetns(cli.pid, func() error {
				c := dns.Client{Timeout: harness.Patience(3 * time.Second)}
				conn, err := c.Dial("127.0.0.11:53")
				if err != nil {
					return err
				}
				defer conn.Close()
				for !stop.Load() {
					<-tick.C
					m, _, err := c.ExchangeWithConn(new(dns.Msg).SetQuestion("web.", dns.TypeA), conn)
					for range 5 { // a question that the engine had in its hands when it was killed is asked again, as resolvers do
						if err != nil {
							m, _, err = c.ExchangeWithConn(new(dns.Msg).SetQuestion("web.", dns.TypeA), conn)
						}
					}
					if err != nil {
						return err
					}
					asked.Add(1)
					if got := told(m); got != web.ip {
						return fmt.Errorf("web: %q, want %q", got, web.ip)
					}
				}
				return nil
			})
			if err != nil {
				wrong <- err.Error()
			}
		})
	}
	for i := range 6 {
		flip := v.run("flip", "mynet", map[string]any{"Aliases": []string{"svc"}}, nil)
		v.expects(cli, "flip", dns.TypeA, flip.ip)
		v.expects(cli, "svc", dns.TypeA, flip.ip)
		if i == 2 || i == 4 {
			if err := v.e.Kill(); err != nil {
				t.Fatal(err)
			}
			if err := v.e.Start(v.ctx); err != nil {
				t.Fatal(err)
			}
			v.expects(cli, "flip", dns.TypeA, flip.ip)
		}
		v.remove(flip)
		v.expects(cli, "flip", dns.TypeA, "NXDOMAIN")
		v.expects(cli, "svc", dns.TypeA, "NXDOMAIN")
	}
	stop.Store(true)
	wg.Wait()
	close(wrong)
	for w := range wrong {
		t.Error(w)
	}
	t.Logf("%d questions", asked.Load())
	v.clear("mynet")
}
