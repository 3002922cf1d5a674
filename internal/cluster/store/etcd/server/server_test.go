package server

import (
	"encoding/pem"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
)

// A server is started anew some time after a root that it trusts is trusted no more, and not
// before: nor when another is trusted, too.
func TestRooted(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		path := filepath.Join(t.TempDir(), "roots.pem")
		write := func(roots ...string) { // in one step, as those who keep such files do
			var text []byte
			for _, r := range roots {
				text = append(text, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: []byte(r)})...)
			}
			if err := atomicfile.Write(path, text, 0o600, atomicfile.Options{}); err != nil {
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
		write("one", "two")
		time.Sleep(time.Minute)
		if over() {
			t.Error("what it trusted is trusted still")
		}
		write("two")
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
