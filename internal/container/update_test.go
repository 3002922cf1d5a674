package container

import (
	"encoding/json"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// onDisk reads a container's limits from its record.
func onDisk(t *testing.T, m *Manager, id ID) container.HostConfig {
	t.Helper()
	b, err := os.ReadFile(filepath.Join(m.store.path(id), "container.json"))
	if err != nil {
		t.Fatal(err)
	}
	var rec Record
	if err := json.Unmarshal(b, &rec); err != nil {
		t.Fatal(err)
	}
	return *rec.HostConfig
}

func limits(r container.Resources) container.UpdateConfig {
	return container.UpdateConfig{Resources: r}
}

func TestUpdateLive(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	id := running(t, m, "web")
	before, _ := m.Get("web")
	pids := int64(0)
	warnings, err := m.Update(t.Context(), "web", limits(container.Resources{Memory: 64 << 20, MemorySwap: -1, CPUShares: 512, PidsLimit: &pids}))
	if err != nil || !slices.Equal(warnings, []string{"careful"}) {
		t.Fatal(warnings, err)
	}
	want := `{"memory":{"limit":67108864,"swap":-1},"cpu":{"shares":512},"pids":{"limit":-1}}`
	if !slices.Equal(f.updates, []string{want}) {
		t.Errorf("the runtime was told %q, want %s", f.updates, want)
	}
	if h := onDisk(t, m, id); h.Memory != 64<<20 || h.MemorySwap != -1 || h.CPUShares != 512 || h.PidsLimit == nil {
		t.Errorf("recorded: %+v", h.Resources)
	}
	if before.HostConfig.Memory != 0 {
		t.Error("a view that was handed out has changed")
	}
	if a := f.actions(); a[len(a)-1] != "update" {
		t.Errorf("events: %q", a)
	}
	// The limits that were there go along.
	if _, err := m.Update(t.Context(), "web", limits(container.Resources{CpusetCpus: "0"})); err != nil {
		t.Fatal(err)
	}
	if got := f.updates[1]; !strings.Contains(got, `"cpus":"0"`) || !strings.Contains(got, `"limit":67108864`) {
		t.Errorf("the runtime was told %s", got)
	}
	// A policy is no matter of the kernel's.
	u := container.UpdateConfig{RestartPolicy: container.RestartPolicy{Name: "on-failure", MaximumRetryCount: 3}}
	if _, err := m.Update(t.Context(), "web", u); err != nil || len(f.updates) != 2 {
		t.Errorf("%v, %d updates", err, len(f.updates))
	}
	if p := onDisk(t, m, id).RestartPolicy; p != u.RestartPolicy {
		t.Errorf("recorded: %+v", p)
	}
}

func TestUpdateRefused(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	id := running(t, m, "web")
	if _, err := m.Update(t.Context(), "web", limits(container.Resources{Memory: 64 << 20, MemorySwap: 128 << 20, NanoCPUs: 1e9})); err != nil {
		t.Fatal(err)
	}
	whole := onDisk(t, m, id)
	cannot := "Cannot update container " + string(id) + ": "
	for _, c := range []struct {
		u    container.UpdateConfig
		kind func(error) bool
		want string
	}{
		{limits(container.Resources{Memory: 1}), errdefs.IsInvalidArgument, "Minimum memory limit allowed is 6MB"},
		{limits(container.Resources{Memory: 256 << 20}), errdefs.IsConflict, cannot + "Memory limit should be smaller than already set memoryswap limit, update the memoryswap at the same time"},
		{limits(container.Resources{CPUQuota: 5000}), errdefs.IsConflict, cannot + "Conflicting options: CPU Quota cannot be updated as NanoCPUs has already been set"},
		{limits(container.Resources{CPUPeriod: 5000}), errdefs.IsConflict, cannot + "Conflicting options: CPU Period cannot be updated as NanoCPUs has already been set"},
		{container.UpdateConfig{RestartPolicy: container.RestartPolicy{Name: "foo"}}, errdefs.IsInvalidArgument, "invalid restart policy: unknown policy 'foo'; use one of 'no', 'always', 'on-failure', or 'unless-stopped'"},
	} {
		if _, err := m.Update(t.Context(), "web", c.u); err == nil || !c.kind(err) || err.Error() != c.want {
			t.Errorf("%+v:\n%v, want\n%s", c.u, err, c.want)
		}
	}
	if _, err := m.Update(t.Context(), "nope", limits(container.Resources{})); !errdefs.IsNotFound(err) {
		t.Error(err)
	}
	if len(f.updates) != 1 {
		t.Errorf("the runtime was told of what is refused: %q", f.updates)
	}
	// The kernel refuses: nothing is recorded.
	f.updateErr = errors.New("device or resource busy")
	if _, err := m.Update(t.Context(), "web", limits(container.Resources{Memory: 32 << 20})); err == nil || err.Error() != cannot+"device or resource busy" {
		t.Error(err)
	}
	if back := f.updates[len(f.updates)-1]; len(f.updates) != 3 || !strings.Contains(back, `"limit":67108864,"swap":134217728`) {
		t.Errorf("the old limits are not put back: %q", f.updates)
	}
	now, _ := m.Get("web")
	if h := onDisk(t, m, id); h.Memory != whole.Memory || now.HostConfig.Memory != whole.Memory {
		t.Errorf("recorded though refused: %d, in memory %d", h.Memory, now.HostConfig.Memory)
	}
}

// A record that cannot be written takes the limits back.
func TestUpdateNotRecorded(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	id := running(t, m, "web")
	dir := m.store.path(id)
	f.onUpdate = func() {
		f.onUpdate = nil
		if err := os.Rename(dir, dir+".away"); err != nil {
			t.Error(err)
		}
	}
	_, err := m.Update(t.Context(), "web", limits(container.Resources{CPUShares: 7}))
	if err == nil {
		t.Fatal("recorded nowhere, and it is no error")
	}
	if err := os.Rename(dir+".away", dir); err != nil {
		t.Fatal(err)
	}
	if v, _ := m.Get("web"); v.HostConfig.CPUShares != 0 || len(f.updates) != 2 || !strings.Contains(f.updates[1], `"shares":1024`) {
		t.Errorf("%d shares, the runtime was told %q", v.HostConfig.CPUShares, f.updates)
	}
}

func TestUpdateStopped(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	defer m.Close()
	res, err := m.Create(t.Context(), Create{Name: "web", Config: &container.Config{Image: "debian"}, HostConfig: &container.HostConfig{AutoRemove: true}})
	if err != nil {
		t.Fatal(err)
	}
	if _, err := m.Update(t.Context(), "web", limits(container.Resources{CPUShares: 7})); err != nil || len(f.updates) != 0 {
		t.Error(err, f.updates)
	}
	if h := onDisk(t, m, res.ID); h.CPUShares != 7 {
		t.Errorf("recorded: %+v", h.Resources)
	}
	u := container.UpdateConfig{RestartPolicy: container.RestartPolicy{Name: "always"}}
	if _, err := m.Update(t.Context(), "web", u); !errdefs.IsConflict(err) || !strings.HasSuffix(err.Error(), "Restart policy cannot be updated because AutoRemove is enabled for the container") {
		t.Error(err)
	}
}
