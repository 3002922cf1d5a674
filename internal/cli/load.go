package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/tty"
)

type loadOptions struct {
	input, platform string
	quiet           bool
}

func loadCommand(a *app) *cobra.Command {
	var o loadOptions
	cmd := &cobra.Command{
		Use: "load [OPTIONS]",
		Example: `escale load -i debian.tar
zcat images.tar.gz | escale load`,
		Args:              noArgs,
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE:              func(cmd *cobra.Command, _ []string) error { return o.run(cmd.Context(), a) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.input, "input", "i", "", "Read from this file instead of STDIN")
	f.StringVar(&o.platform, "platform", "", "Load only this platform: OS[/ARCH[/VARIANT]]")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Print only what was loaded")
	return cmd
}

func (o *loadOptions) run(ctx context.Context, a *app) error {
	p, err := parsePlatform(o.platform)
	if err != nil {
		return fmt.Errorf("invalid platform: %w", err)
	}
	input := a.in
	var total int64
	if o.input == "" {
		if tty.IsTerminal(a.in) {
			return errors.New("requested load from stdin, but stdin is empty")
		}
	} else {
		f, size, err := openArchive(o.input, fmt.Sprintf("give a tar archive (for a file system tree use '%s import')", a.name))
		if err != nil {
			return err
		}
		defer f.Close()
		input, total = f, size
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	quiet := o.quiet || !tty.IsTerminal(a.out)
	opts := []moby.ImageLoadOption{moby.ImageLoadWithQuiet(quiet)}
	if p != nil {
		opts = append(opts, moby.ImageLoadWithPlatforms(*p))
	}
	m := newMeter(a, "Sending the archive", total)
	defer m.done()
	if !quiet {
		input = m.reader(input)
	}
	r, err := c.ImageLoad(ctx, input, opts...)
	m.done()
	if err != nil {
		return err
	}
	defer r.Close()
	return showLoaded(r, a.out)
}

// showLoaded prints the engine's answer: messages, or plain text where an
// older engine sends that.
func showLoaded(r io.Reader, out io.Writer) error {
	b := bufio.NewReader(r)
	first, err := b.Peek(1)
	switch {
	case errors.Is(err, io.EOF):
		return nil
	case err != nil:
		return err
	case first[0] == '{':
		return showMessages(b, out)
	}
	_, err = b.WriteTo(out)
	return err
}

// openArchive opens a file to send, and tells its size; of a directory it says
// what to do instead.
func openArchive(path, instead string) (*os.File, int64, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	if err == nil && info.IsDir() {
		err = fmt.Errorf("%s is a directory: %s", path, instead)
	}
	if err != nil {
		f.Close()
		return nil, 0, err
	}
	return f, info.Size(), nil
}
