package swarm

import (
	"encoding/json"
	"net/netip"
	"os"
	"reflect"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	"github.com/moby/moby/api/types/swarm"
)

func pointer[T any](v T) *T { return &v }

// web is the least that a service needs.
func web() swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations:  swarm.Annotations{Name: "web"},
		TaskTemplate: swarm.TaskSpec{ContainerSpec: &swarm.ContainerSpec{Image: "nginx:1"}},
	}
}

// whole has everything that a service can have, in the form in which it is told.
func whole() swarm.ServiceSpec {
	return swarm.ServiceSpec{
		Annotations: swarm.Annotations{Name: "web", Labels: map[string]string{"tier": "front"}},
		Mode:        swarm.ServiceMode{Replicated: &swarm.ReplicatedService{Replicas: pointer(uint64(3))}},
		UpdateConfig: &swarm.UpdateConfig{
			Parallelism: 2, Delay: time.Second, FailureAction: "rollback", Monitor: time.Minute, MaxFailureRatio: 0.5, Order: "start-first",
		},
		RollbackConfig: &swarm.UpdateConfig{Parallelism: 1, FailureAction: "continue", Order: "stop-first"},
		EndpointSpec: &swarm.EndpointSpec{Mode: "vip", Ports: []swarm.PortConfig{
			{Name: "http", Protocol: "tcp", TargetPort: 80, PublishedPort: 8080, PublishMode: "ingress"},
			{Protocol: "udp", TargetPort: 53, PublishedPort: 53, PublishMode: "host"},
		}},
		TaskTemplate: swarm.TaskSpec{
			ContainerSpec: &swarm.ContainerSpec{
				Image: "nginx:1", Labels: map[string]string{"a": "b"}, Command: []string{"nginx"}, Args: []string{"-g", "daemon off;"},
				Hostname: "h-{{.Task.Slot}}", Env: []string{"A=b", "N={{.Node.Hostname}}"}, Dir: "/srv", User: "www", Groups: []string{"tape"},
				Privileges: &swarm.Privileges{
					SELinuxContext: &swarm.SELinuxContext{User: "u", Role: "r", Type: "t", Level: "l"},
					Seccomp:        &swarm.SeccompOpts{Mode: "custom", Profile: []byte(`{}`)}, AppArmor: &swarm.AppArmorOpts{Mode: "disabled"}, NoNewPrivileges: true,
				},
				Init: pointer(true), StopSignal: "QUIT", TTY: true, OpenStdin: true, ReadOnly: true,
				Mounts: []mount.Mount{
					{Type: "bind", Source: "/srv", Target: "/srv", ReadOnly: true},
					{Type: "volume", Source: "v-{{.Task.Slot}}", Target: "/data", VolumeOptions: &mount.VolumeOptions{Labels: map[string]string{"a": "b"}}},
					{Type: "tmpfs", Target: "/tmp", TmpfsOptions: &mount.TmpfsOptions{SizeBytes: 1 << 20}},
				},
				StopGracePeriod: pointer(time.Minute), Healthcheck: &container.HealthConfig{Test: []string{"CMD", "true"}, Interval: time.Second},
				Hosts: []string{"192.0.2.1 one", "192.0.2.2 two"}, DNSConfig: &swarm.DNSConfig{Nameservers: []netip.Addr{netip.MustParseAddr("192.0.2.53")}, Search: []string{"x"}, Options: []string{"ndots:1"}},
				Secrets: []*swarm.SecretReference{{File: &swarm.SecretReferenceFileTarget{Name: "key", UID: "1", GID: "2", Mode: 0o400}, SecretID: "s1", SecretName: "key"}},
				Configs: []*swarm.ConfigReference{{File: &swarm.ConfigReferenceFileTarget{Name: "/etc/x", UID: "1", GID: "2", Mode: 0o444}, ConfigID: "c1", ConfigName: "conf"}},
				Sysctls: map[string]string{"net.ipv4.ip_forward": "1"}, CapabilityAdd: []string{"CAP_NET_ADMIN"}, CapabilityDrop: []string{"CAP_CHOWN"},
				Ulimits: []*container.Ulimit{{Name: "nofile", Soft: 10, Hard: 20}}, OomScoreAdj: 500, Isolation: "default",
			},
			Resources: &swarm.ResourceRequirements{
				Limits:       &swarm.Limit{NanoCPUs: 5e8, MemoryBytes: 1 << 26, Pids: 100},
				Reservations: &swarm.Resources{NanoCPUs: 1e8, MemoryBytes: 1 << 25, GenericResources: []swarm.GenericResource{{DiscreteResourceSpec: &swarm.DiscreteGenericResource{Kind: "SSD", Value: 2}}}},
				SwapBytes:    pointer(int64(1 << 20)), MemorySwappiness: pointer(int64(30)),
			},
			RestartPolicy: &swarm.RestartPolicy{Condition: "on-failure", Delay: pointer(2 * time.Second), MaxAttempts: pointer(uint64(3)), Window: pointer(time.Hour)},
			Placement: &swarm.Placement{
				Constraints: []string{"node.role==manager"}, Preferences: []swarm.PlacementPreference{{Spread: &swarm.SpreadOver{SpreadDescriptor: "node.labels.zone"}}},
				MaxReplicas: 2, Platforms: []swarm.Platform{{OS: "linux", Architecture: "amd64"}},
			},
			Networks:  []swarm.NetworkAttachmentConfig{{Target: "front", Aliases: []string{"www"}, DriverOpts: map[string]string{"o": "p"}}},
			LogDriver: &swarm.Driver{Name: "json-file", Options: map[string]string{"max-size": "1m"}}, ForceUpdate: 4, Runtime: "container",
		},
	}
}

// What was asked is told again, of services word for word, of tasks by what they were made from.
func TestRoundTrip(t *testing.T) {
	asked := whole()
	spec, err := toSpec(&asked)
	if err != nil {
		t.Fatal(err)
	}
	if spec, err = stored(spec); err != nil {
		t.Fatal(err)
	}
	if got := fromSpec("web", &spec); !reflect.DeepEqual(got, whole()) {
		t.Errorf("kept: %+v", got)
	}
	spec.Swarm = nil
	got := fromSpec("web", &spec)
	a, _ := json.MarshalIndent(got, "", " ")
	b, _ := json.MarshalIndent(whole(), "", " ")
	if string(a) != string(b) {
		t.Errorf("made again:\n%s\nasked:\n%s", a, b)
	}
}

// Each field of a spec changes what the loops work with, or is refused; a field that moby
// adds is found here.
func TestEveryFieldCounts(t *testing.T) {
	asked := whole()
	base, err := toSpec(&asked)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range leaves(reflect.TypeFor[swarm.ServiceSpec](), nil) {
		t.Run(strings.Join(path, "."), func(t *testing.T) {
			changed := whole()
			if err := change(reflect.ValueOf(&changed).Elem(), path); err != nil {
				t.Fatal(err)
			}
			spec, err := toSpec(&changed)
			if err != nil {
				return // refused
			}
			spec.Swarm, base.Swarm = nil, nil
			if reflect.DeepEqual(spec, base) && path[0] != "Annotations" { // its name is the object's
				t.Error("it is taken and does nothing")
			}
		})
	}
}

// shaped are types that hold one value, however many fields they have.
var shaped = []reflect.Type{reflect.TypeFor[netip.Addr](), reflect.TypeFor[time.Duration](), reflect.TypeFor[os.FileMode]()}

// theirs are types that containers take as they are: what is in them is their matter.
var theirs = []reflect.Type{reflect.TypeFor[mount.Mount](), reflect.TypeFor[container.HealthConfig](), reflect.TypeFor[container.Ulimit]()}

// leaves are the paths to all values of a type.
func leaves(t reflect.Type, path []string) (out [][]string) {
	for _, s := range append(shaped, theirs...) {
		if t == s {
			return [][]string{path}
		}
	}
	switch t.Kind() {
	case reflect.Pointer, reflect.Slice:
		if t.Elem().Kind() == reflect.Uint8 {
			return [][]string{path}
		}
		return leaves(t.Elem(), path)
	case reflect.Struct:
		if t.NumField() == 0 {
			return [][]string{path}
		}
		for i := range t.NumField() {
			out = append(out, leaves(t.Field(i).Type, append(append([]string(nil), path...), t.Field(i).Name))...)
		}
		return out
	}
	return [][]string{path}
}

// change gives the value at a path another one.
func change(v reflect.Value, path []string) error {
	for _, name := range path {
		v = settle(v)
		v = v.FieldByName(name)
	}
	v = settle(v)
	switch v.Kind() {
	case reflect.String:
		v.SetString(v.String() + "x")
	case reflect.Bool:
		v.SetBool(!v.Bool())
	case reflect.Int64:
		v.SetInt(v.Int() + 5e6)
	case reflect.Int:
		v.SetInt(v.Int() + 1)
	case reflect.Uint64, reflect.Uint32:
		v.SetUint(v.Uint() + 1)
	case reflect.Float32:
		v.SetFloat(v.Float() + 0.125)
	case reflect.Map:
		if v.IsNil() {
			v.Set(reflect.MakeMap(v.Type()))
		}
		v.SetMapIndex(reflect.ValueOf("new"), reflect.ValueOf("x"))
	case reflect.Slice: // bytes
		v.SetBytes([]byte(`{"x":1}`))
	case reflect.Struct:
		switch v.Type() {
		case reflect.TypeFor[netip.Addr]():
			v.Set(reflect.ValueOf(netip.MustParseAddr("198.51.100.1")))
		case reflect.TypeFor[mount.Mount]():
			v.FieldByName("Source").SetString("/other")
		case reflect.TypeFor[container.HealthConfig]():
			v.FieldByName("Retries").SetInt(9)
		case reflect.TypeFor[container.Ulimit]():
			v.FieldByName("Hard").SetInt(99)
		}
	}
	return nil
}

// settle makes what a pointer or list leads to, and goes there.
func settle(v reflect.Value) reflect.Value {
	for {
		switch {
		case v.Kind() == reflect.Pointer:
			if v.IsNil() {
				v.Set(reflect.New(v.Type().Elem()))
			}
			v = v.Elem()
		case v.Kind() == reflect.Slice && v.Type().Elem().Kind() != reflect.Uint8:
			if v.Len() == 0 {
				v.Set(reflect.MakeSlice(v.Type(), 1, 1))
			}
			v = v.Index(0)
		default:
			return v
		}
	}
}

func TestRefusedSpecs(t *testing.T) {
	for _, c := range []struct {
		name string
		f    func(*swarm.ServiceSpec)
		want string
	}{
		{"no name", func(s *swarm.ServiceSpec) { s.Name = "" }, "name must be provided"},
		{"bad name", func(s *swarm.ServiceSpec) { s.Name = "a.b" }, "name must be valid as a DNS name component"},
		{"long name", func(s *swarm.ServiceSpec) { s.Name = strings.Repeat("a", 64) }, "63 characters"},
		{"no container", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec = nil }, "missing runtime"},
		{"no image", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "" }, "image reference must be provided"},
		{"bad image", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Image = "A//b" }, "not a valid repository/tag"},
		{"two modes", func(s *swarm.ServiceSpec) {
			s.Mode.Global = &swarm.GlobalService{}
			s.Mode.GlobalJob = &swarm.GlobalJob{}
		}, "only one service mode"},
		{"a job with updates", func(s *swarm.ServiceSpec) {
			s.Mode.GlobalJob = &swarm.GlobalJob{}
			s.UpdateConfig = &swarm.UpdateConfig{}
		}, "do not have an update"},
		{"an empty job", func(s *swarm.ServiceSpec) { s.Mode.ReplicatedJob = &swarm.ReplicatedJob{MaxConcurrent: new(uint64)} }, "must not be 0"},
		{"a plugin", func(s *swarm.ServiceSpec) { s.TaskTemplate.Runtime = "plugin" }, "not supported"},
		{"little memory", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Limits: &swarm.Limit{MemoryBytes: 1}}
		}, "invalid memory value 1: Must be at least 4MiB"},
		{"little CPU", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Resources = &swarm.ResourceRequirements{Reservations: &swarm.Resources{NanoCPUs: 1}}
		}, "invalid cpu value 1e-09: Must be at least 0.001"},
		{"a bad constraint", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.Placement = &swarm.Placement{Constraints: []string{"node.role=manager"}}
		}, "constraint expected one operator from ==, !="},
		{"a port twice", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Ports: []swarm.PortConfig{{TargetPort: 1, PublishedPort: 9}, {TargetPort: 2, PublishedPort: 9}}}
		}, "duplicate published ports"},
		{"ingress without an address", func(s *swarm.ServiceSpec) {
			s.EndpointSpec = &swarm.EndpointSpec{Mode: "dnsrr", Ports: []swarm.PortConfig{{TargetPort: 1}}}
		}, "can't be used with dnsrr"},
		{"a relative mount", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "volume", Target: "a"}}
		}, "must be an absolute path"},
		{"a mount twice", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Mounts = []mount.Mount{{Type: "volume", Target: "/a"}, {Type: "tmpfs", Target: "/a/"}}
		}, "duplicate mount point"},
		{"a bad template", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Hostname = "{{.Nope}}" }, "expanding hostname failed"},
		{"a template of a secret", func(s *swarm.ServiceSpec) { s.TaskTemplate.ContainerSpec.Env = []string{`A={{secret "x"}}`} }, "expanding env failed"},
		{"a secret without target", func(s *swarm.ServiceSpec) {
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{{SecretID: "a", SecretName: "b"}}
		}, "no target provided"},
		{"two at one target", func(s *swarm.ServiceSpec) {
			r := &swarm.SecretReference{SecretID: "a", SecretName: "b", File: &swarm.SecretReferenceFileTarget{Name: "x"}}
			s.TaskTemplate.ContainerSpec.Secrets = []*swarm.SecretReference{r, r}
		}, "secret references 'b' and 'b' have a conflicting target: 'x'"},
	} {
		s := web()
		c.f(&s)
		if _, err := toSpec(&s); err == nil || !strings.Contains(err.Error(), c.want) {
			t.Errorf("%s: %v, want %q", c.name, err, c.want)
		}
	}
}

// How many tasks a service has is told also where it was left out, as Docker's client sends it.
func TestModeIsTold(t *testing.T) {
	for _, c := range []struct{ asked, want string }{
		{`{}`, `{"Replicated":{"Replicas":1}}`},
		{`{"Replicated":{}}`, `{"Replicated":{"Replicas":1}}`},
		{`{"Replicated":{"Replicas":0}}`, `{"Replicated":{"Replicas":0}}`},
		{`{"Global":{}}`, `{"Global":{}}`},
		{`{"ReplicatedJob":{}}`, `{"ReplicatedJob":{"MaxConcurrent":1,"TotalCompletions":1}}`},
		{`{"ReplicatedJob":{"MaxConcurrent":2}}`, `{"ReplicatedJob":{"MaxConcurrent":2,"TotalCompletions":2}}`},
		{`{"GlobalJob":{}}`, `{"GlobalJob":{}}`},
	} {
		s := web()
		s.Mode = swarm.ServiceMode{}
		if err := json.Unmarshal([]byte(c.asked), &s.Mode); err != nil {
			t.Fatal(err)
		}
		spec, err := toSpec(&s)
		if err != nil {
			t.Fatal(err)
		}
		if got, err := json.Marshal(fromSpec("web", &spec).Mode); err != nil || string(got) != c.want {
			t.Errorf("%s: %s, %v, want %s", c.asked, got, err, c.want)
		}
	}
}

// What a spec leaves out is Docker's.
func TestDefaults(t *testing.T) {
	s := web()
	spec, err := toSpec(&s)
	if err != nil {
		t.Fatal(err)
	}
	if spec.Mode.Replicated.Replicas != 1 || spec.Task.Grace != 10*time.Second || spec.Task.Restart != (cluster.RestartPolicy{Condition: "any", Delay: 5 * time.Second}) {
		t.Errorf("%+v", spec)
	}
	full := withDefaults(s)
	if *full.TaskTemplate.RestartPolicy.Delay != 5*time.Second || full.UpdateConfig.Parallelism != 1 || full.EndpointSpec.Mode != "vip" || s.EndpointSpec != nil || s.TaskTemplate.ContainerSpec.StopGracePeriod != nil {
		t.Errorf("%+v", full)
	}
}

// No time at all to end is something else than the usual one.
func TestNoGrace(t *testing.T) {
	s := web()
	s.TaskTemplate.ContainerSpec.StopGracePeriod = new(time.Duration)
	spec, err := toSpec(&s)
	if err != nil {
		t.Fatal(err)
	}
	if stop := spec.Task.Container.StopTimeout; spec.Task.Grace != 0 || stop == nil || *stop != 0 {
		t.Errorf("grace %s, the container's own %v", spec.Task.Grace, stop)
	}
	if told := fromTask(&spec.Task, nil).ContainerSpec.StopGracePeriod; told == nil || *told != 0 {
		t.Errorf("told as %v", told)
	}
}

// Whatever a client sends is refused, or makes a spec that is told and asked again as the same.
func FuzzServiceSpec(f *testing.F) {
	for _, s := range []swarm.ServiceSpec{web(), whole(), {}} {
		b, _ := json.Marshal(s)
		f.Add(b)
	}
	f.Add([]byte(`{"Name":"a","Mode":{"ReplicatedJob":{"TotalCompletions":3}},"TaskTemplate":{"ContainerSpec":{"Image":"a","Env":["A={{.Task.ID}}"],"Secrets":[null],"Ulimits":[null],"Hosts":["a"]}}}`))
	f.Fuzz(func(t *testing.T, raw []byte) {
		var asked swarm.ServiceSpec
		if json.Unmarshal(raw, &asked) != nil {
			return
		}
		spec, err := toSpec(&asked)
		if err != nil {
			return
		}
		if spec, err = stored(spec); err != nil {
			t.Fatal(err)
		}
		withDefaults(fromSpec(asked.Name, &spec))
		was := spec.Swarm
		spec.Swarm = nil
		told := fromSpec(was.Name, &spec)
		again, err := toSpec(&told)
		if err != nil {
			t.Fatalf("told so that it cannot be asked: %v", err)
		}
		if again, err = stored(again); err != nil {
			t.Fatal(err)
		}
		if !again.Task.Like(spec.Task) {
			a, _ := json.Marshal(spec.Task)
			b, _ := json.Marshal(again.Task)
			t.Errorf("%s\n%s", a, b)
		}
	})
}
