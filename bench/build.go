package main

import (
	"archive/tar"
	"bytes"
	"context"
	"fmt"
	"maps"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"time"
)

// dockerfile has ten steps, FROM among them: five that run something, two that copy.
func dockerfile(image string) string {
	return "FROM " + image + `
ENV A=1
WORKDIR /app
COPY src /app/src
RUN cat /app/src/* >all
RUN for i in 1 2 3 4 5 6 7 8; do seq 1000 >$i; done
COPY last /app/last
RUN seq 100000 >many
RUN echo two >two
RUN cat last two >three
`
}

// buildFiles are the files of the build's context: a hundred of 10 kB, and two more.
func buildFiles(image string) map[string][]byte {
	files := map[string][]byte{"Dockerfile": []byte(dockerfile(image)), "last": []byte("last\n")}
	for i := range 100 {
		files[fmt.Sprintf("src/%03d", i)] = bytes.Repeat(fmt.Appendf(nil, "%09d\n", i), 1000)
	}
	return files
}

// buildContext is the context as POST /build takes it.
func buildContext(image string) ([]byte, error) {
	var buf bytes.Buffer
	w := tar.NewWriter(&buf)
	files := buildFiles(image)
	for _, name := range slices.Sorted(maps.Keys(files)) { // the same archive each time
		data := files[name]
		h := &tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(1700000000, 0)}
		if err := w.WriteHeader(h); err != nil {
			return nil, err
		}
		if _, err := w.Write(data); err != nil {
			return nil, err
		}
	}
	return buf.Bytes(), w.Close()
}

// buildWay is a way to ask for a build.
type buildWay struct {
	name  string
	build func(ctx context.Context, e *end, image string, cached bool) error
}

// builds measures a build of ten steps, without the cache and all from it: by the
// classic POST /build, and by BuildKit where the client has its plugin.
func builds(ctx context.Context, b *bench) error {
	archive, err := buildContext(b.image)
	if err != nil {
		return err
	}
	ways := []buildWay{{"classic, API", func(ctx context.Context, e *end, image string, cached bool) error {
		q := url.Values{"t": {image}, "rm": {"1"}, "forcerm": {"1"}}
		if !cached {
			q.Set("nocache", "1")
		}
		return e.progress(ctx, "POST", "/build?"+q.Encode(), bytes.NewReader(archive))
	}}}
	if b.cliPath != "" && exec.CommandContext(ctx, b.cliPath, "buildx", "version").Run() == nil {
		dir, err := os.MkdirTemp("", b.repo()+"-build-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(dir)
		if err := writeFiles(dir, buildFiles(b.image)); err != nil {
			return err
		}
		ways = append(ways, buildWay{"BuildKit, client", func(ctx context.Context, e *end, image string, cached bool) error {
			return e.cli(ctx, b.cliPath, "buildx", "build", "-q", "-t", image, fmt.Sprintf("--no-cache=%t", !cached), dir)
		}})
	}
	for _, w := range ways {
		if err := b.buildRounds(ctx, w); err != nil {
			return err
		}
	}
	return nil
}

// buildRounds builds turn about. Between two builds without the cache the image goes, so
// that neither end gathers what the other does not; for those all from the cache it stays.
func (b *bench) buildRounds(ctx context.Context, w buildWay) error {
	for _, cached := range []bool{false, true} {
		what, n := "cold", max(1, b.n/3)
		if cached {
			what, n = "all cached", b.n
		}
		m := b.line("build of 10 steps, "+what+", "+w.name, "ms", false)
		image := b.repo() + ":built"
		for i := -1; i < n; i++ {
			for j, e := range b.ends {
				begin := time.Now()
				if err := w.build(ctx, e, image, cached); err != nil {
					return fmt.Errorf("build at %s: %w", e.name, err)
				}
				if i >= 0 {
					m.Samples[j] = append(m.Samples[j], ms(time.Since(begin)))
				}
				if cached && i < n-1 {
					continue
				}
				if err := e.call(ctx, "DELETE", "/images/"+image, nil, nil); err != nil {
					return err
				}
			}
		}
		b.show(m)
	}
	return nil
}

// writeFiles writes files below dir, with the directories they need.
func writeFiles(dir string, files map[string][]byte) error {
	for name, data := range files {
		path := filepath.Join(dir, name)
		if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
			return err
		}
		if err := os.WriteFile(path, data, 0o644); err != nil {
			return err
		}
	}
	return nil
}
