package spec

import (
	"bytes"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/pflag"
)

func build(t *testing.T, args ...string) (*Request, error) {
	t.Helper()
	var o Options
	f := pflag.NewFlagSet("create", pflag.ContinueOnError)
	f.SetInterspersed(false)
	o.AddFlags(f)
	if err := f.Parse(args); err != nil {
		return nil, err
	}
	return o.Build(f, f.Arg(0), f.Args()[1:])
}

// What is sent for most flags is compared with the stock client in package
// cli; here stands what that comparison cannot see.
func TestBuild(t *testing.T) {
	t.Setenv("FROM_ENV", "yes")
	req, err := build(t, "-e", "A=1", "-e", "FROM_ENV", "-e", "NOT_SET_AT_ALL", "-e", "A=2", "--entrypoint=", "-v", "vol:/v", "-v", "vol:/v", "-v", "/anon", "--network", "n", "--mac-address", "02-42-AC-11-00-08", "debian", "echo", "-d")
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"A=2", "FROM_ENV=yes", "NOT_SET_AT_ALL"}; !slices.Equal(req.Config.Env, want) {
		t.Errorf("env %q, want %q", req.Config.Env, want)
	}
	if want := []string{""}; !slices.Equal(req.Config.Entrypoint, want) {
		t.Errorf("entrypoint %q: an empty one resets the image's", req.Config.Entrypoint)
	}
	if want := []string{"echo", "-d"}; !slices.Equal(req.Config.Cmd, want) {
		t.Errorf("cmd %q", req.Config.Cmd)
	}
	if want := []string{"vol:/v"}; !slices.Equal(req.HostConfig.Binds, want) {
		t.Errorf("binds %q", req.HostConfig.Binds)
	}
	if _, ok := req.Config.Volumes["/anon"]; !ok || len(req.Config.Volumes) != 1 {
		t.Errorf("volumes %v", req.Config.Volumes)
	}
	if req.MAC != "02:42:ac:11:00:08" {
		t.Errorf("mac %q", req.MAC)
	}
	if req, err = build(t, "debian"); err != nil {
		t.Fatal(err)
	}
	if req.Config.Entrypoint != nil || req.HostConfig.Init != nil || req.Config.StopTimeout != nil || req.Config.Healthcheck != nil {
		t.Error("flags that were not given must not be sent")
	}
}

func TestUseProxies(t *testing.T) {
	var o Options
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.AddFlags(f)
	if err := f.Parse([]string{"-e", "HTTP_PROXY=mine", "debian"}); err != nil {
		t.Fatal(err)
	}
	o.UseProxies(map[string]string{"HTTP_PROXY": "p", "http_proxy": "p"})
	req, err := o.Build(f, "debian", nil)
	if err != nil {
		t.Fatal(err)
	}
	if want := []string{"HTTP_PROXY=mine", "http_proxy=p"}; !slices.Equal(req.Config.Env, want) {
		t.Errorf("env %q, want %q", req.Config.Env, want)
	}
}

func TestKeyValues(t *testing.T) {
	look := func(name string) (string, bool) { return "looked", name == "KNOWN" }
	for _, c := range []struct{ in, want, err string }{
		{"A=1\nB=2", "A=1|B=2", ""},
		{"\xef\xbb\xbfA=1\r\n", "A=1", ""},
		{"# x\n\n  A=1 # kept\n", "A=1 # kept", ""},
		{"KNOWN\nUNKNOWN\n", "KNOWN=looked", ""},
		{"A=\"q\"\n", `A="q"`, ""},
		{"=x", "", "no variable name on line '=x'"},
		{"A B=1", "", "variable 'A B' contains whitespaces"},
		{"A=\xff", "", "invalid utf8 bytes at line 1: [65 61 255]"},
		{"A=" + strings.Repeat("x", 70000), "", "bufio.Scanner: token too long"},
	} {
		got, err := ParseKeyValues(strings.NewReader(c.in), look)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if strings.Join(got, "|") != c.want && err == nil || text != c.err {
			t.Errorf("%.20q: %q, %q; want %q, %q", c.in, got, text, c.want, c.err)
		}
	}
}

func TestVolume(t *testing.T) {
	wd, err := os.Getwd()
	if err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct{ in, bind, target, err string }{
		{"/a", "", "/a", ""},
		{"x", "", "x", ""},
		{"/a:/b", "/a:/b", "", ""},
		{"./a:/b:ro", wd + "/a:/b:ro", "", ""},
		{"..:/b", filepath.Dir(wd) + ":/b", "", ""},
		{"vol:/b:nocopy", "vol:/b:nocopy", "", ""},
		{"~/a:/b", "~/a:/b", "", ""},
		{`c:\a:d:\b:ro`, `c:\a:d:\b:ro`, "", ""},
		{"d:/x", "", "d:/x", ""},
		{"", "", "", "invalid empty volume spec"},
		{"aa::b", "", "", "invalid spec: aa::b: empty section between colons"},
		{"aa:/b:cc:dd", "", "", "invalid spec: aa:/b:cc:dd: too many colons"},
	} {
		bind, target, err := volume(c.in)
		text := ""
		if err != nil {
			text = err.Error()
		}
		if bind != c.bind && bind != strings.Replace(c.bind, `c:\a:`, `c:\a:`, 1) || target != c.target || text != c.err {
			t.Errorf("%q: %q %q %q, want %q %q %q", c.in, bind, target, text, c.bind, c.target, c.err)
		}
	}
}

func TestDomains(t *testing.T) {
	for in, ok := range map[string]bool{
		"example.com": true, "a": true, "x-1.y": true, "example.com.": true, "xn--a.b": true,
		"": false, "1.2": false, "-a": false, "a-": false, "a..b": false, "a_b": false, "é": false,
		strings.Repeat("a", 255): false,
	} {
		if _, err := checkDNSSearch(in); (err == nil) != ok {
			t.Errorf("%q: %v", in, err)
		}
	}
}

func TestGatesAreFlags(t *testing.T) {
	var o Options
	f := pflag.NewFlagSet("", pflag.ContinueOnError)
	o.AddFlags(f)
	for name := range Gates() {
		if f.Lookup(name) == nil {
			t.Errorf("no flag %q", name)
		}
	}
}

// FuzzFlags gives every flag that has a syntax of its own any text: it must
// be refused or give a request that is JSON.
func FuzzFlags(f *testing.F) {
	names := []string{"mount", "volume", "publish", "expose", "network", "gpus", "device", "env", "label", "ulimit", "cpus", "memory",
		"add-host", "dns", "dns-search", "link", "sysctl", "device-cgroup-rule", "blkio-weight-device", "device-read-bps",
		"device-write-iops", "tmpfs", "restart", "security-opt", "storage-opt", "log-opt", "ip", "mac-address"}
	for i, v := range []string{"type=bind,src=/a,dst=/b,ro", "a:/b:ro", "127.0.0.1:80-81:80-81/udp", "1-3/sctp", "name=a,ip=1.2.3.4,driver-opt=a=b",
		"all", "/dev/a:/dev/b:rw", "A=1", "a=b", "nofile=1:2", "1.5", "5g", "a=[::1]", "::1", "a.b.", "a:b", "net.x=1", "c 1:* rwm",
		"/dev/a:10", "/dev/a:1k", "/dev/a:1", "/x:size=1", "on-failure:3", "no-new-privileges", "a=b", "c=d", "1.2.3.4", "02:42:ac:11:00:02"} {
		f.Add(i, v)
	}
	f.Fuzz(func(t *testing.T, i int, value string) {
		if i < 0 || i >= len(names) || names[i] == "security-opt" && strings.Contains(value, "seccomp") {
			return
		}
		req, err := build(t, "--"+names[i]+"="+value, "debian")
		if err != nil {
			return
		}
		if _, err := json.Marshal(req); err != nil {
			t.Errorf("--%s=%q: %v", names[i], value, err)
		}
	})
}

// FuzzKeyValues feeds any file to --env-file.
func FuzzKeyValues(f *testing.F) {
	f.Add([]byte("A=1\n#x\nB\n"))
	f.Add([]byte("\xef\xbb\xbf =\n"))
	f.Fuzz(func(t *testing.T, b []byte) {
		lines, err := ParseKeyValues(bytes.NewReader(b), nil)
		for _, l := range lines {
			if name, _, ok := strings.Cut(l, "="); err == nil && (!ok || name == "" || strings.ContainsAny(name, " \t\n")) {
				t.Errorf("line %q", l)
			}
		}
	})
}
