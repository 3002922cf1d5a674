package cli

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	moby "github.com/moby/moby/client"
	"github.com/spf13/cobra"

	"escale.dev/escale/internal/cli/credentials"
	"escale.dev/escale/internal/cli/tty"
)

// hub is the address under which logins to Docker Hub are kept.
const hub = "https://index.docker.io/v1/"

type loginOptions struct {
	user, password string
	stdin          bool
}

func loginCommand(a *app) *cobra.Command {
	var o loginOptions
	cmd := &cobra.Command{
		Use: "login [OPTIONS] [SERVER]",
		Example: `escale login -u ann registry.example
escale login -u ann --password-stdin registry.example < password`,
		Long:              "Without SERVER it is Docker Hub's. Logins are kept in config.json, or by the\nprogram that credsStore or credHelpers in it names.",
		Args:              maxArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			return o.run(cmd.Context(), a, strings.Join(args, ""), cmd.Flags().Changed("username"), cmd.Flags().Changed("password"))
		},
	}
	f := cmd.Flags()
	f.StringVarP(&o.user, "username", "u", "", "User name")
	f.StringVarP(&o.password, "password", "p", "", "Password, or a token that serves as one")
	f.BoolVar(&o.stdin, "password-stdin", false, "Read the password from standard input")
	return cmd
}

// registryKey is the name under which a login is kept.
func registryKey(server string) string {
	if server == "" || server == "docker.io" || server == hub {
		return hub
	}
	if _, rest, ok := strings.Cut(server, "://"); ok {
		server = rest
	}
	name, _, _ := strings.Cut(server, "/")
	return name
}

func (o *loginOptions) run(ctx context.Context, a *app, server string, named, given bool) error {
	switch {
	case given && o.stdin:
		return errors.New("conflicting options: cannot specify both --password and --password-stdin")
	case named && o.user == "":
		return errors.New("username is empty")
	case given && o.password == "":
		return errors.New("password is empty")
	case given:
		a.complain("WARNING! Using --password via the CLI is insecure. Use --password-stdin.")
	case o.stdin && o.user == "":
		return errors.New("the --password-stdin option requires --username to be set") //nolint:staticcheck // Docker's words.
	case o.stdin:
		b, err := io.ReadAll(a.in)
		if err != nil {
			return err
		}
		o.password = strings.TrimSuffix(strings.TrimSuffix(string(b), "\n"), "\r")
	}
	if _, err := a.client(); err != nil {
		return err
	}
	store := credentials.Store{Dir: a.flags.ConfigDir}
	key := registryKey(server)
	if o.user == "" && o.password == "" {
		known, err := store.Get(ctx, key)
		if err != nil {
			return err
		}
		if known != (credentials.Login{}) {
			a.complainf("Authenticating with existing credentials... [Username: %s]\n", known.Username)
			if err = o.with(ctx, a, store, key, known); err == nil || ctx.Err() != nil || moby.IsErrConnectionFailed(err) {
				return err
			}
			a.complain("Login did not succeed, error:", err)
		}
		o.user = known.Username
	}
	if err := o.ask(a); err != nil {
		return err
	}
	return o.with(ctx, a, store, key, credentials.Login{Username: o.user, Password: o.password})
}

// ask asks at the terminal for what was not given.
func (o *loginOptions) ask(a *app) error {
	if o.user != "" && o.password != "" {
		return nil
	}
	in, ok := a.in.(*os.File)
	if !ok || !tty.IsTerminal(a.in) {
		return errors.New("Error: Cannot perform an interactive login from a non TTY device") //nolint:staticcheck // Docker's words.
	}
	if o.user == "" {
		a.printf("Username: ")
		line, err := bufio.NewReader(in).ReadString('\n')
		if err != nil && !errors.Is(err, io.EOF) {
			return err
		}
		if o.user = strings.TrimSpace(line); o.user == "" {
			return errors.New("Error: Non-null Username Required") //nolint:staticcheck // Docker's words.
		}
	}
	if o.password == "" {
		a.printf("Password: ")
		password, err := tty.ReadPassword(in)
		a.println()
		if err != nil {
			return err
		}
		if o.password = password; o.password == "" {
			return errors.New("Error: Password Required") //nolint:staticcheck // Docker's words.
		}
	}
	return nil
}

// with logs in by the engine, and keeps what went well.
func (o *loginOptions) with(ctx context.Context, a *app, store credentials.Store, key string, l credentials.Login) error {
	res, err := a.conn.RegistryLogin(ctx, moby.RegistryLoginOptions{
		Username: l.Username, Password: l.Password, IdentityToken: l.IdentityToken, ServerAddress: key,
	})
	if err != nil {
		return err
	}
	if res.Auth.IdentityToken != "" {
		l.Password, l.IdentityToken = "", res.Auth.IdentityToken
	}
	unencrypted, err := store.Put(ctx, key, l)
	if err != nil {
		return fmt.Errorf("error saving credentials: %w", err)
	}
	if unencrypted {
		a.complainf("\nWARNING! Your credentials are stored unencrypted in '%s'.\nConfigure a credential helper (credsStore) to remove this warning.\n\n", store.File())
	}
	if res.Auth.Status != "" {
		a.println(res.Auth.Status)
	}
	return nil
}

func logoutCommand(a *app) *cobra.Command {
	return &cobra.Command{
		Use:               "logout [SERVER]",
		Args:              maxArgs(1),
		ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			key := registryKey(strings.Join(args, ""))
			store := credentials.Store{Dir: a.flags.ConfigDir}
			keys := []string{key}
			if key != hub {
				keys = append(keys, "http://"+key, "https://"+key) // as older clients kept them
			}
			a.println("Removing login credentials for", key) // also when there are none, as Docker's client
			for _, k := range keys {
				if _, err := store.Erase(cmd.Context(), k); err != nil {
					return err
				}
			}
			return nil
		},
	}
}
