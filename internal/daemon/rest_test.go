package daemon

import (
	"context"
	"log/slog"
	"testing"
	"testing/synctest"
	"time"
)

func TestRest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		r := newRest(slog.New(slog.DiscardHandler))
		released := 0
		r.release = func() (int64, error) { released++; return 0, nil }
		ended := make(chan struct{})
		go func() { defer close(ended); r.run(ctx) }()
		begin := time.Now()
		check := func(at time.Duration, want int) {
			t.Helper()
			time.Sleep(at - time.Since(begin))
			synctest.Wait()
			if released != want {
				t.Errorf("after %v: released %d times, want %d", at, released, want)
			}
		}
		check(time.Second, 0)
		r.touch() // a request just after the start does not put the first time off
		check(restFirst, 1)
		check(restFirst+restQuiet, 2) // the request is over
		check(time.Hour, 2)           // and then nothing wakes it
		for range 30 {                // as long as requests come it does not rest
			r.touch()
			time.Sleep(restQuiet - time.Second)
		}
		check(time.Since(begin), 2)
		check(time.Since(begin)+2*restQuiet, 3)
		check(3*time.Hour, 3)
		cancel()
		<-ended
	})
}
