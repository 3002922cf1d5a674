package systemd

import (
	"bytes"
	"reflect"
	"testing"
)

func TestMessage(t *testing.T) {
	m := &message{kind: signal, serial: 7, path: managerPath, iface: manager, member: "JobRemoved", sender: ":1.1",
		body: []any{uint32(3), objectPath("/a"), "unit", "done", true, []string{"a", "bc"}, 1.5, int64(-1)}}
	b, err := encode(m)
	if err != nil {
		t.Fatal(err)
	}
	n, err := size(b)
	if err != nil || n != len(b) {
		t.Fatalf("size: %d of %d, %v", n, len(b), err)
	}
	got, err := decode(b)
	if err != nil {
		t.Fatal(err)
	}
	m.body[5] = []any{"a", "bc"}
	if !reflect.DeepEqual(got, m) {
		t.Errorf("%+v, want %+v", got, m)
	}
	for _, bad := range [][]any{{"a\x00b"}, {struct{}{}}, {[]Property{{"x", 'c' == 'd'}, {"y", complex(1, 2)}}}, {string(make([]byte, 0)), string(bytes.Repeat([]byte("x"), maxSize))}} {
		if _, err := encode(&message{kind: methodCall, serial: 1, body: bad}); err == nil {
			t.Errorf("%.40v: taken", bad)
		}
	}
}

func TestSocketOf(t *testing.T) {
	for address, want := range map[string]string{"unix:path=/run/a%2db": "/run/a-b", "tcp:host=x;unix:guid=1,path=/b": "/b", "unix:abstract=x": "", "": "", "unix:path=/a%2": "", "unix:path=/a%zz": ""} {
		got, err := socketOf(address)
		if got != want || (err == nil) != (want != "") {
			t.Errorf("%q: %q, %v", address, got, err)
		}
	}
}

func TestVersionOf(t *testing.T) {
	for s, want := range map[string]int{"252.39-1~deb12u1": 252, "v249": 249, "257": 257, "x": 0} {
		if n, err := versionOf(s); n != want || (err == nil) != (want > 0) {
			t.Errorf("%q: %d, %v", s, n, err)
		}
	}
}

func TestIsSlice(t *testing.T) {
	for s, want := range map[string]bool{"a.slice": true, "a-b.slice": true, "-.slice": true, ".slice": false, "a": false, "a--b.slice": false, "-a.slice": false, "a-.slice": false, "x/y.slice": false} {
		if IsSlice(s) != want {
			t.Errorf("%q: %v", s, !want)
		}
	}
	for spec, want := range map[string]string{"/docker/x": "/docker/x", "a-b.slice:docker:x": "/a.slice/a-b.slice/docker-x.scope", ":docker:x": "/system.slice/docker-x.scope", "a:b": "a:b"} {
		if got := Path(spec); got != want {
			t.Errorf("%q: %q, want %q", spec, got, want)
		}
	}
}

// Whatever a bus sends is read or refused.
func FuzzMessage(f *testing.F) {
	for _, m := range []*message{
		{kind: methodReturn, serial: 1, reply: 2, body: []any{objectPath("/job/1")}},
		{kind: errorReply, serial: 1, reply: 2, errorName: "org.x", body: []any{"words"}},
		{kind: signal, serial: 1, path: "/a", member: "M", body: []any{[]Property{{"a", uint64(1)}, {"b", []byte{1, 2}}}, []Device{{"a", "b"}}}},
	} {
		b, err := encode(m)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < fixedSize {
			return
		}
		n, err := size(b)
		if err != nil || n > len(b) {
			return
		}
		if m, err := decode(b[:n]); err == nil && m == nil {
			t.Error("neither a message nor an error")
		}
	})
}
