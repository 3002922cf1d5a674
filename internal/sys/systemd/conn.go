package systemd

import (
	"bytes"
	"context"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"os"
	"strconv"
	"strings"
	"time"

	"github.com/containerd/errdefs"
	"golang.org/x/sys/unix"
)

// Where systemd listens, and where the bus of the system does.
const (
	private = "/run/systemd/private"
	bus     = "/run/dbus/system_bus_socket"
)

const (
	busName     = "org.freedesktop.DBus"
	busPath     = "/org/freedesktop/DBus"
	managerName = "org.freedesktop.systemd1"
	managerPath = "/org/freedesktop/systemd1"
	manager     = "org.freedesktop.systemd1.Manager"
)

// Patience is how long systemd has for what is asked of it, unless the caller's
// context ends before.
const Patience = 30 * time.Second

// Error is systemd's refusal.
type Error struct {
	Name    string // "org.freedesktop.systemd1.UnitExists"
	Message string
}

func (e *Error) Error() string { return e.Message }

// Is gives it its kind.
func (e *Error) Is(kind error) bool {
	switch strings.TrimPrefix(e.Name, "org.freedesktop.systemd1.") {
	case "NoSuchUnit":
		return kind == errdefs.ErrNotFound
	case "UnitExists":
		return kind == errdefs.ErrAlreadyExists
	}
	switch strings.TrimPrefix(e.Name, "org.freedesktop.DBus.Error.") {
	case "InvalidArgs", "PropertyReadOnly", "UnknownProperty":
		return kind == errdefs.ErrInvalidArgument
	}
	return false
}

// Conn is a connection to systemd. For one goroutine.
type Conn struct {
	f      *os.File
	peer   bool // it is systemd that listens there, and not a bus
	serial uint32
	in     []byte
	ended  map[job]string // how jobs have ended that were told of during a call
}

// job is known by its path, and by who tells of it: on a bus others could.
type job struct{ sender, path string }

// Dial connects to the systemd of the machine: to the bus that DBUS_SYSTEM_BUS_ADDRESS
// names, or to systemd itself as root may, or to the bus of the system. Unavailable
// where there is none. Blocks for a millisecond; Patience at most.
func Dial(ctx context.Context) (*Conn, error) {
	if address := os.Getenv("DBUS_SYSTEM_BUS_ADDRESS"); address != "" {
		path, err := socketOf(address)
		if err != nil {
			return nil, err
		}
		return dial(ctx, path, false)
	}
	c, err := dial(ctx, private, true)
	if errdefs.IsUnavailable(err) {
		return dial(ctx, bus, false)
	}
	return c, err
}

// socketOf finds a unix socket in an address (D-Bus Specification, "Server Addresses").
func socketOf(address string) (string, error) {
	for one := range strings.SplitSeq(address, ";") {
		options, ok := strings.CutPrefix(one, "unix:")
		if !ok {
			continue
		}
		for option := range strings.SplitSeq(options, ",") {
			if path, ok := strings.CutPrefix(option, "path="); ok {
				return unescape(path)
			}
		}
	}
	return "", fmt.Errorf("address of a bus %q: only unix:path= is supported: %w", address, errdefs.ErrInvalidArgument)
}

// unescape undoes "%2d".
func unescape(s string) (string, error) {
	var out []byte
	for s != "" {
		front, back, escaped := strings.Cut(s, "%")
		out = append(out, front...)
		if !escaped {
			break
		}
		b, err := hex.DecodeString(back[:min(2, len(back))])
		if err != nil || len(b) != 1 {
			return "", fmt.Errorf("address of a bus: %%%s: %w", back, errdefs.ErrInvalidArgument)
		}
		out, s = append(out, b...), back[2:]
	}
	return string(out), nil
}

func dial(ctx context.Context, path string, peer bool) (*Conn, error) {
	fd, err := unix.Socket(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	if err = unix.Connect(fd, &unix.SockaddrUnix{Name: path}); err == nil {
		err = unix.SetNonblock(fd, true)
	}
	if err != nil {
		unix.Close(fd)
		err = &os.PathError{Op: "connect", Path: path, Err: err}
		if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ECONNREFUSED) || errors.Is(err, unix.ENOTDIR) {
			err = fmt.Errorf("systemd not running on this host, cannot use systemd cgroups manager: %w: %w", err, errdefs.ErrUnavailable)
		}
		return nil, err
	}
	c := &Conn{f: os.NewFile(uintptr(fd), path), peer: peer}
	if err := c.within(ctx, c.greet); err != nil {
		_ = c.f.Close() // that it failed is what counts
		return nil, fmt.Errorf("%s: %w", path, err)
	}
	return c, nil
}

// Close lets go of the connection.
func (c *Conn) Close() error { return c.f.Close() }

// within bounds what do does by ctx and by Patience.
func (c *Conn) within(ctx context.Context, do func() error) error {
	if err := c.f.SetDeadline(time.Now().Add(Patience)); err != nil {
		return err
	}
	stop := context.AfterFunc(ctx, func() { _ = c.f.SetDeadline(time.Unix(1, 0)) }) // it is open, or do has failed
	err := do()
	stop()
	switch {
	case ctx.Err() != nil && err != nil:
		return ctx.Err()
	case errors.Is(err, os.ErrDeadlineExceeded):
		return fmt.Errorf("systemd does not answer: %w", errdefs.ErrUnavailable)
	}
	return err
}

// greet says who we are (D-Bus Specification, "Authentication Protocol"), and on a bus
// that we want to be told when jobs end.
func (c *Conn) greet() error {
	hello := "\x00AUTH EXTERNAL " + hex.EncodeToString([]byte(strconv.Itoa(os.Geteuid()))) + "\r\n"
	if _, err := io.WriteString(c.f, hello); err != nil {
		return err
	}
	for !bytes.Contains(c.in, []byte("\r\n")) {
		if len(c.in) > 1024 {
			return errMessage
		}
		if err := c.fill(len(c.in) + 1); err != nil {
			return err
		}
	}
	line, rest, _ := bytes.Cut(c.in, []byte("\r\n"))
	if !bytes.HasPrefix(line, []byte("OK ")) {
		return fmt.Errorf("the bus does not take us: %q: %w", line, errdefs.ErrPermissionDenied)
	}
	c.in = append([]byte(nil), rest...)
	if _, err := io.WriteString(c.f, "BEGIN\r\n"); err != nil {
		return err
	}
	if c.peer {
		return nil
	}
	if _, err := c.call(&message{dest: busName, path: busPath, iface: busName, member: "Hello"}); err != nil {
		return err
	}
	rule := "type='signal',sender='" + managerName + "',path='" + managerPath + "',interface='" + manager + "',member='JobRemoved'"
	if _, err := c.call(&message{dest: busName, path: busPath, iface: busName, member: "AddMatch", body: []any{rule}}); err != nil {
		return err
	}
	_, err := c.ask("Subscribe")
	return err
}

// ask calls a method of the manager.
func (c *Conn) ask(member string, args ...any) (*message, error) {
	m := &message{path: managerPath, iface: manager, member: member, body: args}
	if !c.peer {
		m.dest = managerName
	}
	return c.call(m)
}

// call sends a call and waits for its answer. An *Error is who was asked's.
func (c *Conn) call(m *message) (*message, error) {
	c.serial++
	m.kind, m.serial = methodCall, c.serial
	b, err := encode(m)
	if err != nil {
		return nil, err
	}
	if _, err := c.f.Write(b); err != nil {
		return nil, err
	}
	for {
		got, err := c.next()
		if err != nil {
			return nil, err
		}
		switch {
		case got.reply != m.serial:
		case got.kind == methodReturn:
			return got, nil
		case got.kind == errorReply:
			e := &Error{Name: got.errorName, Message: got.errorName}
			if len(got.body) > 0 {
				if words, ok := got.body[0].(string); ok {
					e.Message = words
				}
			}
			return nil, e
		}
	}
}

// next reads a message. What it tells of a job is kept.
func (c *Conn) next() (*message, error) {
	if err := c.fill(fixedSize); err != nil {
		return nil, err
	}
	n, err := size(c.in)
	if err != nil {
		return nil, err
	}
	if err := c.fill(n); err != nil {
		return nil, err
	}
	m, err := decode(c.in[:n])
	c.in = append([]byte(nil), c.in[n:]...)
	if err != nil {
		return nil, err
	}
	if m.kind == signal && m.iface == manager && m.member == "JobRemoved" && m.path == managerPath && len(m.body) == 4 && c.ended != nil {
		path, ok := m.body[1].(objectPath)
		result, ok2 := m.body[3].(string)
		if ok && ok2 {
			c.ended[c.job(m, path)] = result
		}
	}
	return m, nil
}

func (c *Conn) job(m *message, path objectPath) job {
	if c.peer {
		return job{path: string(path)}
	}
	return job{m.sender, string(path)}
}

// fill reads until there are n bytes.
func (c *Conn) fill(n int) error {
	buf := make([]byte, 4096)
	for len(c.in) < n {
		got, err := c.f.Read(buf)
		if err == io.EOF {
			err = io.ErrUnexpectedEOF
		}
		if err != nil {
			return err
		}
		c.in = append(c.in, buf[:got]...)
	}
	return nil
}
