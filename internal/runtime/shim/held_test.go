package shim

import (
	"fmt"
	"io"
	"os"
	"testing"

	"escale.dev/escale/internal/runtime/shim/wire"
	"github.com/containerd/errdefs"
)

// open counts the descriptors of this process that are of these files.
func open(t *testing.T, files []*os.File) (n int) {
	t.Helper()
	names := map[string]bool{}
	for _, f := range files {
		names[f.Name()] = true
	}
	list, err := os.ReadDir("/proc/self/fd")
	if err != nil {
		t.Fatal(err)
	}
	for _, fd := range list {
		if name, err := os.Readlink("/proc/self/fd/" + fd.Name()); err == nil && names[name] {
			n++
		}
	}
	return n
}

// What a monitor holds is given back to whoever asks, to a later engine too: all
// of it, in order, more than one message can carry.
func TestHeldIsGivenBack(t *testing.T) {
	for _, n := range []int{0, 1, 450} {
		t.Run(fmt.Sprint(n), func(t *testing.T) {
			b := newBox(t, "read x", withStdin)
			for i := range n {
				f, err := os.CreateTemp(t.TempDir(), "")
				if err != nil {
					t.Fatal(err)
				}
				fmt.Fprint(f, i)
				b.launch.Held = append(b.launch.Held, f)
			}
			every := b.launch.Held
			b.launch.Held = every[:n-n/2] // the rest follows while it runs
			b.launchIt()
			if err := b.task.Hold(ctxFor(t), every[n-n/2:]); err != nil {
				t.Fatal(err)
			}
			for _, f := range every {
				f.Close()
			}
			b.start()
			adopted, err := b.r.Adopt(ctxFor(t), b.launch.ID, b.launch.RunDir, b.launch.StateDir)
			if err != nil {
				t.Fatal(err)
			}
			defer adopted.Close()
			if n := open(t, every); n != 0 {
				t.Fatalf("%d are still open", n)
			}
			for range 3 {
				files, err := adopted.Held(ctxFor(t))
				if err != nil || len(files) != n {
					t.Fatalf("%d files, %v", len(files), err)
				}
				for i, f := range files {
					got, err := io.ReadAll(io.NewSectionReader(f, 0, 100))
					if err != nil || string(got) != fmt.Sprint(i) {
						t.Fatalf("file %d: %q, %v", i, got, err)
					}
					f.Close()
				}
			}
			if n := open(t, every); n != 0 {
				t.Errorf("%d are open that were closed", n)
			}
			b.attach("", all).Close()                                                           // the monitor goes on
			if err := b.task.Signal(ctxFor(t), "", 9); err != nil && !errdefs.IsNotFound(err) { // its input has ended, so it may have, too
				t.Error(err)
			}
			b.wait("")
			if files, err := adopted.Held(ctxFor(t)); !errdefs.IsNotFound(err) && (err != nil || len(files) != 0) {
				t.Errorf("after the end: %v, %v", files, err)
			}
		})
	}
}

// A monitor that does not know a request says so, which is how one of before answers.
func TestUnknownRequest(t *testing.T) {
	b := newBox(t, "read x", withStdin)
	b.launchIt()
	b.start()
	if _, err := b.task.conn.call(ctxFor(t), wire.Type(60), nil); !errdefs.IsNotImplemented(err) {
		t.Errorf("%v", err)
	}
}
