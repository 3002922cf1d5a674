package cli_test

import (
	"encoding/base64"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// A backup is a file that is whole or not there; what seals it is told the engine.
func TestClusterBackup(t *testing.T) {
	p, dir := newPaper(t), t.TempDir()
	secret := func() string {
		raw, err := base64.URLEncoding.DecodeString(p.secret)
		if err != nil {
			t.Error(err)
		}
		return string(raw)
	}
	if err := os.WriteFile(filepath.Join(dir, "phrase"), []byte("correct horse \nand more"), 0o600); err != nil {
		t.Fatal(err)
	}
	p.backup = "all of it"
	r := runSwarm(t, p, dir, "escale", "cluster backup --passphrase-file phrase out", true)
	file := filepath.Join(dir, "out")
	got, err := os.ReadFile(file)
	info, _ := os.Stat(file)
	if r.code != 0 || err != nil || string(got) != p.backup || info.Mode().Perm() != 0o600 || secret() != `{"Passphrase":"correct horse "}` {
		t.Errorf("%+v %q %v %v %s", r, got, err, info, secret())
	}
	if !strings.Contains(r.err, "WARNING: most managers do not answer") || !strings.Contains(r.err, "9 bytes") {
		t.Error(r.err)
	}
	if r = runSwarm(t, p, dir, "escale", "cluster backup <phrase", true); r.out != p.backup || secret() != "{}" {
		t.Errorf("%+v %s", r, secret())
	}
	for line, words := range map[string]string{
		"cluster backup --passphrase-file nosuch bad": "no such file", "cluster backup --passphrase-file /dev/null bad": "first line is empty", "cluster backup a b": "at most 1 argument",
	} {
		if r = runSwarm(t, p, dir, "escale", line, true); r.code == 0 || !strings.Contains(r.err, words) {
			t.Errorf("%s: %+v", line, r)
		}
	}
	if r = runSwarm(t, p, dir, "escale", "cluster backup bad", false); r.code == 0 || !strings.Contains(r.err, "not a swarm manager") {
		t.Errorf("%+v", r)
	}
	p.backup = "a part, then cut off"
	if r = runSwarm(t, p, dir, "escale", "cluster backup bad </dev/null", true); r.code == 0 {
		t.Errorf("cut off: %+v", r)
	}
	if list, _ := filepath.Glob(filepath.Join(dir, "*bad*")); len(list) > 0 {
		t.Errorf("left: %s", list)
	}
	if list, _ := filepath.Glob(filepath.Join(dir, ".*bad*")); len(list) > 0 {
		t.Errorf("left: %s", list)
	}
}

// What opens a backup is what the backup says of itself.
func TestClusterRestore(t *testing.T) {
	p, dir := newPaper(t), t.TempDir()
	for name, text := range map[string]string{
		"phrase": "correct horse", "sealed": "escale cluster backup\n{\"Lock\":{\"By\":\"passphrase\"}}\nx", "locked": "escale cluster backup\n{\"Lock\":{\"By\":\"unlock key\"}}\nx",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for line, want := range map[string][3]string{
		"cluster restore --passphrase-file phrase sealed":                                 {"", "passphrase", `{"Passphrase":"correct horse"}`},
		"cluster restore --passphrase-file phrase - <locked":                              {"", "unlock key", `{"UnlockKey":"correct horse"}`},
		"cluster restore -f sealed </dev/null":                                            {"force=true", "passphrase", `{}`},
		"cluster restore --listen-addr a --advertise-addr b --data-path-addr c - <phrase": {"advertiseAddr=b&dataPathAddr=c&listenAddr=a", "correct horse", `{}`},
	} {
		r := runSwarm(t, p, dir, "escale", line, true)
		raw, err := base64.URLEncoding.DecodeString(p.secret)
		sent := strings.Join(r.sent, "")
		if err != nil || r.code != 0 || string(raw) != want[2] || !strings.Contains(sent, "/escale/cluster/restore "+want[0]) || !strings.Contains(p.backup, want[1]) {
			t.Errorf("%s: %+v %s", line, r, raw)
		}
		if strings.TrimSpace(r.out) != p.nodes[0].ID || !strings.Contains(r.err, "9 objects, revision 7") {
			t.Errorf("%s: %+v", line, r)
		}
	}
	for line, words := range map[string]string{
		"cluster restore nosuch": "no such file", "cluster restore": "requires 1 argument", "cluster restore .": "is a directory",
		"cluster backup a b": "requires at most 1 argument",
	} {
		if r := runSwarm(t, p, dir, "escale", line, true); r.code == 0 || !strings.Contains(r.err, words) || len(r.sent) > 0 {
			t.Errorf("%s: %+v", line, r)
		}
	}
}
