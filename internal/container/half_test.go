package container

import (
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// An engine that is killed while it makes a container leaves no volume that nobody named. Those of
// containers that have a record stay, and so do volumes with names.
func TestHalfMadeVolumes(t *testing.T) {
	for _, half := range []bool{true, false} {
		dir := t.TempDir()
		f := newFakeEngine()
		m := f.manager(t, dir)
		id := create(t, m, "web", &container.HostConfig{Binds: []string{"data:/d", "/v"}})
		m.Close()
		own := m.store.path(id)
		if left, _ := filepath.Glob(filepath.Join(own, announcedFile)); len(left) != 0 {
			t.Errorf("left beside the record: %v", left)
		}
		e, err := m.store.find("web")
		if err != nil {
			t.Fatal(err)
		}
		name := ""
		for _, p := range e.view().Mounts {
			if p.Destination == "/v" {
				name = p.Name
			}
		}
		if len(name) != 64 || f.volumes[name] == nil {
			t.Fatalf("volume %q of %v", name, f.volumes)
		}
		if err := m.store.announce(id, []string{name, "of which none was made"}); err != nil {
			t.Fatal(err)
		}
		if half {
			if err := os.Remove(filepath.Join(own, recordFile)); err != nil {
				t.Fatal(err)
			}
			clear(f.volumes[name]) // no engine holds it for anybody
		}
		f.manager(t, dir).Close()
		if _, there := f.volumes[name]; there == half {
			t.Errorf("without a record: %t, the volume is there: %t", half, there)
		}
		if _, there := f.volumes["data"]; !there {
			t.Error("a volume with a name has gone")
		}
		if _, err := os.Stat(own); errors.Is(err, os.ErrNotExist) != half {
			t.Errorf("without a record: %t, its directory: %v", half, err)
		}
	}
}
