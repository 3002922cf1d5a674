package syslog

import (
	"bufio"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"crypto/x509/pkix"
	"encoding/pem"
	"fmt"
	"io"
	"math/big"
	"net"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/shiptest"
)

// text is what stands behind "]: ".
func text(msg string) string {
	_, text, _ := strings.Cut(strings.TrimSuffix(msg, "\n"), "]: ")
	return text
}

func lines(c net.Conn, add func(...string)) error {
	r := bufio.NewReader(c)
	for {
		msg, err := r.ReadString('\n')
		if err != nil {
			return err
		}
		add(text(msg))
	}
}

func TestStream(t *testing.T) {
	for _, network := range []string{"tcp", "unix"} {
		t.Run(network, func(t *testing.T) {
			shiptest.Run(t, shiptest.Case{Kind: Kind(), Present: network == "unix", Server: func(t testing.TB) (shiptest.Server, map[string]string) {
				s := &shiptest.Stream{Network: network, Serve: lines}
				s.Reserve(t)
				if network == "unix" {
					s.Start(t) // the option is refused while nothing is there
				}
				return restartable{s, network == "unix"}, map[string]string{"syslog-address": network + "://" + s.Address}
			}})
		})
	}
}

// restartable takes a first Start of what has been started.
type restartable struct {
	shiptest.Server
	started bool
}

func (r restartable) Start(t testing.TB) {
	if r.started {
		r.Server.Stop()
	}
	r.Server.Start(t)
}

func TestDatagram(t *testing.T) {
	for _, network := range []string{"udp", "unixgram"} {
		t.Run(network, func(t *testing.T) {
			shiptest.Run(t, shiptest.Case{Kind: Kind(), Present: network == "unixgram", Server: func(t testing.TB) (shiptest.Server, map[string]string) {
				s := &shiptest.Packets{Network: network, Read: func(p []byte, _ []*os.File) []string { return []string{text(string(p))} }}
				s.Reserve(t)
				if network == "unixgram" {
					s.Start(t)
				}
				return restartable{s, network == "unixgram"}, map[string]string{"syslog-address": network + "://" + s.Address}
			}})
		})
	}
}

// certificate makes one for 127.0.0.1 and returns it with the file of its CA, itself.
func certificate(t testing.TB) (tls.Certificate, string) {
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	tmpl := &x509.Certificate{
		SerialNumber: big.NewInt(1), Subject: pkix.Name{CommonName: "log"}, NotBefore: time.Now().Add(-time.Hour), NotAfter: time.Now().Add(time.Hour),
		IPAddresses: []net.IP{net.IPv4(127, 0, 0, 1)}, IsCA: true, BasicConstraintsValid: true, KeyUsage: x509.KeyUsageDigitalSignature | x509.KeyUsageCertSign,
	}
	der, err := x509.CreateCertificate(rand.Reader, tmpl, tmpl, key.Public(), key)
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "ca.pem")
	if err := os.WriteFile(path, pem.EncodeToMemory(&pem.Block{Type: "CERTIFICATE", Bytes: der}), 0o600); err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}, path
}

// Over TLS, RFC 5424 has frames with a length.
func TestTLS(t *testing.T) {
	cert, ca := certificate(t)
	shiptest.Run(t, shiptest.Case{Kind: Kind(), Server: func(t testing.TB) (shiptest.Server, map[string]string) {
		s := &shiptest.Stream{Network: "tcp", TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, Serve: func(c net.Conn, add func(...string)) error {
			r := bufio.NewReader(c)
			for {
				var n int
				if _, err := fmt.Fscanf(r, "%d ", &n); err != nil {
					return io.EOF
				}
				msg := make([]byte, n)
				if _, err := io.ReadFull(r, msg); err != nil {
					return err
				}
				_, text, _ := strings.Cut(string(msg), " 0123456789ab - ")
				add(strings.TrimSuffix(text, "\n"))
			}
		}}
		s.Reserve(t)
		return s, map[string]string{"syslog-address": "tcp+tls://" + s.Address, "syslog-tls-ca-cert": ca, "syslog-format": "rfc5424micro"}
	}})
}

func TestTLSIsChecked(t *testing.T) {
	cert, ca := certificate(t)
	s := &shiptest.Stream{Network: "tcp", TLS: &tls.Config{Certificates: []tls.Certificate{cert}}, Serve: lines}
	s.Reserve(t)
	s.Start(t)
	for _, c := range []struct {
		opts map[string]string
		ok   bool
	}{
		{map[string]string{}, false},
		{map[string]string{"syslog-tls-ca-cert": ca}, true},
		{map[string]string{"syslog-tls-skip-verify": "1"}, true},
	} {
		c.opts["syslog-address"] = "tcp+tls://" + s.Address
		d, _, err := open(shiptest.Info(c.opts))
		if err != nil {
			t.Fatal(err)
		}
		_, err = d.Send(t.Context(), []ship.Entry{{Line: []byte("x"), Stream: "stdout"}})
		if (err == nil) != c.ok {
			t.Errorf("%v: %v", c.opts, err)
		}
		d.Close()
	}
	if _, _, err := open(shiptest.Info(map[string]string{"syslog-address": "tcp+tls://" + s.Address, "syslog-tls-ca-cert": "/nosuch"})); err == nil ||
		!strings.Contains(err.Error(), `could not read CA certificate "/nosuch"`) {
		t.Errorf("a CA that is not there: %v", err)
	}
}

func TestForms(t *testing.T) {
	at := time.Date(2026, 3, 4, 5, 6, 7, 123456789, time.Local)
	host, _ := os.Hostname()
	for _, c := range []struct {
		opts map[string]string
		want string
	}{
		{nil, `^<30>Mar  4 05:06:07 0123456789ab\[PID\]: a b\n$`},
		{map[string]string{"syslog-facility": "local7", "tag": "{{.Name}}/{{.ImageName}}"}, `^<190>Mar  4 05:06:07 web/debian:12\[PID\]: a b\n$`},
		{map[string]string{"syslog-format": "rfc3164", "syslog-facility": "0"}, `^<6>Mar  4 05:06:07 HOST 0123456789ab\[PID\]: a b\n$`},
		{map[string]string{"syslog-format": "rfc5424"}, `^<30>1 2026-03-04T05:06:07\S+ HOST 0123456789ab PID 0123456789ab - a b\n$`},
		{map[string]string{"syslog-format": "rfc5424micro"}, `^<30>1 2026-03-04T05:06:07\.123456\S+ HOST 0123456789ab PID 0123456789ab - a b\n$`},
	} {
		d, err := newDriver(shiptest.Info(c.opts))
		if err != nil {
			t.Fatal(err)
		}
		want := strings.NewReplacer("PID", fmt.Sprint(os.Getpid()), "HOST", regexp.QuoteMeta(host)).Replace(c.want)
		got := string(d.append(nil, ship.Entry{Time: at, Stream: "stdout", Line: []byte("a b")}))
		if !regexp.MustCompile(want).MatchString(got) {
			t.Errorf("%v: %q, want %s", c.opts, got, want)
		}
		if got := string(d.append(nil, ship.Entry{Time: at, Stream: "stderr"})); c.opts == nil && !strings.HasPrefix(got, "<27>") {
			t.Errorf("stderr: %q", got)
		}
	}
}

func TestOptions(t *testing.T) {
	for _, c := range []struct{ key, value, want string }{
		{"syslog-address", "http://x", "unsupported scheme: 'http'"},
		{"syslog-address", "unix:///no/such/socket", "stat /no/such/socket: no such file or directory"},
		{"syslog-address", "tcp://localhost", ""},
		{"syslog-address", "udp://[::1]:99", ""},
		{"syslog-address", "tcp://a:b:c", `parse "tcp://a:b:c": invalid port ":c" after host`},
		{"syslog-facility", "kern", ""},
		{"syslog-facility", "23", ""},
		{"syslog-facility", "24", "invalid syslog facility"},
		{"syslog-facility", "nope", "invalid syslog facility"},
		{"syslog-format", "rfc1", "Invalid syslog format"},
		{"gelf-address", "x", "unknown log opt 'gelf-address' for syslog log driver"},
		{"mode", "fast", "logger: logging mode not supported: fast"},
		{"max-buffer-size", "1m", "logger: max-buffer-size option is only supported with 'mode=non-blocking'"},
		{"cache-disabled", "maybe", "invalid value for option cache-disabled: maybe"},
		{"cache-max-size", "5m", ""},
		{"tag", "{{.Nothing}}", "template: log-tag:1:2: executing \"log-tag\" at <.Nothing>: can't evaluate field Nothing in type *ship.Info"},
	} {
		err := (ship.Kinds{Kind()}).Check("syslog", map[string]string{c.key: c.value})
		if got := fmt.Sprint(err); (c.want == "") != (err == nil) || c.want != "" && got != c.want {
			t.Errorf("%s=%s: %v, want %q", c.key, c.value, err, c.want)
		}
	}
}

func FuzzAddress(f *testing.F) {
	f.Add("tcp://localhost:1")
	f.Add("unix://")
	f.Fuzz(func(t *testing.T, s string) {
		network, address, err := parseAddress(s)
		if err != nil || s == "" {
			return
		}
		if network == "unix" || network == "unixgram" {
			return
		}
		if _, _, err := net.SplitHostPort(address); err != nil {
			t.Errorf("%q gives %q: %v", s, address, err)
		}
	})
}
