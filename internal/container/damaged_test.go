package container

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// edited is a record with one field replaced, or taken away.
func edited(t *testing.T, whole []byte, field string, value any) []byte {
	t.Helper()
	var rec map[string]any
	if err := json.Unmarshal(whole, &rec); err != nil {
		t.Fatal(err)
	}
	at := rec
	for {
		outer, inner, nested := strings.Cut(field, ".")
		if !nested {
			break
		}
		at, field = at[outer].(map[string]any), inner
	}
	if value == nil {
		delete(at, field)
	} else {
		at[field] = value
	}
	b, err := json.Marshal(rec)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// Whatever becomes of one record: the engine starts, names it, leaves all that belongs to it
// where it is, and the other containers are what they were.
func TestDamagedRecord(t *testing.T) {
	other := strings.Repeat("ab", 32)
	for name, damage := range map[string]func(whole []byte) []byte{
		"empty":            func([]byte) []byte { return nil },
		"half":             func(b []byte) []byte { return b[:len(b)/2] },
		"zeros":            func(b []byte) []byte { return make([]byte, len(b)) },
		"garbage":          func(b []byte) []byte { return bytes.Repeat([]byte{0xff, '{', '"'}, 1000) },
		"null":             func([]byte) []byte { return []byte("null") },
		"a list":           func([]byte) []byte { return []byte("[]") },
		"of another":       func(b []byte) []byte { return edited(t, b, "ID", other) },
		"of a path":        func(b []byte) []byte { return edited(t, b, "ID", "../../escape") },
		"no name":          func(b []byte) []byte { return edited(t, b, "Name", nil) },
		"a path as name":   func(b []byte) []byte { return edited(t, b, "Name", "../x") },
		"no configuration": func(b []byte) []byte { return edited(t, b, "Config", nil) },
		"no host":          func(b []byte) []byte { return edited(t, b, "HostConfig", nil) },
		"no state":         func(b []byte) []byte { return edited(t, b, "State", nil) },
		"no such state":    func(b []byte) []byte { return edited(t, b, "State.Status", "flying") },
		"a state of lists": func(b []byte) []byte { return edited(t, b, "State", []int{1}) },
		"negative process": func(b []byte) []byte { return edited(t, b, "State.Pid", -1) },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := newFakeEngine()
			m := f.manager(t, dir)
			bad, good := create(t, m, "bad", nil), create(t, m, "good", nil)
			if err := m.Start(t.Context(), "good"); err != nil {
				t.Fatal(err)
			}
			m.Close()
			record := filepath.Join(dir, "containers", string(bad), recordFile)
			f.sandboxes[string(bad)] = true // it may run
			whole, err := os.ReadFile(record)
			if err != nil {
				t.Fatal(err)
			}
			damaged := damage(whole)
			if err := os.WriteFile(record, damaged, 0o600); err != nil {
				t.Fatal(err)
			}
			run := filepath.Join(dir, "run", string(bad), "1")
			if err := os.MkdirAll(run, 0o700); err != nil {
				t.Fatal(err)
			}
			if err := writeEndpoints(run, []network.Endpoint{{Network: "bridge", IP: "172.17.0.9"}}); err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			m = f.managerSaying(t, dir, slog.New(slog.NewTextHandler(&said, nil)))
			m.Resume(t.Context())
			if all := m.List(); len(all) != 1 || all[0].ID != good {
				t.Errorf("listed %d containers, want the good one", len(all))
			}
			if v, err := m.Get("good"); err != nil || v.ID != good || v.State.Status != Running {
				t.Errorf("the good one: %v, %s %s", err, v.ID, v.State.Status)
			}
			m.Close()
			if !strings.Contains(said.String(), bad.Short()) {
				t.Errorf("the engine said nothing of it: %q", said.String())
			}
			if !f.prepared[string(bad)] {
				t.Error("its root file system is gone")
			}
			if !f.sandboxes[string(bad)] {
				t.Error("its network is gone")
			}
			if _, err := os.Stat(run); err != nil {
				t.Error(err)
			}
			if now, err := os.ReadFile(record); err != nil || !bytes.Equal(now, damaged) {
				t.Errorf("the record is %q, %v", now, err)
			}
			// Mended, it is a container again.
			if err := os.WriteFile(record, whole, 0o600); err != nil {
				t.Fatal(err)
			}
			m = f.manager(t, dir)
			defer m.Close()
			if v, err := m.Get("bad"); err != nil || v.ID != bad {
				t.Errorf("mended: %v", err)
			}
		})
	}
}

// Of a container with --rm a power cut may leave an empty record: it was to go, and all of
// it does. One with a volume is left alone as others are, since its record says what is to go along.
func TestDamagedPassing(t *testing.T) {
	for name, volume := range map[string]bool{"plain": false, "with a volume": true} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := newFakeEngine()
			m := f.manager(t, dir)
			h := &container.HostConfig{AutoRemove: true}
			if volume {
				h.Binds = []string{"data:/data"}
			}
			id := create(t, m, "passing", h)
			m.Close()
			if err := os.WriteFile(filepath.Join(dir, "containers", string(id), recordFile), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			m = f.manager(t, dir)
			m.Resume(t.Context())
			if all := m.List(); len(all) != 0 {
				t.Errorf("%d containers are there", len(all))
			}
			m.Close()
			_, err := os.Stat(filepath.Join(dir, "containers", string(id)))
			if gone := errors.Is(err, os.ErrNotExist); gone == volume {
				t.Errorf("its directory is gone: %t (%v)", gone, err)
			}
			if f.prepared[string(id)] != volume {
				t.Errorf("its root file system is there: %t", f.prepared[string(id)])
			}
		})
	}
}

// What somebody put beside the containers is no create that was killed half-way: it stays.
func TestForeignDirectoryIsKept(t *testing.T) {
	dir := t.TempDir()
	f := newFakeEngine()
	f.manager(t, dir).Close()
	theirs := filepath.Join(dir, "containers", "lost+found", "file")
	if err := os.MkdirAll(theirs, 0o700); err != nil {
		t.Fatal(err)
	}
	m := f.manager(t, dir)
	m.Close()
	if _, err := os.Stat(theirs); err != nil {
		t.Error(err)
	}
}

// A start that was cut off and whose note of its network is damaged is taken up nevertheless.
func TestDamagedNotesOfARun(t *testing.T) {
	for name, text := range map[string]string{
		"empty": "", "half": `[{"Network":"bri`, "garbage": "\x00\xff", "null": "null", "another kind": `{"Network":3}`, "holes": `[null,{}]`,
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			f := newFakeEngine()
			m := f.manager(t, dir)
			id := create(t, m, "web", nil)
			if err := m.Start(t.Context(), "web"); err != nil {
				t.Fatal(err)
			}
			e, err := m.store.find("web")
			if err != nil {
				t.Fatal(err)
			}
			e.mu.Lock()
			e.rec.State.Status, e.rec.Endpoints = Starting, nil // as it was before the record said so
			err = m.store.save(&e.rec, false)
			e.mu.Unlock()
			if err != nil {
				t.Fatal(err)
			}
			m.Close()
			for _, note := range []string{endpointsFile, frozenFile, "config.json"} {
				if err := os.WriteFile(filepath.Join(m.runDir(id, 1), note), []byte(text), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			m = f.manager(t, dir)
			if s := status(t, m, id); s.Status != Running {
				t.Errorf("taken up as %s", s.Status)
			}
			if err := m.Remove(t.Context(), "web", Remove{Force: true}); err != nil {
				t.Error(err)
			}
			m.loops.Wait()
			m.Close()
			if left := len(f.mounted) + len(f.sandboxes) + len(f.prepared); left != 0 {
				t.Errorf("left: %v %v %v", f.mounted, f.sandboxes, f.prepared)
			}
		})
	}
}

// FuzzRecord: whatever a record holds, what is taken for one can be worked with.
func FuzzRecord(f *testing.F) {
	id := ID(strings.Repeat("ab", 32))
	for _, s := range []string{"", "null", "{", `{"Format":1}`, `{"Format":2}`,
		`{"Format":1,"ID":"` + string(id) + `","Name":"a","Config":{},"HostConfig":{},"State":{"Status":"exited"}}`,
		`{"Format":1,"ID":"` + string(id) + `","Name":"a","Config":{},"HostConfig":{"RestartPolicy":{"Name":"always"}},"State":{"Status":"running","Pid":-4,"Health":{"Log":[null]}}}`} {
		f.Add([]byte(s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(t.TempDir(), string(id), recordFile)
		if err := os.Mkdir(filepath.Dir(path), 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		s := newStore(filepath.Dir(filepath.Dir(path)))
		list, err := s.load()
		if err != nil && !errdefs.IsFailedPrecondition(err) {
			t.Fatal(err)
		}
		for _, e := range list {
			v := e.view()
			if v.ID != id || v.State.Pid < 0 || moves[v.State.Status] == nil || !nameRule.MatchString(v.Name) {
				t.Fatalf("%+v", v)
			}
			e.resumes()
			_ = e.rec.State.move(Starting)
		}
		_ = readEndpoints(filepath.Dir(path))
	})
}
