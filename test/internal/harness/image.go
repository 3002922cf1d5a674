package harness

import (
	"archive/tar"
	"bytes"
	"fmt"
	"os"
	"time"
)

// Busybox is where a static busybox lies on the machine.
const Busybox = "/bin/busybox"

// applets are the names under which the test image has busybox.
var applets = []string{
	"awk", "basename", "cat", "chmod", "chown", "cp", "cut", "date", "dd", "df", "echo", "env", "expr", "false",
	"grep", "head", "hostname", "httpd", "id", "ifconfig", "ip", "kill", "ln", "ls", "md5sum", "mkdir", "mknod", "mount",
	"nc", "nice", "nslookup", "od", "ping", "printenv", "ps", "pwd", "readlink", "rm", "route", "sed", "seq", "sh", "sleep", "sort",
	"stat", "stty", "sync", "tail", "tee", "test", "timeout", "touch", "tr", "true", "tty", "umount", "uname", "usleep",
	"wc", "wget", "which", "whoami", "xargs", "yes", "top", "truncate", "time", "sha256sum", "find", "mkfifo", "du", "udhcpc", "wait",
}

// BusyboxTar is a root filesystem of busybox alone, with users and groups. It
// is the same for the same busybox. An error when the machine has no static busybox.
func BusyboxTar() ([]byte, error) {
	bin, err := os.ReadFile(Busybox)
	if err != nil {
		return nil, fmt.Errorf("the package busybox-static is needed: %w", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	at := time.Unix(1700000000, 0)
	dir := func(name string, mode int64) error {
		return w.WriteHeader(&tar.Header{Typeflag: tar.TypeDir, Name: name, Mode: mode, ModTime: at})
	}
	file := func(name string, mode int64, b []byte) error {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: mode, Size: int64(len(b)), ModTime: at}); err != nil {
			return err
		}
		_, err := w.Write(b)
		return err
	}
	for _, d := range []string{"bin/", "dev/", "etc/", "proc/", "sys/", "root/", "var/", "var/www/", "home/", "srv/"} {
		if err := dir(d, 0o755); err != nil {
			return nil, err
		}
	}
	if err := dir("tmp/", 0o1777); err != nil {
		return nil, err
	}
	for _, f := range [][2]string{
		{"etc/passwd", "root:x:0:0:root:/root:/bin/sh\nwww-data:x:33:33:www:/var/www:/bin/sh\nalice:x:1000:1000::/home:/bin/sh\n"},
		{"etc/group", "root:x:0:\nwww-data:x:33:\naudio:x:29:alice\nalice:x:1000:\n"},
		{"var/www/index.html", "welcome\n"},
		{"srv/notexec", "just text\n"},
	} {
		if err := file(f[0], 0o644, []byte(f[1])); err != nil {
			return nil, err
		}
	}
	if err := file("bin/busybox", 0o755, bin); err != nil {
		return nil, err
	}
	for _, a := range applets {
		if err := w.WriteHeader(&tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + a, Linkname: "busybox", Mode: 0o777, ModTime: at}); err != nil {
			return nil, err
		}
	}
	if err := w.Close(); err != nil {
		return nil, err
	}
	return buf.Bytes(), nil
}
