package engine

import (
	"context"
	"encoding/json"
	"io"
	"net/http"
	"net/netip"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/mem"
	"escale.dev/escale/internal/cluster/swarm"
	"escale.dev/escale/internal/logs"
	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	api "github.com/moby/moby/api/types/swarm"
)

// paperSwarm is what a swarm needs of an engine, made up.
type paperSwarm struct{}

func (paperSwarm) LoadRoot([]byte, []byte) (swarm.Root, error) { return swarm.Root{}, nil }

func (paperSwarm) Rotate(swarm.Root, swarm.Root) (cluster.RootRotation, error) {
	return cluster.RootRotation{}, nil
}

func (paperSwarm) NewRoot(string, time.Time) (swarm.Root, error) {
	return swarm.Root{Cert: []byte("root"), Key: []byte("key")}, nil
}
func (paperSwarm) Token(_ []byte, secret string) (string, error) { return "SWMTKN-1-" + secret, nil }
func (paperSwarm) NewUnlockKey() string                          { return "SWMKEY-1-x" }
func (paperSwarm) NewSecret() string                             { return cluster.NewID() }
func (paperSwarm) Resolve(_ context.Context, ref, _ string, ask bool) swarm.Image {
	if ask {
		return swarm.Image{Warning: "no registry has " + ref}
	}
	return swarm.Image{}
}
func (paperSwarm) Local(ref string) (string, bool, bool) { return ref, ref == "host", ref == "host" }
func (paperSwarm) Open(context.Context, string, string, logs.ReadOptions) (logs.Reader, error) {
	return &paperLog{[]logs.Line{{Time: at, Stream: "stdout", Data: []byte("hello\n")}}}, nil
}

type paperLog struct{ list []logs.Line }

func (p *paperLog) Next() (logs.Line, error) {
	if len(p.list) == 0 {
		return logs.Line{}, io.EOF
	}
	l := p.list[0]
	p.list = p.list[1:]
	return l, nil
}
func (*paperLog) Hold() error  { return nil }
func (*paperLog) Close() error { return nil }

// paperPart is the part of a host that has its swarm by itself.
type paperPart struct {
	swarm.Membership
	s    store.Store
	part swarm.Part
}

func (p *paperPart) Part() swarm.Part { return p.part }
func (p *paperPart) Found(ctx context.Context, c *cluster.Cluster, n *cluster.Node) error {
	p.part.In, p.part.Manager, p.part.Ready = true, true, true
	_, err := p.s.Commit(ctx, store.Create(c), store.Update(n))
	return err
}
func (p *paperPart) Unlock(context.Context, string) error { return errdefs.ErrConflict }
func (p *paperPart) Leave(ctx context.Context) error {
	p.part = swarm.Part{Node: p.part.Node}
	_, err := p.s.Commit(ctx, store.Delete(store.List[*cluster.Cluster](p.s.View())[0]))
	return err
}

// newSwarmRig is an engine whose swarm keeps its objects in memory.
func newSwarmRig(t *testing.T) (*rig, store.Store) {
	s := mem.New(store.NewState())
	t.Cleanup(func() { _ = s.Close() })
	if _, err := s.Commit(t.Context(), store.Create(&cluster.Node{Meta: cluster.Meta{ID: "node1", Name: "host1"}, Spec: cluster.NodeSpec{Manager: true}, Status: cluster.NodeStatus{Ready: true}})); err != nil {
		t.Fatal(err)
	}
	p := paperSwarm{}
	return newRig(t, func(r *rig) {
		r.server.cfg.Swarm = swarm.New(swarm.Config{
			Store: s, Authority: p, Images: p, Networks: p, Logs: p, Membership: &paperPart{s: s, part: swarm.Part{Node: "node1"}}, Now: time.Now, NewName: func() string { return "calm_cadiz" },
			Addrs: func() ([]swarm.Interface, error) {
				return []swarm.Interface{{Name: "eth0", Flags: 1, Addrs: []netip.Addr{netip.MustParseAddr("192.0.2.7")}}}, nil
			},
		})
	}), s
}

func TestSwarmRoutes(t *testing.T) {
	r, s := newSwarmRig(t)
	const notManager = `{"message":"This node is not a swarm manager. Use \"docker swarm init\" or \"docker swarm join\" to connect this node to swarm and try again."}`
	for _, path := range []string{"/swarm", "/nodes", "/nodes/x", "/services", "/services/x", "/tasks", "/tasks/x", "/secrets", "/secrets/x", "/configs", "/configs/x", "/swarm/unlockkey", "/services/x/logs?stdout=1"} {
		if status, _, body := r.do("GET", "/v1.50"+path, ""); status != 503 || strings.TrimSpace(body) != notManager {
			t.Errorf("%s: %d %s", path, status, body)
		}
	}
	version := func(path string) string {
		_, _, body := r.do("GET", path, "")
		var o struct{ Version struct{ Index json.Number } }
		if err := json.Unmarshal([]byte(body), &o); err != nil {
			t.Fatal(body)
		}
		return o.Version.Index.String()
	}
	web := `{"Name":"web","TaskTemplate":{"ContainerSpec":{"Image":"a"}},"Networks":[{"Target":"host"}]}`
	for _, c := range []struct {
		method, path, body string
		status             int
		has                string
	}{
		{"POST", "/swarm/leave", "", 503, "This node is not part of a swarm"},
		{"POST", "/swarm/init", `{"ListenAddr":"0.0.0.0:2377","AdvertiseAddr":"x:y"}`, 400, "advertise address must be"},
		{"POST", "/swarm/init", `{"ListenAddr":"0.0.0.0:2377"}`, 200, `"node1"`},
		{"POST", "/swarm/init", `{}`, 503, "This node is already part of a swarm"},
		{"POST", "/swarm/join", `{}`, 503, "This node is already part of a swarm"},
		{"GET", "/swarm", "", 200, `"JoinTokens":{"Worker":"SWMTKN-1-`},
		{"GET", "/swarm/unlockkey", "", 200, `{"UnlockKey":""}`},
		{"POST", "/swarm/unlock", `{}`, 409, "swarm is not locked"},
		{"POST", "/swarm/update?version=x", `{}`, 400, "invalid swarm version 'x'"},
		{"POST", "/swarm/update?version=999", `{}`, 500, "update out of sequence"},
		{"POST", "/swarm/update?version=999&rotateWorkerToken=maybe", `{}`, 400, "rotateWorkerToken"},
		{"POST", "/swarm/update?rotateWorkerToken=true&version=" + "{/swarm}", `{}`, 200, ""},
		{"GET", `/nodes?filters={"role":["manager"]}`, "", 200, `"Hostname":"host1"`},
		{"GET", `/nodes?filters={"colour":["red"]}`, "", 400, "invalid filter 'colour'"},
		{"GET", "/nodes/nope", "", 404, "node nope not found"},
		{"POST", "/nodes/node1/update?version={/nodes/node1}", `{"Role":"worker","Availability":"active"}`, 412, "attempting to demote the last manager"},
		{"POST", "/nodes/node1/update?version={/nodes/node1}", `{"Role":"manager","Availability":"drain"}`, 200, ""},
		{"DELETE", "/nodes/node1", "", 412, "is a cluster manager"},
		{"POST", "/v1.50/services/create", web, 201, `"Warnings":null`},
		{"POST", "/v1.29/services/create", strings.Replace(web, "web", "old", 1), 201, `"Warnings":["no registry has a"]`},
		{"POST", "/services/create", web, 409, "name conflicts with an existing object: service web already exists"},
		{"POST", "/services/create", `{"Name":"x"}`, 400, "missing runtime"},
		{"POST", "/services/create", `{"Name":"x","TaskTemplate":{"ContainerSpec":{"Image":"a"}},"Networks":[{"Target":"none"}]}`, 404, "network none not found"},
		{"GET", `/services?status=true&filters={"name":{"we":true}}`, "", 200, `"ServiceStatus":{"RunningTasks":0,"DesiredTasks":1,`},
		{"GET", "/services?status=perhaps", "", 400, "invalid value for status"},
		{"GET", "/services/web", "", 200, `"Target":"host"`},
		{"GET", "/services/web?insertDefaults=true", "", 200, `"StopGracePeriod":10000000000`},
		{"POST", "/services/web/update?version=1&rollback=sideways", web, 400, "unrecognized rollback option sideways"},
		{"POST", "/services/web/update?version=1&registryAuthFrom=air", web, 400, "unsupported registryAuthFrom"},
		{"POST", "/services/web/update?version=1", web, 500, "update out of sequence"},
		{"POST", "/services/web/update?version={/services/web}&rollback=previous", web, 412, "does not have a previous spec"},
		{"POST", "/services/web/update?version={/services/web}", strings.Replace(web, `"a"`, `"b"`, 1), 200, `"Warnings":null`},
		{"GET", `/tasks?filters={"desired-state":["odd"]}`, "", 400, "Invalid desired-state filter"},
		{"GET", "/tasks", "", 200, "[]"},
		{"GET", "/services/web/logs", "", 400, "you must choose at least one stream"},
		{"POST", "/secrets/create", `{"Name":"k","Data":"eA=="}`, 201, `{"ID":"`},
		{"POST", "/secrets/create", `{"Name":"k","Data":"eA=="}`, 409, "secret k already exists"},
		{"GET", "/secrets/k", "", 200, `"Spec":{"Name":"k","Labels":{}}`},
		{"GET", "/secrets", "", 200, `"Name":"k"`},
		{"POST", "/secrets/k/update?version={/secrets/k}", `{"Name":"k","Labels":{"a":"b"}}`, 200, ""},
		{"POST", "/escale/secrets/k/renew", `{"Data":"eQ=="}`, 200, `"Services":[]`},
		{"POST", "/escale/secrets/k/renew", `{}`, 400, "secret data must be larger than 0"},
		{"POST", "/escale/secrets/nope/renew", `{"Data":"eQ=="}`, 404, "secret nope not found"},
		{"POST", "/escale/configs/nope/renew", `{"Data":"eQ=="}`, 404, "config nope not found"},
		{"DELETE", "/secrets/k", "", 204, ""},
		{"POST", "/configs/create", `{"Name":"c","Data":"eA=="}`, 201, `{"ID":"`},
		{"GET", "/configs/c", "", 200, `"Data":"eA=="`},
		{"GET", "/configs", "", 200, `"Name":"c"`},
		{"POST", "/configs/c/update?version={/configs/c}", `{"Name":"d"}`, 400, "only updates to Labels are allowed"},
		{"DELETE", "/configs/c", "", 204, ""},
		{"DELETE", "/services/old", "", 200, ""},
		{"DELETE", "/services/old", "", 404, "service old not found"},
		{"POST", "/swarm/leave", "", 503, "Use `--force` to ignore this message"},
	} {
		path := c.path
		if before, rest, ok := strings.Cut(path, "{/"); ok {
			of, after, _ := strings.Cut(rest, "}")
			path = before + version("/"+of) + after
		}
		status, _, body := r.do(c.method, path, c.body)
		if status != c.status || !strings.Contains(body, c.has) {
			t.Errorf("%s %s: %d %s, want %d %s", c.method, path, status, body, c.status, c.has)
		}
	}
	web1, err := store.Named[*cluster.Service](s.View(), "web")
	if err != nil {
		t.Fatal(err)
	}
	task := web1.First(1, "")
	task.ID, task.Node, task.Status = "task1", "node1", cluster.TaskStatus{State: cluster.TaskRunning, Container: &cluster.ContainerStatus{ID: "c"}}
	if _, err := s.Commit(t.Context(), store.Create(task)); err != nil {
		t.Fatal(err)
	}
	want := "\x01\x00\x00\x00\x00\x00\x00" + string(rune(len(told(web1.ID))))
	for _, path := range []string{"/services/web/logs?stdout=1&details=1", "/tasks/task1/logs?stdout=1&details=1"} {
		if status, _, body := r.do("GET", path, ""); status != 200 || body != want+told(web1.ID) {
			t.Errorf("%s: %d %q", path, status, body)
		}
	}
}

// A manager's clients find the networks in the swarm's scope that every node has; others' do not.
func TestNetworksOfEveryNode(t *testing.T) {
	r, _ := newSwarmRig(t)
	r.server.cfg.Networks = fakeNetworks{
		{Name: "host", ID: "h1", Driver: "host", Scope: "local", Containers: map[string]network.Endpoint{"c": {EndpointID: "e1"}}},
		{Name: "bridge", ID: "b1", Driver: "bridge", Scope: "local"}, {Name: "none", ID: "n1", Driver: "null", Scope: "local"}, {Name: "lan", ID: "l1", Driver: "bridge", Scope: "local"},
	}
	is := func(path string, status int, has string) {
		t.Helper()
		if got, _, body := r.do("GET", path, ""); got != status || !strings.Contains(body, has) || strings.Contains(body, "e1") {
			t.Errorf("%s: %d %s, want %d %s", path, got, body, status, has)
		}
	}
	is("/networks/host?scope=swarm", 404, "network host not found")
	if status, _, body := r.do(http.MethodPost, "/swarm/init", "{}"); status != 200 {
		t.Fatal(body)
	}
	is("/networks/host?scope=swarm", 200, `"Name":"host","Id":"h1"`)
	is("/networks/host?scope=swarm", 200, `"Scope":"swarm"`)
	is("/networks/h1?scope=swarm", 200, `"Scope":"swarm"`)
	is("/networks/bridge?scope=swarm", 200, `"Scope":"swarm"`)
	is("/networks/bridge?scope=local", 200, `"Scope":"local"`)
	is("/networks/bridge", 200, `"Scope":"local"`)
	is("/networks/none?scope=swarm", 404, "network none not found")
	is("/networks/lan?scope=swarm", 404, "network lan not found")
	is("/networks/host?scope=global", 404, "network host not found")
}

// told is a line of a task's log with whose it is.
func told(service string) string {
	return "com.docker.swarm.node.id=node1,com.docker.swarm.service.id=" + service + ",com.docker.swarm.task.id=task1 hello\n"
}

// What a client's version had not is not asked by it.
func TestServiceOfOlderClients(t *testing.T) {
	r, _ := newSwarmRig(t)
	if status, _, body := r.do(http.MethodPost, "/swarm/init", "{}"); status != 200 {
		t.Fatal(body)
	}
	for name, has := range map[string]int{"/v1.39": 0, "/v1.40": 1} {
		service := "s" + strings.TrimPrefix(strings.ReplaceAll(name, ".", "-"), "/")
		body := `{"Name":"` + service + `","TaskTemplate":{"ContainerSpec":{"Image":"a","Sysctls":{"net.core.somaxconn":"1"}},"Placement":{"MaxReplicas":3}}}`
		if status, _, answer := r.do(http.MethodPost, name+"/services/create", body); status != 201 {
			t.Fatal(answer)
		}
		_, _, answer := r.do(http.MethodGet, "/services/"+service, "")
		var got api.Service
		if err := json.Unmarshal([]byte(answer), &got); err != nil || len(got.Spec.TaskTemplate.ContainerSpec.Sysctls) != has || got.Spec.TaskTemplate.Placement.MaxReplicas != uint64(3*has) {
			t.Errorf("%s: %s %v", name, answer, err)
		}
	}
}
