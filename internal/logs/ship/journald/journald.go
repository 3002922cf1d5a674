// Package journald is the log driver "journald": systemd's native protocol
// (https://systemd.io/JOURNAL_NATIVE_PROTOCOL/).
package journald

import (
	"context"
	"crypto/rand"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"maps"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/logs/ship/conn"
)

// Socket is where journald listens.
const Socket = "/run/systemd/journal/socket"

// Kind is the driver for ship.Kinds; socket is Socket but in tests.
func Kind(socket string) ship.Kind {
	return ship.Kind{Name: "journald", Check: check, New: func(info ship.Info) (ship.Driver, ship.Policy, error) {
		d, err := open(info, socket)
		if err != nil {
			return nil, ship.Policy{}, err
		}
		return d, ship.Policy{}, nil
	}}
}

func check(opts map[string]string) error {
	for key := range opts {
		if !ship.Attribute(key) {
			return fmt.Errorf("unknown log opt '%s' for journald log driver", key)
		}
	}
	return nil
}

// driver sends to the journal.
type driver struct {
	packet  *conn.Datagram
	fields  []byte // what is the same in each message
	ordinal uint64
	buf     []byte
}

func open(info ship.Info, socket string) (*driver, error) {
	if _, err := os.Stat(socket); err != nil {
		return nil, errors.New("journald is not enabled on this host")
	}
	tag, err := info.Tag(ship.DefaultTag)
	if err != nil {
		return nil, err
	}
	var epoch [16]byte
	rand.Read(epoch[:])
	fields := map[string]string{
		"CONTAINER_ID": info.ID(), "CONTAINER_ID_FULL": info.ContainerID, "CONTAINER_NAME": info.Name(), "CONTAINER_TAG": tag,
		"IMAGE_NAME": info.ContainerImageName, "SYSLOG_IDENTIFIER": tag, "CONTAINER_LOG_EPOCH": hex.EncodeToString(epoch[:]),
	}
	extra, err := info.ExtraAttributes(fieldName)
	if err != nil {
		return nil, err
	}
	maps.Copy(fields, extra)
	d := &driver{packet: &conn.Datagram{Dial: conn.To("unixgram", socket)}}
	for _, k := range slices.Sorted(maps.Keys(fields)) {
		d.fields = appendField(d.fields, k, fields[k])
	}
	return d, nil
}

// fieldName makes a name of the journal's alphabet: capitals, digits and underscores,
// the last not first.
func fieldName(s string) string {
	s = strings.Map(func(r rune) rune {
		switch {
		case 'a' <= r && r <= 'z':
			return r - 'a' + 'A'
		case 'A' <= r && r <= 'Z', '0' <= r && r <= '9':
			return r
		}
		return '_'
	}, s)
	return strings.TrimLeft(s, "_")
}

// appendField writes "KEY=value\n", or, for values of several lines, the key alone,
// the length in 64 bits and the value. A field without a name is left out.
func appendField(b []byte, key, value string) []byte {
	if key == "" {
		return b
	}
	b = append(b, key...)
	if strings.IndexByte(value, '\n') < 0 {
		b = append(b, '=')
	} else {
		b = binary.LittleEndian.AppendUint64(append(b, '\n'), uint64(len(value)))
	}
	b = append(b, value...)
	return append(b, '\n')
}

// Priorities are syslog's.
const (
	priorityError = "3"
	priorityInfo  = "6"
)

func (d *driver) message(e ship.Entry) []byte {
	priority := priorityInfo
	if e.Stream == "stderr" {
		priority = priorityError
	}
	b := appendField(d.buf[:0], "PRIORITY", priority)
	b = appendField(b, "MESSAGE", string(e.Line))
	b = append(b, d.fields...)
	b = appendField(b, "SYSLOG_TIMESTAMP", e.Time.Format(time.RFC3339Nano))
	b = appendField(b, "CONTAINER_LOG_ORDINAL", strconv.FormatUint(d.ordinal+1, 10))
	if p := e.Partial; p != nil {
		b = appendField(b, "CONTAINER_PARTIAL_ID", p.ID)
		b = appendField(b, "CONTAINER_PARTIAL_ORDINAL", strconv.Itoa(p.Ordinal))
		b = appendField(b, "CONTAINER_PARTIAL_LAST", strconv.FormatBool(p.Last))
		if !p.Last {
			b = appendField(b, "CONTAINER_PARTIAL_MESSAGE", "true")
		}
	}
	d.buf = b
	return b
}

// Send implements ship.Driver.
func (d *driver) Send(ctx context.Context, batch []ship.Entry) (int, error) {
	for n, e := range batch {
		msg := d.message(e)
		err := d.packet.Write(ctx, msg)
		if conn.TooLarge(err) {
			err = d.packet.Do(ctx, func(c net.Conn) error { return sendFile(c, msg) })
		}
		if conn.TooLarge(err) {
			return n, &ship.RefusedError{Err: err}
		}
		if err != nil {
			return n, err
		}
		d.ordinal++
	}
	return len(batch), nil
}

// sendFile passes what no packet takes as a sealed file in memory.
func sendFile(c net.Conn, msg []byte) error {
	sock, ok := c.(*net.UnixConn)
	if !ok {
		return unix.EMSGSIZE
	}
	fd, err := unix.MemfdCreate("journal-message", unix.MFD_CLOEXEC|unix.MFD_ALLOW_SEALING)
	if err != nil {
		return fmt.Errorf("journald: memfd: %w", err)
	}
	f := os.NewFile(uintptr(fd), "journal-message")
	defer f.Close()
	if _, err := f.Write(msg); err != nil {
		return fmt.Errorf("journald: %w", err)
	}
	const seals = unix.F_SEAL_SHRINK | unix.F_SEAL_GROW | unix.F_SEAL_WRITE | unix.F_SEAL_SEAL
	if _, err := unix.FcntlInt(f.Fd(), unix.F_ADD_SEALS, seals); err != nil {
		return fmt.Errorf("journald: sealing: %w", err)
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return err
	}
	rights := unix.UnixRights(int(f.Fd()))
	var sendErr error
	err = raw.Write(func(fd uintptr) bool {
		sendErr = unix.Sendmsg(int(fd), nil, rights, nil, 0)
		return !errors.Is(sendErr, unix.EAGAIN) // wait until there is room
	})
	return errors.Join(sendErr, err)
}

// Gone implements ship.Driver: nobody can tell.
func (d *driver) Gone() <-chan struct{} { return nil }

// Close implements ship.Driver.
func (d *driver) Close() error {
	d.packet.Drop()
	return nil
}
