package shim

import (
	"context"
	"fmt"
	"net"
	"os"
	"runtime"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/shim/wire"
)

// heldPatience is how long a monitor may take to hand over descriptors.
const heldPatience = 10 * time.Second

// rights is how many descriptors go with one message; the kernel takes 253.
const rights = 200

// Held gives copies of what the monitor keeps open; see runtime.Task.
func (t *Task) Held(ctx context.Context) (files []*os.File, err error) {
	err = t.aside(ctx, func(nc *net.UnixConn) error {
		var w wire.Writer
		hello(&w)
		w.Begin(wire.Held)
		w.Uint(wire.TagRequest, 1)
		w.End()
		if _, err := nc.Write(w.Data()); err != nil {
			return errLost
		}
		files, err = receive(nc)
		return err
	})
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, err
	}
	return files, nil
}

// Hold gives the monitor more to keep open; see runtime.Task.
func (t *Task) Hold(ctx context.Context, files []*os.File) error {
	fds, err := numbers(files)
	if err != nil {
		return fmt.Errorf("container %s: %w", t.id, err)
	}
	defer runtime.KeepAlive(files)
	return t.aside(ctx, func(nc *net.UnixConn) error {
		var w wire.Writer
		hello(&w)
		for part := range slices.Chunk(fds, rights) {
			w.Begin(wire.Hold)
			w.Uint(wire.TagRequest, 1)
			w.End()
			if _, _, err := nc.WriteMsgUnix(w.Data(), unix.UnixRights(part...), nil); err != nil {
				return errLost
			}
			w.Reset()
			if _, err := readAnswer(nc); err != nil {
				return err
			}
		}
		return nil
	})
}

// aside talks to the monitor over a connection of its own, for what does not fit
// in the conversation.
func (t *Task) aside(ctx context.Context, talk func(*net.UnixConn) error) error {
	nc, err := t.dial(ctx)
	if err != nil {
		return fmt.Errorf("container %s: %w", t.id, err)
	}
	defer nc.Close()
	if err := nc.SetDeadline(time.Now().Add(heldPatience)); err != nil {
		return fmt.Errorf("container %s: %w", t.id, err)
	}
	stop := context.AfterFunc(ctx, func() { _ = nc.SetDeadline(time.Unix(1, 0)) }) // wakes what blocks
	defer stop()
	if err := talk(nc); err != nil {
		if ctx.Err() != nil {
			err = ctx.Err()
		}
		return t.fail("", err)
	}
	return nil
}

// receive reads answers until all the descriptors have come that they tell of. What
// has come is given back with an error, too.
func receive(nc *net.UnixConn) (files []*os.File, err error) {
	buf, in := make([]byte, 4096), []byte(nil)
	oob := make([]byte, unix.CmsgSpace(4*253)) // as many as a message can carry
	for {
		n, oobn, flags, _, err := nc.ReadMsgUnix(buf, oob)
		if n == 0 || err != nil {
			return files, errLost
		}
		files = append(files, rightsIn(oob[:oobn])...)
		if flags&unix.MSG_CTRUNC != 0 {
			return files, fmt.Errorf("monitor: descriptors were lost: %w", unix.EMFILE)
		}
		for in = append(in, buf[:n]...); ; {
			m, n, err := wire.Next(in)
			if err != nil {
				return files, fmt.Errorf("monitor: %w", err)
			}
			if n == 0 {
				break
			}
			if m.Type == wire.OK || m.Type == wire.Error {
				if err := answerError(m); err != nil {
					return files, err
				}
				if uint64(len(files)) >= m.Uint(wire.TagNumber) {
					return files, nil
				}
			}
			in = in[n:]
		}
	}
}

// rightsIn are the descriptors that came with a message.
func rightsIn(oob []byte) (files []*os.File) {
	list, err := unix.ParseSocketControlMessage(oob)
	if err != nil {
		return nil
	}
	for i := range list {
		fds, err := unix.ParseUnixRights(&list[i])
		if err != nil {
			continue // of another kind
		}
		for _, fd := range fds {
			files = append(files, os.NewFile(uintptr(fd), "held"))
		}
	}
	return files
}
