package cli

import (
	"context"
	"crypto/tls"
	"crypto/x509"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"strings"
	"syscall"

	"github.com/docker/go-units"
	"github.com/spf13/cobra"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/cli/credentials"
)

func registryCommands(a *app) []*cobra.Command {
	return []*cobra.Command{
		registryServe("serve [OPTIONS]", "Serve a registry of images in the foreground"),
		registryServe("passwd FILE USER", "Set a user's password, read from STDIN, in a registry's password file"),
		registryLs(a), registryTags(a), registryRm(a), registryGC(a),
	}
}

// registryServe becomes the engine's own program, as daemonCommand does: what a
// registry is made of would make this one slow.
func registryServe(use, short string) *cobra.Command {
	return &cobra.Command{
		Use: use, Short: short,
		DisableFlagParsing: true,
		RunE: func(cmd *cobra.Command, args []string) error {
			path, err := findEngine()
			if err != nil {
				return err
			}
			return fmt.Errorf("%s: %w", path, syscall.Exec(path, append([]string{"escaled", "registry", cmd.Name()}, args...), os.Environ()))
		},
	}
}

// registryClient asks a registry.
type registryClient struct {
	addr, ca string
	insecure bool

	base  string
	login credentials.Login
	http  http.Client
}

func (c *registryClient) addFlags(f *pflag.FlagSet) {
	f.StringVarP(&c.addr, "registry", "r", "127.0.0.1:5000", "Registry to ask: HOST:PORT or http(s)://HOST:PORT")
	f.StringVar(&c.ca, "tls-ca", "", "Trust certificates of this CA")
	f.BoolVar(&c.insecure, "insecure", false, "Trust every certificate")
}

// open settles where the registry is, and who asks.
func (c *registryClient) open(ctx context.Context, a *app) error {
	c.base = strings.TrimSuffix(c.addr, "/")
	if !strings.Contains(c.base, "://") {
		host, _, err := net.SplitHostPort(c.base)
		if err != nil {
			host = c.base
		}
		ip, err := netip.ParseAddr(host)
		scheme := "https://"
		if (host == "localhost" || err == nil && ip.IsLoopback()) && c.ca == "" && !c.insecure {
			scheme = "http://"
		}
		c.base = scheme + c.base
	}
	u, err := url.Parse(c.base)
	if err != nil || u.Host == "" || u.Scheme != "http" && u.Scheme != "https" {
		return fmt.Errorf("registry %q: want HOST:PORT or http(s)://HOST:PORT", c.addr)
	}
	conf := &tls.Config{InsecureSkipVerify: c.insecure} //nolint:gosec // what --insecure says
	if c.ca != "" {
		pem, err := os.ReadFile(c.ca)
		if err != nil {
			return err
		}
		conf.RootCAs = x509.NewCertPool()
		if !conf.RootCAs.AppendCertsFromPEM(pem) {
			return fmt.Errorf("%s: no certificate in it", c.ca)
		}
	}
	c.http.Transport = &http.Transport{TLSClientConfig: conf, Proxy: http.ProxyFromEnvironment}
	c.login, err = credentials.Store{Dir: a.flags.ConfigDir}.Get(ctx, u.Host)
	return err
}

// ask sends a request; an answer that is no success is an error in the
// registry's words.
func (c *registryClient) ask(ctx context.Context, method, path string, accept string) (*http.Response, error) {
	req, err := http.NewRequestWithContext(ctx, method, c.base+path, nil)
	if err != nil {
		return nil, err
	}
	if accept != "" {
		req.Header.Set("Accept", accept)
	}
	if c.login.Username != "" {
		req.SetBasicAuth(c.login.Username, c.login.Password)
	}
	resp, err := c.http.Do(req)
	if err != nil {
		return nil, fmt.Errorf("registry %s: %w", c.addr, err)
	}
	if resp.StatusCode < 300 {
		return resp, nil
	}
	defer resp.Body.Close()
	var said struct {
		Errors []struct{ Message string } `json:"errors"`
	}
	body, _ := io.ReadAll(io.LimitReader(resp.Body, 1<<20))
	why := resp.Status
	if json.Unmarshal(body, &said) == nil && len(said.Errors) > 0 && said.Errors[0].Message != "" {
		why = said.Errors[0].Message
	}
	if resp.StatusCode == http.StatusUnauthorized {
		why += fmt.Sprintf(" (escale login %s)", c.addr)
	}
	return nil, fmt.Errorf("registry %s: %s", c.addr, why)
}

// pages reads a list page by page to into, until there is no more.
func (c *registryClient) pages(ctx context.Context, path string, into func([]byte) error) error {
	for path != "" {
		resp, err := c.ask(ctx, http.MethodGet, path, "")
		if err != nil {
			return err
		}
		body, err := io.ReadAll(io.LimitReader(resp.Body, 64<<20))
		resp.Body.Close()
		if err == nil {
			err = into(body)
		}
		if err != nil {
			return err
		}
		path = ""
		if link, _, ok := strings.Cut(strings.TrimPrefix(resp.Header.Get("Link"), "<"), ">"); ok {
			next, err := resp.Request.URL.Parse(link)
			if err != nil {
				return err
			}
			path = next.RequestURI()
		}
	}
	return nil
}

func registryLs(a *app) *cobra.Command {
	var c registryClient
	cmd := &cobra.Command{
		Use: "ls [OPTIONS]", Short: "List the repositories of a registry", Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.open(cmd.Context(), a); err != nil {
				return err
			}
			return c.pages(cmd.Context(), "/v2/_catalog?n=500", func(b []byte) error {
				var page struct{ Repositories []string }
				err := json.Unmarshal(b, &page)
				for _, r := range page.Repositories {
					a.println(r)
				}
				return err
			})
		},
	}
	c.addFlags(cmd.Flags())
	return cmd
}

func registryTags(a *app) *cobra.Command {
	var c registryClient
	cmd := &cobra.Command{
		Use: "tags [OPTIONS] REPOSITORY", Short: "List the tags of a repository", Args: exactArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.open(cmd.Context(), a); err != nil {
				return err
			}
			return c.pages(cmd.Context(), "/v2/"+args[0]+"/tags/list?n=500", func(b []byte) error {
				var page struct{ Tags []string }
				err := json.Unmarshal(b, &page)
				for _, t := range page.Tags {
					a.println(t)
				}
				return err
			})
		},
	}
	c.addFlags(cmd.Flags())
	return cmd
}

func registryRm(a *app) *cobra.Command {
	var c registryClient
	cmd := &cobra.Command{
		Use: "rm [OPTIONS] REPOSITORY:TAG|REPOSITORY@DIGEST...", Short: "Remove tags, or manifests with all their tags",
		Long: "The space is given back by the next collection: see 'escale registry gc'.",
		Args: minArgs(1), ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := c.open(cmd.Context(), a); err != nil {
				return err
			}
			return a.each(cmd.Context(), args, func(ctx context.Context, ref string) error {
				name, what, ok := strings.Cut(ref, "@")
				if !ok {
					if i := strings.LastIndexByte(ref, ':'); i > strings.LastIndexByte(ref, '/') {
						name, what, ok = ref[:i], ref[i+1:], true
					}
				}
				if !ok || name == "" || what == "" {
					return fmt.Errorf("%q: want REPOSITORY:TAG or REPOSITORY@DIGEST", ref)
				}
				resp, err := c.ask(ctx, http.MethodDelete, "/v2/"+name+"/manifests/"+url.PathEscape(what), "")
				if err != nil {
					return fmt.Errorf("%s: %w", ref, err)
				}
				return resp.Body.Close()
			}, nil)
		},
	}
	c.addFlags(cmd.Flags())
	return cmd
}

func registryGC(a *app) *cobra.Command {
	var c registryClient
	var dry, untagged bool
	var grace string
	var retain []string
	cmd := &cobra.Command{
		Use: "gc [OPTIONS]", Short: "Collect the garbage of a registry while it is used",
		Long: "What is not said is as the registry was configured. A rule of --retain is\n\"REPOSITORIES[:TAGS] last=N older=AGE\": it removes the tags that are neither among\nthe newest N of their repository nor younger than AGE.",
		Example: `escale registry gc --dry-run
escale registry gc --retain 'lab/**:ci-* last=10 older=30d' --untagged --grace 0s`,
		Args: noArgs, ValidArgsFunction: cobra.NoFileCompletions,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if err := c.open(cmd.Context(), a); err != nil {
				return err
			}
			q := url.Values{"retain": retain}
			if dry {
				q.Set("dryrun", "1")
			}
			if cmd.Flags().Changed("untagged") {
				q.Set("untagged", map[bool]string{true: "1", false: "0"}[untagged])
			}
			if cmd.Flags().Changed("grace") {
				q.Set("grace", grace)
			}
			return c.collect(cmd.Context(), a, q)
		},
	}
	f := cmd.Flags()
	c.addFlags(f)
	f.BoolVar(&dry, "dry-run", false, "Only tell what would be removed")
	f.BoolVar(&untagged, "untagged", false, "Take manifests too that no tag leads to")
	f.StringVar(&grace, "grace", "", "Take nothing younger: 1h, 30d, 0s")
	f.StringArrayVar(&retain, "retain", nil, "Rule of which tags are removed")
	return cmd
}

func (c *registryClient) collect(ctx context.Context, a *app, q url.Values) error {
	resp, err := c.ask(ctx, http.MethodPost, "/v2/_escale/gc?"+q.Encode(), "")
	if err != nil {
		return err
	}
	defer resp.Body.Close()
	var out struct {
		DryRun                          bool
		Tags, Manifests, Blobs, Uploads []string
		Bytes                           int64
		Kept                            int
	}
	if err := json.NewDecoder(resp.Body).Decode(&out); err != nil {
		return errors.New("the answer is not that of an Escale registry")
	}
	for _, part := range []struct {
		what string
		list []string
	}{{"tag", out.Tags}, {"manifest", out.Manifests}, {"blob", out.Blobs}, {"upload", out.Uploads}} {
		for _, item := range part.list {
			a.printf("%s %s\n", part.what, item)
		}
	}
	word := map[bool]string{true: "Would reclaim", false: "Total reclaimed"}[out.DryRun]
	a.printf("%s space: %s (%d blobs stay)\n", word, units.HumanSize(float64(out.Bytes)), out.Kept)
	return nil
}
