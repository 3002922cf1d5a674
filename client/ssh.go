package client

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/url"
	"os"
	"os/exec"
	"strings"
	"sync"
	"syscall"
	"time"
)

// remoteCommand runs on the other side: Escale's own relay where Escale is
// installed, Docker's where it is not.
const remoteCommand = `sh -c 'if command -v escale >/dev/null 2>&1; then exec escale %[1]ssystem dial-stdio; else exec docker %[1]ssystem dial-stdio; fi'`

// sshArgs makes the arguments of ssh from ssh://[user@]host[:port][/socket].
func sshArgs(host string) ([]string, error) {
	u, err := url.Parse(host)
	if err != nil {
		return nil, fmt.Errorf("ssh host connection is not valid: %w", err)
	}
	bad := func(why string) ([]string, error) {
		return nil, fmt.Errorf("ssh host connection is not valid: %q: %s", host, why)
	}
	_, password := u.User.Password()
	switch {
	case u.Hostname() == "":
		return bad("hostname is empty")
	case password:
		return bad("plain-text password is not supported")
	case u.RawQuery != "":
		return bad("query parameters are not allowed")
	case u.Fragment != "":
		return bad("fragments are not allowed")
	case strings.ContainsAny(u.Path, "'\\"):
		return bad("the socket's path has a character that cannot be quoted")
	}
	args := []string{"-o", "ConnectTimeout=30", "-T"}
	if n := u.User.Username(); n != "" {
		args = append(args, "-l", n)
	}
	if p := u.Port(); p != "" {
		args = append(args, "-p", p)
	}
	socket := ""
	if u.Path != "" && u.Path != "/" {
		socket = `-H "unix://` + u.Path + `" `
	}
	return append(args, "--", u.Hostname(), fmt.Sprintf(remoteCommand, socket)), nil
}

// sshDialer returns a dialer that runs one ssh a connection.
func sshDialer(host string) (func(context.Context, string, string) (net.Conn, error), error) {
	args, err := sshArgs(host)
	if err != nil {
		return nil, err
	}
	return func(context.Context, string, string) (net.Conn, error) {
		return dialCommand("ssh", args...)
	}, nil
}

// dialCommand runs a command whose stdin and stdout are one end of a socket
// pair and returns the other end. Closing the connection ends the command.
func dialCommand(name string, args ...string) (net.Conn, error) {
	fds, err := syscall.Socketpair(syscall.AF_UNIX, syscall.SOCK_STREAM|syscall.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil, fmt.Errorf("socketpair: %w", err)
	}
	ours, theirs := os.NewFile(uintptr(fds[0]), "ours"), os.NewFile(uintptr(fds[1]), "theirs")
	defer ours.Close()
	defer theirs.Close()
	conn, err := net.FileConn(ours)
	if err != nil {
		return nil, err
	}
	c := &commandConn{UnixConn: conn.(*net.UnixConn), name: name, done: make(chan struct{})}
	c.cmd = exec.Command(name, args...)
	c.cmd.Stdin, c.cmd.Stdout, c.cmd.Stderr = theirs, theirs, &c.stderr
	// Ctrl-C at the terminal is for the container, not for the transport.
	c.cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true, Pdeathsig: syscall.SIGTERM}
	if err := c.cmd.Start(); err != nil {
		conn.Close()
		return nil, err
	}
	go func() {
		c.exit = c.cmd.Wait()
		close(c.done)
	}()
	return c, nil
}

// commandConn is the near end of a running command.
type commandConn struct {
	*net.UnixConn
	name   string
	cmd    *exec.Cmd
	stderr lockedBuffer
	exit   error
	done   chan struct{} // closed once exit is set
	once   sync.Once
}

// Read turns the end of a failed command into what it said.
func (c *commandConn) Read(p []byte) (int, error) {
	n, err := c.UnixConn.Read(p)
	if n == 0 && (errors.Is(err, io.EOF) || errors.Is(err, syscall.ECONNRESET)) {
		return 0, c.ended(err)
	}
	return n, err
}

// Write does the same for a command that is already gone.
func (c *commandConn) Write(p []byte) (int, error) {
	n, err := c.UnixConn.Write(p)
	if errors.Is(err, syscall.EPIPE) {
		return n, c.ended(err)
	}
	return n, err
}

func (c *commandConn) ended(err error) error {
	select {
	case <-c.done:
		if c.exit != nil {
			return fmt.Errorf("%s: %w: %s", c.name, c.exit, strings.TrimSpace(c.stderr.String()))
		}
	case <-time.After(time.Second):
	}
	return err
}

// Close ends the command and waits for it.
func (c *commandConn) Close() error {
	err := c.UnixConn.Close()
	c.once.Do(func() {
		select {
		case <-c.done:
			return
		case <-time.After(100 * time.Millisecond):
		}
		_ = c.cmd.Process.Signal(syscall.SIGTERM)
		select {
		case <-c.done:
		case <-time.After(3 * time.Second):
			_ = c.cmd.Process.Kill()
			<-c.done
		}
	})
	return err
}

// lockedBuffer keeps the first 4 KB written to it.
type lockedBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (l *lockedBuffer) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if room := 4096 - l.b.Len(); room > 0 {
		l.b.Write(p[:min(room, len(p))])
	}
	return len(p), nil
}

func (l *lockedBuffer) String() string {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.b.String()
}
