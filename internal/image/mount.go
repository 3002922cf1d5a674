package image

import (
	"fmt"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"sync"

	"github.com/containerd/containerd/v2/core/mount"
	"golang.org/x/sys/unix"
)

// mounter mounts from a thread of its own, whose working directory is that of
// the snapshots: mount(2) takes a page of options, and 127 layers only fit in it
// with short relative names. Such names also cannot hold a comma or a colon of
// the data root, which would end an option.
type mounter struct {
	start, end sync.Once
	jobs       chan mountJob
	quit       chan struct{}
}

func newMounter() *mounter {
	return &mounter{jobs: make(chan mountJob), quit: make(chan struct{})}
}

type mountJob struct {
	dir    string
	m      mount.Mount
	target string
	done   chan error
}

// mount mounts m, whose directories lie below dir, on target.
func (t *mounter) mount(dir string, m mount.Mount, target string) error {
	t.start.Do(func() { go t.run() })
	job := mountJob{dir, m, target, make(chan error, 1)}
	select {
	case t.jobs <- job:
		return <-job.done
	case <-t.quit:
		return os.ErrClosed
	}
}

// run serves jobs until stop. The thread is never given back: the working
// directory is its own, and ends with it.
func (t *mounter) run() {
	runtime.LockOSThread()
	private := unix.Unshare(unix.CLONE_FS)
	for {
		select {
		case job := <-t.jobs:
			if private != nil {
				job.done <- fmt.Errorf("unshare: %w", private)
				continue
			}
			job.done <- mountFrom(job.dir, job.m, job.target)
		case <-t.quit:
			return
		}
	}
}

// stop ends the thread.
func (t *mounter) stop() { t.end.Do(func() { close(t.quit) }) }

// mountFrom mounts with dir as the working directory of the calling thread.
func mountFrom(dir string, m mount.Mount, target string) error {
	if err := unix.Chdir(dir); err != nil {
		return &os.PathError{Op: "chdir", Path: dir, Err: err}
	}
	source := strings.TrimPrefix(m.Source, dir+"/")
	if m.Type == "bind" {
		if err := unix.Mount(source, target, "", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return &os.PathError{Op: "bind mount", Path: target, Err: err}
		}
		return nil
	}
	data := strings.Join(relative(m.Options, dir), ",")
	if len(data) >= os.Getpagesize() {
		return fmt.Errorf("mount %s: the options are longer than a page: %w", target, unix.E2BIG)
	}
	if err := unix.Mount(m.Source, target, m.Type, 0, data); err != nil {
		return &os.PathError{Op: m.Type + " mount", Path: target, Err: err}
	}
	return nil
}

// relative shortens the paths in options to names below dir, or beside it.
func relative(options []string, dir string) []string {
	out := make([]string, 0, len(options))
	for _, o := range options {
		name, value, _ := strings.Cut(o, "=")
		switch name {
		case "upperdir", "workdir":
			o = name + "=" + strings.TrimPrefix(value, dir+"/")
		case "lowerdir":
			value = strings.TrimPrefix(strings.ReplaceAll(value, ":"+dir+"/", ":"), dir+"/")
			o = name + "=" + strings.ReplaceAll(value, ":"+filepath.Dir(dir)+"/", ":../") // the init layer lies beside
		}
		out = append(out, o)
	}
	return out
}
