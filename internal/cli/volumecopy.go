package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
	"strings"

	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/tty"
)

const noPauseHelp = "Do not pause the containers that have the volume"

func volumeBackupCommand(a *app) *cobra.Command {
	var o client.VolumeBackupOptions
	cmd := &cobra.Command{
		Use:   "backup [OPTIONS] VOLUME [FILE|-]",
		Short: "Write all of a volume into a tar archive",
		Long: `Write all of a volume into a tar archive: owners, modes, times, extended attributes, hard links,
devices and the holes of files. FILE is compressed by its name: .gz or .tgz, .zst or .tzst. Running
containers that have the volume are paused meanwhile.`,
		Example: `escale volume backup data data.tar.zst
escale volume backup data | ssh other escale volume restore data -`,
		Args:              rangeArgs(1, 2),
		ValidArgsFunction: completeVolumes(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			file := "-"
			if len(args) == 2 {
				file = args[1]
			}
			return volumeBackup(cmd.Context(), a, args[0], file, o)
		},
	}
	f := cmd.Flags()
	f.StringVar(&o.Compression, "compress", "", "Compress: none, gzip, zstd (default by the name of the file)")
	f.BoolVar(&o.NoPause, "no-pause", false, noPauseHelp)
	return cmd
}

// compressionOf is what the name of an archive asks for.
func compressionOf(file string) string {
	for how, endings := range map[string][]string{"gzip": {".gz", ".tgz"}, "zstd": {".zst", ".tzst"}} {
		if slices.ContainsFunc(endings, func(end string) bool { return strings.HasSuffix(file, end) }) {
			return how
		}
	}
	return "none"
}

func volumeBackup(ctx context.Context, a *app, volume, file string, o client.VolumeBackupOptions) error {
	if file == "-" && tty.IsTerminal(a.out) {
		return errors.New("cowardly refusing to write an archive to a terminal: name a file, or redirect")
	}
	if o.Compression == "" {
		o.Compression = compressionOf(file)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	copyTo := func(w io.Writer) error {
		b, err := c.VolumeBackup(ctx, volume, o)
		if err != nil {
			return err
		}
		defer b.Close()
		total := b.Size
		if o.Compression != "none" {
			total = 0 // what comes is smaller, nobody knows how much
		}
		m := newMeter(a, "Backing up "+volume, total)
		defer m.done()
		_, err = io.Copy(w, m.reader(b))
		return err
	}
	if file == "-" {
		return copyTo(a.out)
	}
	return writeWhole("back up volume", file, copyTo)
}

func volumeRestoreCommand(a *app) *cobra.Command {
	var o client.VolumeRestoreOptions
	cmd := &cobra.Command{
		Use:   "restore [OPTIONS] VOLUME FILE|-",
		Short: "Put the content of an archive into a volume",
		Long: `Put the content of a tar archive, compressed or not, into a volume, which is made if it is not there. The
volume gets all of the archive, or stays as it was. What it had is replaced with --force only.`,
		Example: `escale volume restore data data.tar.zst
escale volume restore --force data - <data.tar`,
		Args:              exactArgs(2),
		ValidArgsFunction: completeVolumes(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			return volumeRestore(cmd.Context(), a, args[0], args[1], o)
		},
	}
	replaceFlags(cmd, &o)
	return cmd
}

func replaceFlags(cmd *cobra.Command, o *client.VolumeRestoreOptions) {
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "Replace what the volume has")
	cmd.Flags().BoolVar(&o.NoPause, "no-pause", false, noPauseHelp)
}

func volumeRestore(ctx context.Context, a *app, volume, file string, o client.VolumeRestoreOptions) error {
	in, total, err := openInput(a, file, "an archive")
	if err != nil {
		return err
	}
	defer in.Close()
	c, err := a.client()
	if err != nil {
		return err
	}
	m := newMeter(a, "Restoring "+volume, total)
	defer m.done()
	return c.VolumeRestore(ctx, volume, m.reader(in), o)
}

// openInput opens a file that holds what, or standard input for "-", and tells its size in
// bytes, 0 where that is not known. Standard input that is a terminal is refused.
func openInput(a *app, file, what string) (io.ReadCloser, int64, error) {
	if file == "-" {
		if tty.IsTerminal(a.in) {
			return nil, 0, fmt.Errorf("requested to read %s from a terminal: name a file, or redirect", what)
		}
		return io.NopCloser(a.in), 0, nil
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, 0, err
	}
	info, err := f.Stat()
	switch {
	case err != nil:
		return f, 0, nil
	case info.IsDir():
		f.Close()
		return nil, 0, fmt.Errorf("%s is a directory", file)
	}
	return f, info.Size(), nil
}

func volumeCloneCommand(a *app) *cobra.Command {
	var o client.VolumeRestoreOptions
	cmd := &cobra.Command{
		Use:   "clone [OPTIONS] VOLUME NEW",
		Short: "Make a volume what another is",
		Long: `Make a volume what another is; it is made if it is not there, with the labels of the other. It gets all of it, or
stays as it was. What it had is replaced with --force only.`,
		Example:           `escale volume clone data data-for-tests`,
		Args:              exactArgs(2),
		ValidArgsFunction: completeVolumes(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			m := newMeter(a, "Cloning "+args[0], 0)
			defer m.done()
			if err := c.VolumeClone(cmd.Context(), args[0], args[1], o, m.at); err != nil {
				return err
			}
			m.done()
			a.println(args[1])
			return nil
		},
	}
	replaceFlags(cmd, &o)
	return cmd
}
