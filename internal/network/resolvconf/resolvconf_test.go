package resolvconf

import (
	"crypto/sha256"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/network/dns"
)

func write(t *testing.T, text string) string {
	t.Helper()
	path := filepath.Join(t.TempDir(), "resolv.conf")
	if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
		t.Fatal(err)
	}
	return path
}

// directives is the file without remarks and empty lines.
func directives(text string) string {
	var out []string
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && line[0] != '#' {
			out = append(out, line)
		}
	}
	return strings.Join(out, "; ")
}

func server(addr string, inside bool) dns.Server {
	return dns.Server{Addr: netip.MustParseAddrPort(addr), InContainer: inside}
}

func TestMake(t *testing.T) {
	const host = "# remark\nnameserver 127.0.0.53\nnameserver 10.0.0.1\nnameserver fe80::1\nsearch a.example\nsearch b.example c.example\noptions edns0\noptions trust-ad\nsortlist 10.0.0.0\n"
	const stub = "nameserver 127.0.0.53\noptions edns0 trust-ad\nsearch ."
	said := Settings{Servers: []string{"9.9.9.9", "::1"}, Search: []string{".", "x.example"}, Options: []string{"ndots:2", "rotate"}}
	for _, c := range []struct {
		what    string
		host    string
		kind    Kind
		said    Settings
		ipv6    bool
		want    string
		up      dns.Upstream
		remarks []string
	}{
		{what: "as the host", host: host, kind: Host, want: directives(host)},
		{what: "as the host, but for a server", host: host, kind: Host, said: Settings{Servers: []string{"9.9.9.9"}},
			want: "nameserver 9.9.9.9; search b.example c.example; options edns0 trust-ad; sortlist 10.0.0.0"},
		{what: "default network", host: host, kind: Bridge, want: "nameserver 10.0.0.1; search b.example c.example; options edns0 trust-ad; sortlist 10.0.0.0",
			remarks: []string{"# Overrides: []", "(legacy)"}},
		{what: "default network with IPv6", host: host, kind: Bridge, ipv6: true,
			want: "nameserver 10.0.0.1; nameserver fe80::1; search b.example c.example; options edns0 trust-ad; sortlist 10.0.0.0"},
		{what: "default network, all said", host: host, kind: Bridge, said: said, want: "nameserver 9.9.9.9; nameserver ::1; search x.example; options ndots:2 rotate; sortlist 10.0.0.0",
			remarks: []string{"# Overrides: [nameservers search options]", "# Option ndots from: override"}},
		{what: "loopback alone", host: stub, kind: Bridge, want: "nameserver 8.8.8.8; nameserver 8.8.4.4; search .; options edns0 trust-ad"},
		{what: "loopback alone, IPv6", host: stub, kind: Bridge, ipv6: true,
			want: "nameserver 8.8.8.8; nameserver 8.8.4.4; nameserver 2001:4860:4860::8888; nameserver 2001:4860:4860::8844; search .; options edns0 trust-ad"},
		{what: "served", host: host, kind: Served, want: "nameserver 127.0.0.11; search b.example c.example; options edns0 trust-ad ndots:0; sortlist 10.0.0.0",
			up: dns.Upstream{Servers: []dns.Server{server("127.0.0.53:53", false), server("10.0.0.1:53", false), server("[fe80::1]:53", false)},
				Search: []string{"b.example", "c.example"}, Options: []string{"edns0", "trust-ad"}},
			remarks: []string{"# ExtServers: [host(127.0.0.53) host(10.0.0.1) host(fe80::1)]", "# Option ndots from: internal", "(internal resolver)"}},
		{what: "served, all said", host: host, kind: Served, said: said, want: "nameserver 127.0.0.11; search x.example; options ndots:2 rotate; sortlist 10.0.0.0",
			up: dns.Upstream{Servers: []dns.Server{server("9.9.9.9:53", true), server("[::1]:53", true)},
				Search: []string{"x.example"}, Options: []string{"ndots:2", "rotate"}},
			remarks: []string{"# ExtServers: [9.9.9.9 ::1]", "# Overrides: [nameservers search options]"}},
		{what: "served, no search at all", host: host, kind: Served, said: Settings{Search: []string{"."}, Options: []string{"ndots:-1"}},
			want: "nameserver 127.0.0.11; options ndots:0; sortlist 10.0.0.0",
			up: dns.Upstream{Servers: []dns.Server{server("127.0.0.53:53", false), server("10.0.0.1:53", false), server("[fe80::1]:53", false)},
				Search: []string{}, Options: []string{"ndots:-1"}}},
		{what: "served, nothing there", host: "nameserver nonsense\nnameserver\n", kind: Served, want: "nameserver 127.0.0.11; options ndots:0",
			remarks: []string{"# NO EXTERNAL NAMESERVERS DEFINED", "# Invalid nameservers: [nonsense]"}},
	} {
		text, up, err := Make(write(t, c.host), c.kind, c.said, c.ipv6)
		if err != nil {
			t.Errorf("%s: %v", c.what, err)
			continue
		}
		if got := directives(text); got != c.want {
			t.Errorf("%s:\n got %s\nwant %s", c.what, got, c.want)
		}
		if !reflect.DeepEqual(up, c.up) {
			t.Errorf("%s:\n got %+v\nwant %+v", c.what, up, c.up)
		}
		for _, r := range c.remarks {
			if !strings.Contains(text, r) {
				t.Errorf("%s: no %q in\n%s", c.what, r, text)
			}
		}
	}
	if text, _, err := Make("/nonexistent/resolv.conf", Bridge, Settings{}, false); err != nil || directives(text) != "nameserver 8.8.8.8; nameserver 8.8.4.4" {
		t.Errorf("without a file: %q, %v", text, err)
	}
	for _, path := range []string{"/dev/zero", t.TempDir()} {
		if text, _, err := Make(path, Bridge, Settings{}, false); err == nil {
			t.Errorf("%s: %q", path, text)
		}
	}
	if _, _, err := Make(write(t, ""), Bridge, Settings{Servers: []string{"x"}}, false); err == nil {
		t.Error("a server that is no address was taken")
	}
}

func TestWrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	read := func() string {
		t.Helper()
		b, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		return string(b)
	}
	holds := func(what, want string) {
		t.Helper()
		head, rest, _ := strings.Cut(read(), "\n")
		if rest != want || !strings.HasPrefix(head, "# Made by Escale (") {
			t.Errorf("%s: %q, %q; want %q", what, head, rest, want)
		}
	}
	put := func(text string) {
		t.Helper()
		if err := Write(path, text); err != nil {
			t.Fatal(err)
		}
	}
	change := func(text string) {
		t.Helper()
		if err := os.WriteFile(path, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("one\n")
	holds("first", "one\n")
	before, err := os.Stat(path)
	if err != nil {
		t.Fatal(err)
	}
	put("two\n")
	holds("second", "two\n")
	if after, err := os.Stat(path); err != nil || !os.SameFile(before, after) {
		t.Error("a mounted file would have been replaced")
	}
	two := read()
	for _, mine := range []string{"mine", "\n", two + "search x\n", "#" + two, strings.Replace(two, "two", "tow", 1), strings.TrimSuffix(two, "\n"), strings.Repeat("x", maxFile+1)} {
		change(mine)
		put("three\n")
		if got := read(); got != mine {
			t.Errorf("changed by somebody to %.50q: %.50q", mine, got)
		}
	}
	change(two)
	put("three\n")
	holds("changed back", "three\n")
	change("")
	put("seven\n")
	holds("killed amid the writing", "seven\n")
}

// What an engine wrote that kept digests beside the file is its own, and what somebody
// changed since is not.
func TestWriteAfterOlder(t *testing.T) {
	path := filepath.Join(t.TempDir(), "resolv.conf")
	older := "# Made by Escale, which leaves this file alone once it was changed.\n\nnameserver 192.0.2.1\n"
	note := fmt.Sprintf("sha256:%x\nsha256:%x\n", sha256.Sum256([]byte(older)), sha256.Sum256(nil))
	for _, c := range []struct {
		there, note string
		kept        bool
	}{
		{older, note, false},
		{older + "search example.org\n", note, true},
		{older, "", true},
	} {
		if err := errors.Join(os.WriteFile(path, []byte(c.there), 0o644), os.WriteFile(path+olderSuffix, []byte(c.note), 0o644), Write(path, "new\n")); err != nil {
			t.Fatal(err)
		}
		want := seal("new\n")
		if c.kept {
			want = c.there
		}
		if b, err := os.ReadFile(path); err != nil || string(b) != want {
			t.Errorf("%q became %q, %v", c.there, b, err)
		}
		if _, err := os.Stat(path + olderSuffix); (err == nil) != c.kept {
			t.Errorf("the digests of %q: %v", c.there, err)
		}
	}
}

func FuzzMake(f *testing.F) {
	f.Add("nameserver 127.0.0.53\nsearch a b\noptions ndots:1\n", "9.9.9.9", "x.example", "ndots:x")
	f.Add("domain \x00\nnameserver fe80::1%eth0\n;\n#", "", ".", "")
	f.Fuzz(func(t *testing.T, host, srv, search, option string) {
		path := write(t, host)
		for _, kind := range []Kind{Host, Bridge, Served} {
			for _, s := range []Settings{{}, {Servers: []string{srv}}, {Search: []string{search}, Options: []string{option}}} {
				text, up, err := Make(path, kind, s, kind == Bridge)
				if err != nil {
					continue
				}
				got := parse("", text)
				if kind == Served && (len(got.servers) == 0 || got.servers[0] != dns.Address && !strings.ContainsAny(search+option, "\n\r")) {
					t.Fatalf("%q: servers %v", text, got.servers)
				}
				if kind == Host || kind == Bridge {
					continue
				}
				for _, u := range up.Servers {
					if u.Addr.Port() != 53 {
						t.Fatalf("%+v", u)
					}
				}
			}
		}
	})
}

func TestLive(t *testing.T) {
	path := write(t, "nameserver 10.0.0.1\n")
	l := NewLive(path)
	is := func(want ...string) {
		t.Helper()
		l.looked = time.Time{} // a second has gone by
		var got []string
		for _, s := range l.Servers() {
			if s.InContainer {
				t.Errorf("%v is asked from the container", s)
			}
			got = append(got, s.Addr.String())
		}
		if !slices.Equal(got, want) {
			t.Errorf("%v, want %v", got, want)
		}
	}
	is("10.0.0.1:53")
	next := write(t, "nameserver 127.0.0.53\nnameserver 10.0.0.2\n")
	if err := os.Rename(next, path); err != nil {
		t.Fatal(err)
	}
	is("127.0.0.53:53", "10.0.0.2:53")
	if err := os.Remove(path); err != nil {
		t.Fatal(err)
	}
	is("127.0.0.53:53", "10.0.0.2:53")
	if err := os.WriteFile(path, nil, 0o644); err != nil {
		t.Fatal(err)
	}
	is()
	if err := os.WriteFile(path, []byte("nameserver 10.0.0.3\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	if got := l.Servers(); len(got) != 0 {
		t.Errorf("looked twice in a second: %v", got)
	}
	is("10.0.0.3:53")
}
