package container

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"escale.dev/escale/internal/image/changes"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
)

// What an engine had paused for a commit when it was killed goes on with the
// next; what a client has paused stays so.
func TestCommitCutOff(t *testing.T) {
	f := newFakeEngine()
	dir := t.TempDir()
	m := f.manager(t, dir)
	byCommit, byClient := create(t, m, "commit", nil), create(t, m, "client", nil)
	for _, id := range []ID{byCommit, byClient} {
		if err := m.Start(t.Context(), string(id)); err != nil {
			t.Fatal(err)
		}
		if err := m.Pause(t.Context(), string(id)); err != nil {
			t.Fatal(err)
		}
	}
	note := filepath.Join(m.runDir(byCommit, 1), frozenFile)
	if err := os.MkdirAll(filepath.Dir(note), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(note, nil, 0o600); err != nil {
		t.Fatal(err)
	}
	m.Close()

	m = f.manager(t, dir)
	if st := status(t, m, byCommit); st.Status != Running {
		t.Errorf("paused by a commit: %s", st.Status)
	}
	if st := status(t, m, byClient); st.Status != Paused {
		t.Errorf("paused by a client: %s", st.Status)
	}
	if _, err := os.Stat(note); !os.IsNotExist(err) {
		t.Errorf("the note stays: %v", err)
	}
}

func TestCommitRefuses(t *testing.T) {
	f := newFakeEngine()
	m := f.manager(t, t.TempDir())
	id := create(t, m, "source", nil)
	for want, o := range map[string]Commit{
		"RUN is not a valid change command": {Changes: []string{"RUN x"}},
		"invalid reference format":          {Ref: "a:b:c"},
	} {
		if _, err := m.Files().Commit(t.Context(), string(id), o); !errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), want) {
			t.Errorf("%+v: %v", o, err)
		}
	}
	if _, err := m.Files().Commit(t.Context(), "nosuch", Commit{}); !errdefs.IsNotFound(err) {
		t.Errorf("no such container: %v", err)
	}
}

func TestInherit(t *testing.T) {
	from := imageConfig(&container.Config{
		User: "u", WorkingDir: "/w", StopSignal: "INT", Env: []string{"A=1", "B=2"}, Cmd: []string{"run"}, Entrypoint: []string{"sh"},
		Labels: map[string]string{"l": "1", "m": "2"}, Volumes: map[string]struct{}{"/v": {}}, Healthcheck: &container.HealthConfig{Test: []string{"NONE"}},
	})
	for _, c := range []struct {
		changes []string
		check   func(changes.Config) any
		want    any
	}{
		{nil, func(c changes.Config) any { return c }, from},
		{[]string{"ENV B=3 C=4"}, func(c changes.Config) any { return c.Env }, []string{"B=3", "C=4", "A=1"}},
		{[]string{"CMD other"}, func(c changes.Config) any { return append(c.Entrypoint, c.Cmd...) }, []string{"sh", "/bin/sh", "-c", "other"}},
		{[]string{`ENTRYPOINT ["e"]`}, func(c changes.Config) any { return append(c.Entrypoint, c.Cmd...) }, []string{"e"}},
		{[]string{`LABEL l=9`}, func(c changes.Config) any { return c.Labels }, map[string]string{"l": "9", "m": "2"}},
		{[]string{`VOLUME /x`}, func(c changes.Config) any { return len(c.Volumes) }, 2},
		{[]string{`USER root`, `WORKDIR /x`, `STOPSIGNAL HUP`}, func(c changes.Config) any { return c.User + c.WorkingDir + c.StopSignal }, "root/xHUP"},
	} {
		var got changes.Config
		if err := changes.Apply(&got, c.changes); err != nil {
			t.Fatal(err)
		}
		inherit(&got, from)
		if have := c.check(got); !reflect.DeepEqual(have, c.want) {
			t.Errorf("%q: %v, want %v", c.changes, have, c.want)
		}
	}
}
