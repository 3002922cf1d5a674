package builder

import (
	"bytes"
	"context"
	"fmt"
	"io"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// slowTree is a tree of files none of which can be read before ready.
type slowTree struct {
	files int
	data  []byte
	ready chan struct{}
}

func (s *slowTree) Walk(_ context.Context, _ string, fn fs.WalkDirFunc) error {
	for i := range s.files {
		st := &fstypes.Stat{Path: fmt.Sprintf("f%06d", i), Mode: 0o644, Size: int64(len(s.data))}
		if err := fn(st.Path, &fsutil.DirEntryInfo{Stat: st}, nil); err != nil {
			return err
		}
	}
	return nil
}

func (s *slowTree) Open(string) (io.ReadCloser, error) {
	<-s.ready
	return io.NopCloser(bytes.NewReader(s.data)), nil
}

// folderOf lets a client have a folder under a number, and gives the engine's view
// of the client.
func folderOf(ctx context.Context, t *testing.T, id int, dir string) (session.Caller, *session.Session) {
	t.Helper()
	manager, err := session.NewManager()
	if err != nil {
		t.Fatal(err)
	}
	s, err := session.NewSession(ctx, "")
	if err != nil {
		t.Fatal(err)
	}
	s.Allow(filesync.NewFSSyncTarget(filesync.WithFSSyncDir(id, dir)))
	go func() {
		_ = s.Run(ctx, func(ctx context.Context, _ string, meta map[string][]string) (net.Conn, error) {
			ours, theirs := net.Pipe()
			go func() { _ = manager.HandleConn(ctx, ours, meta) }()
			return theirs, nil
		})
	}()
	t.Cleanup(func() { _ = s.Close() })
	caller, err := manager.Get(ctx, s.ID(), false)
	if err != nil {
		t.Fatal(err)
	}
	return caller, s
}

// whenAsked does something as soon as the receiver has made so many files, empty:
// then it has asked for what is in them.
func whenAsked(ctx context.Context, dir string, files int, do func()) {
	for {
		if list, _ := os.ReadDir(dir); len(list) >= files || ctx.Err() != nil {
			do()
			return
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// A client that has asked for thousands of files before it is sent any gets them
// all the same.
func TestSendTreeOfManyFiles(t *testing.T) {
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	dir := t.TempDir()
	caller, _ := folderOf(ctx, t, 7, dir)
	tree := &slowTree{files: 12000, data: bytes.Repeat([]byte("x"), 1<<10), ready: make(chan struct{})}
	go whenAsked(ctx, dir, tree.files, func() { close(tree.ready) })
	if err := sendTree(ctx, caller, "7", tree, func(int, bool) {}); err != nil {
		t.Fatal(err)
	}
	list, err := os.ReadDir(dir)
	if err != nil || len(list) != tree.files {
		t.Fatalf("%d files of %d arrived, %v", len(list), tree.files, err)
	}
	for _, d := range []int{0, tree.files / 2, tree.files - 1} {
		if got, err := os.ReadFile(filepath.Join(dir, list[d].Name())); err != nil || !bytes.Equal(got, tree.data) {
			t.Errorf("%s: %d bytes, %v", list[d].Name(), len(got), err)
		}
	}
}

// A client that goes amid a transfer, or a build that is given up, ends it.
func TestSendTreeGivenUp(t *testing.T) {
	for _, who := range []string{"client", "build"} {
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		building, giveUp := context.WithCancel(ctx)
		dir := t.TempDir()
		caller, client := folderOf(ctx, t, 7, dir)
		tree := &slowTree{files: 1000, data: bytes.Repeat([]byte("x"), 64<<10), ready: make(chan struct{})}
		go whenAsked(ctx, dir, tree.files, func() {
			if who == "client" {
				_ = client.Close()
			} else {
				giveUp()
			}
			close(tree.ready)
		})
		ended := make(chan error, 1)
		go func() { ended <- sendTree(building, caller, "7", tree, func(int, bool) {}) }()
		select {
		case err := <-ended:
			if err == nil {
				t.Errorf("the %s is gone, and all went well", who)
			}
		case <-time.After(30 * time.Second):
			t.Fatalf("the %s is gone, and the transfer goes on", who)
		}
		giveUp()
		cancel()
	}
}
