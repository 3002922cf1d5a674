package server

import (
	"bufio"
	"context"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/opencontainers/go-digest"
)

// childRoot, when set, makes this program a registry that collects without end:
// the one that TestKilledAmidCollections kills.
const childRoot = "ESCALE_TEST_REGISTRY_ROOT"

func TestMain(m *testing.M) {
	root := os.Getenv(childRoot)
	if root == "" {
		os.Exit(m.Run())
	}
	c := Config{Root: root, Addr: "127.0.0.1:0"}
	s, err := New(c)
	if err != nil {
		panic(err)
	}
	l, err := Listen(c)
	if err != nil {
		panic(err)
	}
	go func() {
		for {
			_, err := s.Collect(context.Background(), Options{Grace: 150 * time.Millisecond, Untagged: true})
			if err != nil {
				fmt.Fprintln(os.Stderr, "collect:", err)
				os.Exit(3)
			}
			time.Sleep(5 * time.Millisecond)
		}
	}()
	fmt.Println(l.Addr().(*net.TCPAddr).Port)
	fmt.Fprintln(os.Stderr, s.Serve(context.Background(), l))
	os.Exit(2)
}

// A registry is killed again and again, while clients push and delete and it
// collects. What it had answered for is there whenever it comes back.
// ESCALE_REGISTRY_ROUNDS says how often.
func TestKilledAmidCollections(t *testing.T) {
	rounds := 8
	if n, err := strconv.Atoi(os.Getenv("ESCALE_REGISTRY_ROUNDS")); err == nil {
		rounds = n
	} else if testing.Short() {
		rounds = 2
	}
	root, pushed := t.TempDir(), 0
	kept := map[string]bool{} // tags that must be there
	for round := range rounds {
		cmd, r := child(t, root)
		for ref := range kept {
			name, tag, _ := strings.Cut(ref, ":")
			if err := r.pull(name, tag); err != nil {
				t.Fatalf("round %d: %s: %v%s", round, ref, err, onPlace(root, name, tag))
			}
		}
		var mu sync.Mutex
		var clients sync.WaitGroup
		stop := make(chan struct{})
		shared, before := random(3000), pushed
		for w := range 3 {
			clients.Go(func() {
				name := fmt.Sprintf("k/w%d", w)
				for i := 0; ; i++ {
					select {
					case <-stop:
						return
					default:
					}
					tag := fmt.Sprintf("r%d-%d", round, i)
					d, err := r.push(name, tag, random(60), shared, random(200))
					if err != nil {
						continue // refused, or the registry is dead
					}
					mu.Lock()
					pushed++
					kept[name+":"+tag] = true
					if i%2 == 0 {
						delete(kept, name+":"+tag) // from here on nobody knows
					}
					mu.Unlock()
					if i%2 == 0 {
						_, _, _, _ = r.try("DELETE", "/v2/"+name+"/manifests/"+string(d), nil)
					}
				}
			})
		}
		time.Sleep(time.Duration(100+upTo(500)) * time.Millisecond)
		// Each second round at least gets somewhere, however slow the machine is.
		for end := time.Now().Add(time.Minute); round%2 == 0 && time.Now().Before(end); time.Sleep(time.Millisecond) {
			mu.Lock()
			some := pushed > before
			mu.Unlock()
			if some {
				break
			}
		}
		if err := cmd.Process.Kill(); err != nil {
			t.Fatal(err)
		}
		close(stop)
		clients.Wait()
		if err := cmd.Wait(); !strings.Contains(fmt.Sprint(err), "killed") {
			t.Fatalf("round %d: the registry ended by itself: %v", round, err)
		}
	}
	t.Logf("%d rounds, %d pushes, %d must be there", rounds, pushed, len(kept))
	if pushed == 0 {
		t.Error("nothing was pushed")
	}
	r := start(t, func(c *Config) { c.Root = root })
	r.want(200, "GET", "/v2/", nil)
	for ref := range kept {
		name, tag, _ := strings.Cut(ref, ":")
		r.mustPull(name, tag)
	}
	r.check()
	r.empty()
}

// onPlace tells what of a tag and its manifest is on the disk.
func onPlace(root, name, tag string) string {
	out := "\non the disk:"
	current, err := os.ReadFile(filepath.Join(root, tagDir(name, tag), "current/link"))
	d, bad := digest.Parse(string(current))
	out += fmt.Sprintf("\n  tag %q (%v)", current, err)
	if bad != nil {
		return out
	}
	for _, f := range []string{revision(name, d) + "/link", blobDir(d) + "/data"} {
		info, err := os.Stat(filepath.Join(root, f))
		if err != nil {
			out += "\n  " + err.Error()
			continue
		}
		out += fmt.Sprintf("\n  %s: %d bytes, of %s", f, info.Size(), info.ModTime().Format(time.StampMilli))
	}
	return out
}

func child(t *testing.T, root string) (*exec.Cmd, *rig) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(self)
	cmd.Env = append(os.Environ(), childRoot+"="+root)
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	port, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatal(err)
	}
	return cmd, &rig{t: t, url: "http://127.0.0.1:" + strings.TrimSpace(port)}
}
