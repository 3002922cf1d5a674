package server

import (
	"crypto/tls"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"os"
	"path/filepath"
	"sync"
	"time"

	"github.com/containerd/errdefs"
)

// DefaultGrace is the age under which a collection takes nothing.
const DefaultGrace = time.Hour

// Config says what a registry serves and how.
type Config struct {
	Root     string // directory; docker/registry/v2 below it is the library's layout
	Addr     string // HOST:PORT to listen on
	TLSCert  string // PEM files; both or none
	TLSKey   string
	Htpasswd string // file of user:bcrypt lines; empty: everybody may do everything
	Insecure bool   // allow plain HTTP on other addresses than loopback

	S3 *S3 // of the content; nil: Root. Root has what clients are still sending

	Mirrors []string // URLs of registries whose content is fetched and kept when it is not here
	Content Content  // of the engine; nil: none

	Grace    time.Duration // of collections; 0: DefaultGrace
	Every    time.Duration // between collections; 0: only when asked for
	Retain   []Rule        // tags that collections remove
	Untagged bool          // collections remove manifests that no tag leads to

	Logger *slog.Logger
}

// Validate checks what can be told without the disk. Kind: InvalidArgument.
func (c *Config) Validate() error {
	host, _, err := net.SplitHostPort(c.Addr)
	switch {
	case err != nil:
		return invalid("registry address %q: want HOST:PORT", c.Addr)
	case !filepath.IsAbs(c.Root):
		return invalid("registry root %q is not an absolute path", c.Root)
	case (c.TLSCert == "") != (c.TLSKey == ""):
		return invalid("registry: a certificate needs its key, and a key its certificate")
	case c.TLSCert == "" && !c.Insecure && !loopback(host):
		return invalid("registry address %s: without TLS only loopback addresses are served; give a certificate and key, or say insecure", c.Addr)
	case c.Grace < 0 || c.Every < 0:
		return invalid("registry: times are not negative")
	}
	if c.S3 != nil {
		if err := c.S3.validate(c.Insecure); err != nil {
			return err
		}
	}
	for _, m := range c.Mirrors {
		u, err := url.Parse(m)
		if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" || u.RawQuery != "" || u.Fragment != "" {
			return invalid("registry mirror %q: want http(s)://HOST[:PORT]", redactedURL(u, m))
		}
	}
	return nil
}

// redactedURL is a URL without the password that may stand in it.
func redactedURL(u *url.URL, text string) string {
	if u == nil {
		return text
	}
	return u.Redacted()
}

func loopback(host string) bool {
	if host == "localhost" {
		return true
	}
	ip, err := netip.ParseAddr(host)
	return err == nil && ip.Unmap().IsLoopback()
}

func invalid(format string, args ...any) error {
	return fmt.Errorf("%w%w", fmt.Errorf(format, args...), silent{errdefs.ErrInvalidArgument})
}

// silent gives an error a kind without a word.
type silent struct{ error }

func (silent) Error() string   { return "" }
func (s silent) Unwrap() error { return s.error }

// Listen opens the address of the configuration, with TLS if it has any.
func Listen(c Config) (net.Listener, error) {
	if err := c.Validate(); err != nil {
		return nil, err
	}
	var conf *tls.Config
	if c.TLSCert != "" {
		k := &keyPair{cert: c.TLSCert, key: c.TLSKey, log: c.Logger}
		if _, err := k.get(nil); err != nil {
			return nil, err
		}
		conf = &tls.Config{GetCertificate: k.get, MinVersion: tls.VersionTLS12, NextProtos: []string{"h2", "http/1.1"}}
	}
	l, err := net.Listen("tcp", c.Addr)
	if err != nil {
		return nil, fmt.Errorf("registry: %w", err)
	}
	if conf != nil {
		return tls.NewListener(l, conf), nil
	}
	return l, nil
}

// keyPair is a certificate with its key, read again when its file changes: they
// are renewed every few weeks.
type keyPair struct {
	cert, key string
	log       *slog.Logger

	mu   sync.Mutex
	read os.FileInfo // of the certificate that was read
	pair *tls.Certificate
}

// get is tls.Config.GetCertificate. When the new files are no pair, the old one stays.
func (k *keyPair) get(*tls.ClientHelloInfo) (*tls.Certificate, error) {
	k.mu.Lock()
	defer k.mu.Unlock()
	info, err := os.Stat(k.cert)
	if err == nil && k.pair != nil && os.SameFile(info, k.read) && info.ModTime().Equal(k.read.ModTime()) && info.Size() == k.read.Size() {
		return k.pair, nil
	}
	var pair tls.Certificate
	if err == nil {
		pair, err = tls.LoadX509KeyPair(k.cert, k.key)
	}
	if err != nil {
		if err = fmt.Errorf("registry certificate %s: %w", k.cert, err); k.pair == nil {
			return nil, err
		}
		if k.log != nil {
			k.log.Warn("the old certificate stays", "error", err)
		}
		return k.pair, nil // and the next client's asks for another look: the key may come a moment later
	}
	k.pair, k.read = &pair, info
	return k.pair, nil
}
