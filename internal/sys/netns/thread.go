package netns

import (
	"os"
	"runtime"
	"sync"

	"golang.org/x/sys/unix"
)

// thread is a thread of the process that has left the namespaces of the others.
type thread struct {
	calls chan func()
	quit  chan struct{}
	done  chan struct{}
	once  sync.Once
}

// start runs enter on a fresh thread and keeps that thread for Do.
func start(enter func() error) (*thread, error) {
	t := &thread{calls: make(chan func()), quit: make(chan struct{}), done: make(chan struct{})}
	started := make(chan error, 1)
	go t.run(enter, started)
	if err := <-started; err != nil {
		return nil, err
	}
	return t, nil
}

// run is the thread's life. It returns without unlocking the thread, so that the
// runtime ends the thread instead of using it again.
func (t *thread) run(enter func() error, started chan<- error) {
	runtime.LockOSThread()
	if unix.Gettid() == os.Getpid() {
		// The first thread cannot end, and /proc/self shows its namespaces: it
		// has to stay clean. It stays locked here until the goroutine that takes
		// over has a thread of its own.
		locked := make(chan struct{})
		go func() {
			runtime.LockOSThread()
			close(locked)
			t.serve(enter, started)
		}()
		<-locked
		runtime.UnlockOSThread()
		return
	}
	t.serve(enter, started)
}

// serve enters the namespace and works off the calls of Do.
func (t *thread) serve(enter func() error, started chan<- error) {
	defer close(t.done)
	err := enter()
	started <- err
	if err != nil {
		return
	}
	for {
		select {
		case fn := <-t.calls:
			fn()
		case <-t.quit:
			return
		}
	}
}

// Do runs fn on the thread in the namespace and returns its error. Sockets that
// fn opens stay in the namespace wherever they are used later. Goroutines that
// fn starts are not in the namespace. After Close the error is os.ErrClosed.
func (t *thread) Do(fn func() error) error {
	errs := make(chan error, 1)
	select {
	case t.calls <- func() { errs <- fn() }:
		return <-errs
	case <-t.done:
		return os.ErrClosed
	}
}

// end lets the thread go, and waits for it. Idempotent.
func (t *thread) end() {
	t.once.Do(func() {
		close(t.quit)
		<-t.done
	})
}
