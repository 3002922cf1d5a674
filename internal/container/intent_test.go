package container

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"testing/synctest"
	"time"

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

// While its record cannot be written a container is not started anew: the next engine would
// take what runs for something that nobody started.
func TestStartBehindItsRecord(t *testing.T) {
	for _, policy := range []container.RestartPolicyMode{"", "always"} {
		t.Run(string(policy), func(t *testing.T) {
			dir := t.TempDir()
			synctest.Test(t, func(t *testing.T) {
				f := newFakeEngine()
				m := f.manager(t, dir)
				id := create(t, m, "web", &container.HostConfig{RestartPolicy: container.RestartPolicy{Name: policy}})
				if err := m.Start(t.Context(), "web"); err != nil {
					t.Fatal(err)
				}
				mend := breakRecord(t, m, id)
				f.end(id, 3)
				time.Sleep(time.Second)
				synctest.Wait()
				if s := status(t, m, id); s.Running() {
					t.Fatal("it was started")
				}
				err := m.Start(t.Context(), "web")
				if err == nil || !strings.Contains(err.Error(), recordFile) {
					t.Errorf("a start: %v", err)
				}
				if left, _ := filepath.Glob(filepath.Join(m.cfg.RunDir, string(id), "*")); len(left) > 0 {
					t.Errorf("left: %q", left)
				}
				mend()
				if err := m.Start(t.Context(), "web"); err != nil {
					t.Fatal(err)
				}
				mend = breakRecord(t, m, id) // what the record does not know of a run is found
				if err := m.Rename(t.Context(), "web", "shop"); err == nil {
					t.Error("a name was given that is written nowhere")
				}
				mend()
				m.Close()
				m = f.manager(t, dir)
				if s := status(t, m, id); s.Status != Running || s.Generation != 2 {
					t.Errorf("taken up as %s, start %d", s.Status, s.Generation)
				}
				m.Close()
			})
		})
	}
}

// breakRecord lets no record be written until mend.
func breakRecord(t *testing.T, m *Manager, id ID) (mend func()) {
	t.Helper()
	path := filepath.Join(m.store.path(id), recordFile)
	do := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	do(os.Rename(path, path+".good"))
	do(os.MkdirAll(filepath.Join(path, "in the way"), 0o700))
	return func() {
		t.Helper()
		do(os.RemoveAll(path))
		do(os.Rename(path+".good", path))
	}
}
