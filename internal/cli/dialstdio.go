package cli

import (
	"context"
	"fmt"
	"io"

	"github.com/spf13/cobra"
)

// dialStdioCommand relays stdin and stdout to the engine: the far end of an
// ssh:// host.
func dialStdioCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:    "dial-stdio",
		Short:  "Join STDIN and STDOUT to the engine's socket (for ssh hosts)",
		Args:   noArgs,
		Hidden: true,
		RunE:   func(cmd *cobra.Command, _ []string) error { return dialStdio(cmd.Context(), a) },
	}
}

func dialStdio(ctx context.Context, a *app) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	conn, err := c.Dialer()(ctx)
	if err != nil {
		return fmt.Errorf("failed to open the raw stream connection: %w", err)
	}
	defer conn.Close()
	in, out := make(chan error, 1), make(chan error, 1)
	go func() {
		_, err := io.Copy(conn, a.in)
		if h, ok := conn.(interface{ CloseWrite() error }); ok && err == nil {
			err = h.CloseWrite()
		}
		in <- err
	}()
	go func() {
		_, err := io.Copy(a.out, conn)
		out <- err
	}()
	select {
	case err := <-in:
		if err != nil {
			return err
		}
		select {
		case err = <-out: // what the engine still has to say
			return err
		case <-ctx.Done():
			return ctx.Err()
		}
	case err := <-out:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}
