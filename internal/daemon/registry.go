package daemon

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/opencontainers/go-digest"
	"github.com/spf13/pflag"

	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/registry/server"
	"escale.dev/escale/internal/sys/atomicfile"
)

// registryFlags declares the options of a registry, each name after prefix: the
// engine's and those of `escaled registry serve`.
func registryFlags(fs *pflag.FlagSet, prefix string, c *server.Config) {
	mirror := "mirror"
	if prefix != "" {
		mirror = prefix + "pull-through" // dockerd has a --registry-mirror, for what the engine pulls itself
	}
	fs.StringArrayVar(&c.Mirrors, mirror, nil, "Registry, http(s)://HOST, whose images the registry fetches and keeps when it lacks them")
	fs.Var(&s3Flag{of: c, kind: "url"}, prefix+"s3", "Keep the registry's content in a bucket of S3: http(s)://ENDPOINT/BUCKET[/PREFIX]")
	fs.Var(&s3Flag{of: c, kind: "region"}, prefix+"s3-region", "Region of the bucket (default: asked for)")
	fs.Var(&s3Flag{of: c, kind: "file"}, prefix+"s3-credentials", "File with the bucket's credentials, in AWS's form (default: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY)")
	fs.StringVar(&c.TLSCert, prefix+"tls-cert", "", "Certificate of the registry; without one only loopback addresses are served")
	fs.StringVar(&c.TLSKey, prefix+"tls-key", "", "Key of the registry's certificate")
	fs.StringVar(&c.Htpasswd, prefix+"htpasswd", "", "File of the registry's users, user:bcrypt a line; read again when it changes")
	fs.BoolVar(&c.Insecure, prefix+"insecure", false, "Serve the registry without TLS on every address")
	fs.DurationVar(&c.Every, prefix+"gc-every", 24*time.Hour, "Collect the registry's garbage at this interval; 0: never")
	fs.Var(ageFlag{&c.Grace}, prefix+"gc-grace", "Age under which a collection of the registry takes nothing (default 1h)")
	fs.Var(rulesFlag{&c.Retain}, prefix+"retain", `Rule of which tags a collection removes: "REPOSITORIES[:TAGS] last=N older=AGE"`)
	fs.BoolVar(&c.Untagged, prefix+"gc-untagged", false, "Let collections of the registry take manifests that no tag leads to")
}

// ageFlag is a duration that may be said in days.
type ageFlag struct{ d *time.Duration }

func (f ageFlag) String() string { return "" }
func (f ageFlag) Type() string   { return "age" }
func (f ageFlag) Set(s string) (err error) {
	*f.d, err = server.ParseAge(s)
	return err
}

// s3Flag is one of the options of a bucket; any of them asks for one.
type s3Flag struct {
	of   *server.Config
	kind string // also shown as the kind of value
}

func (f *s3Flag) String() string { return "" }
func (f *s3Flag) Type() string   { return f.kind }
func (f *s3Flag) Set(text string) error {
	if f.of.S3 == nil {
		f.of.S3 = new(server.S3)
	}
	switch f.kind {
	case "region":
		f.of.S3.Region = text
	case "file":
		f.of.S3.Credentials = text
	default:
		b, err := server.ParseS3(text)
		if err != nil {
			return err
		}
		b.Region, b.Credentials = f.of.S3.Region, f.of.S3.Credentials
		*f.of.S3 = *b
	}
	return nil
}

// rulesFlag is a repeatable retention rule.
type rulesFlag struct{ rules *[]server.Rule }

func (f rulesFlag) String() string { return "" }
func (f rulesFlag) Type() string   { return "rule" }
func (f rulesFlag) Set(s string) error {
	r, err := server.ParseRule(s)
	if err == nil {
		*f.rules = append(*f.rules, r)
	}
	return err
}

// registry is the registry's part of the configuration, checked; nil: none.
func (c *Config) registry() (*server.Config, error) {
	if c.Registry.Addr == "" {
		if c.RegistryContent {
			return nil, errors.New("--registry-content needs --registry ADDR")
		}
		return nil, nil
	}
	r := c.Registry
	r.Root = filepath.Join(c.DataRoot, "registry")
	return &r, r.Validate()
}

// openRegistry serves the registry if there is to be one. It holds nothing but a
// socket until somebody asks it.
func (d *Daemon) openRegistry(ctx context.Context) error {
	c, err := d.cfg.registry()
	if c == nil || err != nil {
		return err
	}
	c.Logger = d.log.With("component", "registry")
	if d.cfg.RegistryContent {
		c.Content = sharedImages{image.Offer(d.images)}
	}
	ctx, cancel := context.WithCancel(ctx)
	wait, err := startRegistry(ctx, *c)
	if err != nil {
		cancel()
		return err
	}
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		if err := wait(); err != nil {
			d.log.Error("registry", "error", err)
		}
	}()
	d.onClose(func() error {
		cancel()
		<-ended
		return nil
	})
	return nil
}

// startRegistry opens the address; what it gives serves until ctx ends.
func startRegistry(ctx context.Context, c server.Config) (serve func() error, err error) {
	s, err := server.New(c)
	if err != nil {
		return nil, err
	}
	l, err := server.Listen(c)
	if err != nil {
		return nil, err
	}
	c.Logger.Info("registry listens", "address", l.Addr(), "root", c.Root, "tls", c.TLSCert != "", "users", c.Htpasswd != "")
	return func() error { return s.Serve(ctx, l) }, nil
}

// sharedImages is the image store as the registry has it.
type sharedImages struct{ images image.Offered }

func (i sharedImages) Resolve(ctx context.Context, name, ref string) (server.Manifest, error) {
	d, body, err := i.images.Manifest(ctx, name, ref)
	return server.Manifest{MediaType: d.MediaType, Digest: d.Digest, Body: body}, err
}

func (i sharedImages) Open(ctx context.Context, name string, d digest.Digest) (server.Blob, error) {
	b, err := i.images.Blob(ctx, name, d)
	if err != nil {
		return nil, err
	}
	return b, nil
}

func (i sharedImages) Tags(ctx context.Context, name string) ([]string, error) {
	return i.images.Tags(ctx, name)
}

// registryMain is `escaled registry`: a registry without an engine.
func registryMain(ctx context.Context, args []string, stdin io.Reader, stdout, stderr io.Writer) error {
	const usage = "Usage: escaled registry serve [OPTIONS]\n       escaled registry passwd FILE USER\n"
	switch verb := strings.Join(args[:min(1, len(args))], ""); verb {
	case "serve":
		return serveRegistry(ctx, args[1:], stdout, stderr)
	case "passwd":
		if len(args) != 3 {
			return errors.New("registry passwd: want FILE USER, and the password on the standard input")
		}
		return setPassword(args[1], args[2], stdin)
	case "", "-h", "--help":
		_, err := io.WriteString(stdout, usage)
		return err
	default:
		return fmt.Errorf("unknown command: registry %s\n%s", verb, usage)
	}
}

func serveRegistry(ctx context.Context, args []string, stdout, stderr io.Writer) error {
	var c server.Config
	var level string
	fs := pflag.NewFlagSet("registry serve", pflag.ContinueOnError)
	fs.StringVar(&c.Addr, "addr", "127.0.0.1:5000", "Address to listen on, HOST:PORT")
	fs.StringVar(&c.Root, "root", "/var/lib/escale/registry", "Directory of the registry's content")
	fs.StringVarP(&level, "log-level", "l", "info", `What is logged: "debug", "info", "warn", "error"`)
	registryFlags(fs, "", &c)
	fs.Usage = func() {}
	err := fs.Parse(args)
	switch {
	case errors.Is(err, pflag.ErrHelp):
		_, err := fmt.Fprintf(stdout, "Serve a registry of images until a signal ends it.\n\nUsage: escale registry serve [OPTIONS]\n\nOptions:\n%s", fs.FlagUsagesWrapped(100))
		return err
	case err != nil:
		return err
	case fs.NArg() > 0:
		return fmt.Errorf("registry serve: accepts no arguments, got %q", fs.Args())
	}
	if c.Root, err = filepath.Abs(c.Root); err != nil {
		return err
	}
	c.Logger = slog.New(slog.NewTextHandler(stderr, &slog.HandlerOptions{Level: logLevel(level)}))
	routeLibraries(c.Logger)
	serve, err := startRegistry(ctx, c)
	if err != nil {
		return err
	}
	return serve()
}

// maxPassword bounds a line of the standard input, in bytes.
const maxPassword = 4096

// setPassword gives a user of a password file a password, or adds the user.
func setPassword(file, user string, stdin io.Reader) error {
	line, err := bufio.NewReader(io.LimitReader(stdin, maxPassword)).ReadString('\n')
	if err != nil && !errors.Is(err, io.EOF) {
		return err
	}
	password := strings.TrimRight(line, "\r\n")
	if password == "" {
		return errors.New("registry passwd: the password on the standard input is empty")
	}
	entry, err := server.HashPassword(user, password)
	if err != nil {
		return err
	}
	old, err := os.ReadFile(file)
	if err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	var out strings.Builder
	for l := range strings.Lines(string(old)) {
		if name, _, ok := strings.Cut(l, ":"); ok && name == user || strings.TrimSpace(l) == "" {
			continue
		}
		out.WriteString(strings.TrimRight(l, "\n") + "\n")
	}
	out.WriteString(entry + "\n")
	return atomicfile.Write(file, []byte(out.String()), 0o600, atomicfile.Options{Sync: true})
}
