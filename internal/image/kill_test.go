package image

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

const childEnv = "ESCALE_TEST_IMAGE_ROOT"

// TestMain makes the test binary the process that TestKill kills.
func TestMain(m *testing.M) {
	if root := os.Getenv(childEnv); root != "" {
		if err := churn(root); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
		return
	}
	os.Exit(m.Run())
}

// churn imports, prepares and removes until it is killed, and says what is done.
func churn(root string) error {
	ctx := context.Background()
	s, err := Open(ctx, Config{Root: root})
	if err != nil {
		return err
	}
	t := new(testing.T)
	for i := 0; ; i++ {
		ref := fmt.Sprintf("img:%d-%d", os.Getpid(), i)
		data := makeTar(t, file{name: "f", data: ref + strings.Repeat("x", rand.IntN(1<<20))}, file{name: "ref", data: ref})
		img, err := s.Import(ctx, bytes.NewReader(data), ImportOptions{Ref: ref})
		if err != nil {
			return err
		}
		fmt.Println("+", ref)
		c := strings.ReplaceAll(ref, ":", "-")
		if err := s.Roots().Prepare(ctx, c, img.ID); err != nil {
			return err
		}
		fmt.Println("+", c)
		if i%2 == 0 {
			fmt.Println("-", c)
			if err := s.Roots().Remove(ctx, c); err != nil {
				return err
			}
			fmt.Println("-", ref)
			if _, err := s.Remove(ctx, ref, RemoveOptions{}); err != nil {
				return err
			}
		}
	}
}

// TestKill kills a process amid its work, again and again: what it said is done
// is there, and nothing is that belongs to nothing.
func TestKill(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	root := t.TempDir()
	rounds := 12
	if testing.Short() {
		rounds = 3
	}
	done := map[string]bool{} // names that must be there
	open1 := func() *Store { return open(t, Config{Root: root}) }
	for round := range rounds {
		cmd := exec.Command(os.Args[0])
		cmd.Env = append(os.Environ(), childEnv+"="+root)
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		time.AfterFunc(time.Duration(50+rand.IntN(400))*time.Millisecond, func() { cmd.Process.Kill() })
		for sc := bufio.NewScanner(out); sc.Scan(); {
			op, name, _ := strings.Cut(sc.Text(), " ")
			if op == "+" {
				done[name] = true
			} else { // said before the removal: it may or may not be there
				delete(done, name)
			}
		}
		cmd.Wait()
		s := open1()
		c := count(t, s)
		list, _ := s.List(ctx)
		roots, _ := s.Roots().Containers(ctx)
		n, m := len(list), len(roots)
		want := census{images: n, leases: n + m, snapshots: n + m, blobs: 3 * n, blobFiles: 3 * n, snapshotDirs: n + m}
		if c != want {
			t.Fatalf("round %d: %+v, want %+v", round, c, want)
		}
		for name := range done {
			if strings.Contains(name, ":") {
				if _, err := s.Get(ctx, name); err != nil {
					t.Errorf("round %d: %v", round, err)
				}
			} else if got := tree(t, s, name); !strings.Contains(got, "ref="+strings.Replace(name, "-", ":", 1)) {
				t.Errorf("round %d: container %s has %.80q", round, name, got)
			}
		}
		if round == rounds-1 {
			t.Logf("%d images and %d containers after %d kills", n, m, rounds)
			if _, err := s.Prune(ctx, PruneOptions{All: true}); err != nil {
				t.Error(err)
			}
			if err := s.Roots().Keep(ctx, nil); err != nil {
				t.Error(err)
			}
			if got := count(t, s); got != (census{}) {
				t.Errorf("left: %+v", got)
			}
		}
		s.Close()
	}
	if n := entries(t, filepath.Join(root, "content/ingest")); n != 0 {
		t.Errorf("%d half-written blobs", n)
	}
}

// TestSameAtOnce imports one and the same tar several times at once.
func TestSameAtOnce(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	data := makeTar(t, file{name: "f", data: strings.Repeat("x", 1<<20)})
	arch := dockerArchive{layers: [][]byte{data, makeTar(t, file{name: "g"})}, tags: []string{"l:1"}}.build(t)
	errs := make(chan error)
	for i := range 6 {
		go func() {
			if i%2 == 0 {
				errs <- s.Load(ctx, bytes.NewReader(arch), LoadOptions{})
				return
			}
			_, err := s.Import(ctx, bytes.NewReader(data), ImportOptions{Ref: fmt.Sprintf("i:%d", i)})
			errs <- err
		}()
	}
	for range 6 {
		if err := <-errs; err != nil {
			t.Error(err)
		}
	}
	c := count(t, s)
	if c.images != 4 || c.leases != 4 || c.snapshots != 2 {
		t.Errorf("%+v", c)
	}
	for _, ref := range []string{"l:1", "i:1", "i:3", "i:5"} {
		if got := rootOf(t, s, ref); !strings.HasPrefix(got, "f=xxx") {
			t.Errorf("%s: %.20s", ref, got)
		}
	}
}
