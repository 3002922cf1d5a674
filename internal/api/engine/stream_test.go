package engine

import (
	"bufio"
	"bytes"
	"context"
	"crypto/ecdsa"
	"crypto/elliptic"
	"crypto/rand"
	"crypto/tls"
	"crypto/x509"
	"errors"
	"fmt"
	"io"
	"math/big"
	"net"
	"net/http"
	"os"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/container"
)

// attachTo sends the head of an attach to a connection.
func attachTo(t testing.TB, c io.Writer, path, header, early string) {
	t.Helper()
	if _, err := fmt.Fprintf(c, "POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: 0\r\n%s\r\n%s", path, header, early); err != nil {
		t.Fatal(err)
	}
}

const upgrade = "Connection: Upgrade\r\nUpgrade: tcp\r\n"

type opened = func(bool) (io.ReadWriteCloser, error)

// echo gives input back as output until it ends, then a last word.
func echo(terminal bool) func(context.Context, container.Attach, opened) error {
	return func(_ context.Context, _ container.Attach, open opened) error {
		conn, err := open(terminal)
		if err != nil {
			return err
		}
		defer conn.Close()
		if _, err := io.Copy(conn, conn); err != nil {
			return err
		}
		_, err = io.WriteString(conn, "bye")
		return err
	}
}

func stdinOpen(r *rig) {
	r.con.views[0].Config.OpenStdin = true
}

func TestHijackHead(t *testing.T) {
	const raw, mux = "application/vnd.docker.raw-stream", "application/vnd.docker.multiplexed-stream"
	for _, tt := range []struct {
		prefix, header string
		terminal       bool
		status, media  string
	}{
		{"", upgrade, false, "HTTP/1.1 101 UPGRADED", mux},
		{"", upgrade, true, "HTTP/1.1 101 UPGRADED", raw},
		{"/v1.41", upgrade, false, "HTTP/1.1 101 UPGRADED", raw},
		{"/v1.42", "", false, "HTTP/1.1 200 OK", mux},
		{"/v1.24", "", false, "HTTP/1.1 200 OK", raw},
	} {
		r := newRig(t)
		stdinOpen(r)
		r.con.attach = echo(tt.terminal)
		c := r.dial()
		// Input that comes with the request is already in the server's buffer.
		attachTo(t, c, tt.prefix+"/containers/web/attach?stream=1&stdin=1&stdout=1", tt.header, "early ")
		in := bufio.NewReader(c)
		got := head(t, in)
		if !strings.HasPrefix(got, tt.status+"\r\n") || !strings.Contains(got, "Content-Type: "+tt.media+"\r\n") ||
			strings.Contains(got, "Upgrade: tcp") != (tt.header != "") || !strings.Contains(got, "Api-Version: 1.56") {
			t.Errorf("%+v: %q", tt, got)
		}
		io.WriteString(c, "late ")
		c.CloseWrite()
		all, err := io.ReadAll(in)
		if string(all) != "early late bye" || err != nil {
			t.Errorf("%+v: %q %v", tt, all, err)
		}
	}
}

// Only input that is unread when the engine has finished: the output must arrive
// whole, with a clean end.
func TestOutputSurvivesUnreadInput(t *testing.T) {
	r := newRig(t)
	stdinOpen(r)
	word := strings.Repeat("output ", 10000)
	r.con.attach = func(_ context.Context, _ container.Attach, open opened) error {
		conn, err := open(true)
		if err != nil {
			return err
		}
		defer conn.Close()
		_, err = io.WriteString(conn, word)
		return err
	}
	c := r.dial()
	attachTo(t, c, "/containers/web/attach?stream=1&stdin=1&stdout=1", upgrade, strings.Repeat("input ", 10000))
	in := bufio.NewReader(c)
	head(t, in)
	all, err := io.ReadAll(in)
	if string(all) != word || err != nil {
		t.Errorf("%d bytes, %v", len(all), err)
	}
}

// A client that hangs up ends the engine's attach, whether it had closed its
// half before or not, whether anybody reads its input or not.
func TestHangUp(t *testing.T) {
	for _, tt := range []struct {
		name        string
		stdin       bool
		reads, half bool
	}{
		{"no input", false, false, false},
		{"no input, half closed before", false, false, true},
		{"input read", true, true, false},
		{"input read, half closed before", true, true, true},
	} {
		t.Run(tt.name, func(t *testing.T) {
			r := newRig(t)
			stdinOpen(r)
			ended := make(chan error, 1)
			eof := make(chan struct{})
			r.con.attach = func(ctx context.Context, _ container.Attach, open opened) error {
				conn, err := open(false)
				if err != nil {
					return err
				}
				defer conn.Close()
				if tt.reads {
					go func() {
						io.Copy(io.Discard, conn)
						close(eof)
					}()
				}
				select {
				case <-ctx.Done():
					ended <- context.Cause(ctx)
				case <-time.After(10 * time.Second):
					ended <- errors.New("not told")
				}
				return nil
			}
			c := r.dial()
			stdin := map[bool]string{true: "&stdin=1"}[tt.stdin]
			attachTo(t, c, "/containers/web/attach?stream=1&stdout=1"+stdin, upgrade, "")
			head(t, bufio.NewReader(c))
			if tt.half {
				c.CloseWrite()
				if tt.reads {
					<-eof
				}
				select {
				case err := <-ended:
					t.Fatalf("a half-closed client is not gone: %v", err)
				case <-time.After(100 * time.Millisecond):
				}
			}
			c.Close()
			begin := time.Now()
			if err := <-ended; !errors.Is(err, errHungUp) {
				t.Errorf("%v", err)
			}
			if took := time.Since(begin); took > 2*time.Second {
				t.Errorf("took %v", took)
			}
		})
	}
}

// What a departed client sent before still reaches the process.
func TestHangUpKeepsInput(t *testing.T) {
	r := newRig(t)
	stdinOpen(r)
	got := make(chan string, 1)
	r.con.attach = func(ctx context.Context, _ container.Attach, open opened) error {
		conn, err := open(false)
		if err != nil {
			return err
		}
		defer conn.Close()
		time.Sleep(200 * time.Millisecond) // the client is long gone
		b, _ := io.ReadAll(conn)
		got <- string(b)
		<-ctx.Done()
		return nil
	}
	c := r.dial()
	attachTo(t, c, "/containers/web/attach?stream=1&stdin=1", upgrade, "all of it")
	head(t, bufio.NewReader(c))
	c.Close()
	if s := <-got; s != "all of it" {
		t.Errorf("%q", s)
	}
}

// A client that never reads holds the engine back and costs no memory; when it
// goes, the write ends.
func TestSlowClient(t *testing.T) {
	r := newRig(t)
	var written int
	ended := make(chan error, 1)
	progress := make(chan int, 1000)
	r.con.attach = func(ctx context.Context, _ container.Attach, open opened) error {
		conn, err := open(true)
		if err != nil {
			return err
		}
		defer conn.Close()
		block := make([]byte, 64<<10)
		for {
			n, err := conn.Write(block)
			written += n
			if err != nil {
				ended <- err
				return err
			}
			select {
			case progress <- written:
			default:
			}
		}
	}
	c := r.dial()
	attachTo(t, c, "/containers/web/attach?stream=1&stdout=1", upgrade, "")
	head(t, bufio.NewReader(c))
	time.Sleep(300 * time.Millisecond)
	if len(progress) >= 64 {
		t.Errorf("%d blocks went to a client that does not read", len(progress))
	}
	select {
	case err := <-ended:
		t.Fatal(err)
	default:
	}
	c.Close()
	if err := <-ended; err == nil {
		t.Error("no error")
	}
}

// Close ends streams whose client does not read.
func TestCloseEndsStreams(t *testing.T) {
	r := newRig(t)
	r.con.attach = func(ctx context.Context, _ container.Attach, open opened) error {
		conn, err := open(true)
		if err != nil {
			return err
		}
		defer conn.Close()
		for err == nil {
			_, err = conn.Write(make([]byte, 64<<10))
		}
		return err
	}
	c := r.dial()
	attachTo(t, c, "/containers/web/attach?stream=1&stdout=1", upgrade, "")
	head(t, bufio.NewReader(c))
	begin := time.Now()
	r.server.Close()
	if took := time.Since(begin); took > 2*time.Second {
		t.Errorf("took %v", took)
	}
}

// An exec that fails after the stream has begun says so on the stream.
func TestExecError(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		r := newRig(t)
		r.con.exec = container.Exec{ID: "e1"}
		r.con.attach = func(_ context.Context, _ container.Attach, open opened) error {
			conn, err := open(terminal)
			if err != nil {
				return err
			}
			conn.Close()
			return errBoom
		}
		c := r.dial()
		body := fmt.Sprintf(`{"Tty":%t}`, terminal)
		fmt.Fprintf(c, "POST /exec/e1/start HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: %d\r\n%s\r\n%s", len(body), upgrade, body)
		in := bufio.NewReader(c)
		head(t, in)
		all, err := io.ReadAll(in)
		want := "boom\r\n"
		if !terminal {
			want = "\x01\x00\x00\x00\x00\x00\x00\x06" + want
		}
		if string(all) != want || err != nil {
			t.Errorf("%q %v", all, err)
		}
	}
}

// Over TLS the half-close is TLS's own, and a departed client is noticed.
func TestHijackTLS(t *testing.T) {
	r := newRig(t)
	stdinOpen(r)
	r.con.attach = echo(true)
	inner, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	served := make(chan error, 1)
	ctx, cancel := context.WithCancel(context.Background())
	go func() {
		served <- r.server.Serve(ctx, tls.NewListener(inner, &tls.Config{Certificates: []tls.Certificate{testCertificate(t)}}))
	}()
	c, err := tls.Dial("tcp", inner.Addr().String(), &tls.Config{InsecureSkipVerify: true})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(20 * time.Second))
	attachTo(t, c, "/containers/web/attach?stream=1&stdin=1&stdout=1", upgrade, "")
	in := bufio.NewReader(c)
	head(t, in)
	io.WriteString(c, "hello ")
	c.CloseWrite()
	all, err := io.ReadAll(in)
	if string(all) != "hello bye" || err != nil {
		t.Errorf("%q %v", all, err)
	}
	cancel()
	if err := <-served; err != nil {
		t.Error(err)
	}
}

func testCertificate(t *testing.T) tls.Certificate {
	t.Helper()
	key, err := ecdsa.GenerateKey(elliptic.P256(), rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	template := &x509.Certificate{SerialNumber: big.NewInt(1), NotAfter: time.Now().Add(time.Hour)}
	der, err := x509.CreateCertificate(rand.Reader, template, template, &key.PublicKey, key)
	if err != nil {
		t.Fatal(err)
	}
	return tls.Certificate{Certificate: [][]byte{der}, PrivateKey: key}
}

func TestServerClosed(t *testing.T) {
	r := newRig(t)
	r.do("GET", "/_ping", "")
	if err := errors.Join(r.server.Close(), r.server.Close()); err != nil {
		t.Fatal(err)
	}
	l, err := net.Listen("unix", r.socket+"2")
	if err != nil {
		t.Fatal(err)
	}
	if err := r.server.Serve(context.Background(), l); !errors.Is(err, http.ErrServerClosed) {
		t.Error(err)
	}
	if _, err := net.Dial("unix", r.socket+"2"); err == nil {
		t.Error("the listener is open")
	}
}

// What is no HTTP gets an answer or an end, and the server goes on.
func TestGarbage(t *testing.T) {
	r := newRig(t)
	noise := make([]byte, 10<<20)
	for i := range noise {
		noise[i] = byte(i*7 + i>>8)
	}
	for name, tt := range map[string]struct {
		send []byte
		want string
	}{
		"noise":      {noise, "HTTP/1.1 400 Bad Request"},
		"zeros":      {make([]byte, 10<<20), "HTTP/1.1 4"},
		"header":     {append([]byte("GET /_ping HTTP/1.1\r\nHost: x\r\nX: "), bytes.Repeat([]byte("a"), 1<<20)...), "HTTP/1.1 431"},
		"no host":    {[]byte("GET /_ping HTTP/1.1\r\n\r\n"), "HTTP/1.1 400"},
		"HTTP/1.0":   {[]byte("GET /_ping HTTP/1.0\r\n\r\n"), "HTTP/1.0 200 OK"},
		"pipelined":  {[]byte("GET /_ping HTTP/1.1\r\nHost: x\r\n\r\nGET /nope HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "HTTP/1.1 200 OK"},
		"connect":    {[]byte("CONNECT x:1 HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"), "HTTP/1.1 404"},
		"huge chunk": {[]byte("POST /containers/create HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\nConnection: close\r\n\r\nffffffffffffffffff\r\n"), "HTTP/1.1 400"},
	} {
		t.Run(name, func(t *testing.T) {
			c := r.dial()
			go c.Write(tt.send)
			answer := make([]byte, 4096)
			n, _ := io.ReadAtLeast(c, answer, len(tt.want))
			if !strings.HasPrefix(string(answer[:n]), tt.want) {
				t.Errorf("%q", answer[:n])
			}
			if name == "pipelined" {
				rest, _ := io.ReadAll(c)
				if all := string(answer[:n]) + string(rest); !strings.Contains(all, "page not found") {
					t.Errorf("%q", all)
				}
			}
			if status, _, _ := r.do("GET", "/_ping", ""); status != 200 {
				t.Errorf("then: %d", status)
			}
		})
	}
}

// Descriptors and goroutines of streams go with them.
func TestStreamsLeaveNothing(t *testing.T) {
	r := newRig(t)
	stdinOpen(r)
	r.con.attach = echo(true)
	count := func() int {
		entries, err := os.ReadDir("/proc/self/fd")
		if err != nil {
			t.Skip("needs /proc")
		}
		return len(entries)
	}
	once := func() {
		c := r.dial()
		attachTo(t, c, "/containers/web/attach?stream=1&stdin=1&stdout=1", upgrade, "x")
		c.CloseWrite()
		io.ReadAll(c)
		c.Close()
	}
	once()
	before := count()
	for range 50 {
		once()
	}
	deadline := time.Now().Add(5 * time.Second)
	for count() > before+3 && time.Now().Before(deadline) {
		time.Sleep(20 * time.Millisecond)
	}
	if n := count(); n > before+3 {
		t.Errorf("%d descriptors, %d before", n, before)
	}
}
