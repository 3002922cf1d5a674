package load

import (
	"context"
	"errors"
	"os"
	"strconv"
	"testing"

	"escale.dev/escale/test/internal/harness"
)

// Settle removes what is left through the API, shows that the engine still
// works, and compares kernel and disk with its baseline. Without an engine of
// ours (nil) it only removes.
func (r *Run) Settle(t *testing.T, api *harness.API, e *harness.Engine) harness.Report {
	t.Helper()
	if err := r.RemoveAll(api, e != nil); err != nil {
		t.Errorf("removing what is left: %v", err)
	}
	if e == nil {
		return harness.Report{}
	}
	if err := r.Probe(api); err != nil {
		t.Error(err)
	}
	api.Close()
	left, err := e.Leaks(context.WithoutCancel(r.ctx))
	if err != nil {
		t.Errorf("leaks: %v", err)
	}
	if !left.Empty() {
		t.Errorf("left behind:\n%s", left)
	}
	return left
}

// KeepLog shows the end of the engine's own log; all of it goes to
// $ESCALE_TEST_LOG when that names a file.
func KeepLog(t *testing.T, e *harness.Engine) {
	if e == nil {
		return
	}
	t.Logf("the engine said last:\n%s", e.Tail(4000))
	if file := os.Getenv("ESCALE_TEST_LOG"); file != "" {
		b, err := os.ReadFile(e.LogFile)
		if err = errors.Join(err, os.WriteFile(file, b, 0o600)); err != nil {
			t.Log(err)
		}
	}
}

// EnvInt is the number in the environment variable name, or otherwise.
func EnvInt(name string, otherwise int) int {
	if n, err := strconv.Atoi(os.Getenv(name)); err == nil {
		return n
	}
	return otherwise
}
