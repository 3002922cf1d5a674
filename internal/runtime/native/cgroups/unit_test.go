package cgroups

import (
	"math"
	"reflect"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"escale.dev/escale/internal/sys/systemd"
)

func TestParseUnit(t *testing.T) {
	for spec, want := range map[string]string{"": "escale-ID.scope", "a.slice:docker:x": "docker-x.scope", ":p:x": "p-x.scope", "a.slice::x": "x.scope"} {
		u, err := ParseUnit(spec, "ID")
		if err != nil || u.Name != want {
			t.Errorf("%q: %+v, %v", spec, u, err)
		}
	}
	if u, _ := ParseUnit("", "ID"); u.Path != "system.slice:escale:ID" {
		t.Errorf("path: %s", u.Path)
	}
	for spec, words := range map[string]string{
		"/a/b": `expected cgroupsPath to be of format "slice:prefix:name" for systemd cgroups, got "/a/b" instead`, "a--b.slice:x:y": "invalid slice name: a--b.slice",
		"a.slice:x:": `cgroupsPath "a.slice:x:": not the name of a scope`, "a.slice:x:b.slice": `cgroupsPath "a.slice:x:b.slice": not the name of a scope`, "a.slice:x:../y": `cgroupsPath "a.slice:x:../y": not the name of a scope`,
	} {
		if _, err := ParseUnit(spec, "ID"); err == nil || err.Error() != words {
			t.Errorf("%q: %v", spec, err)
		}
	}
}

func TestProperties(t *testing.T) {
	two := func() (int, error) { return 252, nil }
	for _, c := range []struct {
		file, value string
		want        []systemd.Property
	}{
		{"memory.max", "5", []systemd.Property{{Name: "MemoryMax", Value: uint64(5)}}},
		{"memory.swap.max", "max", []systemd.Property{{Name: "MemorySwapMax", Value: uint64(math.MaxUint64)}}},
		{"memory.limit_in_bytes", "-1", []systemd.Property{{Name: "MemoryLimit", Value: uint64(math.MaxUint64)}}},
		{"pids.max", "0", []systemd.Property{{Name: "TasksMax", Value: uint64(1)}}},
		{"cpu.max", "50000 200000", []systemd.Property{{Name: "CPUQuotaPeriodUSec", Value: uint64(200000)}, {Name: "CPUQuotaPerSecUSec", Value: uint64(250000)}}},
		{"cpu.max", "max", []systemd.Property{{Name: "CPUQuotaPeriodUSec", Value: uint64(100000)}, {Name: "CPUQuotaPerSecUSec", Value: uint64(math.MaxUint64)}}},
		{"cpuset.cpus", "0-2, 8", []systemd.Property{{Name: "AllowedCPUs", Value: []byte{7, 1}}}},
		{"cpuset.mems", "1", []systemd.Property{{Name: "AllowedMemoryNodes", Value: []byte{2}}}},
		{"cpu.idle", "1", []systemd.Property{{Name: "CPUWeight", Value: uint64(0)}}},
		{"cpu.idle", "0", nil},
		{"io.max", "8:0 rbps=1", nil},
	} {
		got, err := (&Group{Pure: true}).property(setting{file: c.file, value: c.value}, two)
		if err != nil || !reflect.DeepEqual(got, c.want) {
			t.Errorf("%s %s: %v, %v; want %v", c.file, c.value, got, err, c.want)
		}
	}
	for _, bad := range [][2]string{{"memory.max", "x"}, {"cpu.max", "1 x"}, {"cpuset.cpus", "3-1"}, {"cpuset.cpus", ","}, {"cpuset.cpus", "70000"}} {
		if _, err := (&Group{Pure: true}).property(setting{file: bad[0], value: bad[1]}, two); err == nil {
			t.Errorf("%v: taken", bad)
		}
	}
}

func TestRounded(t *testing.T) {
	for _, c := range []struct {
		quota  int64
		period uint64
		want   int64
	}{{12345, 100000, 13000}, {50000, 100000, 50000}, {-1, 100000, -1}, {1, 0, 1000}, {math.MaxInt64, 100000, math.MaxInt64}} {
		r := &specs.LinuxResources{CPU: &specs.LinuxCPU{Quota: &c.quota, Period: &c.period}}
		if got := *Rounded(r).CPU.Quota; got != c.want {
			t.Errorf("%d of %d: %d, want %d", c.quota, c.period, got, c.want)
		}
	}
	if Rounded(nil) != nil {
		t.Error("of nothing: something")
	}
}

func TestDeviceProperties(t *testing.T) {
	major, minor := int64(10), int64(200)
	deny, tun := specs.LinuxDeviceCgroup{Access: "rwm"}, specs.LinuxDeviceCgroup{Allow: true, Type: "c", Major: &major, Minor: &minor, Access: "rw"}
	for _, c := range []struct {
		name   string
		rules  []specs.LinuxDeviceCgroup
		pure   bool
		policy string
		has    systemd.Device
	}{
		{"list", []specs.LinuxDeviceCgroup{deny, tun}, true, "strict", systemd.Device{Path: "/dev/char/10:200", Access: "rw"}},
		{"terminals", []specs.LinuxDeviceCgroup{deny}, false, "strict", systemd.Device{Path: "char-136", Access: "rwm"}},
		{"all", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}}, false, "auto", systemd.Device{}},
		{"minor of all", []specs.LinuxDeviceCgroup{deny, {Allow: true, Type: "c", Minor: &minor, Access: "r"}}, true, "auto", systemd.Device{}},
		{"minor of all, version 1", []specs.LinuxDeviceCgroup{deny, {Allow: true, Type: "c", Minor: &minor, Access: "r"}}, false, "strict", systemd.Device{Path: "char-*", Access: "m"}},
		{"all but one, version 1", []specs.LinuxDeviceCgroup{{Allow: true, Access: "rwm"}, {Type: "c", Major: &major, Minor: &minor, Access: "rwm"}}, false, "strict", systemd.Device{}},
	} {
		rules, err := NewRules(c.rules)
		if err != nil {
			t.Fatal(err)
		}
		p := rules.properties(c.pure)
		list, found := p[1].Value.([]systemd.Device), c.has == systemd.Device{}
		for _, d := range list {
			found = found || d == c.has
		}
		if p[0].Value != c.policy || !found || c.has == (systemd.Device{}) && len(list) > 0 {
			t.Errorf("%s: %v", c.name, p)
		}
	}
}

func TestAnnotated(t *testing.T) {
	for value, want := range map[string]any{"5": int32(5), "uint64 7": uint64(7), "'a\\'b'": "a'b", `"x"`: "x", "true": true, "boolean false": false, "['a', 'b']": []string{"a", "b"}, "[]": []string{}, "-0.5": -0.5,
		"int64 -1": int64(-1), "string 'a'": "a"} {
		list, err := Annotated(map[string]string{"org.systemd.property.Abc": value, "other": "x"})
		if err != nil || len(list) != 1 || !reflect.DeepEqual(list[0].Value, want) {
			t.Errorf("%s: %#v, %v", value, list, err)
		}
	}
	for _, bad := range []string{"", "x", "'", "'a'b", "['a'", "['a' 'b']", "[1]", "string 5", "boolean 'x'", "uint32 -1", "{}"} {
		if list, err := Annotated(map[string]string{"org.systemd.property.Abc": bad}); err == nil {
			t.Errorf("%q: %#v", bad, list)
		}
	}
	list, err := Annotated(map[string]string{"org.systemd.property.RuntimeMaxSec": "2"})
	if err != nil || !reflect.DeepEqual(list, []systemd.Property{{Name: "RuntimeMaxUSec", Value: uint64(2000000)}}) {
		t.Errorf("seconds: %v, %v", list, err)
	}
	for _, bad := range []map[string]string{{"org.systemd.property.ab": "1"}, {"org.systemd.property.a_bc": "1"}, {"org.systemd.property.XSec": "'a'"}, {"org.systemd.property.XSec": "-1"}} {
		if list, err := Annotated(bad); err == nil {
			t.Errorf("%v: %v", bad, list)
		}
	}
}

func FuzzVariant(f *testing.F) {
	for _, s := range []string{"5", "uint64 7", "'a\\'b'", "['a', \"b\"]", "-0.5", "true"} {
		f.Add(s)
	}
	f.Fuzz(func(t *testing.T, s string) {
		if v, err := parseVariant(s); err == nil && v == nil {
			t.Errorf("%q: nothing", s)
		}
	})
}
