package e2e

import (
	"context"
	"fmt"
	"net"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
	"github.com/vishvananda/netlink"
)

// woven is what the plugin has for a network with its own addresses, and with one
// container on it.
const (
	woven    = "1 networks, 0 endpoints, 1 pools, 1 addresses, 1 links"
	wovenOne = "1 networks, 1 endpoints, 1 pools, 2 addresses, 2 links"
)

// loomRig is an engine and a plugin that kill each other.
type loomRig struct {
	*loom
	e   *harness.Engine
	api *harness.API
	ctx context.Context
}

func newLoomRig(t *testing.T) *loomRig {
	t.Helper()
	dir := t.TempDir()
	e := start(t, harness.Options{Args: []string{"--plugin-dir", dir + "/run"}})
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(4*time.Minute))
	t.Cleanup(cancel)
	r := &loomRig{loom: newLoom(t, dir), e: e, api: e.API(), ctx: ctx}
	r.start(t)
	t.Cleanup(func() { r.api.Close() })
	return r
}

// again starts the engine after it was killed.
func (r *loomRig) again(t *testing.T) {
	t.Helper()
	r.api.Close()
	if err := r.e.Kill(); err != nil {
		t.Fatal(err)
	}
	if err := r.e.Start(r.ctx); err != nil {
		t.Fatal(err)
	}
	r.api = r.e.API()
}

// killedAt has the plugin kill the engine when it has done a call, amid a request, and
// starts the engine anew.
func (r *loomRig) killedAt(t *testing.T, call, method, path string, body any) {
	t.Helper()
	r.misbehave(t, "kill-"+call, strconv.Itoa(r.e.Pid()))
	r.api.Do(r.ctx, method, path, body, nil) // the container may end only after the answer
	if err := r.e.Ended(harness.Patience(20 * time.Second)); err == nil {
		t.Fatalf("%s: the engine was not killed", call)
	}
	r.again(t)
}

func (r *loomRig) network(name, driver string) map[string]any {
	return map[string]any{"Name": name, "Driver": driver, "IPAM": map[string]any{"Driver": "loom"}}
}

func (r *loomRig) container(t *testing.T, network string) string {
	t.Helper()
	return create(t, r.ctx, r.api, "", map[string]any{
		"Image": image, "Cmd": []string{"sleep", "1000"}, "ExposedPorts": map[string]any{"80/tcp": map[string]any{}},
		"HostConfig": map[string]any{"NetworkMode": network, "PortBindings": map[string]any{"80/tcp": []any{map[string]string{"HostIp": "127.0.0.1", "HostPort": "8080"}}}},
	})
}

// whole looks that a container has the plugin's link and reaches its gateway.
func (r *loomRig) whole(t *testing.T, id string) {
	t.Helper()
	until := time.Now().Add(harness.Patience(20 * time.Second))
	for execIn(t, r.ctx, r.api, id, "set -- `ip route | grep default`; ping -c 1 -W 2 $3 && test -e /sys/class/net/loom0") != 0 {
		if time.Now().After(until) {
			t.Fatal("the container has no network")
		}
	}
}

// published looks that the plugin was told the ports of the container, which are its affair.
func (r *loomRig) published(t *testing.T) {
	t.Helper()
	for _, n := range r.state(t).Networks {
		for _, ep := range n.Endpoints {
			want := "[map[HostIP:127.0.0.1 HostPort:8080 HostPortEnd:8080 IP: Port:80 Proto:6]]"
			if got := fmt.Sprint(ep.Options["com.docker.network.portmap"]); !ep.Open || got != want {
				t.Errorf("the plugin was told ports %s, opened %v, want %s", got, ep.Open, want)
			}
		}
	}
}

// TestNetworkPluginKilledBetween kills the engine after every single thing that it tells
// a network and IPAM plugin: nothing is left at the plugin, nothing is there twice.
func TestNetworkPluginKilledBetween(t *testing.T) {
	r := newLoomRig(t)
	for _, call := range []string{"RequestPool", "RequestAddress", "CreateNetwork"} {
		r.killedAt(t, call, "POST", "/networks/create", r.network("cloth", "loom"))
		r.await(t, unwoven)
	}
	do(t, r.ctx, r.api, "POST", "/networks/create", r.network("cloth", "loom"), nil)
	r.await(t, woven)
	id := r.container(t, "cloth")
	for _, call := range []string{"RequestAddress", "CreateEndpoint", "Join", "EndpointOperInfo", "ProgramExternalConnectivity"} {
		r.killedAt(t, call, "POST", "/containers/"+id+"/start", nil)
		r.await(t, woven)
		do(t, r.ctx, r.api, "POST", "/containers/"+id+"/start", nil, nil)
		r.await(t, wovenOne)
		r.whole(t, id)
		r.published(t)
		do(t, r.ctx, r.api, "POST", "/containers/"+id+"/kill", nil, nil)
		r.await(t, woven)
	}
	for _, call := range []string{"RevokeExternalConnectivity", "Leave", "DeleteEndpoint", "ReleaseAddress"} {
		do(t, r.ctx, r.api, "POST", "/containers/"+id+"/start", nil, nil)
		r.await(t, wovenOne)
		r.killedAt(t, call, "POST", "/containers/"+id+"/kill", nil)
		r.await(t, woven)
	}
	do(t, r.ctx, r.api, "POST", "/containers/"+id+"/start", nil, nil)
	for _, call := range []string{"Leave", "DeleteEndpoint", "ReleaseAddress"} { // it runs, and is on the network or not
		r.killedAt(t, call, "POST", "/networks/cloth/disconnect", map[string]any{"Container": id})
		var c struct {
			NetworkSettings struct{ Networks map[string]any }
		}
		do(t, r.ctx, r.api, "GET", "/containers/"+id+"/json", nil, &c)
		if len(c.NetworkSettings.Networks) == 0 {
			r.await(t, woven)
			do(t, r.ctx, r.api, "POST", "/networks/cloth/connect", map[string]any{"Container": id}, nil)
		}
		r.await(t, wovenOne)
		r.whole(t, id)
	}
	do(t, r.ctx, r.api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	r.await(t, woven)
	r.killedAt(t, "DeleteNetwork", "DELETE", "/networks/cloth", nil)
	r.await(t, unwoven)
	// The engine's own bridge with the plugin's addresses.
	do(t, r.ctx, r.api, "POST", "/networks/create", r.network("felt", "bridge"), nil)
	id = create(t, r.ctx, r.api, "", map[string]any{"Image": image, "Cmd": []string{"sleep", "1000"}, "HostConfig": map[string]any{"NetworkMode": "felt"}})
	r.killedAt(t, "RequestAddress", "POST", "/containers/"+id+"/start", nil)
	r.await(t, "0 networks, 0 endpoints, 1 pools, 1 addresses, 0 links")
	do(t, r.ctx, r.api, "DELETE", "/containers/"+id+"?force=1", nil, nil)
	r.killedAt(t, "ReleasePool", "DELETE", "/networks/felt", nil)
	r.await(t, unwoven)
	r.api.Close()
	noLeaks(t, r.e)
}

// TestNetworkPluginAway lets a plugin hang and die: nobody else waits, what it could not
// be told it is told when it is back, and what runs goes on.
func TestNetworkPluginAway(t *testing.T) {
	r := newLoomRig(t)
	do(t, r.ctx, r.api, "POST", "/networks/create", r.network("cloth", "loom"), nil)
	live := r.container(t, "cloth")
	do(t, r.ctx, r.api, "POST", "/containers/"+live+"/start", nil, nil)
	r.await(t, wovenOne)

	// It hangs.
	r.misbehave(t, "hang", "")
	stuck := make(chan error, 2)
	for range 2 {
		go func() { stuck <- r.api.Do(r.ctx, "POST", "/networks/create", r.network("stuck", "loom"), nil) }()
	}
	if err := <-stuck; harness.Status(err) != 409 {
		t.Errorf("a name that is being given: %v", err)
	}
	begin := time.Now()
	do(t, r.ctx, r.api, "POST", "/networks/create", map[string]any{"Name": "plain"}, nil)
	if code, err := runTo(r.ctx, r.api, map[string]any{"Image": image, "Cmd": []string{"true"}, "HostConfig": map[string]any{"NetworkMode": "plain"}}); code != 0 || err != nil {
		t.Errorf("beside one that hangs: %d, %v", code, err)
	}
	do(t, r.ctx, r.api, "DELETE", "/networks/plain", nil, nil)
	do(t, r.ctx, r.api, "DELETE", "/containers/"+live+"?force=1", nil, nil)
	if took := time.Since(begin); took > harness.Patience(25*time.Second) {
		t.Errorf("the engine beside a plugin that hangs took %s", took)
	}
	r.behave(t, "hang")
	if err := <-stuck; err == nil {
		do(t, r.ctx, r.api, "DELETE", "/networks/stuck", nil, nil)
	} else if time.Since(begin) < 25*time.Second { // it has 30
		t.Errorf("after it hung: %v", err)
	}
	r.await(t, woven)

	// It is dead, and so is the engine: what runs goes on.
	live = r.container(t, "cloth")
	do(t, r.ctx, r.api, "POST", "/containers/"+live+"/start", nil, nil)
	r.await(t, wovenOne)
	r.kill()
	r.again(t)
	r.whole(t, live)
	other := r.container(t, "cloth")
	if err := r.api.Do(r.ctx, "POST", "/containers/"+other+"/start", nil, nil); err == nil || !strings.Contains(err.Error(), "plugin") {
		t.Errorf("started without its plugin: %v", err)
	}
	do(t, r.ctx, r.api, "DELETE", "/containers/"+other, nil, nil)
	do(t, r.ctx, r.api, "DELETE", "/containers/"+live+"?force=1", nil, nil)
	do(t, r.ctx, r.api, "DELETE", "/networks/cloth", nil, nil)
	var list []struct{ Name string }
	do(t, r.ctx, r.api, "GET", "/networks", nil, &list)
	for _, n := range list {
		if n.Name == "cloth" {
			t.Error("a network that was removed is listed")
		}
	}
	r.start(t)
	r.await(t, unwoven)
	r.api.Close()
	noLeaks(t, r.e)
}

// TestNetworkPluginHeals deletes the link of a container by hand, and has an IPAM plugin
// forget all: the next engine has it made whole.
func TestNetworkPluginHeals(t *testing.T) {
	r := newLoomRig(t)
	r.misbehave(t, "replay", "")
	r.misbehave(t, "mac", "")
	do(t, r.ctx, r.api, "POST", "/networks/create", r.network("cloth", "loom"), nil)
	live := r.container(t, "cloth")
	do(t, r.ctx, r.api, "POST", "/containers/"+live+"/start", nil, nil)
	r.await(t, wovenOne)
	before := r.state(t)
	links, err := net.Interfaces()
	if err != nil {
		t.Fatal(err)
	}
	for _, l := range links {
		if strings.HasPrefix(l.Name, r.prefix+"h") {
			link, err := netlink.LinkByName(l.Name)
			if err == nil {
				err = netlink.LinkDel(link)
			}
			if err != nil {
				t.Fatal(err)
			}
		}
	}
	if err := r.e.Kill(); err != nil {
		t.Fatal(err)
	}
	r.loom.forgetPools(t)
	r.again(t)
	r.await(t, wovenOne)
	r.whole(t, live)
	if now := r.state(t); len(now.Pools) != 1 || pools(now) != pools(before) {
		t.Errorf("the plugin has given %s, had %s", pools(now), pools(before))
	}
	do(t, r.ctx, r.api, "DELETE", "/containers/"+live+"?force=1", nil, nil)
	do(t, r.ctx, r.api, "DELETE", "/networks/cloth", nil, nil)
	r.await(t, unwoven)
	r.api.Close()
	noLeaks(t, r.e)
}
