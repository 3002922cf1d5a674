package dns

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"time"

	"github.com/miekg/dns"
)

// datagram is how much of an answer by UDP is read, in bytes: more comes in pieces
// that get lost, and is asked for by TCP.
const datagram = 4096

var (
	errNotOurs  = errors.New("an answer to another question")
	errRefusing = errors.New("the server refuses or has failed")
)

// answered is how one server's turn ended.
type answered struct {
	server int
	reply  []byte
	err    error
}

// forward asks the upstream servers in their order. The next is asked when one
// fails, or as well when one takes its time; the first answer counts. Those that
// were silent are asked last for a while. Without an answer the reply says so.
func (b *box) forward(q *question) []byte {
	ctx, cancel := context.WithCancel(b.ctx)
	defer cancel() // ends those that are not needed any more
	servers, probing := b.r.health.order(b, b.servers())
	results := make(chan answered, len(servers))
	began := make([]time.Time, 0, len(servers))
	failed := make([]bool, len(servers))
	next := func() {
		i := len(began)
		began = append(began, time.Now())
		go func() {
			reply, err := b.ask(ctx, q, servers[i])
			results <- answered{i, reply, err}
		}()
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for pending := 0; pending > 0 || len(began) < len(servers); {
		select {
		case <-timer.C:
			if len(began) == len(servers) {
				continue
			}
			next()
			pending++
			timer.Reset(b.r.hedge)
			if probing[len(began)-1] {
				timer.Reset(0)
			}
		case r := <-results:
			pending--
			b.r.health.tell(b, servers[r.server], r.err)
			if r.err == nil {
				if q.fallback != nil && r.reply[3]&15 == dns.RcodeNameError {
					r.reply = q.fallback
				}
				for i, t := range began {
					if !failed[i] && i != r.server && time.Since(t) >= b.r.hedge {
						b.r.health.tell(b, servers[i], context.DeadlineExceeded)
					}
				}
				return r.reply
			}
			failed[r.server] = true
			timer.Reset(0)
		case <-b.ctx.Done():
			return nil
		}
	}
	if q.fallback != nil {
		return q.fallback
	}
	return refusal(q.raw, q.end, dns.RcodeServerFailure)
}

// deaf tells whether none of the upstream servers has answered lately: a name that
// is known here need not wait for them.
func (b *box) deaf() bool { return b.r.health.allFailed(b, b.servers()) }

// servers are those that may be asked: the host's only where the outside may be
// reached, and never ourselves.
func (b *box) servers() []Server {
	var list []Server
	external := b.names.External()
	up := b.up.Load()
	all := up.Servers
	if up.Now != nil {
		all = up.Now()
	}
	for _, s := range all {
		if !s.InContainer && !external || s.InContainer && s.Addr.Addr().Unmap() == Address {
			continue
		}
		if list = append(list, s); len(list) == maxServers {
			break
		}
	}
	return list
}

// ask asks one server, by TCP as well when the answer by UDP was cut off.
func (b *box) ask(ctx context.Context, q *question, s Server) ([]byte, error) {
	ctx, cancel := context.WithTimeout(ctx, b.r.timeout)
	defer cancel()
	reply, err := b.exchange(ctx, q, s, q.tcp)
	if err == nil && !q.tcp && reply[2]&0x02 != 0 && q.size > dns.MinMsgSize {
		if whole, err := b.exchange(ctx, q, s, true); err == nil {
			reply = whole
		}
	}
	if err != nil {
		return nil, err
	}
	switch reply[3] & 15 {
	case dns.RcodeServerFailure, dns.RcodeRefused: // another may know
		return nil, errRefusing
	}
	copy(reply, q.raw[:2])
	return fit(reply, q), nil
}

// fit cuts an answer that is too long for the client.
func fit(reply []byte, q *question) []byte {
	if len(reply) <= q.size {
		return reply
	}
	var m dns.Msg
	if m.Unpack(reply) == nil {
		m.Truncate(q.size)
		if b, err := m.Pack(); err == nil && len(b) <= q.size {
			return b
		}
	}
	b := refusal(q.raw, q.end, dns.RcodeSuccess)
	b[2] |= 0x02 // cut off: ask by TCP
	return b
}

// exchange sends the question as it came, under a number nobody can guess and from
// a port of its own, and takes the answer to just that.
func (b *box) exchange(ctx context.Context, q *question, s Server, tcp bool) ([]byte, error) {
	network := "udp"
	if tcp {
		network = "tcp"
	}
	conn, err := b.dial(ctx, network, s)
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	stop := context.AfterFunc(ctx, func() { _ = conn.SetDeadline(time.Unix(1, 0)) }) // wakes what blocks
	defer stop()
	raw := slices.Clone(q.raw)
	_, _ = rand.Read(raw[:2]) // never fails: see crypto/rand
	sent := raw
	if tcp {
		sent = framed(raw)
	}
	if _, err := conn.Write(sent); err != nil {
		return nil, err
	}
	if tcp {
		return readStream(conn, raw[:q.end])
	}
	return readDatagram(conn, raw[:q.end])
}

func readStream(conn io.Reader, asked []byte) ([]byte, error) {
	var size [2]byte
	if _, err := io.ReadFull(conn, size[:]); err != nil {
		return nil, err
	}
	reply := make([]byte, binary.BigEndian.Uint16(size[:]))
	if _, err := io.ReadFull(conn, reply); err != nil {
		return nil, err
	}
	if !answers(reply, asked) {
		return nil, errNotOurs
	}
	return reply, nil
}

// readDatagram waits for the answer; what is none is passed by.
func readDatagram(conn io.Reader, asked []byte) ([]byte, error) {
	buf := make([]byte, datagram+1)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			return nil, err
		}
		if !answers(buf[:n], asked) {
			continue
		}
		if n > datagram {
			buf[2] |= 0x02 // the rest is lost
			n = datagram
		}
		return buf[:n], nil
	}
}

// answers tells whether a message is an answer to the question that begins so:
// the same number, the same name, type and class (RFC 5452, 9.1). Servers may leave
// the question away only when they say that they could not read it.
func answers(reply, asked []byte) bool {
	if len(reply) < headerLen || reply[0] != asked[0] || reply[1] != asked[1] || reply[2]&0x80 == 0 || reply[2]&0x78 != asked[2]&0x78 {
		return false
	}
	end, ok := questionEnd(reply)
	if !ok {
		rcode := reply[3] & 15
		return binary.BigEndian.Uint16(reply[4:]) == 0 && len(reply) == headerLen &&
			(rcode == dns.RcodeFormatError || rcode == dns.RcodeNotImplemented || rcode == dns.RcodeServerFailure || rcode == dns.RcodeRefused)
	}
	if end != len(asked) {
		return false
	}
	name := end - 4
	return bytes.Equal(lower(reply[headerLen:name]), lower(asked[headerLen:name])) && bytes.Equal(reply[name:end], asked[name:])
}

// lower is a name in small letters; lengths of labels are no letters, being less than 64.
func lower(name []byte) []byte {
	out := slices.Clone(name)
	for i, c := range out {
		if c >= 'A' && c <= 'Z' {
			out[i] = c + 'a' - 'A'
		}
	}
	return out
}

// dial connects to a server in its namespace. By UDP it only chooses a port, and
// answers of others do not arrive.
func (b *box) dial(ctx context.Context, network string, s Server) (conn net.Conn, err error) {
	var d net.Dialer
	if !s.InContainer {
		return d.DialContext(ctx, network, s.Addr.String())
	}
	ns, err := b.namespace()
	if err != nil {
		return nil, err
	}
	defer ns.Close()
	err = ns.Do(func() error {
		conn, err = d.DialContext(ctx, network, s.Addr.String())
		return err
	})
	return conn, err
}
