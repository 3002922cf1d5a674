package daemon

import (
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"
)

// Whoever starts the engine with a strict umask, as a hardened unit does, still gets
// containers whose root and /etc/resolv.conf others than root can read.
func TestUmaskIsTheEnginesOwn(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("needs root")
	}
	defer unix.Umask(unix.Umask(0o077))
	dir := t.TempDir()
	file := filepath.Join(dir, "file") // nothing can be opened below it
	config := filepath.Join(dir, "daemon.json")
	for path, text := range map[string]string{file: "", config: "{}"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	var said strings.Builder
	args := []string{"--instance", "umasktest", "--config-file", config, "--data-root", file + "/data", "--exec-root", file + "/exec", "--pidfile", file + "/pid", "-H", "unix://" + dir + "/s"}
	if code := Main(args, io.Discard, &said); code == 0 {
		t.Fatalf("started where nothing can be opened: %s", &said)
	}
	if got := unix.Umask(0o077); got != 0o022 {
		t.Errorf("umask %03o", got)
	}
}
