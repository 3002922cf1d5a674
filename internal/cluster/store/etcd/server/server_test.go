package server

import (
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
)

// A server is started anew some time after what it trusts has changed, and not before.
func TestRooted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "roots.pem")
		write := func(text string) { // in one step, as those who keep such files do
			if err := atomicfile.Write(path, []byte(text), 0o600, atomicfile.Options{}); err != nil {
				t.Fatal(err)
			}
		}
		write("one")
		again, done := rooted(path)
		over := func() bool {
			select {
			case <-again:
				return true
			default:
				return false
			}
		}
		time.Sleep(time.Minute)
		write("one")
		time.Sleep(time.Minute)
		if over() {
			t.Error("nothing has changed")
		}
		if err := os.Remove(path); err != nil { // amid a change that is not made in one step
			t.Fatal(err)
		}
		time.Sleep(time.Minute)
		if over() {
			t.Error("there is nothing else to trust")
		}
		write("one, two")
		began := time.Now()
		<-again
		if took := time.Since(began); took > looking+together {
			t.Errorf("after %v", took)
		}
		done()
		_, done = rooted(path)
		done()
		done()
		if again, done := rooted(""); again != nil {
			t.Error("without TLS something is looked at")
		} else {
			done()
		}
	})
}
