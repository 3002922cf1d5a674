package daemon

import (
	"fmt"
	"os"
	"path/filepath"
	"testing"
	"time"
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
