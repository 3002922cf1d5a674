package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/tty"
)

type saveOptions struct{ output, platform string }

func saveCommand(a *app) *cobra.Command {
	var o saveOptions
	cmd := &cobra.Command{
		Use: "save [OPTIONS] IMAGE [IMAGE...]",
		Example: `escale save -o debian.tar debian
escale save nginx redis | gzip > images.tar.gz`,
		Args:              minArgs(1),
		ValidArgsFunction: completeImages(a, -1),
		RunE:              func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	f := cmd.Flags()
	f.StringVarP(&o.output, "output", "o", "", "Write to this file instead of STDOUT")
	f.StringVar(&o.platform, "platform", "", "Save only this platform: OS[/ARCH[/VARIANT]]")
	return cmd
}

func (o *saveOptions) run(ctx context.Context, a *app, images []string) error {
	p, err := parsePlatform(o.platform)
	if err != nil {
		return fmt.Errorf("invalid platform: %w", err)
	}
	var opts []moby.ImageSaveOption
	if p != nil {
		opts = append(opts, moby.ImageSaveWithPlatforms(*p))
	}
	if o.output == "" && tty.IsTerminal(a.out) {
		return errors.New("cowardly refusing to save to a terminal. Use the -o flag or redirect")
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if o.output == "" {
		r, err := c.ImageSave(ctx, images, opts...)
		if err != nil {
			return err
		}
		defer r.Close()
		_, err = io.Copy(a.out, r)
		return err
	}
	return writeWhole("save image", o.output, func(w io.Writer) error {
		r, err := c.ImageSave(ctx, images, opts...)
		if err != nil {
			return err
		}
		defer r.Close()
		m := newMeter(a, "Saving", 0)
		defer m.done()
		_, err = io.Copy(w, m.reader(r))
		return err
	})
}

// writeWhole lets write fill a new file beside path and moves it there once it
// is complete, so that a failure leaves what was there before. What is no
// regular file (a pipe, /dev/null) is written as it is. what names the
// deed in errors.
func writeWhole(what, path string, write func(io.Writer) error) (err error) {
	if info, err := os.Stat(path); err == nil && !info.Mode().IsRegular() {
		if info.IsDir() {
			return fmt.Errorf("failed to %s: %s is a directory", what, path)
		}
		f, err := os.OpenFile(path, os.O_WRONLY, 0)
		if err != nil {
			return err
		}
		return errors.Join(write(f), f.Close())
	}
	f, err := os.CreateTemp(filepath.Dir(path), "."+filepath.Base(path)+".*")
	if err != nil {
		var at *fs.PathError
		if errors.As(err, &at) {
			at.Path = path // not the name of the file beside it
		}
		return fmt.Errorf("failed to %s: %w", what, err)
	}
	defer func() {
		if err != nil {
			err = errors.Join(err, os.Remove(f.Name()))
		}
	}()
	if err := write(f); err != nil {
		return errors.Join(err, f.Close())
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}
