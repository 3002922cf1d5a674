package image

import (
	"bytes"
	"context"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
)

// TestSkopeo: skopeo reads what Save writes, as Docker's archive and as OCI's,
// and Load reads what skopeo makes of it.
func TestSkopeo(t *testing.T) {
	needRoot(t)
	if _, err := exec.LookPath("skopeo"); err != nil {
		t.Skip("needs the program skopeo")
	}
	ctx := context.Background()
	s := open(t, Config{})
	one, two := makeTar(t, file{name: "a", data: "1"}), makeTar(t, file{name: "b", data: "2"})
	if _, err := load(t, s, dockerArchive{layers: [][]byte{one, two}, packed: [][]byte{gz(t, one), two}, tags: []string{"x:1"}}.build(t)); err != nil {
		t.Fatal(err)
	}
	img, err := s.Get(ctx, "x:1")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	saved := filepath.Join(dir, "saved.tar")
	f, err := os.Create(saved)
	if err != nil {
		t.Fatal(err)
	}
	if err := s.Save(ctx, f, []string{"x:1"}, ""); err != nil {
		t.Fatal(err)
	}
	f.Close()
	for i, step := range [][2]string{
		{"docker-archive:" + saved, "oci-archive:" + dir + "/1.tar:x:1"},
		{"oci-archive:" + saved, "docker-archive:" + dir + "/2.tar:x:1"},
		{"oci-archive:" + saved, "oci-archive:" + dir + "/3.tar:docker.io/library/x:1"},
	} {
		if out, err := exec.Command("skopeo", "--insecure-policy", "copy", step[0], step[1]).CombinedOutput(); err != nil {
			t.Errorf("skopeo copy %s %s: %v\n%s", step[0], step[1], err, out)
			continue
		}
		data, err := os.ReadFile(filepath.Join(dir, string(rune('1'+i))+".tar"))
		if err != nil {
			t.Fatal(err)
		}
		to := open(t, Config{})
		lines, err := load(t, to, data)
		if err != nil || strings.Join(lines, " ") != "Loaded image: x:1" {
			t.Errorf("%s: %q %v", step[1], lines, err)
			continue
		}
		if got := rootOf(t, to, "x:1"); got != "a=1 b=2" {
			t.Errorf("%s: %s", step[1], got)
		}
		if step[0] == "docker-archive:"+saved && i == 0 {
			if back, _ := to.Get(ctx, "x:1"); back.ID != img.ID {
				t.Logf("%s: skopeo wrote another config: %s, was %s", step[1], back.ID, img.ID)
			}
		}
	}
}

// TestDocker: a Docker engine that ESCALE_PEER names loads what Save writes and
// runs it, and Load reads what it saves.
func TestDocker(t *testing.T) {
	needRoot(t)
	peer := os.Getenv("ESCALE_PEER")
	if peer == "" {
		t.Skip("needs ESCALE_PEER: the address of a Docker engine")
	}
	ctx := context.Background()
	s := open(t, Config{})
	one, two := makeTar(t, file{name: "a", data: "1"}), makeTar(t, file{name: "b", data: "2"})
	if _, err := load(t, s, dockerArchive{layers: [][]byte{one, two}, packed: [][]byte{gz(t, one), two}, tags: []string{"escale-interop:1"}}.build(t)); err != nil {
		t.Fatal(err)
	}
	img, err := s.Get(ctx, "escale-interop:1")
	if err != nil {
		t.Fatal(err)
	}
	docker := func(in []byte, args ...string) []byte {
		t.Helper()
		cmd := exec.Command("docker", append([]string{"-H", peer}, args...)...)
		cmd.Stdin = bytes.NewReader(in)
		out, err := cmd.Output()
		if err != nil {
			t.Fatalf("docker %v: %v\n%s", args, err, out)
		}
		return out
	}
	var b bytes.Buffer
	if err := s.Save(ctx, &b, []string{"escale-interop:1"}, ""); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { exec.Command("docker", "-H", peer, "rmi", "-f", "escale-interop:1").Run() })
	if out := docker(b.Bytes(), "load"); !strings.Contains(string(out), "Loaded image: escale-interop:1") {
		t.Errorf("docker load: %s", out)
	}
	if out := docker(nil, "image", "inspect", "-f", "{{.Id}}", "escale-interop:1"); strings.TrimSpace(string(out)) != img.ID {
		t.Errorf("docker has %s, we %s", out, img.ID)
	}
	to := open(t, Config{})
	lines, err := load(t, to, docker(nil, "save", "escale-interop:1"))
	if err != nil || strings.Join(lines, " ") != "Loaded image: escale-interop:1" {
		t.Fatalf("%q %v", lines, err)
	}
	if back, err := to.Get(ctx, "escale-interop:1"); err != nil || back.ID != img.ID || rootOf(t, to, back.ID) != "a=1 b=2" {
		t.Errorf("%+v %v", back, err)
	}
}
