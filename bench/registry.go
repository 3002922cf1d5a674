package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httputil"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	registryRounds = 3
	manyPulls      = 50 // of one image at once
)

// registries measures a push and a pull of a big image by each engine, to each registry
// there is, on loopback, and many pulls of one image at once.
func registries(ctx context.Context, b *bench) error {
	dir, err := os.MkdirTemp("", b.repo()+"-registry-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	file, size, err := b.bigTar()
	if err != nil {
		return err
	}
	src, err := newSource(file, dir)
	if err != nil {
		return err
	}
	for _, p := range []registryProgram{escaleRegistry(b.registry), debianRegistry("docker-registry")} {
		if p.path, err = exec.LookPath(p.path); err != nil {
			fmt.Fprintf(os.Stderr, "bench: %s is left out: %v\n", p.name, err)
			continue
		}
		if err := b.withRegistry(ctx, p, src, size>>20, filepath.Join(dir, filepath.Base(p.path))); err != nil {
			return fmt.Errorf("%s: %w", p.name, err)
		}
	}
	return nil
}

// registryProgram is a registry that can be started.
type registryProgram struct {
	name, path string
	// args are the arguments of a registry at addr that keeps all it has in root.
	args func(addr, root string) ([]string, error)
}

func escaleRegistry(path string) registryProgram {
	return registryProgram{"Escale's registry", path, func(addr, root string) ([]string, error) {
		return []string{"registry", "serve", "--addr", addr, "--root", root, "--log-level", "error"}, nil
	}}
}

// debianRegistry is distribution, with the settings of Debian's package but its users.
func debianRegistry(path string) registryProgram {
	return registryProgram{"Debian's registry", path, func(addr, root string) ([]string, error) {
		file := filepath.Join(root, "config.yml")
		return []string{"serve", file}, os.WriteFile(file, fmt.Appendf(nil, `version: 0.1
log: {level: error, accesslog: {disabled: true}}
storage: {cache: {blobdescriptor: inmemory}, filesystem: {rootdirectory: %q}, delete: {enabled: true}}
http: {addr: %q}
`, root, addr), 0o600)
	}}
}

// start starts the registry and waits until it answers; stop ends it.
func (p registryProgram) start(ctx context.Context, root string) (addr string, stop func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	addr = l.Addr().String()
	l.Close()
	if err := os.MkdirAll(root, 0o700); err != nil {
		return "", nil, err
	}
	args, err := p.args(addr, root)
	if err != nil {
		return "", nil, err
	}
	cmd := exec.CommandContext(ctx, p.path, args...)
	var said bytes.Buffer // of interest only when it ends too early: Debian's logs every 404
	cmd.Stderr = &said
	cmd.Cancel = func() error { return cmd.Process.Signal(syscall.SIGTERM) }
	cmd.WaitDelay = 10 * time.Second
	if err := cmd.Start(); err != nil {
		return "", nil, err
	}
	ended := make(chan error, 1)
	go func() { ended <- cmd.Wait() }()
	stop = func() error {
		_ = cmd.Process.Signal(syscall.SIGTERM) // one that has ended does not mind
		select {
		case <-ended:
		case <-time.After(10 * time.Second):
			_ = cmd.Process.Kill()
			<-ended
		}
		return os.RemoveAll(root)
	}
	for range 500 {
		select {
		case err := <-ended:
			ended <- err
			return "", nil, errors.Join(fmt.Errorf("ended before it answered: %v: %s", err, said.String()), stop())
		case <-time.After(20 * time.Millisecond):
		}
		if res, err := http.Get("http://" + addr + "/v2/"); err == nil {
			res.Body.Close()
			if res.StatusCode == http.StatusOK {
				return addr, stop, nil
			}
		}
	}
	return "", nil, errors.Join(fmt.Errorf("no answer at %s", addr), stop())
}

// withRegistry starts a registry, measures, and ends it.
func (b *bench) withRegistry(ctx context.Context, p registryProgram, src *source, mb int64, root string) (err error) {
	addr, stop, err := p.start(ctx, root)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, stop()) }()
	push := b.line(fmt.Sprintf("push of %d MB, %s", mb, p.name), "ms", false)
	pull := b.line(fmt.Sprintf("pull of %d MB, %s", mb, p.name), "ms", false)
	for range registryRounds {
		for j, e := range b.ends {
			d, err := b.pushOnce(ctx, e, src, addr)
			if err != nil {
				return fmt.Errorf("push by %s: %w", e.name, err)
			}
			push.Samples[j] = append(push.Samples[j], ms(d))
			if d, err = b.pullNew(ctx, e, src, addr, addr, 1); err != nil {
				return fmt.Errorf("pull by %s: %w", e.name, err)
			}
			pull.Samples[j] = append(pull.Samples[j], ms(d))
		}
	}
	b.show(push)
	b.show(pull)
	return b.pullTogether(ctx, src, addr, fmt.Sprintf("%d pulls at once of %d MB, %s", manyPulls, mb, p.name))
}

// pullTogether measures many pulls of one image at once, and counts the blobs that the
// registry had to give: with one fetch for all there are as many as the image has.
func (b *bench) pullTogether(ctx context.Context, src *source, addr, name string) error {
	var fetched atomic.Int64
	proxy, stop, err := countBlobs(addr, &fetched)
	if err != nil {
		return err
	}
	defer stop()
	took := b.line(name, "ms", false)
	blobs := b.line(name+", fetched", "blobs", false)
	for range registryRounds {
		for j, e := range b.ends {
			fetched.Store(0)
			d, err := b.pullNew(ctx, e, src, addr, proxy, manyPulls)
			if err != nil {
				return fmt.Errorf("%d pulls by %s: %w", manyPulls, e.name, err)
			}
			took.Samples[j] = append(took.Samples[j], ms(d))
			blobs.Samples[j] = append(blobs.Samples[j], float64(fetched.Load()))
		}
	}
	b.show(took)
	b.show(blobs)
	return nil
}

// countBlobs serves what the registry at addr has, and counts the blobs asked of it.
func countBlobs(addr string, n *atomic.Int64) (proxy string, stop func() error, err error) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		return "", nil, err
	}
	pass := httputil.NewSingleHostReverseProxy(&url.URL{Scheme: "http", Host: addr})
	srv := &http.Server{ReadHeaderTimeout: time.Minute, Handler: http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
		if r.Method == http.MethodGet && strings.Contains(r.URL.Path, "/blobs/") {
			n.Add(1)
		}
		pass.ServeHTTP(w, r)
	})}
	go func() { _ = srv.Serve(l) }() // until Close
	return l.Addr().String(), srv.Close, nil
}

// pushOnce gives the end an image that it never had, and measures its push. Both are
// removed; the registry's goes with the registry.
func (b *bench) pushOnce(ctx context.Context, e *end, src *source, addr string) (time.Duration, error) {
	f, err := os.Open(src.tar)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	repo := addr + "/" + b.repo()
	tag := src.next()
	q := url.Values{"fromSrc": {"-"}, "repo": {repo}, "tag": {tag}}
	if err := e.progress(ctx, "POST", "/images/create?"+q.Encode(), io.MultiReader(src.mark(tag), f)); err != nil {
		return 0, err
	}
	begin := time.Now()
	err = e.push(ctx, repo, tag)
	took := time.Since(begin)
	return took, errors.Join(err, e.call(context.WithoutCancel(ctx), "DELETE", "/images/"+repo+":"+tag, nil, nil))
}

// pullNew puts a new image into the registry at addr and measures n pulls of it at
// once from the address from. The end has nothing of it before, nor afterwards.
func (b *bench) pullNew(ctx context.Context, e *end, src *source, addr, from string, n int) (time.Duration, error) {
	tag := src.next()
	if err := src.put(ctx, addr, b.repo(), tag); err != nil {
		return 0, err
	}
	image := from + "/" + b.repo()
	q := url.Values{"fromImage": {image}, "tag": {tag}}
	begin := time.Now()
	err := parallel(n, n, func(int) error { return e.progress(ctx, "POST", "/images/create?"+q.Encode(), nil) })
	took := time.Since(begin)
	if err != nil {
		return 0, err
	}
	return took, e.call(context.WithoutCancel(ctx), "DELETE", "/images/"+image+":"+tag, nil, nil)
}
