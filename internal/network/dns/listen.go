package dns

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"escale.dev/escale/internal/sys/netns"
	"golang.org/x/sys/unix"
)

// backlog is how many connections wait while the engine is away.
const backlog = 128

// Listen makes the sockets of a container, UDP and TCP, in its namespace, and
// leads what is sent to port 53 there to them. The files are the caller's; a
// copy of them that somebody keeps open lets questions wait while the engine is
// not there. Sockets of before do not get questions any more. Blocks for less
// than a millisecond. On an error nothing is left.
func (r *Resolver) Listen(ns *netns.Handle) (files []*os.File, err error) {
	err = ns.Do(func() error {
		var ports [2]uint16
		for i, kind := range []int{unix.SOCK_DGRAM, unix.SOCK_STREAM} {
			f, port, err := listen(kind)
			if err != nil {
				return err
			}
			files, ports[i] = append(files, f), port
		}
		return redirect(ports[0], ports[1])
	})
	if err != nil {
		for _, f := range files {
			f.Close()
		}
		return nil, fmt.Errorf("name server at %s: %w", Address, err)
	}
	return files, nil
}

// listen binds a socket to a port of the kernel's choice, in the namespace of the
// calling thread.
func listen(kind int) (*os.File, uint16, error) {
	fd, err := unix.Socket(unix.AF_INET, kind|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, 0)
	if err != nil {
		return nil, 0, os.NewSyscallError("socket", err)
	}
	err = os.NewSyscallError("bind", unix.Bind(fd, &unix.SockaddrInet4{Addr: Address.As4()}))
	if err == nil && kind == unix.SOCK_STREAM {
		err = os.NewSyscallError("listen", unix.Listen(fd, backlog))
	}
	_, at, ok := socket(fd)
	if err == nil && !ok {
		err = errors.New("bound elsewhere")
	}
	if err != nil {
		unix.Close(fd)
		return nil, 0, err
	}
	return os.NewFile(uintptr(fd), "dns"), at.Port(), nil
}

// socket tells the type and the address of one of our sockets; ok is false for
// others.
func socket(fd int) (kind int, at netip.AddrPort, ok bool) {
	kind, err := unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TYPE)
	if err != nil || kind != unix.SOCK_DGRAM && kind != unix.SOCK_STREAM {
		return 0, at, false
	}
	sa, err := unix.Getsockname(fd)
	in, isv4 := sa.(*unix.SockaddrInet4)
	if err != nil || !isv4 {
		return 0, at, false
	}
	at = netip.AddrPortFrom(netip.AddrFrom4(in.Addr), uint16(in.Port))
	return kind, at, at.Addr() == Address && at.Port() != 0
}

// Held picks from the files that somebody kept open those which Listen made in the
// namespace; nil when they are not all there. The files stay the caller's. A port that is
// published at the same address of the host is in another namespace.
func Held(files []*os.File, ns *netns.Handle) []*os.File {
	var want, st unix.Stat_t
	if unix.Fstat(ns.Fd(), &want) != nil {
		return nil
	}
	var own []*os.File
	kinds := map[int]bool{}
	for _, f := range files {
		rc, err := f.SyscallConn()
		if err != nil {
			continue
		}
		_ = rc.Control(func(fd uintptr) { // of a file that was closed nothing is wanted
			kind, _, ok := socket(int(fd))
			if !ok || kinds[kind] {
				return
			}
			at, err := unix.IoctlRetInt(int(fd), unix.SIOCGSKNS)
			if err != nil {
				return
			}
			defer unix.Close(at)
			if unix.Fstat(at, &st) == nil && st.Dev == want.Dev && st.Ino == want.Ino {
				kinds[kind] = true
				own = append(own, f)
			}
		})
	}
	if len(own) != 2 {
		return nil
	}
	return own
}
