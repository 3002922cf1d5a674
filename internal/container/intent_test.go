package container

import (
	"os"
	"path/filepath"
	"testing"

	"github.com/moby/moby/api/types/container"
)

// TestStartCutOff takes the engine away after a process was made and before the record
// says so, or earlier, and looks at what the next one makes of it.
func TestStartCutOff(t *testing.T) {
	for _, c := range []struct {
		name string
		note func(t *testing.T, path string) // what becomes of the start's note
		want Status
	}{
		{"the note stands", func(*testing.T, string) {}, Running},
		{"the note is of another boot", func(t *testing.T, path string) {
			writeFile(t, path, `{"BootID":"another"}`)
		}, Exited},
		{"the note was being written", func(t *testing.T, path string) { writeFile(t, path, `{"Boot`) }, Created},
		{"there was no note yet", func(t *testing.T, path string) {
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
		}, Created},
	} {
		t.Run(c.name, func(t *testing.T) {
			dir := t.TempDir()
			f := newFakeEngine()
			m := f.manager(t, dir)
			id := create(t, m, "web", &container.HostConfig{})
			record := filepath.Join(m.store.path(id), recordFile)
			before, err := os.ReadFile(record)
			if err != nil {
				t.Fatal(err)
			}
			if err := m.Start(t.Context(), "web"); err != nil {
				t.Fatal(err)
			}
			m.Close()
			writeFile(t, record, string(before))
			c.note(t, filepath.Join(m.runDir(id, 1), intentFile))

			m = f.manager(t, dir)
			if s := status(t, m, id); s.Status != c.want {
				t.Errorf("taken up as %s, want %s", s.Status, c.want)
			}
			if c.want != Running && len(f.mounted)+len(f.sandboxes) > 0 {
				t.Errorf("left: %v %v", f.mounted, f.sandboxes)
			}
			if _, err := os.Stat(m.runDir(id, 1)); (err == nil) != (c.want == Running) {
				t.Errorf("run directory: %v", err)
			}
			if c.want != Running { // the same generation again, or the next
				if err := m.Start(t.Context(), "web"); err != nil {
					t.Error(err)
				}
			}
			m.Close()
		})
	}
}

// TestIntentIsOfAClient: a stop by hand is forgotten by a start that was cut off, as by one
// that was not.
func TestIntentIsOfAClient(t *testing.T) {
	for _, byClient := range []bool{true, false} {
		r := Record{ManuallyStopped: true, RestartCount: 3, State: State{Status: Exited, Generation: 4}}
		dir := filepath.Join(t.TempDir(), "id", "5")
		if err := writeIntent(dir, intent{BootID: "b", Cgroup: "/c", ByClient: byClient}); err != nil {
			t.Fatal(err)
		}
		in, err := readIntent(dir)
		if err != nil {
			t.Fatal(err)
		}
		if err := r.begin(in); err != nil {
			t.Fatal(err)
		}
		if r.ManuallyStopped == byClient || (r.RestartCount == 0) != byClient {
			t.Errorf("by a client %t: %+v", byClient, r)
		}
		if s := r.State; s.Status != Starting || s.Generation != 5 || s.BootID != "b" || s.Cgroup != "/c" {
			t.Errorf("%+v", s)
		}
	}
	r := Record{State: State{Status: Running, Generation: 4}}
	if err := r.begin(intent{}); err == nil || r.State.Generation != 4 {
		t.Errorf("a running container began again: %v", err)
	}
}

func writeFile(t *testing.T, path, text string) {
	t.Helper()
	if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
}
