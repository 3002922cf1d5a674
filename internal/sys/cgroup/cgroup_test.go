package cgroup

import (
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
)

// tree writes the files of a machine and returns its root.
func tree(t *testing.T, files map[string]string) string {
	t.Helper()
	root := t.TempDir()
	for name, content := range files {
		path := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	return root
}

const (
	v1Mounts = `24 23 0:21 / /sys/fs/cgroup rw - tmpfs tmpfs rw
25 24 0:22 / /sys/fs/cgroup/cpu,cpuacct rw - cgroup cgroup rw,cpu,cpuacct
26 24 0:23 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory
27 24 0:24 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd
28 24 0:25 / /sys/fs/cgroup/cpuset rw - cgroup cgroup rw,cpuset
29 24 0:26 / /sys/fs/cgroup/pids rw - cgroup cgroup rw,pids
30 24 0:27 / /sys/fs/cgroup/blkio rw - cgroup cgroup rw,blkio
`
	v1Self = "6:blkio:/\n5:pids:/x\n4:cpuset:/\n3:name=systemd:/\n2:memory:/a:b\n1:cpu,cpuacct:/\n0::/y\n"
	v2On   = "31 24 0:28 / /sys/fs/cgroup/unified rw - cgroup2 cgroup2 rw\n"
	v2Only = "24 23 0:21 / /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate\n"
)

func TestLegacyAndHybrid(t *testing.T) {
	files := map[string]string{
		"proc/self/mountinfo": v1Mounts,
		"proc/self/cgroup":    v1Self,
		"sys/fs/cgroup/memory/memory.soft_limit_in_bytes":           "",
		"sys/fs/cgroup/memory/memory.oom_control":                   "",
		"sys/fs/cgroup/cpu,cpuacct/cpu.shares":                      "",
		"sys/fs/cgroup/cpuset/cpuset.cpus":                          "0-1\n",
		"sys/fs/cgroup/cpuset/cpuset.mems":                          "0\n",
		"sys/fs/cgroup/blkio/blkio.throttle.read_bps_device":        "",
		"sys/fs/cgroup/blkio/system.slice/blkio.bfq.weight":         "100",
		"sys/fs/cgroup/blkio/system.slice/x/blkio.bfq.weight_deep_": "",
	}
	i, err := detect(tree(t, files))
	if err != nil {
		t.Fatal(err)
	}
	if i.Mode != Legacy || i.Version() != "1" || i.Namespaces {
		t.Errorf("mode %s, version %s, namespaces %v", i.Mode, i.Version(), i.Namespaces)
	}
	want := Features{MemoryLimit: true, MemoryReservation: true, OOMKillDisable: true, CPUShares: true,
		Cpuset: true, Cpus: "0-1", Mems: "0", BlkioWeight: true, BlkioReadBps: true, PidsLimit: true}
	if i.Features != want {
		t.Errorf("features\n got %+v\nwant %+v", i.Features, want)
	}
	if want := []string{"blkio", "cpu", "cpuacct", "cpuset", "memory", "pids"}; !slices.Equal(i.Controllers, want) {
		t.Errorf("controllers %v", i.Controllers)
	}
	if i.Own["memory"] != "/a:b" || i.Own["pids"] != "/x" || i.Own[""] != "/y" {
		t.Errorf("own %v", i.Own)
	}

	files["proc/self/mountinfo"] = v1Mounts + v2On
	files["proc/self/ns/cgroup"] = ""
	if i, err = detect(tree(t, files)); err != nil {
		t.Fatal(err)
	}
	if i.Mode != Hybrid || i.Version() != "1" || !i.Namespaces || i.Unified != "/sys/fs/cgroup/unified" {
		t.Errorf("mode %s, version %s, namespaces %v, unified %q", i.Mode, i.Version(), i.Namespaces, i.Unified)
	}
	if dir, ok := i.Dir("cpuacct", "docker/../docker/1"); !ok || dir != "/sys/fs/cgroup/cpu,cpuacct/docker/1" {
		t.Errorf("dir %q %v", dir, ok)
	}
	if dir, ok := i.Dir("hugetlb", "/docker/1"); ok {
		t.Errorf("dir %q of a controller that is not there", dir)
	}
	dirs := i.Dirs("../docker/1")
	if len(dirs) != 7 || dirs[len(dirs)-1] != "/sys/fs/cgroup/unified/docker/1" {
		t.Errorf("dirs %v", dirs)
	}
}

func TestUnified(t *testing.T) {
	files := map[string]string{
		"proc/self/mountinfo":                                      v2Only,
		"proc/self/cgroup":                                         "0::/system.slice/e.service\n",
		"proc/self/ns/cgroup":                                      "",
		"proc/swaps":                                               "",
		"sys/fs/cgroup/cgroup.controllers":                         "cpuset cpu io memory pids\n",
		"sys/fs/cgroup/cpuset.cpus.effective":                      "0-3\n",
		"sys/fs/cgroup/cpuset.mems.effective":                      "0-1\n",
		"sys/fs/cgroup/system.slice/e.service/memory.max":          "max\n",
		"sys/fs/cgroup/system.slice/e.service/io.max":              "",
		"sys/fs/cgroup/user.slice/x/memory.swap.max_is_too_deep__": "",
	}
	i, err := detect(tree(t, files))
	if err != nil {
		t.Fatal(err)
	}
	want := Features{MemoryLimit: true, MemoryReservation: true, CPUShares: true, CPUCfs: true,
		Cpuset: true, Cpus: "0-3", Mems: "0-1", PidsLimit: true, Devices: true, Freezer: true,
		BlkioReadBps: true, BlkioWriteBps: true, BlkioReadIOps: true, BlkioWriteIOps: true}
	if i.Mode != Unified || i.Version() != "2" || i.Features != want {
		t.Errorf("mode %s\n got %+v\nwant %+v", i.Mode, i.Features, want)
	}
	if dir, ok := i.Dir("memory", "/docker/1"); !ok || dir != "/sys/fs/cgroup/docker/1" {
		t.Errorf("dir %q %v", dir, ok)
	}
	if _, ok := i.Dir("hugetlb", "/docker/1"); ok {
		t.Error("a directory of a controller that is not there")
	}
	if dirs := i.Dirs("/docker/1"); !reflect.DeepEqual(dirs, []string{"/sys/fs/cgroup/docker/1"}) {
		t.Errorf("dirs %v", dirs)
	}

	files["sys/fs/cgroup/system.slice/e.service/memory.swap.max"] = "max\n"
	files["sys/fs/cgroup/init.scope/io.bfq.weight"] = "default 100\n"
	if i, err = detect(tree(t, files)); err != nil || !i.Features.SwapLimit || !i.Features.BlkioWeight {
		t.Errorf("swap %v, weight %v, %v", i.Features.SwapLimit, i.Features.BlkioWeight, err)
	}
	// A machine whose root cgroup holds everything: the kernel decides.
	bare := map[string]string{"proc/self/mountinfo": v2Only, "proc/self/cgroup": "0::/\n",
		"sys/fs/cgroup/cgroup.controllers": "memory io\n", "proc/swaps": ""}
	if i, err = detect(tree(t, bare)); err != nil || !i.Features.SwapLimit || !i.Features.BlkioWeight {
		t.Errorf("bare: swap %v, weight %v, %v", i.Features.SwapLimit, i.Features.BlkioWeight, err)
	}
}

func TestNone(t *testing.T) {
	i, err := detect(tree(t, map[string]string{"proc/self/mountinfo": "", "proc/self/cgroup": ""}))
	if err != nil || i.Mode != None || len(i.Dirs("/x")) != 0 {
		t.Errorf("%+v, %v", i, err)
	}
	if _, err := detect(t.TempDir()); err == nil {
		t.Error("no /proc and no error")
	}
}

// TestDetect holds what is found against the machine the test runs on.
func TestDetect(t *testing.T) {
	i, err := Detect()
	if err != nil {
		t.Fatal(err)
	}
	mounts, err := os.ReadFile("/proc/mounts")
	if err != nil {
		t.Fatal(err)
	}
	v1, v2 := strings.Contains(string(mounts), " cgroup "), strings.Contains(string(mounts), " cgroup2 ")
	want := map[[2]bool]Mode{{false, false}: None, {true, false}: Legacy, {true, true}: Hybrid, {false, true}: Unified}[[2]bool{v1, v2}]
	if i.Mode != want {
		t.Errorf("mode %s, want %s", i.Mode, want)
	}
	for _, dir := range i.Dirs("/") {
		if _, err := os.Stat(filepath.Join(dir, "cgroup.procs")); err != nil {
			t.Error(err)
		}
	}
}

func TestParseList(t *testing.T) {
	for in, want := range map[string]map[int]bool{
		"":      {},
		"0":     {0: true},
		"0-2,7": {0: true, 1: true, 2: true, 7: true},
		"3,3-3": {3: true},
	} {
		if got, err := ParseList(in); err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%q: %v, %v", in, got, err)
		}
	}
	for in, want := range map[string]string{
		"a":                     "invalid format: a",
		"1-":                    "invalid format: 1-",
		"2-1":                   "invalid format: 2-1",
		",":                     "invalid format: ,",
		"-1":                    "invalid format: -1",
		"0-9223372036854775807": "value of out range, maximum is 8192",
	} {
		if _, err := ParseList(in); err == nil || err.Error() != want {
			t.Errorf("%q: %v, want %s", in, err, want)
		}
	}
	if ok, err := Available("0,2", "0-1"); ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
	if ok, err := Available("1", "0-1"); !ok || err != nil {
		t.Errorf("%v %v", ok, err)
	}
}

func FuzzParse(f *testing.F) {
	f.Add("0-3,7")
	f.Add("4:memory:/a:b\n0::/\n")
	f.Fuzz(func(t *testing.T, s string) {
		if set, err := ParseList(s); err == nil && len(set) > maxListValue+1 {
			t.Errorf("%d numbers", len(set))
		}
		if own, err := parseSelf([]byte(s)); err == nil {
			for c, p := range own {
				if !strings.HasPrefix(p, "/") {
					t.Errorf("controller %q at %q", c, p)
				}
			}
		}
	})
}
