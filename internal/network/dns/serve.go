package dns

import (
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"os"
	"time"

	"github.com/miekg/dns"
	"golang.org/x/sys/unix"
)

func shuffle(rrs []dns.RR) {
	rand.Shuffle(len(rrs), func(i, j int) { rrs[i], rrs[j] = rrs[j], rrs[i] })
}

// datagram answers one question that came by UDP, or lets somebody ask upstream.
// Called with b.mu held for reading; raw is the caller's.
func (b *box) datagram(raw []byte, from unix.Sockaddr) {
	q, reply := parse(raw, false)
	if q != nil {
		reply = q.local(b.names, b.up.Load())
	}
	if reply == nil && q != nil {
		if q.fallback != nil && b.deaf() {
			reply = q.fallback
		} else if b.admit() {
			q.raw = append([]byte(nil), raw...)
			go func() {
				defer b.dismiss()
				reply := b.forward(q)
				b.mu.RLock()
				defer b.mu.RUnlock()
				b.send(reply, from)
			}()
			return
		} else {
			reply = refusal(q.raw, q.end, dns.RcodeRefused)
		}
	}
	b.send(reply, from)
}

// send sends an answer by UDP. Called with b.mu held for reading. One that the
// kernel does not take is lost, as packets are.
func (b *box) send(reply []byte, to unix.Sockaddr) {
	if b.udp >= 0 && len(reply) > 0 {
		_ = unix.Sendto(b.udp, reply, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL, to)
	}
}

// admit counts a question that is to be forwarded, unless there are too many.
func (b *box) admit() bool {
	if b.asking.Add(1) <= maxAsking {
		if b.r.asking.Add(1) <= maxAskingAll {
			return true
		}
		b.r.asking.Add(-1)
	}
	b.asking.Add(-1)
	return false
}

func (b *box) dismiss() {
	b.r.asking.Add(-1)
	b.asking.Add(-1)
}

// answer answers one question that came by TCP; nil when there is none to give.
func (b *box) answer(raw []byte) []byte {
	q, reply := parse(raw, true)
	if q == nil {
		return reply
	}
	if reply = q.local(b.names, b.up.Load()); reply != nil {
		return reply
	}
	if q.fallback != nil && b.deaf() {
		return q.fallback
	}
	if !b.admit() {
		return refusal(q.raw, q.end, dns.RcodeRefused)
	}
	defer b.dismiss()
	return b.forward(q)
}

// stream answers what comes on a TCP connection, one question after the other,
// until its client closes it or is silent for too long.
func (b *box) stream(f *os.File) {
	defer b.conns.Add(-1)
	defer f.Close()
	stop := context.AfterFunc(b.ctx, func() { _ = f.SetDeadline(time.Unix(1, 0)) }) // wakes what blocks
	defer stop()
	for {
		if f.SetDeadline(time.Now().Add(b.r.idle)) != nil || b.ctx.Err() != nil {
			return
		}
		var size [2]byte
		if _, err := io.ReadFull(f, size[:]); err != nil {
			return
		}
		raw := make([]byte, binary.BigEndian.Uint16(size[:]))
		if _, err := io.ReadFull(f, raw); err != nil {
			return
		}
		reply := b.answer(raw)
		if reply == nil {
			return
		}
		// Asking upstream may have taken all the time there was.
		if f.SetDeadline(time.Now().Add(b.r.idle)) != nil || b.ctx.Err() != nil {
			return
		}
		if _, err := f.Write(framed(reply)); err != nil {
			return
		}
	}
}

// framed puts a message's length before it, as TCP has it.
func framed(msg []byte) []byte {
	return append(binary.BigEndian.AppendUint16(make([]byte, 0, 2+len(msg)), uint16(len(msg))), msg...)
}
