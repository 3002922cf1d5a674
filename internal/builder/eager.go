package builder

import (
	"fmt"
	"io"
	"sync"

	"github.com/containerd/errdefs"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
)

// maxAsked is how many requests a receiver may have outstanding: one a file, and a
// file system has no more than that.
const maxAsked = 1 << 23

// wish is a packet of a receiver, which only asks or tells how it went.
type wish struct {
	kind fstypes.Packet_PacketType
	id   uint32
	data []byte
}

// maxHanded is how many requests fsutil's sender takes before it waits for one of
// them to be served. It does so deaf to the end of its stream, and must never.
const maxHanded = 128

// eager is a stream of a sender of files that reads whatever comes, whether
// anybody wants it yet or not. It reads until the stream has ended. It is the
// sender's tree, too, to see which requests are being served.
type eager struct {
	fsutil.Stream
	fsutil.FS

	mu     sync.Mutex
	change sync.Cond
	list   []wish
	handed int   // requests given to the sender whose file it has not opened
	err    error // why nothing more will come
}

func newEager(s fsutil.Stream, tree fsutil.FS) *eager {
	e := &eager{Stream: s, FS: tree}
	e.change.L = &e.mu
	go e.read()
	return e
}

// Open implements fsutil.FS.
func (e *eager) Open(path string) (io.ReadCloser, error) {
	e.mu.Lock()
	e.handed--
	e.change.Broadcast()
	e.mu.Unlock()
	return e.FS.Open(path)
}

func (e *eager) read() {
	for {
		var p fstypes.Packet
		err := e.Stream.RecvMsg(&p)
		e.mu.Lock()
		if err == nil && len(e.list) == maxAsked {
			err = fmt.Errorf("the client asks for more than %d files: %w", maxAsked, errdefs.ErrResourceExhausted)
		}
		if err == nil {
			e.list = append(e.list, wish{p.Type, p.ID, p.Data})
		}
		e.err = err
		e.change.Broadcast()
		e.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// RecvMsg implements fsutil.Stream.
func (e *eager) RecvMsg(m any) error {
	p, ok := m.(*fstypes.Packet)
	if !ok {
		return fmt.Errorf("a message of type %T: %w", m, errdefs.ErrInternal)
	}
	e.mu.Lock()
	defer e.mu.Unlock()
	for len(e.list) == 0 || e.handed == maxHanded {
		if e.err != nil {
			return e.err
		}
		e.change.Wait()
	}
	a := e.list[0]
	if a.kind == fstypes.PACKET_REQ {
		e.handed++
	}
	if e.list = e.list[1:]; len(e.list) == 0 {
		e.list = nil
	}
	p.Type, p.ID, p.Data = a.kind, a.id, a.data
	return nil
}
