package container

import (
	"io"
	"os"
	"slices"
	"testing"
	"testing/synctest"
	"time"
)

// Who learns of the end of an exec finds it among the events, however long
// telling takes: what a client does next comes after it.
func TestExecEndIsToldBeforeTheAnswer(t *testing.T) {
	world(t, func(t *testing.T, f *fakeEngine, m *Manager) {
		id := create(t, m, "web", nil)
		if err := m.Start(t.Context(), "web"); err != nil {
			t.Fatal(err)
		}
		root, err := os.Open(t.TempDir())
		if err != nil {
			t.Fatal(err)
		}
		e, err := m.store.find("web")
		if err != nil {
			t.Fatal(err)
		}
		e.run.root.mu.Lock()
		e.run.root.file = root
		e.run.root.mu.Unlock()
		x, err := m.ExecCreate(t.Context(), "web", ExecConfig{Cmd: []string{"true"}, AttachStdout: true})
		if err != nil {
			t.Fatal(err)
		}
		synctest.Wait() // nobody else wants the container: who waits for a mutex holds up the clock
		f.telling = func() { time.Sleep(time.Second) }
		answered := make(chan error, 1)
		go func() {
			answered <- m.ExecStart(t.Context(), x, [2]uint16{}, func(bool) (io.ReadWriteCloser, error) { return &memoryConn{}, nil })
		}()
		time.Sleep(2 * time.Second)
		synctest.Wait()
		task := f.tasks[string(id)]
		close(task.execs[x])
		if err := <-answered; err != nil {
			t.Fatal(err)
		}
		if told := f.actions(); !slices.Contains(told, "exec_die") {
			t.Errorf("answered before its end was told: %q", told)
		}
		time.Sleep(2 * time.Second) // nobody tells any more
		f.telling = nil
		f.end(id, 0)
	})
}
