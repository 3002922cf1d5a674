package cli

import (
	"archive/tar"
	"compress/gzip"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/plugin"
	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"
)

// pluginCommands are those of the group plugin.
func pluginCommands(a *app) []*cobra.Command {
	inspect, _ := inspectOne(a, "plugin", completePlugins(a))
	return []*cobra.Command{
		pluginCreateCommand(a), pluginDisableCommand(a), pluginEnableCommand(a), inspect, pluginInstallCommand(a),
		pluginLsCommand(a), pluginPushCommand(a), pluginRmCommand(a), pluginSetCommand(a), pluginUpgradeCommand(a),
	}
}

func pluginCreateCommand(a *app) *cobra.Command {
	var compress bool
	cmd := &cobra.Command{
		Use:   "create [OPTIONS] PLUGIN PLUGIN-DATA-DIR",
		Short: "Make a plugin of a directory with config.json and rootfs/",
		Args:  minArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := checkPluginDir(args[1]); err != nil {
				return err
			}
			r, w := io.Pipe()
			go func() { w.CloseWithError(tarDir(args[1], w, compress)) }()
			defer r.Close() // ends the writer, if it has not
			if _, err := c.PluginCreate(cmd.Context(), r, moby.PluginCreateOptions{RepoName: args[0]}); err != nil {
				return err
			}
			a.println(args[0])
			return nil
		},
	}
	cmd.Flags().BoolVar(&compress, "compress", false, "Compress what is sent to the engine")
	return cmd
}

// checkPluginDir looks for a configuration that can be read.
func checkPluginDir(dir string) error {
	if info, err := os.Stat(dir); err != nil {
		return err
	} else if !info.IsDir() {
		return errors.New("context must be a directory")
	}
	b, err := os.ReadFile(filepath.Join(dir, "config.json"))
	if err != nil {
		return err
	}
	var c plugin.Config
	return json.Unmarshal(b, &c)
}

// tarDir writes a directory as a tar archive, with gzip if that is wanted.
func tarDir(dir string, w io.Writer, compress bool) error {
	if compress {
		z := gzip.NewWriter(w)
		if err := tarDir(dir, z, false); err != nil {
			return err
		}
		return z.Close()
	}
	tw := tar.NewWriter(w)
	err := filepath.WalkDir(dir, func(path string, d fs.DirEntry, err error) error {
		if err != nil || path == dir {
			return err
		}
		info, err := d.Info()
		if err != nil || info.Mode()&fs.ModeSocket != 0 {
			return err
		}
		link := ""
		if info.Mode()&fs.ModeSymlink != 0 {
			if link, err = os.Readlink(path); err != nil {
				return err
			}
		}
		hdr, err := tar.FileInfoHeader(info, link)
		if err != nil {
			return err
		}
		if hdr.Name, err = filepath.Rel(dir, path); err != nil {
			return err
		}
		if err := tw.WriteHeader(hdr); err != nil || hdr.Typeflag != tar.TypeReg {
			return err
		}
		f, err := os.Open(path)
		if err != nil {
			return err
		}
		defer f.Close()
		_, err = io.Copy(tw, f)
		return err
	})
	if err != nil {
		return err
	}
	return tw.Close()
}

// onePlugin makes a command that does something with one plugin and prints its name.
func onePlugin(a *app, verb, short string, do func(ctx context.Context, c moby.APIClient, name string) error) *cobra.Command {
	return &cobra.Command{
		Use:               verb + " [OPTIONS] PLUGIN",
		Short:             short,
		Args:              exactArgs(1),
		ValidArgsFunction: completePlugins(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			if err := do(cmd.Context(), c, args[0]); err != nil {
				return err
			}
			a.println(args[0])
			return nil
		},
	}
}

func pluginDisableCommand(a *app) *cobra.Command {
	var o moby.PluginDisableOptions
	cmd := onePlugin(a, "disable", "Stop a plugin", func(ctx context.Context, c moby.APIClient, name string) error {
		_, err := c.PluginDisable(ctx, name, o)
		return err
	})
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "Although something needs it")
	return cmd
}

func pluginEnableCommand(a *app) *cobra.Command {
	var o moby.PluginEnableOptions
	cmd := onePlugin(a, "enable", "Start a plugin", func(ctx context.Context, c moby.APIClient, name string) error {
		if o.Timeout < 0 {
			return fmt.Errorf("negative timeout %d is invalid", o.Timeout)
		}
		_, err := c.PluginEnable(ctx, name, o)
		return err
	})
	cmd.Flags().IntVar(&o.Timeout, "timeout", 30, "Seconds until it has to answer")
	return cmd
}

// pluginSource is where a plugin comes from.
type pluginSource struct{ grant, untrusted bool }

func (s *pluginSource) flags(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.grant, "grant-all-permissions", false, "Grant all permissions that it asks for")
	s.trustFlag(cmd)
}

// trustFlag is for the stock client's words: signatures are not looked at.
func (s *pluginSource) trustFlag(cmd *cobra.Command) {
	cmd.Flags().BoolVar(&s.untrusted, "disable-content-trust", !trustWanted(), "Skip verification of the plugin's signature")
	cmd.Flags().Lookup("disable-content-trust").Hidden = true
}

// trusted refuses what is asked to be verified.
func (s *pluginSource) trusted() error {
	if s.untrusted {
		return nil
	}
	return errors.New("signatures of plugins are not verified by this version: unset DOCKER_CONTENT_TRUST and leave out --disable-content-trust=false")
}

// options are those of an installation.
func (s *pluginSource) options(ctx context.Context, a *app, remote string) (moby.PluginInstallOptions, error) {
	ref, err := reference.ParseNormalizedNamed(remote)
	if err == nil {
		err = s.trusted()
	}
	if err != nil {
		return moby.PluginInstallOptions{}, err
	}
	return moby.PluginInstallOptions{
		RegistryAuth: a.registryAuth(ctx, reference.Domain(ref)), RemoteRef: ref.String(), AcceptAllPermissions: s.grant,
		AcceptPermissionsFunc: func(ctx context.Context, needs plugin.Privileges) (bool, error) {
			a.printf("Plugin %q is requesting the following privileges:\n", remote)
			for _, p := range needs {
				a.printf(" - %s: %v\n", p.Name, p.Value)
			}
			return a.confirm(ctx, "Do you grant the above permissions?")
		},
	}, nil
}

func pluginInstallCommand(a *app) *cobra.Command {
	var s pluginSource
	var alias string
	var disable bool
	cmd := &cobra.Command{
		Use:     "install [OPTIONS] PLUGIN [KEY=VALUE...]",
		Short:   "Bring a plugin from a registry, and start it",
		Example: `escale plugin install vieux/sshfs DEBUG=1`,
		Args:    minArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if alias != "" {
				ref, err := reference.ParseNormalizedNamed(alias)
				if err != nil {
					return err
				}
				if _, ok := ref.(reference.Canonical); ok {
					return fmt.Errorf("invalid name: %s", alias)
				}
				alias = reference.FamiliarString(reference.TagNameOnly(ref))
			}
			o, err := s.options(cmd.Context(), a, args[0])
			if err != nil {
				return err
			}
			o.Args, o.Disabled = args[1:], disable
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.PluginInstall(cmd.Context(), alias, o)
			if err != nil {
				return err
			}
			defer r.Close()
			if err := showMessages(r, a.out); err != nil {
				return err
			}
			a.println("Installed plugin", args[0])
			return nil
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVar(&disable, "disable", false, "Do not start it")
	cmd.Flags().StringVar(&alias, "alias", "", "Name of the plugin here")
	return cmd
}

func pluginUpgradeCommand(a *app) *cobra.Command {
	var s pluginSource
	var skip bool
	cmd := &cobra.Command{
		Use:               "upgrade [OPTIONS] PLUGIN [REMOTE]",
		Short:             "Replace a plugin by another version",
		Args:              rangeArgs(1, 2),
		ValidArgsFunction: completePlugins(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			remote := ""
			if len(args) == 2 {
				remote = args[1]
			}
			return s.upgrade(cmd.Context(), a, args[0], remote, skip)
		},
	}
	s.flags(cmd)
	cmd.Flags().BoolVar(&skip, "skip-remote-check", false, "Do not ask when it is another plugin's")
	return cmd
}

func (s *pluginSource) upgrade(ctx context.Context, a *app, name, remote string, skip bool) error {
	c, err := a.client()
	if err != nil {
		return err
	}
	res, err := c.PluginInspect(ctx, name, moby.PluginInspectOptions{})
	if err != nil {
		return fmt.Errorf("error reading plugin data: %w", err)
	}
	p := res.Plugin
	if p.Enabled {
		return errors.New("the plugin must be disabled before upgrading")
	}
	if remote == "" {
		remote = p.PluginReference
	}
	next, err := reference.ParseNormalizedNamed(remote)
	if err != nil {
		return fmt.Errorf("error parsing remote upgrade image reference: %w", err)
	}
	old, err := reference.ParseNormalizedNamed(p.PluginReference)
	if err != nil {
		return fmt.Errorf("error parsing current image reference: %w", err)
	}
	next, old = reference.TagNameOnly(next), reference.TagNameOnly(old)
	a.printf("Upgrading plugin %s from %s to %s\n", p.Name, reference.FamiliarString(old), reference.FamiliarString(next))
	if !skip && next.String() != old.String() {
		yes, err := a.confirm(ctx, "Plugin images do not match, are you sure?")
		if err != nil {
			return err
		}
		if !yes {
			return errors.New("plugin upgrade has been cancelled")
		}
	}
	o, err := s.options(ctx, a, remote)
	if err != nil {
		return err
	}
	r, err := c.PluginUpgrade(ctx, p.Name, moby.PluginUpgradeOptions{
		RegistryAuth: o.RegistryAuth, RemoteRef: o.RemoteRef, AcceptAllPermissions: o.AcceptAllPermissions, AcceptPermissionsFunc: o.AcceptPermissionsFunc,
	})
	if err != nil {
		return err
	}
	defer r.Close()
	if err := showMessages(r, a.out); err != nil {
		return err
	}
	a.printf("Upgraded plugin %s to %s\n", p.Name, remote)
	return nil
}

func pluginPushCommand(a *app) *cobra.Command {
	var s pluginSource
	cmd := &cobra.Command{
		Use:               "push [OPTIONS] PLUGIN[:TAG]",
		Short:             "Send a plugin to a registry",
		Args:              exactArgs(1),
		ValidArgsFunction: completePlugins(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			ref, err := reference.ParseNormalizedNamed(args[0])
			if err != nil {
				return err
			}
			if _, ok := ref.(reference.Canonical); ok {
				return fmt.Errorf("invalid name: %s", args[0])
			}
			if err := s.trusted(); err != nil {
				return err
			}
			ref = reference.TagNameOnly(ref)
			c, err := a.client()
			if err != nil {
				return err
			}
			r, err := c.PluginPush(cmd.Context(), reference.FamiliarString(ref), moby.PluginPushOptions{RegistryAuth: a.registryAuth(cmd.Context(), reference.Domain(ref))})
			if err != nil {
				return err
			}
			defer r.Close()
			return showMessages(r, a.out)
		},
	}
	s.trustFlag(cmd)
	return cmd
}

func pluginRmCommand(a *app) *cobra.Command {
	var o moby.PluginRemoveOptions
	cmd := &cobra.Command{
		Use:               "rm [OPTIONS] PLUGIN [PLUGIN...]",
		Aliases:           []string{"remove"},
		Short:             "Remove plugins",
		Args:              minArgs(1),
		ValidArgsFunction: completePlugins(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, name string) error {
				_, err := c.PluginRemove(ctx, name, o)
				return err
			}, nil)
		},
	}
	cmd.Flags().BoolVarP(&o.Force, "force", "f", false, "Although it runs, or something needs it")
	return cmd
}

func pluginSetCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "set PLUGIN KEY=VALUE [KEY=VALUE...]",
		Short:             "Change the settings of a plugin that is disabled",
		Args:              minArgs(2),
		ValidArgsFunction: completePlugins(a),
		RunE: func(cmd *cobra.Command, args []string) error {
			c, err := a.client()
			if err != nil {
				return err
			}
			_, err = c.PluginSet(cmd.Context(), args[0], moby.PluginSetOptions{Args: args[1:]})
			return err
		},
	}
}
