package cgroups

import (
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"strings"
	"testing"
	"testing/iotest"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

const (
	v1Mounts = `26 24 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,xattr,name=systemd
27 24 0:25 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
28 24 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
29 24 0:26 / /else\040where rw - cgroup cgroup rw,memory
30 24 0:27 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw
31 24 0:28 / /proc rw - proc proc rw
`
	v1Own = "4:memory:/a\n3:cpu,cpuacct:/b\n1:name=systemd:/c\n0::/d\n"
)

func TestPlace(t *testing.T) {
	l, err := parse([]byte(v1Own), strings.NewReader(v1Mounts))
	if err != nil {
		t.Fatal(err)
	}
	if l.Pure() || len(l.V1) != 3 || l.Unified != "/sys/fs/cgroup/unified" || l.Own != "/d" {
		t.Fatalf("%+v", l)
	}
	for spec, want := range map[string]string{
		"/docker/1":             "/docker/1 /docker/1 /docker/1",
		"x/y":                   "/a/x/y /b/x/y /d/x/y",
		"":                      "/a/id /b/id /d/id",
		"system.slice:docker:9": "/system.slice/docker-9.scope /system.slice/docker-9.scope /system.slice/docker-9.scope",
		"a-b.slice::n":          "/a.slice/a-b.slice/n.scope /a.slice/a-b.slice/n.scope /a.slice/a-b.slice/n.scope",
		"-.slice:p:q.slice":     "/q.slice /q.slice /q.slice",
	} {
		g, err := l.Place(spec, "id")
		if err != nil {
			t.Errorf("%q: %v", spec, err)
			continue
		}
		got := strings.TrimPrefix(g.V1["memory"], "/sys/fs/cgroup/memory") + " " + strings.TrimPrefix(g.V1["cpuacct"], "/sys/fs/cgroup/cpu,cpuacct") + " " + strings.TrimPrefix(g.Unified, l.Unified)
		if got != want || len(g.Dirs()) != 4 {
			t.Errorf("%q: %s, want %s", spec, got, want)
		}
	}
	for _, spec := range []string{"/", "//", "/a/../..", "../x", "/."} {
		if g, err := l.Place(spec, "id"); err == nil {
			t.Errorf("%q lies at %v", spec, g.Dirs())
		}
	}
	pure, err := parse([]byte("0::/e\n"), strings.NewReader("30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n"))
	if err != nil || !pure.Pure() || pure.Unified != "/sys/fs/cgroup" {
		t.Errorf("%+v, %v", pure, err)
	}
}

// The mounts of containers, which come last, are not read; those of hierarchies are all found.
func TestMountsReadAsFarAsNeeded(t *testing.T) {
	failing := func(mounts string) io.Reader {
		return io.MultiReader(strings.NewReader(mounts), iotest.ErrReader(errors.New("read too far")))
	}
	if l, err := parse([]byte(v1Own), failing(strings.TrimSuffix(v1Mounts, "31 24 0:28 / /proc rw - proc proc rw\n"))); err != nil || len(l.V1) != 3 || l.Unified == "" {
		t.Errorf("%+v, %v", l, err)
	}
	if l, err := parse([]byte("0::/e\n"), failing("30 24 0:27 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw\n")); err != nil || l.Unified == "" {
		t.Errorf("%+v, %v", l, err)
	}
	if _, err := parse([]byte("9:pids:/\n"+v1Own), failing(v1Mounts)); err == nil {
		t.Error("a file that cannot be read to its end tells all there is")
	}
	if l, err := parse([]byte("9:pids:/\n"+v1Own), strings.NewReader(strings.TrimSuffix(v1Mounts, "\n"))); err != nil || len(l.V1) != 3 {
		t.Errorf("a hierarchy that is not mounted: %+v, %v", l, err)
	}
}

func FuzzLayout(f *testing.F) {
	f.Add(v1Own, v1Mounts, "/docker/1")
	f.Add("0::/\n", "1 2 0:1 / / rw - cgroup2 x y\n", "a:b:c")
	f.Fuzz(func(t *testing.T, own, mounts, spec string) {
		l, err := parse([]byte(own), strings.NewReader(mounts))
		if err != nil {
			return
		}
		g, err := l.Place(spec, "id")
		if err != nil {
			return
		}
		for _, d := range g.Dirs() {
			if strings.Contains("/"+strings.TrimPrefix(d, l.Unified)+"/", "/../") && !strings.Contains(own+mounts, "..") {
				t.Errorf("%q leads to %q", spec, d)
			}
		}
	})
}

// Each limit as the two versions write it.
func TestSettings(t *testing.T) {
	for text, want := range map[string][2]string{
		`{"memory":{"limit":64,"swap":128,"reservation":32}}`: {"memory.limit_in_bytes=64 memory.memsw.limit_in_bytes=128 memory.soft_limit_in_bytes=32", "memory.swap.max=64 memory.max=64 memory.low=32"},
		`{"memory":{"limit":64,"swap":64}}`:                   {"memory.limit_in_bytes=64 memory.memsw.limit_in_bytes=64", "memory.swap.max=0 memory.max=64"},
		`{"memory":{"limit":-1}}`:                             {"memory.limit_in_bytes=-1 memory.memsw.limit_in_bytes=-1", "memory.swap.max=max memory.max=max"},
		`{"memory":{"swappiness":7,"disableOOMKiller":true}}`: {"memory.oom_control=1 memory.swappiness=7", "error: not supported"},
		`{"cpu":{"shares":512,"quota":50000,"burst":9}}`:      {"cpu.shares=512 cpu.cfs_quota_us=50000 cpu.cfs_burst_us=9", "cpu.weight=59 cpu.max=50000 100000 cpu.max.burst=9"},
		`{"cpu":{"period":1000,"quota":-1,"cpus":"0-1","mems":"0"}}`: {"cpu.cfs_period_us=1000 cpu.cfs_quota_us=-1 cpuset.cpus=0-1 cpuset.mems=0",
			"cpu.max=max 1000 cpuset.cpus=0-1 cpuset.mems=0"},
		`{"cpu":{"shares":2,"idle":1}}`: {"cpu.idle=1", "cpu.idle=1"},
		`{"blockIO":{"weight":500,"throttleReadBpsDevice":[{"major":8,"minor":1,"rate":77}],"throttleWriteIOPSDevice":[{"major":8,"minor":1,"rate":0}]}}`: {
			"blkio.bfq.weight=500 blkio.throttle.read_bps_device=8:1 77 blkio.throttle.write_iops_device=8:1 0", "io.weight=4950 io.max=8:1 rbps=77 io.max=8:1 wiops=max"},
		`{"hugepageLimits":[{"pageSize":"2MB","limit":4}]}`:                    {"hugetlb.2MB.limit_in_bytes=4 hugetlb.2MB.rsvd.limit_in_bytes=4", "hugetlb.2MB.max=4 hugetlb.2MB.rsvd.max=4"},
		`{"network":{"classID":3}}`:                                            {"net_cls.classid=3", "error: network.classID: not supported"},
		`{"rdma":{"mlx":{"hcaObjects":5}}}`:                                    {"rdma.max=mlx hca_object=5", "rdma.max=mlx hca_object=5"},
		`{"unified":{"memory.high":"9"}}`:                                      {"error: no unified", "memory.high=9"},
		`{"unified":{"../x":"9"}}`:                                             {"error: no unified", "error: no slashes"},
		`{"memory":{"limit":64,"swap":32}}`:                                    {"memory.limit_in_bytes=64 memory.memsw.limit_in_bytes=32", "error: should be >="},
		`{"memory":{"swappiness":101}}`:                                        {"error: valid range", "error: memory.swappiness: not supported"},
		`{"memory":{"disableOOMKiller":false}}`:                                {"", ""},
		`{"memory":{"kernelTCP":5}}`:                                           {"memory.kmem.tcp.limit_in_bytes=5", ""},
		`{"cpu":{"realtimeRuntime":5}}`:                                        {"cpu.rt_runtime_us=5", "error: cpu.realtimeRuntime: not supported"},
		`{"cpu":{"realtimePeriod":6}}`:                                         {"cpu.rt_period_us=6", "error: cpu.realtimePeriod: not supported"},
		`{"network":{"priorities":[{"name":"x","priority":3}]}}`:               {"net_prio.ifpriomap=x 3", "error: network.priorities: not supported"},
		`{"blockIO":{"leafWeight":20}}`:                                        {"blkio.leaf_weight=20", "error: blockIO.leafWeight: not supported"},
		`{"blockIO":{"weightDevice":[{"major":8,"minor":1,"leafWeight":20}]}}`: {"blkio.leaf_weight_device=8:1 20", "error: leafWeight: not supported"},
		`{"blockIO":{"weightDevice":[{"major":8,"minor":1,"weight":1000}]}}`:   {"blkio.bfq.weight_device=8:1 1000", "io.weight=8:1 10000"},
		`{"blockIO":{"weightDevice":[{"major":8,"minor":1,"weight":5}]}}`:      {"error: valid range", "error: valid range"},
		`{"blockIO":{"weight":9}}`:                                             {"error: valid range", "error: valid range"},
		`{"blockIO":{"weight":1001}}`:                                          {"error: valid range", "error: valid range"},
		`{"blockIO":{"weight":10}}`:                                            {"blkio.bfq.weight=10", "io.weight=1"},
	} {
		r := &specs.LinuxResources{}
		if err := json.Unmarshal([]byte(text), r); err != nil {
			t.Fatal(err)
		}
		for i, g := range []*Group{{V1: map[string]string{}}, {Pure: true, Unified: "/none"}} {
			list, err := g.settings(r)
			var got []string
			for _, s := range list {
				got = append(got, s.file+"="+s.value)
			}
			words, fails := strings.CutPrefix(want[i], "error: ")
			if fails {
				if err == nil || !strings.Contains(err.Error(), words) {
					t.Errorf("%s: version %d: %v, want %s", text, i+1, err, words)
				}
			} else if err != nil || strings.Join(got, " ") != want[i] {
				t.Errorf("%s: version %d:\n got %s, %v\nwant %s", text, i+1, strings.Join(got, " "), err, want[i])
			}
		}
	}
	for shares, want := range map[uint64]uint64{0: 0, 1: 1, 2: 1, 256: 35, 1024: 100, 262144: 10000, 1 << 40: 10000} {
		if got := Weight(shares); got != want {
			t.Errorf("%d shares weigh %d, want %d", shares, got, want)
		}
	}
}

// machine runs the few instructions that programs are made of.
func machine(t *testing.T, p []insn, ctx [3]uint32) uint32 {
	var r [11]uint64
	for pc, steps := 0, 0; steps < 100000; pc, steps = pc+1, steps+1 {
		i := p[pc]
		dst, src := i.regs&15, i.regs>>4
		switch i.code {
		case opLoadWord:
			r[dst] = uint64(ctx[i.off/4])
		case opMov:
			r[dst] = uint64(int64(i.imm))
		case opMovReg32:
			r[dst] = uint64(uint32(r[src]))
		case opAnd32:
			r[dst] = uint64(uint32(r[dst]) & uint32(i.imm))
		case opShift32:
			r[dst] = uint64(uint32(r[dst]) >> i.imm)
		case opNotEq, opNotEq32:
			if uint32(r[dst]) != uint32(i.imm) {
				pc += int(i.off)
			}
		case opEq32:
			if uint32(r[dst]) == uint32(i.imm) {
				pc += int(i.off)
			}
		case opNotEqReg:
			if r[dst] != r[src] {
				pc += int(i.off)
			}
		case opExit:
			return uint32(r[0])
		default:
			t.Fatalf("instruction %x", i.code)
		}
	}
	t.Fatal("no end")
	return 0
}

// meaning is what a list says: for each kind of access the last rule that fits.
func meaning(list []specs.LinuxDeviceCgroup, kind byte, major, minor int64, access int) bool {
	for _, a := range always {
		if a.d.covers(device{kind, major, minor}) {
			access &^= a.access
		}
	}
	for bit, letter := range map[int]string{mknod: "m", read: "r", readWrite: "w"} {
		if access&bit == 0 {
			continue
		}
		allowed := false
		for _, l := range list {
			fits := (l.Type == "a" || l.Type == string(kind)) && (l.Major == nil || *l.Major == major) && (l.Minor == nil || *l.Minor == minor) && strings.Contains(l.Access, letter)
			if fits {
				allowed = l.Allow
			}
		}
		if !allowed {
			return false
		}
	}
	return true
}

// The program of version 2 answers as the list says. Rules are drawn so that no
// narrower one speaks against a wider one with the other answer, which version 1
// could not keep either.
func TestDeviceProgram(t *testing.T) {
	number := func(n int64) *int64 { return &n }
	accesses := []string{"r", "w", "m", "rw", "rm", "wm", "rwm"}
	for seed := range uint64(300) {
		rnd := rand.New(rand.NewPCG(seed, 1))
		first := specs.LinuxDeviceCgroup{Allow: seed%3 == 0, Type: "a", Access: "rwm"}
		list := []specs.LinuxDeviceCgroup{first}
		for range rnd.IntN(6) {
			l := specs.LinuxDeviceCgroup{Allow: !first.Allow, Type: []string{"b", "c"}[rnd.IntN(2)], Access: accesses[rnd.IntN(len(accesses))]}
			if rnd.IntN(4) > 0 {
				l.Major = number(int64(rnd.IntN(4)) + 200)
			}
			if rnd.IntN(4) > 0 {
				l.Minor = number(int64(rnd.IntN(3)))
			}
			list = append(list, l)
		}
		rules, err := NewRules(list)
		if err != nil {
			t.Fatal(err)
		}
		p := program(rules)
		for range 300 {
			kind, major, minor, access := "bc"[rnd.IntN(2)], int64(rnd.IntN(5)+200), int64(rnd.IntN(4)), 1+rnd.IntN(7)
			word := uint32(access)<<accessShift | map[byte]uint32{'b': kindBlock, 'c': kindChar}[kind]
			got := machine(t, p, [3]uint32{word, uint32(major), uint32(minor)}) == 1
			want := meaning(list, kind, major, minor, access)
			if first.Allow { // any part that is denied denies
				want = true
				for bit := 1; bit < 8; bit <<= 1 {
					if access&bit != 0 && !meaning(list, kind, major, minor, bit) {
						want = false
					}
				}
			}
			if got != want && !splits(list, kind, major, minor, access) {
				t.Fatalf("seed %d: %c %d:%d access %d: %v, want %v; rules %s", seed, kind, major, minor, access, got, want, show(list))
			}
		}
	}
}

// splits: the parts of what is asked for are allowed by different rules. As in the
// kernel's version 1, and in runc's programs, one rule has to allow all of it.
func splits(list []specs.LinuxDeviceCgroup, kind byte, major, minor int64, access int) bool {
	if list[0].Allow {
		return false
	}
	for _, l := range list[1:] {
		r, err := NewRules([]specs.LinuxDeviceCgroup{list[0], l})
		if err == nil && len(r.order) > len(always) && machineAllows(r, kind, major, minor, access) {
			return false
		}
	}
	return true
}

func machineAllows(r *Rules, kind byte, major, minor int64, access int) bool {
	for d, a := range r.exceptions {
		if d.covers(device{kind, major, minor}) && access&^a == 0 {
			return true
		}
	}
	return false
}

func show(list []specs.LinuxDeviceCgroup) string {
	b, err := json.Marshal(list)
	return fmt.Sprint(string(b), err)
}

// The kernel takes the program and does as it says; a second one takes the place of
// the first.
func TestDeviceProgramInKernel(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	l, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	if l.Unified == "" {
		t.Skip("no cgroups of version 2 here")
	}
	dir := filepath.Join(l.Unified, "escale-native-devices-"+fmt.Sprint(os.Getpid()))
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := os.Remove(dir); err != nil {
			t.Error(err)
		}
	})
	number := func(n int64) *int64 { return &n }
	kmsg := specs.LinuxDeviceCgroup{Type: "c", Major: number(1), Minor: number(11)}
	for name, c := range map[string]struct {
		list  []specs.LinuxDeviceCgroup
		reads string // devices that can be opened to be read, of null and kmsg
	}{
		"default": {nil, "null"},
		"all":     {[]specs.LinuxDeviceCgroup{{Type: "a", Allow: true, Access: "rwm"}}, "null kmsg"},
		"but one": {[]specs.LinuxDeviceCgroup{{Type: "a", Allow: true, Access: "rwm"}, {Type: kmsg.Type, Major: kmsg.Major, Minor: kmsg.Minor, Access: "r"}}, "null"},
		"one":     {[]specs.LinuxDeviceCgroup{{Type: "a", Access: "rwm"}, {Allow: true, Type: kmsg.Type, Major: kmsg.Major, Minor: kmsg.Minor, Access: "r"}}, "null kmsg"},
		"writing": {[]specs.LinuxDeviceCgroup{{Type: "a", Access: "rwm"}, {Allow: true, Type: kmsg.Type, Major: kmsg.Major, Minor: kmsg.Minor, Access: "w"}}, "null"},
	} {
		rules, err := NewRules(c.list)
		if err != nil {
			t.Fatal(err)
		}
		if err := attachProgram(dir, program(rules)); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		script := "echo 0 >" + dir + "/cgroup.procs; for d in null kmsg; do (: <$D/$d) 2>/dev/null && echo $d; done; true"
		cmd := exec.Command("/bin/sh", "-c", script)
		cmd.Env = []string{"D=" + nodes(t)}
		out, err := cmd.CombinedOutput()
		if got := strings.Join(strings.Fields(string(out)), " "); err != nil || got != c.reads {
			t.Errorf("%s: %s, %v, want %s", name, got, err, c.reads)
		}
	}
}

// nodes makes the devices of TestDeviceProgramInKernel, which need not be there.
func nodes(t *testing.T) string {
	dir := t.TempDir()
	for name, minor := range map[string]uint32{"null": 3, "kmsg": 11} {
		if err := unix.Mknod(filepath.Join(dir, name), unix.S_IFCHR|0o600, int(unix.Mkdev(1, minor))); err != nil {
			t.Skip("needs to make device nodes: ", err)
		}
	}
	return dir
}

func TestRuleErrors(t *testing.T) {
	big := int64(1) << 40
	for _, l := range []specs.LinuxDeviceCgroup{{Type: "x"}, {Type: "c", Access: "rq"}, {Type: "b", Major: &big}} {
		if _, err := NewRules([]specs.LinuxDeviceCgroup{l}); err == nil {
			t.Errorf("%+v is taken", l)
		}
	}
	one, eleven := int64(1), int64(11)
	hole := []specs.LinuxDeviceCgroup{{Type: "a", Access: "rwm"}, {Type: "c", Allow: true, Access: "rw"}, {Type: "c", Major: &one, Minor: &eleven, Access: "w"}}
	if _, err := NewRules(hole); err == nil || !strings.Contains(err.Error(), "cannot punch hole") {
		t.Errorf("a denial that would have no effect: %v", err)
	}
	r, err := NewRules([]specs.LinuxDeviceCgroup{{Type: "a", Allow: true, Access: "rwm"}})
	if err != nil || !r.Allow || len(r.order) != 0 {
		t.Errorf("%+v, %v", r, err)
	}
	if got := (device{'c', 136, anyNumber}).words(7); got != "c 136:* rwm" {
		t.Error(got)
	}
}

// Version 2 alone, in the hierarchy that machines with both have as well: parents are
// made, and controllers handed down through all of them.
func TestUnifiedGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	l, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	if l.Unified == "" {
		t.Skip("no cgroups of version 2 here")
	}
	pure := &Layout{Unified: l.Unified, Own: l.Own}
	name := "/escale-native-unified-" + fmt.Sprint(os.Getpid())
	g, err := pure.Place(name+"/a/b", "id")
	if err != nil {
		t.Fatal(err)
	}
	top, err := pure.Place(name, "id")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Remove(); err != nil {
			t.Error(err)
		}
	})
	if got := above(g.Unified, l.Unified); !reflect.DeepEqual(got, []string{l.Unified, top.Unified, top.Unified + "/a"}) {
		t.Errorf("above %v", got)
	}
	if made, err := g.Make(); err != nil || !reflect.DeepEqual(made, []string{g.Unified}) {
		t.Fatalf("made %v, %v", made, err)
	}
	want, err := os.ReadFile(filepath.Join(l.Unified, "cgroup.subtree_control"))
	if err != nil {
		t.Fatal(err)
	}
	if got, err := os.ReadFile(filepath.Join(g.Unified, "cgroup.controllers")); err != nil || len(strings.Fields(string(got))) < len(strings.Fields(string(want))) {
		t.Errorf("controllers %q, %v; the root hands down %q", got, err, want)
	}
	rules, err := NewRules(nil)
	if err != nil {
		t.Fatal(err)
	}
	if err := g.LimitDevices(rules); err != nil {
		t.Error(err)
	}
	for _, on := range []bool{true, false} {
		if err := g.Freeze(on); err != nil || g.Frozen() != on {
			t.Errorf("frozen %v: %v, %v", on, g.Frozen(), err)
		}
	}
	if files, err := g.Tasks(); err != nil || len(files) != 0 {
		t.Errorf("%v, %v", files, err)
	}
	dir, err := g.Birth()
	if err != nil || dir == nil {
		t.Fatalf("%v, %v", dir, err)
	}
	dir.Close()
	if err := g.Remove(); err != nil || g.Remove() != nil {
		t.Error(err)
	}
}

// A real cgroup: made, limited, loosened, removed with who is in it.
func TestGroup(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: cgroups")
	}
	l, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	g, err := l.Place("/escale-native-test-"+fmt.Sprint(os.Getpid())+"/a/b", "id")
	if err != nil {
		t.Fatal(err)
	}
	top, err := l.Place("/escale-native-test-"+fmt.Sprint(os.Getpid()), "id")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := top.Remove(); err != nil {
			t.Error(err)
		}
		for _, d := range top.Dirs() {
			if _, err := os.Lstat(d); err == nil {
				t.Errorf("left over: %s", d)
			}
		}
	})
	made, err := g.Make()
	if err != nil || !reflect.DeepEqual(made, g.Dirs()) {
		t.Fatalf("made %v, %v", made, err)
	}
	if again, err := g.Make(); err != nil || len(again) != 0 {
		t.Errorf("made again: %v, %v", again, err)
	}
	number := func(n int64) *int64 { return &n }
	limits := func(limit, swap, pids int64) {
		t.Helper()
		r := &specs.LinuxResources{Memory: &specs.LinuxMemory{Limit: number(limit), Swap: number(swap)}, Pids: &specs.LinuxPids{Limit: number(pids)}}
		if g.dir("memory") == "" || g.dir("pids") == "" {
			t.Skip("no controllers here")
		}
		if err := g.Limit(r); err != nil {
			t.Fatal(err)
		}
		if err := g.LimitPids(r); err != nil {
			t.Fatal(err)
		}
	}
	limits(64<<20, 128<<20, 7)
	limits(256<<20, 512<<20, 0) // more than the old limit of both
	limits(32<<20, 32<<20, 9)   // and less
	if b, err := os.ReadFile(filepath.Join(g.dir("pids"), "pids.max")); err != nil || strings.TrimSpace(string(b)) != "9" {
		t.Errorf("pids.max %q, %v", b, err)
	}
	rules, err := NewRules(nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second takes the place of the first
		if err := g.LimitDevices(rules); err != nil {
			t.Fatal(err)
		}
	}
	sleeper, err := os.StartProcess("/bin/sleep", []string{"sleep", "1000"}, &os.ProcAttr{})
	if err != nil {
		t.Fatal(err)
	}
	for _, d := range g.Dirs() {
		if err := write(filepath.Join(d, "cgroup.procs"), fmt.Sprint(sleeper.Pid)); err != nil {
			t.Fatal(err)
		}
	}
	if pids, err := top.Pids(); err != nil || !reflect.DeepEqual(pids, []int{sleeper.Pid}) {
		t.Errorf("pids %v, %v", pids, err)
	}
	if err := g.Freeze(true); err != nil || !g.Frozen() {
		t.Errorf("frozen: %v, %v", g.Frozen(), err)
	}
	go func() { _, _ = sleeper.Wait() }() // its end is what Remove waits for
	if err := g.Remove(); err != nil {
		t.Error(err)
	}
	if err := unix.Kill(sleeper.Pid, 0); err == nil {
		if _, dead, derr := stat(sleeper.Pid); derr == nil && !dead {
			t.Error("who was in it lives")
		}
	}
}

func stat(pid int) (string, bool, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return string(b), strings.Contains(string(b), ") Z "), err
}

// Controllers do not reach down from a cgroup that processes are in: those below it would
// take nobody.
func TestInhabited(t *testing.T) {
	for _, c := range []struct{ kind, procs, want string }{
		{"domain\n", "1\n", ""},
		{"domain\n", "", "+pids"},
		{"", "1\n", "+pids"}, // the root of all
	} {
		mount := t.TempDir()
		files := map[string]string{"cgroup.procs": c.procs, "cgroup.controllers": "pids\n", "cgroup.subtree_control": ""}
		if c.kind != "" {
			files["cgroup.type"] = c.kind
		}
		for name, text := range files {
			if err := os.WriteFile(filepath.Join(mount, name), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := makeUnified(filepath.Join(mount, "a"), mount); err != nil {
			t.Fatal(err)
		}
		if got, err := os.ReadFile(filepath.Join(mount, "cgroup.subtree_control")); err != nil || string(got) != c.want {
			t.Errorf("%+v: %q, %v", c, got, err)
		}
	}
}
