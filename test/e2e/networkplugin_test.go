package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/vishvananda/netlink"
)

// loom is the network plugin of the tests, running on the host.
type loom struct {
	dir    string // its own: run/ has the socket, data/ its state
	prefix string // begins the names of its links
	listen string // a TCP address, and then no socket
	base   int    // 10.BASE.0.0/16 is where its pools are
	cmd    *exec.Cmd
}

// newLoom is a plugin that does not run yet; whatever it has made goes with the test.
func newLoom(t *testing.T, dir string) *loom {
	t.Helper()
	p := &loom{dir: dir, prefix: fmt.Sprintf("lm%05x", time.Now().UnixNano()/1000%0xfffff)[:7], base: freeNet(t)}
	t.Cleanup(func() {
		p.kill()
		for _, l := range p.links(t) {
			if link, err := netlink.LinkByName(l); err == nil {
				netlink.LinkDel(link)
			}
		}
	})
	return p
}

// freeNet is an N of which nothing on the host has an address in 10.N.0.0/16: other
// tests may be running.
func freeNet(t *testing.T) int {
	t.Helper()
	list, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	taken := map[string]bool{}
	for _, a := range list {
		f := strings.SplitN(a.String(), ".", 3)
		taken[strings.Join(f[:min(2, len(f))], ".")] = true
	}
	for {
		if n := 20 + rand.IntN(170); !taken[fmt.Sprintf("10.%d", n)] {
			return n
		}
	}
}

func (p *loom) start(t *testing.T) {
	t.Helper()
	args := []string{"-root", p.dir + "/data", "-prefix", p.prefix, "-base", strconv.Itoa(p.base)}
	kind, where := "unix", p.dir+"/run/loom.sock"
	if p.listen != "" {
		kind, where = "tcp", p.listen
		args = append(args, "-listen", where)
	} else {
		args = append(args, "-socket", where)
	}
	p.cmd = exec.Command(builtProgram(t, "networkplugin"), args...)
	p.cmd.Stderr = os.Stderr
	if err := p.cmd.Start(); err != nil {
		t.Fatal(err)
	}
	for until := time.Now().Add(harness.Patience(10 * time.Second)); ; time.Sleep(5 * time.Millisecond) {
		if c, err := net.Dial(kind, where); err == nil {
			c.Close()
			return
		}
		if time.Now().After(until) {
			t.Fatal("the plugin does not listen")
		}
	}
}

// kill ends the plugin as a crash does: its socket stays behind.
func (p *loom) kill() {
	if p.cmd != nil {
		p.cmd.Process.Kill()
		p.cmd.Wait()
		p.cmd = nil
	}
}

// links are those of the plugin on the host.
func (p *loom) links(t *testing.T) (out []string) {
	t.Helper()
	list, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range list {
		if strings.HasPrefix(l.Name, p.prefix) {
			out = append(out, l.Name)
		}
	}
	return out
}

// fabric is the plugin's state.
type fabric struct {
	Networks map[string]struct {
		Endpoints map[string]struct {
			Joined, Open bool
			Address      string
			Options      map[string]any
		}
	}
	Pools map[string]struct {
		Prefix, Range string
		Taken         map[string]string
	}
}

func (p *loom) state(t *testing.T) (f fabric) {
	t.Helper()
	b, err := os.ReadFile(p.dir + "/data/state.json")
	if err == nil {
		err = json.Unmarshal(b, &f)
	}
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// count is how much the plugin has: networks, endpoints, pools, addresses.
func (p *loom) count(t *testing.T) string {
	t.Helper()
	f := p.state(t)
	endpoints, taken := 0, 0
	for _, n := range f.Networks {
		endpoints += len(n.Endpoints)
	}
	for _, o := range f.Pools {
		taken += len(o.Taken)
	}
	return fmt.Sprintf("%d networks, %d endpoints, %d pools, %d addresses, %d links", len(f.Networks), endpoints, len(f.Pools), taken, len(p.links(t)))
}

const unwoven = "0 networks, 0 endpoints, 0 pools, 0 addresses, 0 links"

// await waits until the plugin has so much.
func (p *loom) await(t *testing.T, want string) {
	t.Helper()
	until := time.Now().Add(harness.Patience(20 * time.Second))
	for p.count(t) != want {
		if time.Now().After(until) {
			t.Fatalf("the plugin has %s, want %s: %+v", p.count(t), want, p.state(t))
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// misbehave puts a file into the plugin's root; see the program.
func (p *loom) misbehave(t *testing.T, name, text string) {
	t.Helper()
	if err := os.WriteFile(filepath.Join(p.dir, "data", name), []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
}

func (p *loom) behave(t *testing.T, name string) {
	t.Helper()
	if err := os.Remove(filepath.Join(p.dir, "data", name)); err != nil {
		t.Fatal(err)
	}
}

// throughPlugin is what a network plugin is asked for through a client.
func throughPlugin() []try {
	return []try{
		{args: "network create -d $P --label a=b -o x=y $N", out: "^[0-9a-f]{64}$"},
		{args: "network create -d $P $N", code: 1, err: "network with name $N already exists"},
		{args: "network create -d nosuch $N-x", code: 1, err: `plugin "nosuch" not found`},
		{args: "network create -d $P -o refuse=full $N-x", code: 1, err: "remote: full"},
		{args: "network ls -f driver=$F --format '{{.Name}} {{.Driver}} {{.Scope}}'", out: "^$N $F local$"},
		{args: "network inspect -f '{{.Driver}} {{.Options.x}} {{.Labels.a}} {{.IPAM.Driver}}' $N", out: "^$F y b default$"},
		{args: "info -f '{{.Plugins.Network}}'", out: `\bbridge\b.*\b$F\b`},
		// the link is called as the plugin says, and the way out is where it says
		{args: "run --rm --network $N $IMG sh -c 'ip -o -4 addr show loom0; ip route; cat /sys/class/net/loom0/operstate'", out: "(?s)inet .*default via .* dev loom0.*up"},
		{args: "run -d --name $N-a --network $N --network-alias other $IMG sleep 1000"},
		{args: "run --rm --network $N $IMG sh -c 'set -- `ip route | grep default`; ping -c 1 -W 5 $3'", out: "1 packets received"},
		{args: "run --rm --network $N $IMG nslookup $N-a.", out: `Address:? *1?:? *(10|172|192)\.`},
		{args: "run --rm --network $N $IMG nslookup other.", out: `Address:? *1?:? *(10|172|192)\.`},
		{args: "inspect -f '{{(index .NetworkSettings.Networks \"$N\").IPAddress}}' $N-a", out: `^[0-9.]+$`},
		{args: "network inspect -f '{{range .Containers}}{{.Name}} {{.MacAddress}}{{end}}' $N", out: "^$N-a [0-9a-f:]{17}$"},
		{args: "network rm $N", code: 1, err: "has active endpoints"},
		// a user's name for the link, and two networks
		{args: "network create $N-b", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network name=$N,driver-opt=com.docker.network.endpoint.ifname=mine --network $N-b $IMG sh -c 'ls /sys/class/net | xargs'", out: `\beth0\b.*\bmine\b`},
		{args: "network connect $N-b $N-a"},
		{args: "exec $N-a sh -c 'ls /sys/class/net | xargs'", out: `\beth0\b.*\bloom0\b`},
		{args: "network disconnect $N $N-a"},
		{args: "exec $N-a sh -c 'ls /sys/class/net | xargs'", out: `^eth0 lo$`},
		{args: "network connect --alias again $N $N-a"},
		{args: "run --rm --network $N $IMG nslookup again.", out: `Address:? *1?:? *(10|172|192)\.`},
		{args: "exec $N-a ip route", out: `default via`},
		{args: "restart -t 0 $N-a", out: "$N-a"},
		{args: "exec $N-a sh -c 'ls /sys/class/net | xargs'", out: `\beth0\b.*\bloom0\b`},
		{args: "network create -d $P --internal $N-i", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-i $IMG ip route", out: `^[0-9./]+ dev loom0[^\n]*$`},
		{args: "network create -d $P -o route=198.51.100.0/24 $N-r", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-r $IMG ip route", out: `198.51.100.0/24 dev loom0 scope link`},
		{args: "network create -d $P --subnet 10.$S.7.0/24 --gateway 10.$S.7.1 -o route=198.51.100.0/24 -o via=10.$S.7.1 $N-v", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-v --ip 10.$S.7.9 $IMG sh -c 'ip -o -4 addr show loom0; ip route'", out: `(?s)10\.$S\.7\.9/24.*198.51.100.0/24 via 10\.$S\.7\.1 dev loom0`},
		{args: "network create -d $P -o src=lm-nosuch $N-s", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-s $IMG true", code: 125, err: `link "lm-nosuch" of the plugin`},
		{args: "network create -d $P --ipv6 $N-6", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-6 $IMG sh -c 'ip -6 route'", out: `default via fd.* dev loom0`},
		{args: "network create -d $P --ipam-driver null -o own=10.232.7.9/24 $N-o", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-o $IMG ip -o -4 addr show loom0", out: `10\.232\.7\.9/24`},
		{args: "rm -f $N-a"},
		{args: "network rm $N $N-b $N-i $N-r $N-v $N-s $N-6 $N-o"},
		{args: "network ls -q -f driver=$F", out: "^$"},
	}
}

// throughIPAM is what an IPAM plugin is asked for through a client: networks of the
// engine's own drivers and of a plugin's.
func throughIPAM() []try {
	return []try{
		{args: "network create --ipam-driver $P --ipam-opt k=v $N", out: "^[0-9a-f]{64}$"},
		{args: "network create --ipam-driver nosuch $N-x", code: 1, err: `plugin "nosuch" not found`},
		{args: "network inspect -f '{{.Driver}} {{.IPAM.Driver}} {{.IPAM.Options.k}} {{(index .IPAM.Config 0).Subnet}} {{(index .IPAM.Config 0).Gateway}}' $N", out: `^bridge $F v 10\.$B\.[0-9]+\.0/24 10\.$B\.[0-9]+\.1$`},
		{args: "run --rm --network $N $IMG sh -c 'ip -o -4 addr show eth0; ip route'", out: `(?s)10\.$B\.[0-9]+\.10[01]/24.*default via 10\.$B\.[0-9]+\.1 `},
		{args: "run -d --name $N-a --network $N $IMG sleep 1000"},
		{args: "run --rm --network $N $IMG sh -c 'ip -o -4 addr show eth0; ping -c 1 -W 5 $N-a'", out: `(?s)10\.$B\.[0-9]+\.10[01]/24.*1 packets received`},
		{args: "network create --ipam-driver $P --subnet 10.$S.5.0/24 --ip-range 10.$S.5.128/25 --gateway 10.$S.5.7 --aux-address host=10.$S.5.9 $N-s", out: "^[0-9a-f]{64}$"},
		{args: "network inspect -f '{{(index .IPAM.Config 0).Gateway}} {{(index .IPAM.Config 0).IPRange}}' $N-s", out: `^10\.$S\.5\.7 10\.$S\.5\.128/25$`},
		{args: "run --rm --network $N-s --ip 10.$S.5.77 $IMG sh -c 'ip -o -4 addr show eth0; ip route'", out: `(?s)10\.$S\.5\.77/24.*default via 10\.$S\.5\.7 `},
		{args: "run --rm --network $N-s --ip 10.$S.5.9 $IMG true", code: 125, err: "remote: address 10.$S.5.9 is taken"},
		{args: "network create --ipam-driver $P --subnet 10.$S.5.0/24 $N-t", code: 1, err: "remote: pool 10.$S.5.0/24 is taken"},
		{args: "network create -d macvlan --ipam-driver $P --ipv6 $N-m", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-m $IMG sh -c 'ip -o addr show eth0'", out: `(?s)10\.$B\.[0-9]+\.10[01]/24.*fd31:.*/64`},
		{args: "network create -d $P --ipam-driver $P $N-p", out: "^[0-9a-f]{64}$"},
		{args: "run --rm --network $N-p $IMG sh -c 'ip -o -4 addr show loom0; ip route'", out: `(?s)10\.$B\.[0-9]+\.10[01]/24.*default via 10\.$B\.[0-9]+\.1 `},
		{args: "network connect $N-p $N-a"},
		{args: "exec $N-a ip -o -4 addr show loom0", out: `10\.$B\.[0-9]+\.10[01]/24`},
		{args: "network disconnect $N-p $N-a"},
		{args: "rm -f $N-a"},
		{args: "network rm $N $N-s $N-m $N-p"},
	}
}

// weave has clients do what a plugin is asked for, and looks that nothing is left there.
func weave(t *testing.T, e *harness.Engine, p *loom, name, full string) {
	for client, path := range clients() {
		vars := map[string]string{"IMG": image, "N": "np-" + client, "W": t.TempDir(), "P": name, "F": full, "B": strconv.Itoa(p.base), "S": strconv.Itoa(freeNet(t))}
		for what, tries := range map[string][]try{"networks": throughPlugin(), "addresses": throughIPAM()} {
			t.Run(client+" "+what, func(t *testing.T) {
				for _, c := range tries {
					c.run(t, path, e.Host(), vars)
				}
				p.await(t, unwoven)
			})
		}
	}
}

// TestNetworkPlugin drives a real network and IPAM plugin, known by its socket, through
// both clients.
func TestNetworkPlugin(t *testing.T) {
	dir := t.TempDir()
	e := start(t, harness.Options{Args: []string{"--plugin-dir", dir + "/run"}})
	p := newLoom(t, dir)
	p.start(t) // after the engine
	weave(t, e, p, "loom", "loom")
	noLeaks(t, e)
}

// pools are the addresses that the plugin has given out.
func pools(f fabric) string {
	var out []string
	for id, p := range f.Pools {
		for a := range p.Taken {
			out = append(out, id+" "+a)
		}
	}
	slices.Sort(out)
	return strings.Join(out, ", ")
}

// forgetPools restarts the plugin, which has forgotten its pools.
func (p *loom) forgetPools(t *testing.T) {
	t.Helper()
	p.kill()
	path := p.dir + "/data/state.json"
	b, err := os.ReadFile(path)
	var all map[string]any
	if err == nil {
		err = json.Unmarshal(b, &all)
	}
	if err == nil {
		all["Pools"] = map[string]any{}
		b, err = json.Marshal(all)
	}
	if err == nil {
		err = os.WriteFile(path, b, 0o600)
	}
	if err != nil {
		t.Fatal(err)
	}
	p.start(t)
}

// TestNetworkPluginBySpec has the plugin listen at a TCP address that a file tells.
func TestNetworkPluginBySpec(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := newLoom(t, dir)
	p.listen = l.Addr().String()
	l.Close()
	e := start(t, harness.Options{Args: []string{"--plugin-dir", dir + "/run"}})
	if err := os.MkdirAll(dir+"/run", 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(dir+"/run/far.spec", []byte("tcp://"+p.listen), 0o644); err != nil {
		t.Fatal(err)
	}
	p.start(t)
	weave(t, e, p, "far", "far")
	noLeaks(t, e)
}

// TestNetworkPluginManaged has the engine run the plugin itself.
func TestNetworkPluginManaged(t *testing.T) {
	dir := t.TempDir()
	p := newLoom(t, dir)
	for _, d := range []string{"src/rootfs/data", "src/rootfs/run/docker/plugins", "data"} {
		if err := os.MkdirAll(filepath.Join(dir, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	b, err := os.ReadFile(builtProgram(t, "networkplugin"))
	if err == nil {
		err = os.WriteFile(dir+"/src/rootfs/plugin", b, 0o755)
	}
	config := `{
 "description": "A loom", "documentation": "",
 "entrypoint": ["/plugin", "-prefix", "` + p.prefix + `", "-base", "` + strconv.Itoa(p.base) + `"], "workdir": "/",
 "interface": {"types": ["docker.networkdriver/1.0", "docker.ipamdriver/1.0"], "socket": "loom.sock"},
 "network": {"type": "host"}, "env": [],
 "mounts": [{"name": "state", "source": "` + dir + `/data", "destination": "/data", "type": "bind", "options": ["rbind"], "settable": ["source"]}],
 "linux": {"capabilities": ["CAP_NET_ADMIN"]}
}`
	if err == nil {
		err = os.WriteFile(dir+"/src/config.json", []byte(config), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
	e := start(t, harness.Options{})
	escale := clients()["escale"]
	vars := map[string]string{"IMG": image, "W": t.TempDir(), "D": dir + "/src"}
	for _, c := range []try{
		{args: "plugin create weaver $D", out: "^weaver$"},
		{args: "network create -d weaver x", code: 1, err: "plugin weaver:latest found but disabled"},
		{args: "plugin enable weaver", out: "^weaver$"},
		{args: "plugin ls -q --filter capability=networkdriver --filter capability=ipamdriver", out: "^[0-9a-f]+$"},
		{args: "plugin ls -q --filter capability=volumedriver", out: "^$"},
	} {
		c.run(t, escale, e.Host(), vars)
	}
	weave(t, e, p, "weaver", "weaver:latest")
	for _, c := range []try{
		{args: "network create -d weaver --ipam-driver weaver cloth", out: "^[0-9a-f]{64}$"},
		{args: "run -d --name live --restart always --network cloth $IMG sleep 1000"},
		{args: "plugin disable weaver", code: 1, err: "plugin weaver:latest is in use"},
	} {
		c.run(t, escale, e.Host(), vars)
	}
	// The engine ends and comes back: plugin, network and container are as they were.
	if err := e.Kill(); err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	if err := e.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []try{
		{args: "exec live ip route", out: "default via .* dev loom0"},
		{args: "run --rm --network cloth $IMG ip route", out: "default via .* dev loom0"},
		{args: "rm -f live"},
		{args: "network rm cloth"},
	} {
		c.run(t, escale, e.Host(), vars)
	}
	p.await(t, unwoven)
	try{args: "plugin rm -f weaver", out: "^weaver$"}.run(t, escale, e.Host(), vars)
	noLeaks(t, e)
}
