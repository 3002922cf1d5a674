package overlay

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"
)

// A kernel that encrypts is asked once, another one again after a while.
func TestAbility(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		asked := 0
		no := errors.New("no")
		answer := no
		a := ability{probe: func() error { asked++; return answer }}
		want := func(when string, err error, n int) {
			t.Helper()
			if got := a.now(); got != err || asked != n {
				t.Errorf("%s: %v, asked %d times; want %v, %d", when, got, asked, err, n)
			}
		}
		want("at first", no, 1)
		answer = nil // somebody loads a module
		want("at once", no, 1)
		time.Sleep(2 * time.Minute)
		want("later", nil, 2)
		answer = no
		time.Sleep(time.Hour)
		want("once it was yes", nil, 2)
	})
}
