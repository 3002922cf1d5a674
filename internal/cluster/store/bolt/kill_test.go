package bolt

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// writerEnv names the file in which the test binary, run anew, writes until it is killed.
const writerEnv = "ESCALE_TEST_STORE"

// openerEnv has it opened only.
const openerEnv = "ESCALE_TEST_STORE_OPEN"

func openOnce(path string) error {
	fmt.Println("opening")
	s, err := Open(path)
	if err != nil {
		return err
	}
	if err := s.Close(); err != nil {
		return err
	}
	os.Exit(0)
	return nil
}

func TestMain(m *testing.M) {
	if path := os.Getenv(writerEnv); path != "" {
		do := writeForEver
		if os.Getenv(openerEnv) != "" {
			do = openOnce
		}
		if err := do(path); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	os.Exit(m.Run())
}

// writeForEver makes objects, two a commit, and prints each revision that is durable.
func writeForEver(path string) error {
	s, err := Open(path)
	if err != nil {
		return err
	}
	for i := len(store.List[*cluster.Service](s.View())); ; i++ {
		at, err := s.Commit(context.Background(), store.Create(&cluster.Service{Meta: cluster.Meta{Name: fmt.Sprint("s", i)}}), store.Create(&cluster.Task{Slot: uint64(i)}))
		if err != nil {
			return err
		}
		fmt.Println(at)
	}
}

// A process that is killed amid its commits loses none that it was told of, and
// leaves none in halves.
func TestKilled(t *testing.T) {
	path := filepath.Join(t.TempDir(), "state.db")
	var last uint64
	for range 5 {
		cmd := exec.CommandContext(t.Context(), os.Args[0])
		cmd.Env = append(os.Environ(), writerEnv+"="+path)
		cmd.Stderr = os.Stderr
		out, err := cmd.StdoutPipe()
		if err != nil {
			t.Fatal(err)
		}
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		lines := bufio.NewScanner(out)
		for n := 0; n < 50 && lines.Scan(); n++ {
			if last, err = strconv.ParseUint(strings.TrimSpace(lines.Text()), 10, 64); err != nil {
				t.Fatal(err)
			}
		}
		time.AfterFunc(3*time.Millisecond, func() { _ = cmd.Process.Kill() })
		for lines.Scan() {
			if n, err := strconv.ParseUint(strings.TrimSpace(lines.Text()), 10, 64); err == nil {
				last = n
			}
		}
		_ = cmd.Wait() // it was killed
		s, err := Open(path)
		if err != nil {
			t.Fatal(err)
		}
		v := s.View()
		services, tasks := len(store.List[*cluster.Service](v)), len(store.List[*cluster.Task](v))
		if v.Revision() < last || uint64(services) != v.Revision() || tasks != services {
			t.Errorf("told of revision %d; there are %d services and %d tasks at revision %d", last, services, tasks, v.Revision())
		}
		if err := s.Close(); err != nil {
			t.Fatal(err)
		}
	}
}

// What is no store, of a later format, or in use is refused in words, and left alone.
func TestOpenRefuses(t *testing.T) {
	dir := t.TempDir()
	rubbish := filepath.Join(dir, "rubbish")
	if err := os.WriteFile(rubbish, []byte(strings.Repeat("rubbish", 10000)), 0o600); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(rubbish); !errdefs.IsDataLoss(err) {
		t.Errorf("rubbish: %v", err)
	}
	used := filepath.Join(dir, "used")
	s, err := Open(used)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := Open(used); !errdefs.IsUnavailable(err) {
		t.Errorf("in use: %v", err)
	}
	tx, err := s.db.Begin(true)
	if err != nil {
		t.Fatal(err)
	}
	if err := tx.Bucket(about).Put(formatKey, bytesOf(store.Format+1)); err != nil {
		t.Fatal(err)
	}
	if err := tx.Commit(); err != nil {
		t.Fatal(err)
	}
	if err := s.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := Open(used); !errdefs.IsFailedPrecondition(err) {
		t.Errorf("of a later format: %v", err)
	}
}
