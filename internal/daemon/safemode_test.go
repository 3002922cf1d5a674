package daemon

import (
	"errors"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"testing"
	"testing/synctest"
	"time"

	"escale.dev/escale/internal/container"
)

func TestCrashesAreCounted(t *testing.T) {
	path := filepath.Join(t.TempDir(), "crashes.json")
	now := time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)
	start := func(boot string, after time.Duration) crashRecord {
		t.Helper()
		now = now.Add(after)
		rec, err := crashLog{path, boot}.begin(now)
		if err != nil {
			t.Fatal(err)
		}
		return rec
	}
	for i, want := range []bool{false, false, false, true} { // three crashes are four starts
		if rec := start("a", 10*time.Second); rec.Safe != want || len(rec.Crashes) != i {
			t.Errorf("start %d: %+v", i, rec)
		}
	}
	if rec := start("a", time.Hour); !rec.Safe {
		t.Error("a crash in safe mode has ended it")
	}
	if err := (crashLog{path, "a"}).calm(); err != nil {
		t.Fatal(err)
	}
	for i := range 10 { // one in half a minute each are not too many
		if rec := start("a", 31*time.Second); rec.Safe {
			t.Errorf("crash %d: safe mode", i)
		}
	}
	start("a", time.Second)
	if rec := start("b", time.Second); rec.Safe || len(rec.Crashes) != 0 {
		t.Errorf("after the machine went down: %+v", rec)
	}
	if err := (crashLog{path, "b"}).end(); err != nil {
		t.Fatal(err)
	}
	if rec := start("b", time.Second); len(rec.Crashes) != 0 {
		t.Errorf("after a clean end: %+v", rec)
	}
	for _, text := range []string{"", "{", "null", `{"Crashes":"x"}`, `{"Format":99,"Safe":true,"Boot":"b"}`} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if rec := start("b", time.Second); rec.Safe || rec.Format != crashFormat {
			t.Errorf("%q: %+v", text, rec)
		}
	}
}

// From on to auto, an engine that was not crashing goes on at once, and one that
// was holds back for a time.
func TestSafeModeFollowsTheConfiguration(t *testing.T) {
	for _, c := range []struct {
		crashed  bool
		mode     []string // the values of --safe-mode, one after the other
		byClient bool     // safe mode is begun by a client first
		on       bool
		ends     bool // by itself
	}{
		{mode: []string{safeAuto, safeOn}, on: true},
		{mode: []string{safeOn, safeAuto}},
		{mode: []string{safeOn, safeOff}},
		{mode: []string{safeOff, safeAuto}},
		{mode: []string{safeOn, safeAuto}, crashed: true, on: true, ends: true},
		{mode: []string{safeOn, safeOff, safeAuto}, crashed: true},
		{mode: []string{safeAuto, safeAuto}, crashed: true, on: true, ends: true},
		{mode: []string{safeOff, safeAuto}, byClient: true, on: true},
	} {
		synctest.Test(t, func(t *testing.T) {
			log := slog.New(slog.DiscardHandler)
			d := &Daemon{log: log, containers: container.New(container.Config{Logger: log}), crashed: crashRecord{Safe: c.crashed}}
			d.safe = &safeMode{d: d, crashes: crashLog{filepath.Join(t.TempDir(), "crashes.json"), "a"}}
			defer d.safe.close()
			err := d.holdBack(c.mode[0])
			if c.byClient {
				err = errors.Join(err, d.safe.SetSafeMode(true))
			}
			for i, mode := range c.mode[1:] {
				err = errors.Join(err, d.reloadSafeMode(c.mode[i], mode))
			}
			on, _ := d.safe.SafeMode()
			if err != nil || on != c.on {
				t.Errorf("%+v: safe mode %v, %v", c, on, err)
			}
			time.Sleep(2 * safeTime)
			if later, _ := d.safe.SafeMode(); later != (c.on && !c.ends) {
				t.Errorf("%+v: safe mode %v in the end", c, later)
			}
		})
	}
}

func FuzzCrashRecord(f *testing.F) {
	f.Add([]byte(`{"Format":1,"Boot":"b","Running":true,"Crashes":["2026-01-01T00:00:00Z"],"Safe":true}`))
	f.Add([]byte("{"))
	dir := f.TempDir()
	f.Fuzz(func(t *testing.T, b []byte) {
		path := filepath.Join(dir, fmt.Sprint(os.Getpid()))
		if err := os.WriteFile(path, b, 0o600); err != nil {
			t.Fatal(err)
		}
		rec, err := crashLog{path, "b"}.begin(time.Now())
		if err != nil || !rec.Running || rec.Boot != "b" {
			t.Errorf("%q: %+v, %v", b, rec, err)
		}
	})
}
