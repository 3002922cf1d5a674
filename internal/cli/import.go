package cli

import (
	"cmp"
	"context"
	"fmt"
	"os"
	"strings"

	moby "github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/spec"
	"escale.dev/escale/internal/cli/tty"
)

type importOptions struct {
	changes           spec.List
	message, platform string
}

func importCommand(a *app) *cobra.Command {
	var o importOptions
	cmd := &cobra.Command{
		Use: "import [OPTIONS] file|URL|- [REPOSITORY[:TAG]]",
		Example: `escale import -c 'CMD ["bash"]' rootfs.tar debian
tar -C tree -c . | escale import - mine:1`,
		Args: minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error { return o.run(cmd.Context(), a, args) },
	}
	f := cmd.Flags()
	f.VarP(&o.changes, "change", "c", "Apply a Dockerfile instruction to the image")
	f.StringVarP(&o.message, "message", "m", "", "Note this in the image's history")
	f.StringVar(&o.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Platform of the image: OS[/ARCH[/VARIANT]]")
	return cmd
}

func (o *importOptions) run(ctx context.Context, a *app, args []string) error {
	src := moby.ImageImportSource{SourceName: "-"}
	ref := ""
	if len(args) > 1 {
		ref = args[1]
	}
	var total int64
	switch from := args[0]; {
	case from == "-":
		if tty.IsTerminal(a.in) {
			return fmt.Errorf("import from stdin: it is a terminal; pipe an archive into '%s import -', or name a file", a.name)
		}
		src.Source = a.in
	case strings.HasPrefix(from, "https://"), strings.HasPrefix(from, "http://"):
		src.SourceName = from
	default:
		f, size, err := openArchive(from, fmt.Sprintf("pack it first, as in 'tar -C %s -c . | %s import - %s'", from, a.name, cmp.Or(ref, "NAME")))
		if err != nil {
			return err
		}
		defer f.Close()
		src.Source, total = f, size
	}
	opts := moby.ImageImportOptions{Message: o.message, Changes: o.changes.Values}
	p, err := parsePlatform(o.platform)
	if err != nil {
		return err
	}
	if p != nil {
		opts.Platform = ocispec.Platform(*p)
	}
	c, err := a.client()
	if err != nil {
		return err
	}
	m := newMeter(a, "Sending the archive", total)
	defer m.done()
	if src.Source != nil {
		src.Source = m.reader(src.Source)
	}
	r, err := c.ImageImport(ctx, src, ref, opts)
	m.done()
	if err != nil {
		return err
	}
	defer r.Close()
	return showMessages(r, a.out)
}
