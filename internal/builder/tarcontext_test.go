package builder

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"io"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/moby/buildkit/util/archiveutil"
)

// archive is a tar of one file in a form: its time has a fraction, which only
// PAX can tell.
func archive(t testing.TB, format tar.Format) []byte {
	t.Helper()
	var b bytes.Buffer
	w := tar.NewWriter(&b)
	h := &tar.Header{Name: "Dockerfile", Mode: 0o644, Size: 12, Format: format, ModTime: time.Unix(1, 0)}
	switch format {
	case tar.FormatPAX:
		h.ModTime = time.Unix(1, 5e8)
	case tar.FormatGNU:
		h.Name = strings.Repeat("x", 200)
	}
	if err := errors.Join(w.WriteHeader(h), func() error { _, err := io.WriteString(w, "FROM scratch"); return err }(), w.Close()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

func TestPlainContext(t *testing.T) {
	var packed bytes.Buffer
	zw := gzip.NewWriter(&packed)
	zw.Write(archive(t, tar.FormatPAX))
	zw.Close()
	for name, c := range map[string]struct {
		in     []byte
		framed bool
	}{
		"plain":        {archive(t, tar.FormatUSTAR), false},
		"PAX":          {archive(t, tar.FormatPAX), true},
		"GNU name":     {archive(t, tar.FormatGNU), true},
		"packed":       {packed.Bytes(), false},
		"a Dockerfile": {[]byte("FROM scratch\n"), false},
		"nothing":      {nil, false},
	} {
		out, err := io.ReadAll(newPlainContext(io.NopCloser(bytes.NewReader(c.in))))
		if err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if len(c.in) > 100 && !archiveutil.IsArchive(out[:min(len(out), 1024)]) {
			t.Errorf("%s: the frontend does not see an archive", name)
		}
		if c.framed {
			zr, err := gzip.NewReader(bytes.NewReader(out))
			if err != nil {
				t.Errorf("%s: %v", name, err)
				continue
			}
			if out, err = io.ReadAll(zr); err != nil {
				t.Errorf("%s: %v", name, err)
			}
		}
		if !bytes.Equal(out, c.in) {
			t.Errorf("%s: %d bytes, want %d", name, len(out), len(c.in))
		}
	}
}

// A source that breaks off breaks the context off, and one that nobody reads to
// its end is let go.
func TestPlainContextBroken(t *testing.T) {
	broken := errors.New("broken")
	in := archive(t, tar.FormatPAX)
	c := newPlainContext(io.NopCloser(io.MultiReader(bytes.NewReader(in[:700]), errReader{broken})))
	if _, err := io.ReadAll(c); !errors.Is(err, broken) {
		t.Errorf("%v", err)
	}
	pr, pw := io.Pipe()
	written := make(chan error, 1)
	go func() {
		_, err := pw.Write(bytes.Repeat(in, 1000))
		written <- err
	}()
	c = newPlainContext(pr)
	if _, err := io.ReadFull(c, make([]byte, 100)); err != nil {
		t.Fatal(err)
	}
	c.Close()
	if err := <-written; !errors.Is(err, io.ErrClosedPipe) {
		t.Errorf("the writer ended with %v", err)
	}
	c = newPlainContext(io.NopCloser(strings.NewReader("x")))
	c.Close()
	if n, err := c.Read(make([]byte, 1)); n != 0 || err != io.EOF {
		t.Errorf("closed: %d %v", n, err)
	}
}

type errReader struct{ err error }

func (r errReader) Read([]byte) (int, error) { return 0, r.err }

// FuzzPlainContext: whatever comes, what goes on is the same, in a frame or not.
func FuzzPlainContext(f *testing.F) {
	for _, format := range []tar.Format{tar.FormatUSTAR, tar.FormatPAX, tar.FormatGNU} {
		f.Add(archive(f, format))
	}
	f.Add([]byte("FROM x"))
	f.Fuzz(func(t *testing.T, in []byte) {
		out, err := io.ReadAll(newPlainContext(io.NopCloser(bytes.NewReader(in))))
		if err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(in, out) {
			zr, err := gzip.NewReader(bytes.NewReader(out))
			if err != nil {
				t.Fatal(err)
			}
			if out, err = io.ReadAll(zr); err != nil || !slices.Equal(in, out) {
				t.Fatalf("%v", err)
			}
		}
	})
}
