package local

import (
	"bytes"
	"context"
	"encoding/json"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"escale.dev/escale/internal/volume"
	"golang.org/x/sys/unix"
)

// Whatever becomes of the record of a volume: its data stays reachable under its name, the
// engine says which it was, and the other volumes are what they were.
func TestDamagedRecord(t *testing.T) {
	whole, err := json.Marshal(record{Version: format, Name: "bad", Driver: Driver, Labels: map[string]string{"a": "b"}})
	if err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"empty": "", "half": string(whole[:len(whole)/2]), "zeros": strings.Repeat("\x00", 100), "garbage": "\xff{\"", "null": "null", "a list": "[]",
		"another kind": `{"Version":"1"}`, "a directory": "/",
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			s, _ := open(t, dir)
			bad := create(t, s, volume.Request{Name: "bad", Labels: map[string]string{"a": "b"}})
			create(t, s, volume.Request{Name: "good", Labels: map[string]string{"c": "d"}})
			if err := os.WriteFile(filepath.Join(bad.Path, "kept"), nil, 0o600); err != nil {
				t.Fatal(err)
			}
			path := filepath.Join(dir, "bad", recordFile)
			if err := os.Remove(path); err != nil {
				t.Fatal(err)
			}
			if text == "/" {
				err = os.Mkdir(path, 0o700)
			} else {
				err = os.WriteFile(path, []byte(text), 0o600)
			}
			if err != nil {
				t.Fatal(err)
			}
			var said bytes.Buffer
			cfg := s.cfg
			cfg.Logger = slog.New(slog.NewTextHandler(&said, nil))
			if s, err = Open(cfg); err != nil {
				t.Fatal(err)
			}
			if !strings.Contains(said.String(), "volume=bad") {
				t.Errorf("it said %q", said.String())
			}
			if v, err := s.Get(t.Context(), "bad"); err != nil || v.Path != bad.Path || len(v.Labels) != 0 {
				t.Errorf("the damaged one: %+v, %v", v, err)
			}
			if v, err := s.Get(t.Context(), "good"); err != nil || v.Labels["c"] != "d" {
				t.Errorf("the good one: %+v, %v", v, err)
			}
			if _, err := os.Stat(filepath.Join(bad.Path, "kept")); err != nil {
				t.Error(err)
			}
			if err := s.Remove(context.Background(), "bad", false); err != nil {
				t.Errorf("removing it: %v", err)
			}
		})
	}
}

// On a disk that is full or cannot be written no volume is made, nothing of one is left, and those
// that are there can be used.
func TestNoRoom(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root: mounts a small tmpfs")
	}
	for name, limit := range map[string]func(dir string) error{
		"full": func(dir string) error {
			for i := range 1000 {
				if os.WriteFile(filepath.Join(dir, "filler"+strings.Repeat("x", i%200)+string(rune('a'+i/200))), nil, 0o600) != nil {
					return nil
				}
			}
			return os.ErrInvalid
		},
		"read-only": func(dir string) error {
			return unix.Mount("", dir, "", unix.MS_REMOUNT|unix.MS_BIND|unix.MS_RDONLY, "")
		},
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			if err := unix.Mount("tmpfs", dir, "tmpfs", 0, "size=1m,nr_inodes=40"); err != nil {
				t.Skip("needs a mount: ", err)
			}
			t.Cleanup(func() { unix.Unmount(dir, unix.MNT_DETACH) })
			s, seen := open(t, dir)
			create(t, s, volume.Request{Name: "old"})
			if err := limit(dir); err != nil {
				t.Fatal(err)
			}
			if _, err := s.Acquire(context.Background(), volume.Request{Name: "new"}, ""); err == nil || !strings.Contains(err.Error(), "create new: ") {
				t.Errorf("created: %v", err)
			}
			if _, err := s.Get(t.Context(), "new"); err == nil {
				t.Error("what was not made is there")
			}
			if len(seen.all) != 1 {
				t.Errorf("events %q", seen.all)
			}
			s, _ = open(t, dir)
			if _, err := s.Acquire(context.Background(), volume.Request{Name: "old"}, "x"); err != nil {
				t.Errorf("the old one: %v", err)
			}
			left, err := filepath.Glob(filepath.Join(dir, newPrefix+"*"))
			if err != nil || len(left) > 0 {
				t.Errorf("left: %q, %v", left, err)
			}
		})
	}
}
