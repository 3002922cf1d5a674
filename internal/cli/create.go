package cli

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net/url"
	"os"
	"slices"
	"strconv"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/moby/moby/client/pkg/versions"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/client"
	"escale.dev/escale/internal/cli/spec"
	"escale.dev/escale/internal/cli/tty"
)

// creation is what `run` and `create` have in common beside the container's
// own flags.
type creation struct {
	spec.Options
	verb, name, platform, pull string
	quiet, untrusted           bool
}

func (n *creation) addFlags(f *pflag.FlagSet) {
	f.SetInterspersed(false) // what follows the image belongs to the command
	n.Options.AddFlags(f)
	f.StringVar(&n.name, "name", "", "Name of the container")
	f.StringVar(&n.platform, "platform", os.Getenv("DOCKER_DEFAULT_PLATFORM"), "Platform of the image: OS[/ARCH[/VARIANT]]")
	f.StringVar(&n.pull, "pull", "missing", `When to pull the image: "always", "missing", "never"`)
	f.BoolVarP(&n.quiet, "quiet", "q", false, "Do not show the progress of a pull")
	f.BoolVar(&n.untrusted, "disable-content-trust", !trustWanted(), "Skip verification of the image's signature")
	f.Bool("help", false, "Print usage")
	f.Lookup("help").Hidden = true
	f.Lookup("disable-content-trust").Hidden = true
}

// trustWanted reports whether the environment asks for signed images only.
func trustWanted() bool {
	on, err := strconv.ParseBool(os.Getenv("DOCKER_CONTENT_TRUST"))
	return on && err == nil
}

func createCommand(a *app) *cobra.Command {
	n := &creation{verb: "create"}
	cmd := &cobra.Command{
		Use: "create [OPTIONS] IMAGE [COMMAND] [ARG...]",
		Example: `escale create --name web -p 8080:80 nginx
escale start web`,
		Args:              minArgs(1),
		ValidArgsFunction: completeImages(a, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			req, c, err := n.request(cmd.Context(), a, cmd.Flags(), args)
			if err != nil {
				return err
			}
			id, err := n.create(cmd.Context(), a, c, req)
			if err != nil {
				return err
			}
			a.println(id)
			return nil
		},
	}
	n.addFlags(cmd.Flags())
	return cmd
}

// supported refuses flags that the engine would silently ignore. It asks the
// engine only when such a flag was given.
func (n *creation) supported(ctx context.Context, c *client.Client, f *pflag.FlagSet) error {
	var errs []error
	gates := spec.Gates()
	for _, name := range slices.Sorted(maps.Keys(gates)) {
		if !f.Changed(name) {
			continue
		}
		p, err := c.Ping(ctx, moby.PingOptions{NegotiateAPIVersion: true})
		if err != nil {
			return err
		}
		switch need := gates[name]; {
		case need == "" && p.OSType != "windows":
			errs = append(errs, fmt.Errorf("%q is only supported on a Docker daemon running on windows, but the Docker daemon is running on %s", "--"+name, p.OSType))
		case need != "" && versions.LessThan(c.ClientVersion(), need):
			errs = append(errs, fmt.Errorf("%q requires API version %s, but the Docker daemon API version is %s", "--"+name, need, c.ClientVersion()))
		}
	}
	return errors.Join(errs...)
}

// request parses the flags and connects.
func (n *creation) request(ctx context.Context, a *app, f *pflag.FlagSet, args []string) (*spec.Request, *client.Client, error) {
	switch n.pull {
	case "always", "missing", "never", "":
	default:
		return nil, nil, a.withHelp(125, n.verb, fmt.Errorf(
			"invalid pull option: '%s': must be one of \"always\", \"missing\" or \"never\"", n.pull))
	}
	if !n.untrusted {
		return nil, nil, a.withHelp(125, n.verb, errors.New(
			"signatures of images are not verified by this version: unset DOCKER_CONTENT_TRUST and leave out --disable-content-trust=false, or name the image by its digest"))
	}
	c, err := a.client()
	if err != nil {
		return nil, nil, err
	}
	if err := n.supported(ctx, c, f); err != nil {
		return nil, nil, err
	}
	n.UseProxies(a.config.ProxyEnv(c.Host()))
	req, err := n.Build(f, args[0], args[1:])
	if err != nil {
		return nil, nil, a.withHelp(125, n.verb, err)
	}
	return req, c, nil
}

// create makes the container, after a pull when the image is not there, and
// writes its ID to --cidfile. Warnings go to stderr.
func (n *creation) create(ctx context.Context, a *app, c *client.Client, req *spec.Request) (id string, err error) {
	idFile, err := newIDFile(req.HostConfig.ContainerIDFile)
	if err != nil {
		return "", err
	}
	defer func() { err = errors.Join(err, idFile.close()) }()
	ref, err := reference.ParseAnyReference(req.Config.Image)
	if err != nil {
		return "", err
	}
	platform, err := parsePlatform(n.platform)
	if err != nil {
		return "", fmt.Errorf("error parsing specified platform: %w", err)
	}
	if n.pull == "always" {
		if err := n.pullImage(ctx, a, req.Config.Image, platform); err != nil {
			return "", err
		}
	}
	rows, cols := tty.Size(a.out)
	req.HostConfig.ConsoleSize = [2]uint{rows, cols}
	res, err := n.post(ctx, c, req, platform)
	if named, ok := ref.(reference.Named); ok && n.pull == "missing" && noSuchImage(err) {
		full := reference.FamiliarString(reference.TagNameOnly(named))
		if !n.quiet {
			a.complainf("Unable to find image '%s' locally\n", full)
		}
		if err := n.pullImage(ctx, a, req.Config.Image, platform); err != nil {
			return "", missingImage(a, err)
		}
		res, err = n.post(ctx, c, req, platform)
	}
	if err != nil {
		return "", err
	}
	for _, ip := range req.HostConfig.DNS {
		if ip.IsLoopback() {
			res.Warnings = append(res.Warnings, fmt.Sprintf("Localhost DNS (%s) may fail in containers.", ip))
		}
	}
	for _, w := range res.Warnings {
		a.complain("WARNING:", w)
	}
	return res.ID, idFile.write(res.ID)
}

// post sends the request. Engines older than API 1.44 take the hardware
// address from a field that the newer types have no more.
func (n *creation) post(ctx context.Context, c *client.Client, req *spec.Request, p *ocispec.Platform) (moby.ContainerCreateResult, error) {
	if req.MAC != "" {
		if _, err := c.Ping(ctx, moby.PingOptions{NegotiateAPIVersion: true}); err != nil {
			return moby.ContainerCreateResult{}, err
		}
		if versions.LessThan(c.ClientVersion(), "1.44") {
			return n.postWithMAC(ctx, c, req, p)
		}
	}
	return c.ContainerCreate(ctx, moby.ContainerCreateOptions{
		Config: req.Config, HostConfig: req.HostConfig, NetworkingConfig: req.Network, Platform: p, Name: n.name,
	})
}

func (n *creation) postWithMAC(ctx context.Context, c *client.Client, req *spec.Request, p *ocispec.Platform) (moby.ContainerCreateResult, error) {
	q := url.Values{}
	if n.name != "" {
		q.Set("name", n.name)
	}
	if p != nil {
		q.Set("platform", platformString(*p))
	}
	body := struct {
		container.CreateRequest
		MacAddress string
	}{container.CreateRequest{Config: req.Config, HostConfig: req.HostConfig, NetworkingConfig: req.Network}, req.MAC}
	resp, err := c.Do(ctx, "POST", "/containers/create", q, body)
	if err != nil {
		return moby.ContainerCreateResult{}, err
	}
	var res container.CreateResponse
	err = decode(resp, &res)
	return moby.ContainerCreateResult{ID: res.ID, Warnings: res.Warnings}, err
}

// noSuchImage tells the 404 of an image from those of networks and volumes.
func noSuchImage(err error) bool {
	if !errdefs.IsNotFound(err) {
		return false
	}
	text := strings.ToLower(err.Error())
	return strings.Contains(text, "no such image") || strings.Contains(text, "does not match the specified platform")
}

// missingImage adds to a pull that did not reach the registry how an image comes
// without one. What a registry answered says itself what to do.
func missingImage(a *app, err error) error {
	text := err.Error()
	if moby.IsErrConnectionFailed(err) || !strings.Contains(text, "dial tcp") && !strings.Contains(text, "Client.Timeout") {
		return err
	}
	return fmt.Errorf("%w\nThe registry cannot be reached from this host. An image can also come from an archive, as 'save' writes it elsewhere: '%s load -i FILE'.", err, a.name)
}

func (n *creation) pullImage(ctx context.Context, a *app, image string, p *ocispec.Platform) error {
	ref, err := reference.ParseNormalizedNamed(image)
	if err != nil {
		return err
	}
	r, err := a.pull(ctx, reference.TagNameOnly(ref), false, p)
	if err != nil {
		return err
	}
	defer r.Close()
	out := a.err
	if n.quiet {
		out = io.Discard
	}
	return showMessages(r, out)
}

// idFile is --cidfile: made before the container, so that a path which cannot
// be written makes no container, and gone again when there is no ID.
type idFile struct {
	f       *os.File
	written bool
}

func newIDFile(path string) (*idFile, error) {
	if path == "" {
		return &idFile{}, nil
	}
	f, err := os.OpenFile(path, os.O_WRONLY|os.O_CREATE|os.O_EXCL, 0o666)
	if errors.Is(err, os.ErrExist) {
		return nil, fmt.Errorf("container ID file found, make sure the other container isn't running or delete %s", path)
	}
	if err != nil {
		return nil, fmt.Errorf("failed to create the container ID file: %w", err)
	}
	return &idFile{f: f}, nil
}

func (i *idFile) write(id string) error {
	if i.f == nil {
		return nil
	}
	if _, err := i.f.WriteString(id); err != nil {
		return fmt.Errorf("failed to write the container ID to the file: %w", err)
	}
	i.written = true
	return nil
}

func (i *idFile) close() error {
	if i.f == nil {
		return nil
	}
	err := i.f.Close()
	if !i.written {
		err = errors.Join(err, os.Remove(i.f.Name()))
	}
	return err
}
