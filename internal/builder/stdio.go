package builder

import (
	"encoding/binary"
	"errors"
	"fmt"
	"io"

	"escale.dev/escale/internal/runtime"
	bkexec "github.com/moby/buildkit/executor"
)

// carry copies between a process' stream and what BuildKit reads and writes. It
// returns when the output has ended.
func carry(stream runtime.Stream, p bkexec.ProcessInfo, terminal bool) error {
	if p.Stdin != nil {
		go func() {
			_, _ = io.Copy(stream, p.Stdin) // ends with the stream
			_ = stream.CloseWrite()
		}()
	}
	stdout, stderr := writer(p.Stdout), writer(p.Stderr)
	var err error
	if terminal {
		_, err = io.Copy(stdout, stream)
	} else {
		err = split(stream, stdout, stderr)
	}
	if p.Stdin != nil {
		p.Stdin.Close()
	}
	return err
}

func writer(w io.WriteCloser) io.Writer {
	if w == nil {
		return io.Discard
	}
	return w
}

// split takes the monitor's frames apart: eight bytes of header, of which the
// first is the stream and the last four the length, big-endian.
func split(r io.Reader, stdout, stderr io.Writer) error {
	var header [8]byte
	for {
		if _, err := io.ReadFull(r, header[:]); err != nil {
			if errors.Is(err, io.EOF) {
				return nil
			}
			return fmt.Errorf("output of a build step: %w", err)
		}
		to := stdout
		switch header[0] {
		case 1:
		case 2:
			to = stderr
		default:
			return fmt.Errorf("output of a build step: stream %d", header[0])
		}
		if _, err := io.CopyN(to, r, int64(binary.BigEndian.Uint32(header[4:]))); err != nil {
			return fmt.Errorf("output of a build step: %w", err)
		}
	}
}
