package native

import (
	"bytes"
	"encoding/json"
	"errors"
	"io"
	"reflect"
	goruntime "runtime"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"

	"escale.dev/escale/internal/runtime/native/codec"
	"escale.dev/escale/internal/runtime/native/plan"
)

func TestOptions(t *testing.T) {
	known := options{"bundle": true, "detach": false, "env": true, "force": false}
	for line, want := range map[string]struct {
		v    values
		rest []string
	}{
		"-d --bundle /b id":      {values{"detach": {"true"}, "bundle": {"/b"}}, []string{"id"}},
		"id --bundle=/b -f":      {values{"bundle": {"/b"}, "force": {"true"}}, []string{"id"}},
		"-e A=1 -e B=2":          {values{"env": {"A=1", "B=2"}}, nil},
		"--detach=false -- -x y": {values{"detach": {"false"}}, []string{"-x", "y"}},
		"id -":                   {values{}, []string{"id", "-"}},
	} {
		v, rest, err := parse(strings.Fields(line), known, false)
		if err != nil || !reflect.DeepEqual(v, want.v) || !reflect.DeepEqual(rest, want.rest) {
			t.Errorf("%s: %v %q, %v", line, v, rest, err)
		}
	}
	for _, line := range []string{"-q -f json", "--quiet -f=json"} { // as runc's list has it, beside delete's -f
		if v, _, err := parse(strings.Fields(line), commands["list"].options, false); err != nil || !v.has("quiet") || v.text("format", "") != "json" {
			t.Errorf("%s: %v, %v", line, v, err)
		}
	}
	if _, rest, err := parse([]string{"-d", "id", "ls", "-d", "-x"}, known, true); err != nil || strings.Join(rest, " ") != "id ls -d -x" {
		t.Errorf("in order: %q, %v", rest, err)
	}
	for _, line := range []string{"--nosuch", "--bundle", "-x"} {
		if _, _, err := parse(strings.Fields(line), known, false); err == nil {
			t.Errorf("%s is taken", line)
		}
	}
	v := values{"detach": {"true", "false"}, "env": {"a", "b"}}
	if v.has("detach") || v.has("force") || v.text("env", "") != "b" || v.text("bundle", ".") != "." {
		t.Error("values are read wrongly")
	}
	for id, ok := range map[string]bool{"a": true, "A-1_b+c.d": true, "": false, ".": false, "..": false, "a/b": false, "a b": false, "ä": false} {
		if (checkID(id) == nil) != ok {
			t.Errorf("id %q: %v", id, checkID(id))
		}
	}
}

func TestCapSet(t *testing.T) {
	if got := capSet([]string{"CAP_CHOWN", "CAP_SYS_ADMIN", "CAP_CHECKPOINT_RESTORE", "CAP_NOSUCH", "chown"}); got != 1|1<<21|1<<40 {
		t.Errorf("%x", got)
	}
	for word, want := range map[string]int{"9": 9, "KILL": 9, "sigterm": 15, "RTMIN": 0, "0": 0, "65": 0, "x": 0} {
		if n, err := parseSignal(word); int(n) != want || (err == nil) != (want != 0) {
			t.Errorf("signal %s: %d, %v", word, n, err)
		}
	}
}

// Whatever stands in config.json: it is refused, or what is left is consistent.
func FuzzSpec(f *testing.F) {
	f.Add([]byte(`{"process":{"args":["a"],"cwd":"/"},"root":{"path":"r"},"linux":{"namespaces":[{"type":"pid"}],"sysctl":{"net.a":"1"}}}`))
	f.Add([]byte(`{"process":{"args":["a"],"cwd":"/"},"root":{"path":"r"},"linux":{"namespaces":[{"type":"network"},{"type":"ipc"}],"sysctl":{"net/ipv4.a":"1","fs.mqueue.x":"2"}}}`))
	f.Fuzz(func(t *testing.T, b []byte) {
		s := &specs.Spec{}
		if codec.ReadSpec(b, s) != nil || validate(s) != nil {
			return
		}
		if len(s.Process.Args) == 0 || s.Root.Path == "" {
			t.Fatalf("%s is taken", b)
		}
		for key := range s.Linux.Sysctl {
			if !strings.HasPrefix(key, "net") && !strings.HasPrefix(key, "fs") && !strings.HasPrefix(key, "kernel") {
				t.Fatalf("sysctl %q is taken", key)
			}
		}
	})
}

func FuzzMessages(f *testing.F) {
	f.Add([]byte("p\x02\x00\x00\x00{}d\x00\x00\x00\x00"))
	f.Add([]byte("e\x02\x00\x00\x00no"))
	f.Add([]byte("p\xff\xff\xff\xff"))
	f.Fuzz(func(t *testing.T, b []byte) {
		p, err := codec.ReceivePlan(bytes.NewReader(b))
		if (p == nil) == (err == nil) {
			t.Fatalf("%v, %v", p, err)
		}
	})
}

func TestMessages(t *testing.T) {
	var b bytes.Buffer
	in := &plan.Plan{ID: "x", Filter: []byte{1, 2, 3}, Mounts: []plan.Mount{{Dest: "/a", Tree: 7}}}
	if err := codec.SendPlan(&b, in); err != nil {
		t.Fatal(err)
	}
	if out, err := codec.ReceivePlan(&b); err != nil || out.ID != "x" || string(out.Filter) != "\x01\x02\x03" || out.Mounts[0].Tree != 7 {
		t.Errorf("%+v, %v", out, err)
	}
	if err := plan.Send(&b, plan.KindError, []byte("words")); err != nil {
		t.Fatal(err)
	}
	var said *plan.Refusal
	if _, err := plan.Expect(&b, plan.KindReady); !errors.As(err, &said) || said.Words != "words" {
		t.Errorf("%v", err)
	}
	if _, err := plan.Expect(&b, plan.KindReady); !errors.Is(err, io.EOF) {
		t.Errorf("end: %v", err)
	}
}

// Limits of the command line: what they cannot be is refused, not taken for something else.
func TestLimitsOf(t *testing.T) {
	for line, want := range map[string]string{
		"--cpu-share 7 --blkio-weight 65535 --cpu-quota -1": `{"memory":{},"cpu":{"shares":7,"quota":-1},"blockIO":{"weight":65535}}`,
		"--memory -1 --cpu-period 5 --pids-limit -1":        `{"memory":{"limit":-1},"cpu":{"period":5},"pids":{"limit":-1}}`,
		"--blkio-weight 65536":                              "blkio-weight",
		"--blkio-weight -1":                                 "blkio-weight",
		"--cpu-share -1":                                    "cpu-share",
		"--cpu-period -1":                                   "cpu-period",
		"--cpu-burst -2":                                    "cpu-burst",
		"--memory much":                                     "memory",
	} {
		o, _, err := parse(strings.Fields(line), updateOptions, false)
		if err != nil {
			t.Fatal(err)
		}
		r := &specs.LinuxResources{}
		err = limitsOf(o, r)
		got, merr := json.Marshal(r)
		if merr != nil {
			t.Fatal(merr)
		}
		if strings.HasPrefix(want, "{") {
			if err != nil || string(got) != want {
				t.Errorf("%s: %s, %v", line, got, err)
			}
		} else if err == nil || !strings.Contains(err.Error(), "invalid value for "+want) {
			t.Errorf("%s: %s, %v", line, got, err)
		}
	}
}

// Lists of processors, up to the last that Linux can have.
func TestCPUMask(t *testing.T) {
	for list, want := range map[string][]int{"0": {0}, "0-2, 63-64": {0, 1, 2, 63, 64}, "1023-1025": {1023, 1024, 1025}, "8191": {8191}} {
		mask, err := cpuMask(list)
		var got []int
		for n := range maxCPUs {
			if mask[n/cpuBits]&(1<<(n%cpuBits)) != 0 {
				got = append(got, n)
			}
		}
		if err != nil || !reflect.DeepEqual(got, want) {
			t.Errorf("%s: %v, %v", list, got, err)
		}
	}
	for _, list := range []string{"", "8192", "2-1", "-1", "a", "1,,2"} {
		if mask, err := cpuMask(list); err == nil {
			t.Errorf("%q: %v", list, mask)
		}
	}
	// Those that this machine does not have are no part of it, but do not hide the others.
	if err := setAffinity(0, "0,1024-8191"); err != nil {
		t.Error(err)
	}
	if err := setAffinity(0, "8191"); err == nil && goruntime.NumCPU() < 8191 {
		t.Error("a processor that there is not")
	}
	if err := setAffinity(0, "0-8191"); err != nil {
		t.Error(err)
	}
}
