package builder

import (
	"archive/tar"
	"bufio"
	"compress/gzip"
	"io"
	"sync"
)

// tarBlock is the size in bytes of a header in a tar archive.
const tarBlock = 512

// plainContext is a context as BuildKit's frontend recognizes it. The frontend
// takes for an archive only what shows the header of a first file within 1024
// bytes; in one that begins with an extended header, as Python writes them for
// times that are no whole seconds, it comes later, and the archive would be read
// as a Dockerfile. Such an archive is put into gzip's frame, not compressed.
type plainContext struct {
	src  io.ReadCloser
	once sync.Once
	r    io.Reader
	pipe *io.PipeReader // of the frame, if there is one
}

func newPlainContext(src io.ReadCloser) *plainContext { return &plainContext{src: src} }

// Read implements io.Reader. The first call waits for the archive's first header.
func (c *plainContext) Read(p []byte) (int, error) {
	c.once.Do(c.look)
	return c.r.Read(p)
}

// Close ends the reading and closes the source.
func (c *plainContext) Close() error {
	err := c.src.Close() // first: it ends a Read that waits
	c.once.Do(func() { c.r = eof{} })
	if c.pipe != nil {
		c.pipe.Close()
	}
	return err
}

type eof struct{}

func (eof) Read([]byte) (int, error) { return 0, io.EOF }

func (c *plainContext) look() {
	buf := bufio.NewReaderSize(c.src, 64<<10)
	c.r = buf
	// An error shows again when the rest is read.
	if head, _ := buf.Peek(tarBlock); !extended(head) {
		return
	}
	pr, pw := io.Pipe()
	c.r, c.pipe = pr, pr
	go func() {
		zw, err := gzip.NewWriterLevel(pw, gzip.NoCompression)
		if err == nil {
			_, err = io.Copy(zw, buf)
		}
		if err == nil {
			err = zw.Close()
		}
		pw.CloseWithError(err)
	}()
}

// extended tells whether a block is a tar header that says more of a file whose
// own header comes later.
func extended(block []byte) bool {
	if len(block) < tarBlock || string(block[257:262]) != "ustar" {
		return false
	}
	switch block[156] {
	case tar.TypeXHeader, tar.TypeXGlobalHeader, tar.TypeGNULongName, tar.TypeGNULongLink:
		return true
	}
	return false
}
