package e2e

import (
	"context"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// idleMemory is what an engine may hold that has nothing to do, in bytes.
const idleMemory = 30 << 20

// TestIdleMemory checks that an engine gives back what it took to start, and after
// some work what that took.
func TestIdleMemory(t *testing.T) {
	e := start(t, harness.Options{})
	rests := func(after string) {
		t.Helper()
		begin, wait := time.Now(), harness.Patience(time.Minute)
		for e.RSS() > idleMemory {
			if time.Since(begin) > wait {
				t.Fatalf("%d MB resident %v after %s; want at most %d", e.RSS()>>20, wait, after, idleMemory>>20)
			}
			time.Sleep(100 * time.Millisecond)
		}
	}
	rests("the start")
	ctx, cancel := context.WithTimeout(context.Background(), harness.Patience(time.Minute))
	defer cancel()
	api := e.API()
	for range 20 {
		if code, err := runTo(ctx, api, map[string]any{"Image": image, "Cmd": []string{"true"}}); err != nil || code != 0 {
			t.Fatalf("exit code %d, %v", code, err)
		}
	}
	api.Close()
	rests("20 containers")
}
