package main

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"
)

// busyboxTar is a root filesystem of the machine's static busybox.
func busyboxTar() (io.Reader, error) {
	bin, err := os.ReadFile("/bin/busybox")
	if err != nil {
		return nil, fmt.Errorf("give -image, or install busybox-static: %w", err)
	}
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	at := time.Unix(1700000000, 0)
	headers := []*tar.Header{
		{Typeflag: tar.TypeReg, Name: "bin/busybox", Mode: 0o755, Size: int64(len(bin)), ModTime: at},
	}
	for _, d := range []string{"dev/", "proc/", "sys/", "etc/", "tmp/"} {
		headers = append(headers, &tar.Header{Typeflag: tar.TypeDir, Name: d, Mode: 0o755, ModTime: at})
	}
	for _, l := range []string{"sh", "true", "sleep", "seq", "echo", "cat"} {
		headers = append(headers, &tar.Header{Typeflag: tar.TypeSymlink, Name: "bin/" + l, Linkname: "busybox", Mode: 0o777, ModTime: at})
	}
	for i, h := range headers {
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if i == 0 {
			if _, err := w.Write(bin); err != nil {
				return nil, err
			}
		}
	}
	return &buf, w.Close()
}

// images measures import, save and load of a big root filesystem.
func images(ctx context.Context, b *bench) error {
	file, size, err := b.bigTar()
	if err != nil {
		return err
	}
	mb := size >> 20
	imp := b.line(fmt.Sprintf("import of %d MB", mb), "ms", false)
	save := b.line(fmt.Sprintf("save of %d MB", mb), "ms", false)
	load := b.line(fmt.Sprintf("load of %d MB", mb), "ms", false)
	for i := range 3 {
		for j, e := range b.ends {
			name := fmt.Sprintf("%s:big%d", b.repo(), i)
			if err := b.imageRound(ctx, e, file, name, func(m int, d time.Duration) {
				r := []*measure{imp, save, load}[m]
				r.Samples[j] = append(r.Samples[j], ms(d))
			}); err != nil {
				return fmt.Errorf("at %s: %w", e.name, err)
			}
		}
	}
	for _, m := range []*measure{imp, save, load} {
		b.show(m)
	}
	return nil
}

// imageRound imports the file, saves the image, removes it, loads it, removes it.
func (b *bench) imageRound(ctx context.Context, e *end, file, name string, took func(int, time.Duration)) error {
	_, tag, _ := strings.Cut(name, ":")
	f, err := os.Open(file)
	if err != nil {
		return err
	}
	defer f.Close()
	begin := time.Now()
	if err := e.progress(ctx, "POST", "/images/create?fromSrc=-&repo="+b.repo()+"&tag="+tag, f); err != nil {
		return err
	}
	took(0, time.Since(begin))
	out, err := os.CreateTemp("", b.repo()+"-save-*.tar")
	if err != nil {
		return err
	}
	defer os.Remove(out.Name())
	defer out.Close()
	begin = time.Now()
	res, err := e.open(ctx, "GET", "/images/"+name+"/get", nil)
	if err != nil {
		return err
	}
	_, err = io.Copy(out, res.Body)
	res.Body.Close()
	if err != nil {
		return err
	}
	took(1, time.Since(begin))
	if err := e.call(ctx, "DELETE", "/images/"+name, nil, nil); err != nil {
		return err
	}
	if _, err := out.Seek(0, io.SeekStart); err != nil {
		return err
	}
	begin = time.Now()
	if err := e.progress(ctx, "POST", "/images/load?quiet=1", out); err != nil {
		return err
	}
	took(2, time.Since(begin))
	return e.call(ctx, "DELETE", "/images/"+name, nil, nil)
}

// errFull ends the walk when the tar is big enough.
var errFull = errors.New("big enough")

// bigTar is the file of -tar, or one made of this machine's /usr by whoever asks first.
func (b *bench) bigTar() (file string, size int64, err error) {
	if b.tarFile == "" {
		b.tarFile = b.tar
	}
	if b.tarFile != "" {
		st, err := os.Stat(b.tarFile)
		if err != nil {
			return "", 0, err
		}
		return b.tarFile, st.Size(), nil
	}
	f, err := os.CreateTemp("", b.repo()+"-*.tar")
	if err != nil {
		return "", 0, err
	}
	b.tarFile = f.Name()
	defer f.Close()
	w := tar.NewWriter(f)
	left := int64(b.size) << 20
	err = filepath.WalkDir("/usr", func(p string, d fs.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return nil
		}
		n, err := addFile(w, p, left)
		if left -= n; err == nil && left <= 0 {
			return errFull
		}
		return err
	})
	if err != nil && !errors.Is(err, errFull) {
		return "", 0, err
	}
	if err := w.Close(); err != nil {
		return "", 0, err
	}
	st, err := f.Stat()
	if err != nil {
		return "", 0, err
	}
	return f.Name(), st.Size(), nil
}

// addFile puts a file into the archive unless it is larger than what is left
// or cannot be read, and returns its size.
func addFile(w *tar.Writer, path string, left int64) (int64, error) {
	in, err := os.Open(path)
	if err != nil {
		return 0, nil
	}
	defer in.Close()
	st, err := in.Stat()
	if err != nil || st.Size() > left+(1<<20) {
		return 0, nil
	}
	h := &tar.Header{Typeflag: tar.TypeReg, Name: strings.TrimPrefix(path, "/"), Mode: int64(st.Mode().Perm()), Size: st.Size(), ModTime: st.ModTime()}
	if err := w.WriteHeader(h); err != nil {
		return 0, err
	}
	n, err := io.CopyN(w, in, st.Size())
	return n + 512, err
}
