package cli_test

import (
	"bytes"
	"encoding/binary"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// paper is a manager of a cluster on paper: it tells of a few nodes, services, tasks,
// secrets, configs and networks, and takes down what it is asked to change.
type paper struct {
	host     string
	services []swarm.Service
	tasks    []swarm.Task
	nodes    []swarm.Node
	secrets  []swarm.Secret
	configs  []swarm.Config
	networks []network.Network
	swarm    swarm.Swarm

	mu   sync.Mutex
	sent []string // "METHOD /path?query BODY" of what changes something
	// backup is the one that is given, or was sent, and secret what was told the last time to seal
	// or open one.
	backup, secret string
	none           bool // it is in no swarm
	looks          int  // at the move of a volume
}

var longAgo = time.Date(2021, 3, 4, 5, 6, 7, 0, time.UTC)

func ptr[T any](v T) *T { return &v }

func id(word string) string { return (word + strings.Repeat("0", 25))[:25] }

func newPaper(t *testing.T) *paper {
	t.Helper()
	dir, err := os.MkdirTemp("", "pap")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	p := &paper{host: "unix://" + dir + "/s"}
	p.fill()
	l, err := net.Listen("unix", dir+"/s")
	if err != nil {
		t.Fatal(err)
	}
	srv := &http.Server{Handler: p}
	go srv.Serve(l)
	t.Cleanup(func() { srv.Close() })
	return p
}

func meta(n uint64) swarm.Meta {
	return swarm.Meta{Version: swarm.Version{Index: n}, CreatedAt: longAgo, UpdatedAt: longAgo.Add(time.Hour)}
}

func (p *paper) fill() {
	p.swarm = swarm.Swarm{
		ClusterInfo: swarm.ClusterInfo{ID: id("clu"), Meta: meta(7), TLSInfo: swarm.TLSInfo{TrustRoot: "-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n", CertIssuerSubject: []byte("s"), CertIssuerPublicKey: []byte("k")}},
		JoinTokens:  swarm.JoinTokens{Worker: "SWMTKN-1-worker", Manager: "SWMTKN-1-manager"},
	}
	p.swarm.Spec.Name = "default"
	p.swarm.Spec.CAConfig.NodeCertExpiry = 90 * 24 * time.Hour
	tls := p.swarm.TLSInfo
	for i, name := range []string{"east10", "east2", "west"} {
		n := swarm.Node{ID: id("nod" + name), Meta: meta(uint64(10 + i))}
		n.Spec = swarm.NodeSpec{Role: swarm.NodeRoleWorker, Availability: swarm.NodeAvailabilityActive}
		n.Description = swarm.NodeDescription{Hostname: name, Platform: swarm.Platform{OS: "linux", Architecture: "x86_64"}, Resources: swarm.Resources{NanoCPUs: 2500000000, MemoryBytes: 3 << 30}, TLSInfo: tls}
		n.Description.Engine = swarm.EngineDescription{EngineVersion: "28.0.1", Labels: map[string]string{"disk": "fast", "odd": ""}, Plugins: []swarm.PluginDescription{{Type: "Network", Name: "bridge"}, {Type: "Network", Name: "overlay"}, {Type: "Log", Name: "local"}}}
		n.Status = swarm.NodeStatus{State: swarm.NodeStateReady, Addr: fmt.Sprintf("192.0.2.%d", i+1)}
		p.nodes = append(p.nodes, n)
	}
	p.nodes[0].Spec.Labels = map[string]string{"zone": "a", "bare": ""}
	p.nodes[0].Spec.Role, p.nodes[0].ManagerStatus = swarm.NodeRoleManager, &swarm.ManagerStatus{Leader: true, Reachability: swarm.ReachabilityReachable, Addr: "192.0.2.1:2377"}
	p.nodes[1].Spec.Role, p.nodes[1].ManagerStatus = swarm.NodeRoleManager, &swarm.ManagerStatus{Reachability: swarm.ReachabilityUnreachable, Addr: "192.0.2.2:2377"}
	p.nodes[2].Status = swarm.NodeStatus{State: swarm.NodeStateDown, Message: "heartbeat failure", Addr: "192.0.2.3"}
	p.nodes[2].Spec.Availability, p.nodes[2].Description.TLSInfo.TrustRoot = swarm.NodeAvailabilityDrain, "old"
	for _, n := range []struct{ name, scope string }{{"back", "swarm"}, {"front", "swarm"}, {"shop_default", "swarm"}, {"here", "local"}} {
		x := network.Network{Name: n.name, ID: id("net" + n.name), Scope: n.scope, Driver: "overlay"}
		if n.name == "shop_default" {
			x.Labels = map[string]string{"com.docker.stack.namespace": "shop"}
		}
		p.networks = append(p.networks, x)
	}
	for i, name := range []string{"key10", "key2", "shop_key"} {
		labels := map[string]string{}
		if strings.HasPrefix(name, "shop") {
			labels["com.docker.stack.namespace"] = "shop"
		}
		p.secrets = append(p.secrets, swarm.Secret{ID: id("sec" + name), Meta: meta(uint64(20 + i)), Spec: swarm.SecretSpec{Annotations: swarm.Annotations{Name: name, Labels: labels}}})
		p.configs = append(p.configs, swarm.Config{ID: id("con" + name), Meta: meta(uint64(30 + i)), Spec: swarm.ConfigSpec{Annotations: swarm.Annotations{Name: name, Labels: labels}, Data: []byte("some\ndata of " + name)}})
	}
	p.secrets[0].Spec.Driver = &swarm.Driver{Name: "vault"}
	p.secrets[1].Spec.Labels = map[string]string{"team": "shop"}
	p.fillServices()
}

func (p *paper) fillServices() {
	web := swarm.Service{ID: id("srvweb"), Meta: meta(40)}
	web.Spec = swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: "web", Labels: map[string]string{"tier": "front", "bare": ""}},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{
				Image: "nginx:1@sha256:" + strings.Repeat("a", 64), Labels: map[string]string{"inner": "yes"}, Command: []string{"/bin/nginx"}, Args: []string{"-g", "daemon off;"},
				Hostname: "h", Env: []string{"A=1", "B=2", "C"}, Dir: "/w", User: "33", Groups: []string{"5", "audio"}, Init: ptr(true), StopSignal: "INT", ReadOnly: true,
				Mounts:          []mount.Mount{{Type: mount.TypeBind, Source: "/h", Target: "/c", ReadOnly: true}, {Type: mount.TypeVolume, Source: "vol", Target: "/v"}},
				StopGracePeriod: ptr(3 * time.Second),
				Healthcheck:     &container.HealthConfig{Test: []string{"CMD-SHELL", "true"}, Interval: 5 * time.Second, Retries: 3, StartPeriod: time.Minute, Timeout: 2 * time.Second},
				Hosts:           []string{"127.0.0.2 host3 host1 host2", "127.0.0.1 host1"},
				DNSConfig:       &swarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("8.8.8.8")}, Search: []string{"example.com"}, Options: []string{"ndots:2"}},
				Secrets:         []*swarm.SecretReference{{SecretID: id("seckey10"), SecretName: "key10", File: &swarm.SecretReferenceFileTarget{Name: "key10", UID: "0", GID: "0", Mode: 0o444}}},
				Configs:         []*swarm.ConfigReference{{ConfigID: id("conkey10"), ConfigName: "key10", File: &swarm.ConfigReferenceFileTarget{Name: "/etc/k", UID: "0", GID: "0", Mode: 0o444}}},
				Sysctls:         map[string]string{"net.core.somaxconn": "100", "net.ipv4.ip_forward": ""},
				CapabilityAdd:   []string{"CAP_NET_ADMIN"}, CapabilityDrop: []string{"CAP_CHOWN", "CAP_KILL"},
				Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}},
			},
			Networks:      []swarm.NetworkAttachmentConfig{{Target: id("netfront"), Aliases: []string{"www"}}},
			Resources:     &swarm.ResourceRequirements{Limits: &swarm.Limit{NanoCPUs: 1500000000, MemoryBytes: 64 << 20, Pids: 20}, Reservations: &swarm.Resources{NanoCPUs: 500000000, MemoryBytes: 32 << 20, GenericResources: []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "GPU", Value: 2}}}}},
			RestartPolicy: &swarm.RestartPolicy{Condition: swarm.RestartPolicyConditionOnFailure, Delay: ptr(time.Second), MaxAttempts: ptr(uint64(3))},
			Placement:     &swarm.Placement{Constraints: []string{"node.role==worker", "node.labels.zone==a"}, Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}}, MaxReplicas: 4},
			LogDriver:     &swarm.Driver{Name: "json-file", Options: map[string]string{"max-size": "1m", "bare": ""}},
			ForceUpdate:   2,
		},
		Mode:           swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: ptr(uint64(2))}},
		UpdateConfig:   &swarm.UpdateConfig{Parallelism: 2, Delay: 10 * time.Second, Monitor: 100 * time.Millisecond, FailureAction: swarm.UpdateFailureActionRollback, MaxFailureRatio: 0.25, Order: swarm.UpdateOrderStartFirst},
		RollbackConfig: &swarm.UpdateConfig{Parallelism: 1, FailureAction: swarm.UpdateFailureActionPause, Order: swarm.UpdateOrderStopFirst},
		EndpointSpec:   &swarm.EndpointSpec{Mode: swarm.ResolutionModeVIP, Ports: []swarm.PortConfig{{Protocol: network.TCP, TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress}}},
	}
	web.Endpoint.Ports = []swarm.PortConfig{
		{Protocol: network.TCP, TargetPort: 80, PublishedPort: 8080, PublishMode: swarm.PortConfigPublishModeIngress},
		{Protocol: network.TCP, TargetPort: 81, PublishedPort: 8081, PublishMode: swarm.PortConfigPublishModeIngress},
		{Protocol: network.TCP, TargetPort: 80, PublishedPort: 8082, PublishMode: swarm.PortConfigPublishModeIngress},
		{Protocol: network.UDP, TargetPort: 53, PublishedPort: 53, PublishMode: swarm.PortConfigPublishModeHost},
	}
	web.UpdateStatus = &swarm.UpdateStatus{State: swarm.UpdateStateRollbackCompleted, StartedAt: &longAgo, CompletedAt: &longAgo, Message: "rollback completed"}
	web.ServiceStatus = &swarm.ServiceStatus{RunningTasks: 2, DesiredTasks: 2}
	plain := func(name string, mode swarm.ServiceMode, status swarm.ServiceStatus) swarm.Service {
		s := swarm.Service{ID: id("srv" + name), Meta: meta(50), ServiceStatus: &status}
		s.Spec = swarm.ServiceSpec{Annotations: swarm.Annotations{Name: name}, TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "busybox:latest"}}, Mode: mode}
		s.Spec.UpdateConfig = &swarm.UpdateConfig{Parallelism: 1, Monitor: 100 * time.Millisecond, Order: swarm.UpdateOrderStopFirst}
		if name == "shop_a" || name == "shop_b" {
			s.Spec.Labels = map[string]string{"com.docker.stack.namespace": "shop", "com.docker.stack.image": "busybox"}
		}
		if mode.ReplicatedJob != nil || mode.GlobalJob != nil {
			s.JobStatus = &swarm.JobStatus{JobIteration: swarm.Version{Index: 3}, LastExecution: longAgo}
			s.Spec.UpdateConfig = nil
		}
		return s
	}
	terminal := plain("terminal", swarm.ServiceMode{Global: &swarm.GlobalService{}}, swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 2})
	terminal.Spec.TaskTemplate.ContainerSpec.TTY = true
	p.services = []swarm.Service{
		web,
		plain("agent", swarm.ServiceMode{Global: &swarm.GlobalService{}}, swarm.ServiceStatus{RunningTasks: 2, DesiredTasks: 2}),
		plain("batch10", swarm.ServiceMode{ReplicatedJob: &swarm.ReplicatedJob{MaxConcurrent: ptr(uint64(2)), TotalCompletions: ptr(uint64(2))}}, swarm.ServiceStatus{DesiredTasks: 2, CompletedTasks: 2}),
		plain("batch2", swarm.ServiceMode{GlobalJob: &swarm.GlobalJob{}}, swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 1, CompletedTasks: 1}),
		plain("shop_a", swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: ptr(uint64(1))}}, swarm.ServiceStatus{RunningTasks: 1, DesiredTasks: 1}),
		plain("shop_b", swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: ptr(uint64(1))}}, swarm.ServiceStatus{RunningTasks: 0, DesiredTasks: 1}),
		terminal,
	}
	task := func(name string, s int, slot, n int, state, desired swarm.TaskState, fault string) {
		t := swarm.Task{ID: id("tsk" + name), Meta: meta(60), ServiceID: p.services[s].ID, Slot: slot, NodeID: p.nodes[n].ID, DesiredState: desired, Spec: p.services[s].Spec.TaskTemplate}
		t.CreatedAt = longAgo.Add(time.Duration(len(p.tasks)) * time.Minute)
		t.Status = swarm.TaskStatus{Timestamp: longAgo, State: state, Err: fault}
		if j := p.services[s].JobStatus; j != nil {
			t.JobIteration = &j.JobIteration
		}
		p.tasks = append(p.tasks, t)
	}
	task("w1", 0, 1, 0, swarm.TaskStateFailed, swarm.TaskStateShutdown, "task: non-zero exit (1): something long that is cut")
	task("w2", 0, 1, 0, swarm.TaskStateRunning, swarm.TaskStateRunning, "")
	task("w3", 0, 10, 1, swarm.TaskStateRunning, swarm.TaskStateRunning, "")
	p.tasks[2].Status.PortStatus.Ports = []swarm.PortConfig{{Protocol: network.UDP, TargetPort: 53, PublishedPort: 53, PublishMode: swarm.PortConfigPublishModeHost}}
	task("a1", 1, 0, 0, swarm.TaskStateRunning, swarm.TaskStateRunning, "")
	task("a2", 1, 0, 1, swarm.TaskStateRunning, swarm.TaskStateRunning, "")
	task("b1", 2, 0, 0, swarm.TaskStateComplete, swarm.TaskStateComplete, "")
	task("b2", 2, 1, 1, swarm.TaskStateComplete, swarm.TaskStateComplete, "")
	task("c1", 3, 0, 0, swarm.TaskStateComplete, swarm.TaskStateComplete, "")
	task("s1", 4, 1, 1, swarm.TaskStateRunning, swarm.TaskStateRunning, "")
	task("s2", 5, 1, 1, swarm.TaskStateFailed, swarm.TaskStateRunning, "starting container failed\nno such file")
}

func reply(w http.ResponseWriter, code int, v any) {
	w.Header().Set("Content-Type", "application/json")
	w.WriteHeader(code)
	_ = json.NewEncoder(w).Encode(v)
}

func declined(w http.ResponseWriter, code int, words string) {
	reply(w, code, map[string]string{"message": words})
}

// matches applies those filters of a list that commands themselves use.
func matches(filters map[string]map[string]bool, id, name string, labels map[string]string, more map[string]string) bool {
	for key, values := range filters {
		ok := false
		for v := range values {
			switch key {
			case "id":
				ok = ok || strings.HasPrefix(id, v)
			case "name":
				ok = ok || strings.HasPrefix(name, v)
			case "label":
				k, want, given := strings.Cut(v, "=")
				have, there := labels[k]
				ok = ok || there && (!given || have == want)
			case "service", "node":
				ok = ok || more[key] == v
			default:
				ok = true
			}
		}
		if !ok {
			return false
		}
	}
	return true
}

// list answers a list or one object.
func list[T any](w http.ResponseWriter, kind string, parts []string, filters map[string]map[string]bool, all []T, of func(T) (id, name string, labels, more map[string]string)) {
	if len(parts) > 1 {
		for _, x := range all {
			if id, name, _, _ := of(x); id == parts[1] || name == parts[1] {
				reply(w, 200, x)
				return
			}
		}
		declined(w, 404, "no such "+kind+": "+parts[1])
		return
	}
	found := []T{}
	for _, x := range all {
		if id, name, labels, more := of(x); matches(filters, id, name, labels, more) {
			found = append(found, x)
		}
	}
	reply(w, 200, found)
}

func (p *paper) ServeHTTP(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Api-Version", "1.50")
	w.Header().Set("Ostype", "linux")
	path := q.URL.Path
	if parts := strings.SplitN(path, "/", 3); len(parts) == 3 && strings.HasPrefix(parts[1], "v1.") {
		path = "/" + parts[2]
	}
	parts := strings.Split(strings.Trim(path, "/"), "/")
	if q.Method == http.MethodPost || q.Method == http.MethodDelete {
		p.change(w, q, path, parts)
		return
	}
	filters := map[string]map[string]bool{}
	_ = json.Unmarshal([]byte(q.URL.Query().Get("filters")), &filters)
	if p.none && slices.Contains([]string{"swarm", "nodes", "services", "tasks", "secrets", "configs"}, parts[0]) {
		declined(w, 503, "This node is not a swarm manager.")
		return
	}
	p.look(w, q, parts, filters)
}

func (p *paper) look(w http.ResponseWriter, q *http.Request, parts []string, filters map[string]map[string]bool) {
	switch parts[0] {
	case "_ping":
	case "escale":
		if parts[1] != "cluster" {
			p.own(w, parts[1:])
			break
		}
		p.mu.Lock()
		p.secret = q.Header.Get("Escale-Backup-Secret")
		p.mu.Unlock()
		w.Header().Set("Escale-Backup-Stale", "true")
		fmt.Fprint(w, p.backup)
		if strings.HasSuffix(p.backup, "cut off") {
			panic(http.ErrAbortHandler)
		}
	case "info":
		info := map[string]any{"Swarm": map[string]any{"LocalNodeState": "inactive"}}
		if !p.none {
			info["Swarm"] = swarm.Info{NodeID: p.nodes[0].ID, LocalNodeState: swarm.LocalNodeStateActive, ControlAvailable: true, Cluster: &p.swarm.ClusterInfo}
		}
		reply(w, 200, info)
	case "swarm":
		if len(parts) > 1 {
			reply(w, 200, map[string]string{"UnlockKey": "SWMKEY-1-secret"})
			return
		}
		reply(w, 200, p.swarm)
	case "nodes":
		list(w, "node", parts, filters, p.nodes, func(n swarm.Node) (string, string, map[string]string, map[string]string) {
			return n.ID, n.Description.Hostname, n.Spec.Labels, nil
		})
	case "services", "tasks":
		if len(parts) == 3 {
			p.logs(w, q)
			return
		}
		p.work(w, parts, filters)
	case "secrets":
		list(w, "secret", parts, filters, p.secrets, func(s swarm.Secret) (string, string, map[string]string, map[string]string) {
			return s.ID, s.Spec.Name, s.Spec.Labels, nil
		})
	case "configs":
		list(w, "config", parts, filters, p.configs, func(s swarm.Config) (string, string, map[string]string, map[string]string) {
			return s.ID, s.Spec.Name, s.Spec.Labels, nil
		})
	case "networks":
		list(w, "network", parts, filters, p.networks, func(n network.Network) (string, string, map[string]string, map[string]string) {
			return n.ID, n.Name, n.Labels, nil
		})
	default: // registries, too
		declined(w, 404, "page not found")
	}
}

func (p *paper) work(w http.ResponseWriter, parts []string, filters map[string]map[string]bool) {
	if parts[0] == "services" {
		list(w, "service", parts, filters, p.services, func(s swarm.Service) (string, string, map[string]string, map[string]string) {
			return s.ID, s.Spec.Name, s.Spec.Labels, nil
		})
		return
	}
	list(w, "task", parts, filters, p.tasks, func(t swarm.Task) (string, string, map[string]string, map[string]string) {
		var labels map[string]string
		for _, s := range p.services {
			if s.ID == t.ServiceID {
				labels = s.Spec.Labels
			}
		}
		return t.ID, t.ID, labels, map[string]string{"service": t.ServiceID, "node": t.NodeID}
	})
}

// logs sends lines of two tasks, with the details that were asked for.
func (p *paper) logs(w http.ResponseWriter, q *http.Request) {
	w.Header().Set("Content-Type", "application/vnd.docker.multiplexed-stream")
	for i, t := range []swarm.Task{p.tasks[1], p.tasks[2]} {
		line := fmt.Sprintf("line %d with words\n", i)
		if q.URL.Query().Get("details") == "1" {
			line = fmt.Sprintf("extra=a%%20b,com.docker.swarm.node.id=%s,com.docker.swarm.service.id=%s,com.docker.swarm.task.id=%s %s", t.NodeID, t.ServiceID, t.ID, line)
		}
		if q.URL.Query().Get("timestamps") == "1" {
			line = "2021-03-04T05:06:07.000000000Z " + line
		}
		head := make([]byte, 8)
		head[0] = byte(i + 1)
		binary.BigEndian.PutUint32(head[4:], uint32(len(line)))
		_, _ = w.Write(append(head, line...))
	}
}

// change takes down what is asked for.
func (p *paper) change(w http.ResponseWriter, q *http.Request, path string, parts []string) {
	body, _ := io.ReadAll(q.Body)
	p.mu.Lock()
	if path == "/escale/cluster/restore" {
		p.secret, p.backup, body = q.Header.Get("Escale-Backup-Secret"), string(body), nil
	}
	p.sent = append(p.sent, strings.TrimSpace(q.Method+" "+path+"?"+q.URL.RawQuery+" "+string(body)))
	p.mu.Unlock()
	if p.none && path != "/swarm/init" && path != "/swarm/join" {
		declined(w, 503, "This node is not a swarm manager.")
		return
	}
	if strings.Contains(path, "nosuch") {
		declined(w, 404, "no such thing: "+parts[len(parts)-1])
		return
	}
	switch {
	case path == "/escale/cluster/restore":
		reply(w, 200, map[string]any{"Cluster": id("clu"), "Node": p.nodes[0].ID, "Made": longAgo, "Revision": 7, "Objects": 9})
	case path == "/swarm/init":
		reply(w, 200, p.nodes[0].ID)
	case path == "/services/create":
		var warnings []string
		if bytes.Contains(body, []byte("warned")) {
			warnings = []string{"a warning"}
		}
		reply(w, 201, map[string]any{"ID": p.services[0].ID, "Warnings": warnings})
	case path == "/escale/moves":
		reply(w, 201, map[string]string{"ID": "move1"})
	case strings.HasSuffix(path, "/renew"):
		reply(w, 200, map[string]any{"ID": id("new"), "Services": []string{p.services[0].Spec.Name}})
	case strings.HasSuffix(path, "/create"):
		reply(w, 201, map[string]string{"ID": id("new"), "Id": id("new")})
	case parts[0] == "services" && q.Method == http.MethodPost:
		reply(w, 200, map[string]any{"Warnings": nil})
	default:
		w.WriteHeader(200)
	}
}
