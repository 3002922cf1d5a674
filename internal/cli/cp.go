package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/containerd/log"
	"github.com/docker/go-units"
	archive "github.com/moby/go-archive"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/tty"
)

type cpOptions struct{ archive, follow, quiet bool }

func cpCommand(a *app) *cobra.Command {
	var o cpOptions
	cmd := &cobra.Command{
		Use: "cp [OPTIONS] CONTAINER:SRC_PATH DEST_PATH|-\n\t" + a.name + " cp [OPTIONS] SRC_PATH|- CONTAINER:DEST_PATH",
		Long: `'-' as the source reads a tar archive from STDIN and puts what is in it into a
directory of the container. '-' as the destination writes a tar archive to STDOUT.`,
		Example: `escale cp web:/etc/nginx/nginx.conf .
escale cp site/. web:/usr/share/nginx/html`,
		Args:              exactArgs(2),
		ValidArgsFunction: completeCopy(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("quiet") {
				o.quiet = !tty.IsTerminal(a.out)
			}
			return o.run(cmd.Context(), a, args[0], args[1])
		},
	}
	f := cmd.Flags()
	f.BoolVarP(&o.archive, "archive", "a", false, "What is copied into the container belongs to the container's user")
	f.BoolVarP(&o.follow, "follow-link", "L", false, "Copy what a symbolic link as SRC_PATH leads to")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "Show no progress (as when STDOUT is no terminal)")
	return cmd
}

func (o *cpOptions) run(ctx context.Context, a *app, src, dst string) error {
	fromContainer, fromPath := splitPlace(src)
	toContainer, toPath := splitPlace(dst)
	switch {
	case fromContainer != "" && toContainer != "":
		return errors.New("copying between containers is not supported")
	case fromContainer == "" && toContainer == "":
		return errors.New("must specify at least one container source")
	}
	// The library logs what the error tells already.
	if err := log.SetLevel("panic"); err != nil {
		return err
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	if fromContainer != "" {
		return o.out(ctx, a, c, place{fromContainer, fromPath}, toPath)
	}
	return o.in(ctx, a, c, fromPath, place{toContainer, toPath})
}

// place is a path in a container.
type place struct{ container, path string }

// splitPlace parts CONTAINER:PATH; a path that begins with "/" or "." is of
// this machine, whatever is in it.
func splitPlace(arg string) (container, path string) {
	if filepath.IsAbs(arg) || strings.HasPrefix(arg, ".") {
		return "", arg
	}
	container, path, ok := strings.Cut(arg, ":")
	if !ok {
		return "", arg
	}
	return container, path
}

// localPath is an absolute path that still says when a directory is meant.
func localPath(p string) (string, error) {
	abs, err := filepath.Abs(p)
	if err != nil {
		return "", err
	}
	return archive.PreserveTrailingDotOrSeparator(abs, p), nil
}

// checkOutput refuses a destination on this machine that cannot be written.
func checkOutput(path string) error {
	dir := filepath.Dir(filepath.Clean(path))
	if dir != "." {
		if _, err := os.Stat(dir); errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("invalid output path: directory %q does not exist", dir)
		}
	}
	info, err := os.Stat(path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if info.Mode().IsDir() || info.Mode().IsRegular() {
		return nil
	}
	if info.Mode()&fs.ModeDevice != 0 {
		return errors.New("invalid output path: got a device")
	}
	return fmt.Errorf("invalid output path: %q must be a directory or a regular file", path)
}

// out copies from a container to this machine, or to STDOUT as an archive.
func (o *cpOptions) out(ctx context.Context, a *app, c *client.Client, src place, dst string) (err error) {
	if dst != "-" {
		if dst, err = localPath(dst); err != nil {
			return err
		}
		if err := checkOutput(dst); err != nil {
			return err
		}
	} else if tty.IsTerminal(a.out) {
		return errors.New("cowardly refusing to write an archive to a terminal; redirect it")
	}
	rebase := ""
	if o.follow {
		st, err := c.ContainerStatPath(ctx, src.container, moby.ContainerStatPathOptions{Path: src.path})
		if err == nil && st.Stat.Mode&fs.ModeSymlink != 0 {
			target := st.Stat.LinkTarget
			if !filepath.IsAbs(target) {
				dir, _ := archive.SplitPathDirEntry(src.path)
				target = filepath.Join(dir, target)
			}
			src.path, rebase = archive.GetRebaseName(src.path, target)
		}
	}
	r, err := c.CopyFromContainer(ctx, src.container, moby.CopyFromContainerOptions{SourcePath: src.path})
	if err != nil {
		return err
	}
	defer r.Content.Close()
	if dst == "-" {
		_, err := io.Copy(a.out, r.Content)
		return err
	}
	info := archive.CopyInfo{Path: src.path, Exists: true, IsDir: r.Stat.Mode.IsDir(), RebaseName: rebase}
	counted := &counter{r: r.Content}
	var content io.Reader = counted
	m := o.meter(a, "Copying from container")
	defer m.done()
	content = m.reader(content)
	if rebase != "" {
		_, base := archive.SplitPathDirEntry(src.path)
		rebased := archive.RebaseArchiveEntries(content, base, rebase)
		defer rebased.Close()
		content = rebased
	}
	if err := archive.CopyTo(content, info, dst); err != nil {
		return err
	}
	m.done()
	o.told(a, counted.n, dst)
	return nil
}

// in copies from this machine, or an archive from STDIN, into a container.
func (o *cpOptions) in(ctx context.Context, a *app, c *client.Client, src string, dst place) (err error) {
	if src != "-" {
		if src, err = localPath(src); err != nil {
			return err
		}
	}
	info, err := o.destination(ctx, c, dst)
	if err != nil {
		return err
	}
	into, content := info.Path, a.in
	if src == "-" {
		if !info.IsDir {
			return fmt.Errorf("destination \"%s:%s\" must be a directory", dst.container, dst.path)
		}
		if tty.IsTerminal(a.in) {
			return errors.New("the source is STDIN, which is a terminal; pipe a tar archive into it")
		}
	} else {
		from, err := archive.CopyInfoSourcePath(src, o.follow)
		if err != nil {
			return err
		}
		packed, err := archive.TarResource(from)
		if err != nil {
			return err
		}
		defer packed.Close()
		dir, prepared, err := archive.PrepareArchiveCopy(packed, from, info)
		if err != nil {
			return err
		}
		defer prepared.Close()
		into, content = dir, prepared
	}
	counted := &counter{r: content}
	m := o.meter(a, "Copying to container")
	defer m.done()
	_, err = c.CopyToContainer(ctx, dst.container, moby.CopyToContainerOptions{
		DestinationPath: into, Content: m.reader(counted), CopyUIDGID: o.archive,
	})
	m.done()
	if err == nil && src != "-" {
		o.told(a, counted.n, dst.container+":"+info.Path)
	}
	return err
}

// destination finds out what is at a place that something is copied to. That
// nothing is there is fine: the copy tells if it cannot be.
func (o *cpOptions) destination(ctx context.Context, c *client.Client, dst place) (archive.CopyInfo, error) {
	info := archive.CopyInfo{Path: dst.path}
	r, err := c.ContainerStatPath(ctx, dst.container, moby.ContainerStatPathOptions{Path: dst.path})
	if err == nil && r.Stat.Mode&fs.ModeSymlink != 0 {
		target := r.Stat.LinkTarget
		if !filepath.IsAbs(target) {
			dir, _ := archive.SplitPathDirEntry(dst.path)
			target = filepath.Join(dir, target)
		}
		info.Path = target
		r, err = c.ContainerStatPath(ctx, dst.container, moby.ContainerStatPathOptions{Path: target})
	}
	if moby.IsErrConnectionFailed(err) || ctx.Err() != nil {
		return info, err
	}
	if err != nil {
		return info, nil
	}
	mode := r.Stat.Mode
	if mode&(fs.ModeDevice|fs.ModeCharDevice) != 0 {
		return info, fmt.Errorf("destination \"%s:%s\" must be a directory or a regular file", dst.container, dst.path)
	}
	info.Exists, info.IsDir = true, mode.IsDir()
	return info, nil
}

func (o *cpOptions) meter(a *app, label string) *meter {
	m := newMeter(a, label, 0)
	if o.quiet {
		m.to = nil
	}
	return m
}

func (o *cpOptions) told(a *app, n int64, to string) {
	if !o.quiet {
		a.complainf("Successfully copied %s to %s\n", units.HumanSizeWithPrecision(float64(n), 3), to)
	}
}

// counter counts what is read.
type counter struct {
	r io.Reader
	n int64
}

func (c *counter) Read(p []byte) (int, error) {
	n, err := c.r.Read(p)
	c.n += int64(n)
	return n, err
}
