package membership

import (
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/containerd/errdefs"
)

// reaching is how long a host has to reach itself by the address that others are told.
const reaching = 3 * time.Second

// reach looks whether what is sent to addr, which others are told, comes to this host at listen,
// where nobody listens yet: it may be translated on the way. It blocks for as long as reaching.
// Kinds: InvalidArgument when it ends elsewhere, or nowhere; Unavailable when nothing answers, which a network
// that does not bring a host's own packets back to it may be the cause of.
func reach(ctx context.Context, listen, addr string) error {
	ctx, cancel := context.WithTimeout(ctx, reaching)
	defer cancel()
	l, err := new(net.ListenConfig).Listen(ctx, "tcp", listen)
	if err != nil {
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf("failed to listen on remote API address: %s", err))
	}
	sign := rand.Text()
	answered := make(chan struct{})
	go func() {
		defer close(answered)
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			_, _ = io.WriteString(c, sign) // who does not get it says so
			_ = c.Close()
		}
	}()
	err = readSign(ctx, addr, sign)
	err = errors.Join(err, l.Close())
	<-answered
	return err
}

// readSign reads at an address what this host has written there.
func readSign(ctx context.Context, addr, sign string) error {
	leads := "advertise address " + addr + " does not lead to this host: %s: give one that does with --advertise-addr"
	c, err := new(net.Dialer).DialContext(ctx, "tcp", addr)
	var late net.Error
	switch {
	case err != nil && (ctx.Err() != nil || errors.As(err, &late) && late.Timeout()):
		return errdefs.ErrUnavailable.WithMessage(fmt.Sprintf(leads, fmt.Sprintf("nothing answers within %s", reaching)))
	case err != nil:
		if op := new(net.OpError); errors.As(err, &op) {
			err = op.Err // the address is named
		}
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(leads, err))
	}
	defer c.Close()
	if end, ok := ctx.Deadline(); ok {
		_ = c.SetDeadline(end) // of a connection that is there
	}
	got := make([]byte, len(sign))
	if _, err := io.ReadFull(c, got); err != nil || string(got) != sign {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(leads, "another host answers there"))
	}
	return nil
}
