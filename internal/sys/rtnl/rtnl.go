// Package rtnl sends several rtnetlink requests in one system call.
//
// It adds to github.com/vishvananda/netlink, which sends one request a time and
// needs several for what the kernel can do in one message. See rtnetlink(7).
package rtnl

import (
	"errors"
	"fmt"
	"os"
	"syscall"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// skipStats is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h.
const skipStats = 1 << 3

// Conn is a socket to the kernel's routing tables and links, of the network
// namespace of the thread that called Dial. Not for use by several goroutines
// at once.
type Conn struct {
	fd  int
	seq uint32
	buf []byte
}

// Dial opens a Conn in the network namespace of the calling thread.
func Dial() (*Conn, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, os.NewSyscallError("socket", err)
	}
	// Acknowledgements without a copy of the request keep the answers small.
	if err := unix.SetsockoptInt(fd, unix.SOL_NETLINK, unix.NETLINK_CAP_ACK, 1); err != nil {
		unix.Close(fd)
		return nil, os.NewSyscallError("setsockopt", err)
	}
	return &Conn{fd: fd, buf: make([]byte, 16<<10)}, nil
}

// Close closes the socket.
func (c *Conn) Close() error { return unix.Close(c.fd) }

// Error tells which request of a batch the kernel refused.
type Error struct {
	Index int // of the request in the batch
	Errno syscall.Errno
}

func (e *Error) Error() string { return fmt.Sprintf("request %d: %s", e.Index, e.Errno) }

// Unwrap gives the errno.
func (e *Error) Unwrap() error { return e.Errno }

// Do sends the requests in one message and waits for the kernel's answer to
// each. The kernel works through all of them, also after one has failed. The
// first failure is returned, as *Error.
func (c *Conn) Do(reqs ...*nl.NetlinkRequest) error {
	_, errs, err := c.exchange(reqs)
	return first(errs, err)
}

// DoAll is Do for requests that may fail one by one: errs has an entry, nil or
// *Error, for each; err is about the conversation itself.
func (c *Conn) DoAll(reqs ...*nl.NetlinkRequest) (errs []error, err error) {
	_, errs, err = c.exchange(reqs)
	return errs, err
}

func first(errs []error, err error) error {
	if err != nil {
		return err
	}
	for _, e := range errs {
		if e != nil {
			return e
		}
	}
	return nil
}

// Link is what is known of a link.
type Link struct {
	Index  int
	NoIPv6 bool // IPv6 is turned off on it, by net.ipv6.conf.NAME.disable_ipv6
}

// Index returns the index of the link called name; ENODEV when there is none.
func (c *Conn) Index(name string) (int, error) {
	l, err := c.Link(name)
	return l.Index, err
}

// Link returns the link called name; ENODEV when there is none.
func (c *Conn) Link(name string) (Link, error) {
	req := nl.NewNetlinkRequest(unix.RTM_GETLINK, 0)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	// Without statistics and per-family data the answer is a few hundred bytes.
	req.AddData(nl.NewRtAttr(unix.IFLA_EXT_MASK, nl.Uint32Attr(skipStats)))
	answers, errs, err := c.exchange([]*nl.NetlinkRequest{req})
	if err := first(errs, err); err != nil {
		return Link{}, err
	}
	for _, m := range answers {
		if m.Header.Type == unix.RTM_NEWLINK && len(m.Data) >= unix.SizeofIfInfomsg {
			return Link{int(nl.DeserializeIfInfomsg(m.Data).Index), noIPv6(m.Data[unix.SizeofIfInfomsg:])}, nil
		}
	}
	return Link{}, &Error{Errno: unix.ENODEV}
}

// Numbers of linux/if_link.h and linux/ipv6.h.
const (
	inet6Conf   = 2  // IFLA_INET6_CONF
	disableIPv6 = 26 // DEVCONF_DISABLE_IPV6
)

// noIPv6 reads in the attributes of a link whether it has no IPv6. False also when they do
// not tell.
func noIPv6(attrs []byte) bool {
	for _, typ := range []uint16{unix.IFLA_AF_SPEC, unix.AF_INET6, inet6Conf} {
		attrs = attribute(attrs, typ)
	}
	const at = disableIPv6 * 4 // numbers of 32 bits
	return len(attrs) >= at+4 && nl.NativeEndian().Uint32(attrs[at:]) != 0
}

// attribute is the value of the first attribute of a type, nil when there is none
// (netlink(7)).
func attribute(attrs []byte, typ uint16) []byte {
	for len(attrs) >= unix.SizeofRtAttr {
		size := int(nl.NativeEndian().Uint16(attrs))
		if size < unix.SizeofRtAttr || size > len(attrs) {
			return nil
		}
		if nl.NativeEndian().Uint16(attrs[2:])&^unix.NLA_F_NESTED == typ {
			return attrs[unix.SizeofRtAttr:size]
		}
		const align = unix.NLA_ALIGNTO
		attrs = attrs[min(len(attrs), (size+align-1)/align*align):]
	}
	return nil
}

// exchange sends requests and collects what the kernel says until each has its
// acknowledgement.
func (c *Conn) exchange(reqs []*nl.NetlinkRequest) (answers []syscall.NetlinkMessage, errs []error, err error) {
	if len(reqs) == 0 {
		return nil, nil, nil
	}
	begin := c.seq + 1
	var out []byte
	for _, r := range reqs {
		c.seq++
		r.Seq = c.seq
		r.Flags |= unix.NLM_F_REQUEST | unix.NLM_F_ACK
		out = append(out, r.Serialize()...)
	}
	if err := unix.Sendto(c.fd, out, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, nil, os.NewSyscallError("sendto", err)
	}
	errs = make([]error, len(reqs))
	for acks := 0; acks < len(reqs); {
		msgs, err := c.receive()
		if err != nil {
			return nil, nil, err
		}
		for _, m := range msgs {
			index := int(m.Header.Seq - begin)
			if index < 0 || index >= len(reqs) {
				continue // the answer to an earlier exchange that was given up
			}
			if m.Header.Type != unix.NLMSG_ERROR {
				answers = append(answers, m)
				continue
			}
			if len(m.Data) < 4 {
				return nil, nil, errors.New("short answer from the kernel")
			}
			acks++
			errno := int32(nl.NativeEndian().Uint32(m.Data))
			if errno != 0 {
				errs[index] = &Error{Index: index, Errno: syscall.Errno(-errno)}
			}
		}
	}
	return answers, errs, nil
}

func (c *Conn) receive() ([]syscall.NetlinkMessage, error) {
	for {
		n, _, err := unix.Recvfrom(c.fd, c.buf, 0)
		if errors.Is(err, unix.EINTR) {
			continue
		}
		if err != nil {
			return nil, os.NewSyscallError("recvfrom", err)
		}
		// ParseNetlinkMessage keeps slices of what it is given.
		return syscall.ParseNetlinkMessage(append([]byte(nil), c.buf[:n]...))
	}
}
