// Package credentials keeps the logins to registries where Docker's client keeps
// them: in config.json, or with a credential helper that it names. What else is
// in the file stays as it is.
package credentials

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"
)

// Login is what a registry wants to know.
type Login struct {
	Username, Password string
	IdentityToken      string // instead of the password
}

// tokenUser is the user name under which helpers keep an identity token.
const tokenUser = "<token>"

// Store is the logins of one configuration folder. It reads the file anew for
// each call. A call blocks for the helper, which may ask its user something, until ctx ends; then
// the helper is killed.
type Store struct{ Dir string }

// File is where logins are kept without a helper.
func (s Store) File() string { return filepath.Join(s.Dir, "config.json") }

// config is a configuration file: what concerns us, and everything.
type config struct {
	all     map[string]json.RawMessage
	auths   map[string]json.RawMessage
	store   string
	helpers map[string]string
}

func (s Store) read() (*config, error) {
	c := &config{all: map[string]json.RawMessage{}, auths: map[string]json.RawMessage{}}
	b, err := os.ReadFile(s.File())
	if errors.Is(err, fs.ErrNotExist) {
		return c, nil
	}
	if err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &c.all); err != nil {
		return nil, fmt.Errorf("config file %s: %w", s.File(), err)
	}
	for key, into := range map[string]any{"auths": &c.auths, "credsStore": &c.store, "credHelpers": &c.helpers} {
		if raw, ok := c.all[key]; ok {
			if err := json.Unmarshal(raw, into); err != nil {
				return nil, fmt.Errorf("config file %s: %s: %w", s.File(), key, err)
			}
		}
	}
	if c.all == nil { // the file says null, or its auths do
		c.all = map[string]json.RawMessage{}
	}
	if c.auths == nil {
		c.auths = map[string]json.RawMessage{}
	}
	return c, nil
}

// Helper is the program that keeps the login to server, "" when the file does.
func (s Store) Helper(server string) (string, error) {
	c, err := s.read()
	if err != nil {
		return "", err
	}
	return c.helper(server), nil
}

func (c *config) helper(server string) string {
	if h, ok := c.helpers[server]; ok {
		return h
	}
	return c.store
}

// Get gives the login to server; a zero one when there is none.
func (s Store) Get(ctx context.Context, server string) (Login, error) {
	c, err := s.read()
	if err != nil {
		return Login{}, err
	}
	if h := c.helper(server); h != "" {
		return fromHelper(ctx, h, server)
	}
	raw, ok := c.auths[server]
	if !ok {
		return Login{}, nil
	}
	return decode(raw)
}

// entry is a login in the file.
type entry struct {
	Auth          string `json:"auth,omitempty"`
	IdentityToken string `json:"identitytoken,omitempty"`
}

// decode reads a login as it stands in the file.
func decode(raw []byte) (Login, error) {
	var e entry
	if err := json.Unmarshal(raw, &e); err != nil {
		return Login{}, err
	}
	l := Login{IdentityToken: e.IdentityToken}
	if e.Auth == "" {
		return l, nil
	}
	b, err := base64.StdEncoding.DecodeString(e.Auth)
	if err != nil {
		return Login{}, fmt.Errorf("login in the configuration file: %w", err)
	}
	user, password, ok := strings.Cut(string(b), ":")
	if !ok || user == "" {
		return Login{}, errors.New("login in the configuration file: no user and password in it")
	}
	l.Username, l.Password = user, strings.Trim(password, "\x00")
	return l, nil
}

// Put keeps a login. unencrypted: it stands in the file as it is.
func (s Store) Put(ctx context.Context, server string, l Login) (unencrypted bool, err error) {
	c, err := s.read()
	if err != nil {
		return false, err
	}
	e := entry{}
	h := c.helper(server)
	if h != "" {
		err = toHelper(ctx, h, server, l)
	} else {
		password := l.Password
		if l.IdentityToken != "" {
			password = ""
		}
		e = entry{base64.StdEncoding.EncodeToString([]byte(l.Username + ":" + password)), l.IdentityToken}
	}
	if err != nil {
		return false, err
	}
	if c.auths[server], err = json.Marshal(e); err != nil {
		return false, err
	}
	return h == "", s.write(c)
}

// Erase forgets the login to server; found tells whether there was one.
func (s Store) Erase(ctx context.Context, server string) (found bool, err error) {
	c, err := s.read()
	if err != nil {
		return false, err
	}
	if h := c.helper(server); h != "" {
		l, err := fromHelper(ctx, h, server)
		if err != nil {
			return false, err
		}
		if found = l != (Login{}); found {
			if _, err := run(ctx, h, "erase", server); err != nil {
				return true, err
			}
		}
	}
	if _, ok := c.auths[server]; !ok {
		return found, nil
	}
	delete(c.auths, server)
	return true, s.write(c)
}

// write replaces the file in one step, where it really lies, readable by its
// owner alone.
func (s Store) write(c *config) error {
	auths, err := json.Marshal(c.auths)
	if err != nil {
		return err
	}
	c.all["auths"] = auths
	b, err := json.MarshalIndent(c.all, "", "\t")
	if err != nil {
		return err
	}
	path := s.File()
	if real, err := filepath.EvalSymlinks(path); err == nil {
		path = real
	}
	if err := os.MkdirAll(filepath.Dir(path), 0o700); err != nil {
		return err
	}
	tmp, err := os.CreateTemp(filepath.Dir(path), ".config.json-") // 0600
	if err != nil {
		return err
	}
	_, err = tmp.Write(append(b, '\n'))
	err = errors.Join(err, tmp.Sync(), tmp.Close())
	if err == nil {
		err = os.Rename(tmp.Name(), path)
	}
	if err != nil {
		os.Remove(tmp.Name())
	}
	return err
}

// The protocol of helpers: docker-credential-NAME with a verb, JSON or an
// address on its standard input, JSON on its standard output.
type helperLogin struct{ ServerURL, Username, Secret string }

func fromHelper(ctx context.Context, name, server string) (Login, error) {
	out, err := run(ctx, name, "get", server)
	if err != nil {
		if strings.Contains(err.Error(), "credentials not found") {
			return Login{}, nil
		}
		return Login{}, err
	}
	var h helperLogin
	if err := json.Unmarshal(out, &h); err != nil {
		return Login{}, fmt.Errorf("credential helper %s: %w", name, err)
	}
	if h.Username == tokenUser {
		return Login{IdentityToken: h.Secret}, nil
	}
	return Login{Username: h.Username, Password: h.Secret}, nil
}

func toHelper(ctx context.Context, name, server string, l Login) error {
	h := helperLogin{server, l.Username, l.Password}
	if l.IdentityToken != "" {
		h.Username, h.Secret = tokenUser, l.IdentityToken
	}
	b, err := json.Marshal(h)
	if err == nil {
		_, err = run(ctx, name, "store", string(b))
	}
	return err
}

// Bounds of what a helper may say, in bytes, and of what it leaves behind may hold up.
const (
	maxHelperSays = 1 << 20
	helperDelay   = time.Second
)

func run(ctx context.Context, name, verb, input string) ([]byte, error) {
	if name != filepath.Base(name) {
		return nil, fmt.Errorf("credential helper %q: not a name", name)
	}
	run, kill := context.WithCancel(ctx)
	defer kill()
	cmd := exec.CommandContext(run, "docker-credential-"+name, verb)
	cmd.Stdin = strings.NewReader(input)
	out, errText := bounded{full: kill}, bounded{full: kill}
	cmd.Stdout, cmd.Stderr = &out, &errText
	cmd.WaitDelay = helperDelay // a process that it has begun may hold its standard output
	err := cmd.Run()
	switch {
	case ctx.Err() != nil:
		return nil, fmt.Errorf("credential helper %s: %s: %w", name, verb, ctx.Err())
	case out.over || errText.over:
		return nil, fmt.Errorf("credential helper %s: %s: it says more than %d bytes", name, verb, maxHelperSays)
	case err != nil && !errors.Is(err, exec.ErrWaitDelay):
		// Helpers tell what is wrong on their standard output.
		text := strings.TrimSpace(string(out.kept) + string(errText.kept))
		return nil, fmt.Errorf("credential helper %s: %s: %w: %.4096s", name, verb, err, text)
	}
	return out.kept, nil
}

// bounded keeps what is written, up to maxHelperSays; more calls full and is refused.
type bounded struct {
	kept []byte
	full func()
	over bool
}

func (b *bounded) Write(p []byte) (int, error) {
	if len(b.kept)+len(p) > maxHelperSays {
		b.over = true
		b.full()
		return 0, io.ErrShortWrite
	}
	b.kept = append(b.kept, p...)
	return len(p), nil
}
