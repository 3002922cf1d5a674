package layer

import (
	"bufio"
	"bytes"
	"compress/bzip2"
	"context"
	"fmt"
	"io"
	"os/exec"

	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
)

// Compression is how a stream is packed.
type Compression string

// The compressions that are known. Xz needs the program xz.
const (
	None  Compression = ""
	Gzip  Compression = "gzip"
	Zstd  Compression = "zstd"
	Bzip2 Compression = "bzip2"
	Xz    Compression = "xz"
)

// maxWindow bounds the memory of a zstd stream, as the zstd program does.
const maxWindow = 128 << 20

// peekSize is how much Detect needs.
const peekSize = 16

var magics = []struct {
	c     Compression
	magic []byte
}{
	{Gzip, []byte{0x1f, 0x8b, 0x08}},
	{Zstd, []byte{0x28, 0xb5, 0x2f, 0xfd}},
	{Bzip2, []byte("BZh")},
	{Xz, []byte{0xfd, '7', 'z', 'X', 'Z', 0}},
}

// Detect tells the compression from the first bytes of a stream.
func Detect(head []byte) Compression {
	for _, m := range magics {
		if bytes.HasPrefix(head, m.magic) {
			return m.c
		}
	}
	if len(head) >= 4 && head[0]&0xf0 == 0x50 && bytes.Equal(head[1:4], []byte{0x2a, 0x4d, 0x18}) {
		return Zstd // a skippable frame (RFC 8878, 3.1.2) goes first
	}
	return None
}

// Decompress gives the plain bytes of r. Closing it frees what the
// decompression holds, not r. At most limit bytes come out, then an error of
// kind ResourceExhausted.
func Decompress(ctx context.Context, r io.Reader, limit int64) (io.ReadCloser, Compression, error) {
	br := bufio.NewReaderSize(r, 64<<10)
	head, err := br.Peek(peekSize)
	if err != nil && err != io.EOF {
		return nil, None, err
	}
	c := Detect(head)
	switch c {
	case Gzip:
		z, err := gzip.NewReader(br)
		if err != nil {
			return nil, c, err
		}
		return &plain{Reader: z, left: limit, limit: limit, close: z.Close}, c, nil
	case Zstd:
		z, err := zstd.NewReader(br, zstd.WithDecoderMaxWindow(maxWindow), zstd.WithDecoderConcurrency(2))
		if err != nil {
			return nil, c, err
		}
		return &plain{Reader: z, left: limit, limit: limit, close: func() error { z.Close(); return nil }}, c, nil
	case Bzip2:
		return &plain{Reader: bzip2.NewReader(br), left: limit, limit: limit}, c, nil
	case Xz:
		return unxz(ctx, br, limit)
	}
	return &plain{Reader: br, left: limit, limit: limit}, None, nil
}

// plain is a decompressed stream with a bound.
type plain struct {
	io.Reader
	left, limit int64
	close       func() error
}

func (p *plain) Read(b []byte) (int, error) {
	n, err := p.Reader.Read(b)
	if p.left -= int64(n); p.left < 0 {
		return 0, errTooBig(p.limit)
	}
	return n, err
}

func (p *plain) Close() error {
	if p.close == nil {
		return nil
	}
	return p.close()
}

// unxz runs xz, for which there is no decoder here.
func unxz(ctx context.Context, r io.Reader, limit int64) (io.ReadCloser, Compression, error) {
	ctx, cancel := context.WithCancel(ctx)
	cmd := exec.CommandContext(ctx, "xz", "-d", "-c", "-q")
	pr, pw := io.Pipe()
	var stderr bytes.Buffer
	cmd.Stdin, cmd.Stdout, cmd.Stderr = r, pw, &stderr
	if err := cmd.Start(); err != nil {
		cancel()
		return nil, Xz, fmt.Errorf("xz: %w", err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		err := cmd.Wait()
		if err != nil && stderr.Len() > 0 {
			err = fmt.Errorf("xz: %s", bytes.TrimSpace(stderr.Bytes()))
		}
		pw.CloseWithError(err) // nil: EOF
	}()
	stop := func() error {
		pr.Close()
		cancel()
		<-done // what copies r to it ends with r's next bytes, or with r
		return nil
	}
	return &plain{Reader: pr, left: limit, limit: limit, close: stop}, Xz, nil
}
