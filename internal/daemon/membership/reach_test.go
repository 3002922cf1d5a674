package membership

import (
	"context"
	"io"
	"net"
	"strings"
	"testing"
	"time"

	"github.com/containerd/errdefs"
)

// An address leads to this host, also by way of somebody who passes on what comes; or to another one, or
// nowhere. Nothing listens any more afterwards.
func TestReach(t *testing.T) {
	free := func() string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		return l.Addr().String()
	}
	// serve answers connections until the test ends.
	serve := func(f func(net.Conn)) string {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { _ = l.Close() })
		go func() {
			for {
				c, err := l.Accept()
				if err != nil {
					return
				}
				go func() {
					defer c.Close()
					f(c)
				}()
			}
		}()
		return l.Addr().String()
	}
	listen := free()
	translated := serve(func(c net.Conn) {
		to, err := net.Dial("tcp", listen)
		if err != nil {
			return
		}
		defer to.Close()
		_, _ = io.Copy(c, to)
	})
	other := serve(func(c net.Conn) { _, _ = io.WriteString(c, strings.Repeat("x", 100)) })
	mute := serve(func(c net.Conn) { time.Sleep(10 * reaching) })
	for addr, words := range map[string]string{
		listen: "", translated: "", other: "another host answers there", mute: "another host answers there", free(): "connection refused",
	} {
		err := reach(t.Context(), listen, addr)
		if words == "" && err != nil || words != "" && (!errdefs.IsInvalidArgument(err) || !strings.Contains(err.Error(), words) || !strings.HasPrefix(err.Error(), "advertise address "+addr+" does not lead to this host: ")) {
			t.Errorf("%v, want %q", err, words)
		}
		if c, err := net.Dial("tcp", listen); err == nil {
			_ = c.Close()
			t.Error("somebody listens still")
		}
	}
	late, cancel := context.WithDeadline(t.Context(), time.Now())
	defer cancel()
	if err := readSign(late, listen, "x"); !errdefs.IsUnavailable(err) || !strings.Contains(err.Error(), "nothing answers within 3s") {
		t.Errorf("nothing answers in time: %v", err)
	}
	busy := serve(func(net.Conn) {})
	if err := reach(t.Context(), busy, busy); !errdefs.IsUnavailable(err) {
		t.Errorf("somebody listens there: %v", err)
	}
}
