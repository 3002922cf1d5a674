package bolt

import (
	"bufio"
	"bytes"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
)

// kept are the services of a store that was big once.
const kept = 300

// grown gives the path of a store that was big, and is not any more, and its revision.
func grown(t *testing.T) (string, uint64) {
	t.Helper()
	path := filepath.Join(t.TempDir(), "state.db")
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	commit := func(changes ...store.Change) {
		t.Helper()
		if _, err := s.Commit(t.Context(), changes...); err != nil {
			t.Fatal(err)
		}
	}
	for i := range kept {
		commit(store.Create(&cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("s", i)}}))
	}
	for range 24 {
		commit(store.Create(&cluster.Secret{Meta: cluster.Meta{Name: "big" + cluster.NewID()}, Spec: cluster.SecretSpec{Data: bytes.Repeat([]byte("x"), 500<<10)}}))
	}
	for _, big := range store.List[*cluster.Secret](s.View()) {
		commit(store.Delete(big))
	}
	at := s.View().Revision()
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	return path, at
}

// whole checks that a store has all that it had, and can be written.
func whole(t *testing.T, path string, revision uint64) {
	t.Helper()
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	v := s.View()
	if n := len(store.List[*cluster.Service](v)); n != kept || v.Revision() != revision {
		t.Fatalf("%d services at revision %d, want %d at %d", n, v.Revision(), kept, revision)
	}
	if _, err := s.Commit(t.Context(), store.Create(&cluster.Config{Meta: cluster.Meta{Name: "new"}})); err != nil {
		t.Error(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
}

func size(t *testing.T, path string) int64 {
	t.Helper()
	info, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	return info.Size()
}

// A store that was big gives back its room when it is opened, and one that is in use none.
func TestShrinks(t *testing.T) {
	path, at := grown(t)
	before := size(t, path)
	whole(t, path, at)
	after := size(t, path)
	if before < bigFrom || after >= bigFrom/sparse {
		t.Errorf("it had %d bytes, and has %d", before, after)
	}
	whole2, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if again, err := os.Stat(path); err != nil || !os.SameFile(again, whole2) {
		t.Errorf("a small one is written anew: %v", err)
	}
	if s.db.NoSync {
		t.Error("it does not wait for the disk any more")
	}
}

// Where the smaller file cannot be made the big one stays; what was begun of one is nothing.
func TestCannotShrink(t *testing.T) {
	path, at := grown(t)
	before := size(t, path)
	if err := os.MkdirAll(filepath.Join(newFile(path), "x"), 0o700); err != nil {
		t.Fatal(err)
	}
	s, err := Open(path)
	if err != nil {
		t.Fatalf("one that cannot be made smaller does not open: %v", err)
	}
	if why := s.Swollen(); why == nil || !strings.Contains(why.Error(), "compaction") {
		t.Errorf("what is in the way is told of as %v", why)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	whole(t, path, at)
	at++ // whole has written, too
	if err := os.RemoveAll(newFile(path)); err != nil {
		t.Fatal(err)
	}
	if size(t, path) < before {
		t.Error("it was made smaller")
	}
	if err := os.WriteFile(newFile(path), []byte("begun by an engine that was killed"), 0o600); err != nil {
		t.Fatal(err)
	}
	if s, err = Open(path); err != nil {
		t.Fatal(err)
	}
	defer s.Close()
	if n := len(store.List[*cluster.Service](s.View())); s.Swollen() != nil || n != kept || s.View().Revision() != at || size(t, path) >= bigFrom {
		t.Errorf("with nothing in the way: %v, %d services at %d, %d bytes", s.Swollen(), n, s.View().Revision(), size(t, path))
	}
}

// An engine that is killed amid a compaction loses nothing, and leaves nothing.
func TestKilledAmidCompaction(t *testing.T) {
	path, at := grown(t)
	big, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	killed, amid, usual := 0, 0, time.Duration(0)
	for i := 0; i < 25 || i < 200 && killed == 0; i++ {
		if err := os.WriteFile(path, big, 0o600); err != nil {
			t.Fatal(err)
		}
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+path, openerEnv+"=1")
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		bufio.NewScanner(out).Scan()
		begun := time.Now()
		if i > 0 { // the first is to be seen through
			time.AfterFunc(time.Duration(rand.Int64N(int64(usual))), func() { _ = cmd.Process.Kill() })
		}
		if cmd.Wait() != nil {
			killed++
		} else if took := time.Since(begun); i == 0 || took < usual {
			usual = took // the quickest, so that most are killed before they are through
		}
		if _, err := os.Stat(newFile(path)); err == nil {
			amid++
		}
		whole(t, path, at)
		if _, err := os.Stat(newFile(path)); !os.IsNotExist(err) {
			t.Fatalf("what was begun is left: %v", err)
		}
		if n := size(t, path); n >= bigFrom {
			t.Errorf("it has %d bytes still", n)
		}
	}
	if usual == 0 || killed == 0 {
		t.Errorf("opened in %s, killed %d times", usual, killed)
	}
	t.Logf("killed %d times, %d amid the new file, of %s", killed, amid, usual)
}
