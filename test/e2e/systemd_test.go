package e2e

import (
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// scopes is an engine that has systemd make the cgroups of its containers.
type scopes struct {
	*testing.T
	runtime string
	e       *harness.Engine
	api     *harness.API
}

func (s *scopes) do(method, path string, body, out any) {
	s.Helper()
	if err := s.api.Do(s.Context(), method, path, body, out); err != nil {
		s.Fatalf("%s %s: %v", method, path, err)
	}
}

// run starts a container and gives its id.
func (s *scopes) run(host map[string]any, cmd ...string) string {
	s.Helper()
	var made struct{ ID string }
	s.do("POST", "/containers/create", map[string]any{"Image": image, "Cmd": cmd, "HostConfig": host}, &made)
	s.do("POST", "/containers/"+made.ID+"/start", nil, nil)
	return made.ID
}

func (s *scopes) unit(id string) string { return "escale-" + s.e.Instance + "-" + id + ".scope" }

// show gives a unit's property; "" when there is no such unit.
func (s *scopes) show(id, property string) string {
	s.Helper()
	out, err := exec.Command("systemctl", "show", "--value", "-p", "LoadState", "-p", property, s.unit(id)).CombinedOutput()
	if err != nil {
		s.Fatalf("systemctl show: %v: %s", err, out)
	}
	text := string(out)
	if !strings.Contains(text, "loaded\n") {
		return ""
	}
	return strings.TrimSpace(strings.Replace(text, "loaded\n", "", 1))
}

// wants compares properties of a container's unit and files of its cgroup.
func (s *scopes) wants(what, id string, want map[string]string) {
	s.Helper()
	for name, v := range want {
		var got string
		if strings.Contains(name, ".") {
			b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/system.slice", s.unit(id), name))
			if err != nil {
				s.Errorf("%s: %v", what, err)
				continue
			}
			got = strings.TrimSpace(string(b))
		} else {
			got = s.show(id, name)
		}
		if got != v {
			s.Errorf("%s: %s is %q, want %q", what, name, got, v)
		}
	}
}

// until waits for something.
func (s *scopes) until(what string, holds func() bool) {
	s.Helper()
	for end := time.Now().Add(harness.Patience(10 * time.Second)); !holds(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(end) {
			s.Fatalf("not seen: %s", what)
		}
	}
}

func (s *scopes) noUnits(what string) {
	s.Helper()
	var out []byte
	for end := time.Now().Add(harness.Patience(10 * time.Second)); time.Now().Before(end); time.Sleep(20 * time.Millisecond) {
		var err error
		if out, err = exec.Command("systemctl", "list-units", "--all", "--plain", "--no-legend", "escale-"+s.e.Instance+"-*").CombinedOutput(); err != nil {
			s.Fatalf("systemctl list-units: %v: %s", err, out)
		}
		if len(out) == 0 {
			return
		}
	}
	s.Errorf("%s: units are left:\n%s", what, out)
}

// restart ends the engine as a crash does and starts it with other flags.
func (s *scopes) restart(between func(), args ...string) {
	s.Helper()
	if err := s.e.Kill(); err != nil {
		s.Fatal(err)
	}
	if between != nil {
		between()
	}
	s.e.SetArgs(args)
	if err := s.e.Start(s.Context()); err != nil {
		s.Fatal(err)
	}
}

// TestSystemdScopes has systemd make the cgroups, with either OCI runtime: limits are where they
// belong and stay there, and no unit outlives its container.
func TestSystemdScopes(t *testing.T) {
	if info, err := os.Stat("/run/systemd/system"); err != nil || !info.IsDir() {
		t.Skip("needs systemd as the machine's first process")
	}
	if _, err := os.Stat("/sys/fs/cgroup/cgroup.controllers"); err != nil {
		t.Skip("needs version 2 of cgroups alone")
	}
	for _, runtime := range []string{"native", "runc"} {
		t.Run(runtime, func(t *testing.T) {
			args := []string{"--exec-opt", "native.cgroupdriver=systemd", "--default-runtime", runtime}
			e := start(t, harness.Options{Args: args})
			api := e.API()
			defer api.Close()
			s := &scopes{t, runtime, e, api}
			s.limits()
			s.lives()
			s.crashes(args)
			s.drivers(args)
			clean(t, e)
			s.noUnits("at the end")
			noLeaks(t, e)
		})
	}
}

func (s *scopes) limits() {
	var info struct{ CgroupDriver, CgroupVersion string }
	if s.do("GET", "/info", nil, &info); info.CgroupDriver != "systemd" || info.CgroupVersion != "2" {
		s.Errorf("info: %+v", info)
	}
	id := s.run(map[string]any{"Memory": 64 << 20, "MemorySwap": 64 << 20, "NanoCpus": 500000000, "PidsLimit": 50, "CpuShares": 512, "CpusetCpus": "0"}, "sleep", "1000")
	want := map[string]string{"MemoryMax": "67108864", "memory.max": "67108864", "memory.swap.max": "0", "TasksMax": "50", "pids.max": "50", "CPUQuotaPerSecUSec": "500ms", "cpu.max": "50000 100000",
		"AllowedCPUs": "0", "cpuset.cpus": "0", "Delegate": "yes", "Slice": "system.slice", "ActiveState": "active", "DevicePolicy": "strict"}
	s.wants("made", id, want)
	if out, err := exec.Command("systemctl", "daemon-reload").CombinedOutput(); err != nil {
		s.Fatalf("systemctl daemon-reload: %v: %s", err, out)
	}
	if s.runtime == "runc" {
		delete(want, "memory.swap.max") // of which runc does not tell systemd
	}
	s.wants("after a reload of systemd", id, want)
	s.do("POST", "/containers/"+id+"/update", map[string]any{"Memory": 32 << 20, "MemorySwap": 32 << 20, "PidsLimit": 60, "NanoCpus": 250000000}, nil)
	s.wants("updated", id, map[string]string{"MemoryMax": "33554432", "memory.max": "33554432", "TasksMax": "60", "pids.max": "60", "CPUQuotaPerSecUSec": "250ms", "cpu.max": "25000 100000"})
	var made struct{ ID string }
	s.do("POST", "/containers/"+id+"/exec", map[string]any{"Cmd": []string{"sleep", "1001"}}, &made)
	s.do("POST", "/exec/"+made.ID+"/start", map[string]any{"Detach": true}, nil)
	s.until("the exec's process in the scope", func() bool {
		b, err := os.ReadFile(filepath.Join("/sys/fs/cgroup/system.slice", s.unit(id), "cgroup.procs"))
		return err == nil && len(strings.Fields(string(b))) == 2
	})
	var top struct{ Processes [][]string }
	if s.do("GET", "/containers/"+id+"/top", nil, &top); len(top.Processes) != 2 {
		s.Errorf("top: %v", top.Processes)
	}
	var figures struct {
		Memory struct{ Limit uint64 } `json:"memory_stats"`
	}
	if s.do("GET", "/containers/"+id+"/stats?stream=false&one-shot=true", nil, &figures); figures.Memory.Limit != 32<<20 {
		s.Errorf("stats: %+v", figures)
	}
	s.do("POST", "/containers/"+id+"/pause", nil, nil)
	s.wants("paused", id, map[string]string{"cgroup.freeze": "1"})
	s.do("POST", "/containers/"+id+"/unpause", nil, nil)
	s.wants("going on", id, map[string]string{"cgroup.freeze": "0"})
	s.do("DELETE", "/containers/"+id+"?force=1", nil, nil)
	s.noUnits("removed")
}

// lives are many of a container, each in a unit of the same name; ends that count as failures; slices.
func (s *scopes) lives() {
	id := s.run(nil, "sleep", "1000")
	for range 3 {
		s.do("POST", "/containers/"+id+"/restart?t=0", nil, nil)
		s.wants("restarted", id, map[string]string{"ActiveState": "active"})
	}
	s.do("POST", "/containers/"+id+"/stop?t=0", nil, nil)
	s.noUnits("stopped")
	s.do("POST", "/containers/"+id+"/start", nil, nil)
	s.wants("started again", id, map[string]string{"ActiveState": "active"})
	s.do("DELETE", "/containers/"+id+"?force=1", nil, nil)

	// It goes on for a while: systemd takes the cgroup, and what it could tell, when the last process has ended.
	id = s.run(map[string]any{"Memory": 24 << 20, "MemorySwap": 24 << 20}, "sh", "-c", "tail /dev/zero; sleep 2; exit 3")
	s.do("POST", "/containers/"+id+"/wait", nil, nil)
	var ended struct{ State struct{ OOMKilled bool } }
	if s.do("GET", "/containers/"+id+"/json", nil, &ended); !ended.State.OOMKilled {
		s.Error("out of memory: not told")
	}
	s.noUnits("out of memory")
	s.do("DELETE", "/containers/"+id+"?force=1", nil, nil)

	id = s.run(map[string]any{"CgroupParent": "esctest-a.slice", "Privileged": true}, "sleep", "1000")
	if got := s.show(id, "ControlGroup"); got != "/esctest.slice/esctest-a.slice/"+s.unit(id) {
		s.Errorf("in a slice: %s", got)
	}
	s.do("DELETE", "/containers/"+id+"?force=1", nil, nil)
	err := s.api.Do(s.Context(), "POST", "/containers/create", map[string]any{"Image": image, "Cmd": []string{"true"}, "HostConfig": map[string]any{"CgroupParent": "/x"}}, nil)
	if err == nil || !strings.Contains(err.Error(), `cgroup-parent for systemd cgroup should be a valid slice named as "xxx.slice"`) {
		s.Errorf("no slice: %v", err)
	}
	if code, err := runTo(s.Context(), s.api, map[string]any{"Image": image, "Cmd": []string{"/none"}}); err == nil {
		s.Errorf("a program that is not there: %d", code)
	}
	s.noUnits("a start that failed")
}

// crashes leave what runs, and no unit of what does not.
func (s *scopes) crashes(args []string) {
	id := s.run(map[string]any{"RestartPolicy": map[string]any{"Name": "no"}}, "sleep", "1000")
	s.restart(nil, args...)
	s.wants("after a kill of the engine", id, map[string]string{"ActiveState": "active"})
	s.restart(func() {
		if out, err := exec.Command("systemctl", "kill", "-s", "KILL", s.unit(id)).CombinedOutput(); err != nil {
			s.Fatalf("systemctl kill: %v: %s", err, out)
		}
	}, args...)
	s.noUnits("ended while no engine was there")
	s.do("DELETE", "/containers/"+id+"?force=1", nil, nil)

	// Killed in the middle of starts: what they had made is given back.
	var ids []string
	for range 3 {
		var made struct{ ID string }
		s.do("POST", "/containers/create", map[string]any{"Image": image, "Cmd": []string{"sleep", "1000"}}, &made)
		ids = append(ids, made.ID)
		go func() { _ = s.api.Do(s.Context(), "POST", "/containers/"+made.ID+"/start", nil, nil) }() // the engine goes away under it
		s.restart(nil, args...)
	}
	for _, id := range ids {
		s.do("DELETE", "/containers/"+id+"?force=1", nil, nil)
	}
	s.noUnits("after kills during starts")
}

// drivers change while a container runs: it stays where it is, and what is new goes elsewhere.
func (s *scopes) drivers(args []string) {
	id := s.run(nil, "sleep", "1000")
	s.restart(nil, append([]string{"--exec-opt", "native.cgroupdriver=cgroupfs"}, args[2:]...)...)
	var top struct{ Processes [][]string }
	if s.do("GET", "/containers/"+id+"/top", nil, &top); len(top.Processes) != 1 {
		s.Errorf("top with the other driver: %v", top.Processes)
	}
	s.do("POST", "/containers/"+id+"/pause", nil, nil)
	s.do("POST", "/containers/"+id+"/unpause", nil, nil)
	s.do("POST", "/containers/"+id+"/restart?t=0", nil, nil)
	s.noUnits("restarted with the other driver")
	if _, err := os.Stat(fmt.Sprintf("/sys/fs/cgroup/escale-%s/%s", s.e.Instance, id)); err != nil {
		s.Errorf("with the other driver: %v", err)
	}
	s.restart(nil, args...)
	s.do("POST", "/containers/"+id+"/restart?t=0", nil, nil)
	s.wants("back with systemd", id, map[string]string{"ActiveState": "active"})
	s.do("DELETE", "/containers/"+id+"?force=1", nil, nil)
}
