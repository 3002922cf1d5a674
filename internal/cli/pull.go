package cli

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/registry"
	moby "github.com/moby/moby/client"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/cli/credentials"
)

// transfer are the options that pull and push share.
type transfer struct {
	all, quiet, untrusted bool
	platform              string
}

func (t *transfer) flags(f *pflag.FlagSet, verb, platform string) {
	f.BoolVarP(&t.all, "all-tags", "a", false, verb+" all tags of the repository")
	f.BoolVarP(&t.quiet, "quiet", "q", false, "Print only the name")
	f.BoolVar(&t.untrusted, "disable-content-trust", !trustWanted(), "Skip verification of the image's signature")
	f.Lookup("disable-content-trust").Hidden = true
	f.StringVar(&t.platform, "platform", platform, verb+" for this platform: OS[/ARCH[/VARIANT]]")
}

// name reads the argument; without a tag it is latest, unless all are meant.
func (t *transfer) name(a *app, arg string) (reference.Named, *ocispec.Platform, error) {
	if !t.untrusted {
		return nil, nil, errors.New("signatures of images are not verified by this version: unset DOCKER_CONTENT_TRUST and leave out --disable-content-trust=false, or name the image by its digest")
	}
	p, err := parsePlatform(t.platform)
	if err != nil {
		return nil, nil, fmt.Errorf("invalid platform: %w", err)
	}
	ref, err := reference.ParseNormalizedNamed(arg)
	switch {
	case err != nil:
		return nil, nil, err
	case t.all && !reference.IsNameOnly(ref):
		return nil, nil, errors.New("tag can't be used with --all-tags/-a")
	case !t.all && reference.IsNameOnly(ref):
		ref = reference.TagNameOnly(ref)
		if tagged, ok := ref.(reference.Tagged); ok && !t.quiet {
			a.println("Using default tag:", tagged.Tag())
		}
	}
	return ref, p, nil
}

// show prints an answer, or nothing but the name at the end.
func (t *transfer) show(a *app, r io.ReadCloser, ref reference.Named) error {
	defer r.Close()
	if !t.quiet {
		return showMessages(r, a.out)
	}
	if err := showMessages(r, io.Discard); err != nil {
		return err
	}
	a.println(ref)
	return nil
}

func pullCommand(a *app) *cobra.Command {
	var t transfer
	cmd := &cobra.Command{
		Use: "pull [OPTIONS] NAME[:TAG|@DIGEST]",
		Example: `escale pull registry.example/app:1
escale pull -a registry.example/app`,
		Args:              exactArgs(1),
		ValidArgsFunction: completeImages(a, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, p, err := t.name(a, args[0])
			if err != nil {
				return err
			}
			r, err := a.pull(cmd.Context(), ref, t.all, p)
			if err != nil {
				return err
			}
			if err := t.show(a, r, ref); err != nil {
				return err
			}
			if !t.quiet {
				a.println(ref)
			}
			return nil
		},
	}
	t.flags(cmd.Flags(), "Pull", os.Getenv("DOCKER_DEFAULT_PLATFORM"))
	return cmd
}

// pull asks the engine for an image, with the login that is kept for its registry.
func (a *app) pull(ctx context.Context, ref reference.Named, all bool, p *ocispec.Platform) (moby.ImagePullResponse, error) {
	c, err := a.client()
	if err != nil {
		return nil, err
	}
	o := moby.ImagePullOptions{All: all, RegistryAuth: a.registryAuth(ctx, reference.Domain(ref))}
	if p != nil {
		o.Platforms = []ocispec.Platform{*p}
	}
	return c.ImagePull(ctx, ref.String(), o)
}

// registryAuth is the login to a registry in the form of a header; one that
// cannot be read is said, and does without.
func (a *app) registryAuth(ctx context.Context, server string) string {
	auth, err := RegistryAuth(ctx, a.flags.ConfigDir, server)
	if err != nil {
		a.complainf("WARNING: %s\n", err)
	}
	return auth
}

// RegistryAuth is the login to a registry, as the configuration in a directory has it,
// in the form of a header: an empty one with an error when it cannot be read.
func RegistryAuth(ctx context.Context, configDir, server string) (string, error) {
	key := registryKey(server)
	l, failed := credentials.Store{Dir: configDir}.Get(ctx, key)
	if failed != nil {
		failed = fmt.Errorf("the login to %s cannot be read: %w", key, failed)
	}
	b, err := json.Marshal(registry.AuthConfig{Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, ServerAddress: key})
	if err != nil {
		return "", err
	}
	return base64.URLEncoding.EncodeToString(b), failed
}

func pushCommand(a *app) *cobra.Command {
	var t transfer
	cmd := &cobra.Command{
		Use: "push [OPTIONS] NAME[:TAG]",
		Example: `escale tag app registry.example/app:1
escale push registry.example/app:1`,
		Args:              exactArgs(1),
		ValidArgsFunction: completeImages(a, 1),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, p, err := t.name(a, args[0])
			if err != nil {
				return err
			}
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.ImagePush(cmd.Context(), ref.String(), moby.ImagePushOptions{All: t.all, RegistryAuth: a.registryAuth(cmd.Context(), reference.Domain(ref)), Platform: p})
			if err != nil {
				return err
			}
			return t.show(a, r, ref)
		},
	}
	t.flags(cmd.Flags(), "Push", "")
	return cmd
}
