package harness

import (
	"os"
	"runtime"

	"golang.org/x/sys/unix"
)

// Within does something in the network namespace that a file stands for (/run/netns/NAME,
// /proc/PID/ns/net), on a thread of its own, and blocks until it is done. What do begins on other
// goroutines is elsewhere.
func Within(path string, do func() error) error {
	done := make(chan error, 1)
	go func() {
		runtime.LockOSThread() // and not unlocked: the thread ends with the goroutine
		ns, err := os.Open(path)
		if err == nil {
			err = unix.Setns(int(ns.Fd()), unix.CLONE_NEWNET)
			_ = ns.Close() // it was only read
		}
		if err == nil {
			err = do()
		}
		done <- err
	}()
	return <-done
}
