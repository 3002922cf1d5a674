package image

import (
	"bufio"
	"context"
	"fmt"
	"io"
	"os"
	"testing"

	"golang.org/x/sys/unix"
)

// benchTree names the tar to measure with, which ESCALE_BENCH_TAR gives; some
// 300 MB of a distribution is what the figures in docs/performance.md are of.
func benchTree(b *testing.B) string {
	b.Helper()
	if os.Geteuid() != 0 {
		b.Skip("needs root: unpacks layers with their owners")
	}
	name := os.Getenv("ESCALE_BENCH_TAR")
	if name == "" {
		b.Skip("needs ESCALE_BENCH_TAR: the tar of a root file system")
	}
	return name
}

func benchStore(b *testing.B) *Store {
	b.Helper()
	s, err := Open(context.Background(), Config{Root: b.TempDir()})
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(func() { s.Close() })
	return s
}

func importFile(b *testing.B, s *Store, name, ref string) Image {
	b.Helper()
	f, err := os.Open(name)
	if err != nil {
		b.Fatal(err)
	}
	defer f.Close()
	img, err := s.Import(context.Background(), f, ImportOptions{Ref: ref, Message: "x"})
	if err != nil {
		b.Fatal(err)
	}
	return img
}

func BenchmarkImport(b *testing.B) {
	name := benchTree(b)
	st, err := os.Stat(name)
	if err != nil {
		b.Fatal(err)
	}
	b.SetBytes(st.Size())
	for i := range b.N {
		b.StopTimer()
		s := benchStore(b)
		unix.Sync() // what others wrote is not ours to wait for
		b.StartTimer()
		importFile(b, s, name, fmt.Sprintf("bench:%d", i))
		b.StopTimer()
		s.Close()
		os.RemoveAll(s.cfg.Root)
	}
}

func BenchmarkSave(b *testing.B) {
	s := benchStore(b)
	img := importFile(b, s, benchTree(b), "bench:1")
	b.SetBytes(img.Size)
	b.ResetTimer()
	for range b.N {
		if err := s.Save(context.Background(), io.Discard, []string{"bench:1"}, ""); err != nil {
			b.Fatal(err)
		}
	}
}

func BenchmarkLoad(b *testing.B) {
	s := benchStore(b)
	img := importFile(b, s, benchTree(b), "bench:1")
	name := b.TempDir() + "/saved.tar"
	f, err := os.Create(name)
	if err != nil {
		b.Fatal(err)
	}
	if err := s.Save(context.Background(), f, []string{"bench:1"}, ""); err != nil {
		b.Fatal(err)
	}
	f.Close()
	b.SetBytes(img.Size)
	b.ResetTimer()
	for range b.N {
		b.StopTimer()
		to := benchStore(b)
		f, err := os.Open(name)
		if err != nil {
			b.Fatal(err)
		}
		unix.Sync()
		b.StartTimer()
		if err := to.Load(context.Background(), bufio.NewReader(f), LoadOptions{}); err != nil {
			b.Fatal(err)
		}
		b.StopTimer()
		f.Close()
		to.Close()
		os.RemoveAll(to.cfg.Root)
	}
}

// BenchmarkPrepare makes and removes a container's root file system.
func BenchmarkPrepare(b *testing.B) {
	s := benchStore(b)
	img := importFile(b, s, benchTree(b), "bench:1")
	b.ResetTimer()
	for i := range b.N {
		id := fmt.Sprintf("c%d", i)
		if err := s.Roots().Prepare(context.Background(), id, img.ID); err != nil {
			b.Fatal(err)
		}
		if err := s.Roots().Remove(context.Background(), id); err != nil {
			b.Fatal(err)
		}
	}
}
