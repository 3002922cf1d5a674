package endpoint

import (
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"escale.dev/escale/client"
)

// DefaultContext is the name of the context that no file describes.
const DefaultContext = "default"

// Flags are the global flags that choose an engine.
type Flags struct {
	ConfigDir string
	Context   string
	Hosts     []string
	TLS       bool
	TLSVerify bool
	// CA, Cert and Key are paths. Explicit tells that the user named the file,
	// so that a missing one is an error.
	CA, Cert, Key             string
	CertExplicit, KeyExplicit bool
}

// Endpoint is the engine that was chosen.
type Endpoint struct {
	Context string
	Options client.Options
}

// Resolve chooses the engine: --context or -H, then ESCALE_HOST and
// DOCKER_HOST, then DOCKER_CONTEXT, then the configuration's current context,
// then the default socket.
func Resolve(f Flags, c Config) (Endpoint, error) {
	name, err := contextName(f, c)
	if err != nil {
		return Endpoint{}, err
	}
	ep := Endpoint{Context: name}
	if name == DefaultContext {
		err = ep.fromFlags(f)
	} else {
		err = ep.fromContext(filepath.Join(f.ConfigDir, "contexts"), name)
	}
	if err != nil {
		return Endpoint{}, err
	}
	ep.Options.Headers = c.HTTPHeaders
	ep.Options.APIVersion = os.Getenv("DOCKER_API_VERSION")
	return ep, nil
}

func contextName(f Flags, c Config) (string, error) {
	switch {
	case f.Context != "" && len(f.Hosts) > 0:
		return "", errors.New("conflicting options: cannot specify both --host and --context")
	case f.Context != "":
		return f.Context, nil
	case len(f.Hosts) > 0, envHost() != "":
		return DefaultContext, nil
	}
	if name := os.Getenv("DOCKER_CONTEXT"); name != "" {
		return name, nil
	}
	if c.CurrentContext != "" {
		return c.CurrentContext, nil
	}
	return DefaultContext, nil
}

func envHost() string {
	if h := os.Getenv("ESCALE_HOST"); h != "" {
		return h
	}
	return os.Getenv("DOCKER_HOST")
}

func (ep *Endpoint) fromFlags(f Flags) error {
	host := envHost()
	switch len(f.Hosts) {
	case 0:
	case 1:
		host = f.Hosts[0]
	default:
		return errors.New("Specify only one -H") //nolint:staticcheck // Docker's words.
	}
	var err error
	if ep.Options.Host, err = ParseHost(host, f.TLS); err != nil {
		return err
	}
	if !f.TLS {
		return nil
	}
	ca, err := readOptional(f.CA, f.TLSVerify)
	if err != nil {
		return err
	}
	cert, err := readOptional(f.Cert, f.CertExplicit)
	if err != nil {
		return err
	}
	key, err := readOptional(f.Key, f.KeyExplicit)
	if err != nil {
		return err
	}
	ep.Options.TLS, err = tlsConfig(ca, cert, key, !f.TLSVerify)
	return err
}

// metadata is contexts/meta/<digest of the name>/meta.json.
type metadata struct {
	Name      string
	Endpoints map[string]struct {
		Host          string
		SkipTLSVerify bool
	}
}

// Contexts lists the names of the contexts stored below a configuration folder,
// in order; what cannot be read is left out.
func Contexts(configDir string) []string {
	files, _ := filepath.Glob(filepath.Join(configDir, "contexts", "meta", "*", "meta.json"))
	var names []string
	for _, f := range files {
		var m metadata
		if b, err := os.ReadFile(f); err == nil && json.Unmarshal(b, &m) == nil && m.Name != "" {
			names = append(names, m.Name)
		}
	}
	slices.Sort(names)
	return names
}

func (ep *Endpoint) fromContext(dir, name string) error {
	sum := sha256.Sum256([]byte(name))
	id := hex.EncodeToString(sum[:])
	b, err := os.ReadFile(filepath.Join(dir, "meta", id, "meta.json"))
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("unable to resolve docker endpoint: context %q: context not found", name)
	}
	var m metadata
	if err == nil {
		err = json.Unmarshal(b, &m)
	}
	if err != nil {
		return fmt.Errorf("unable to resolve docker endpoint: context %q: %w", name, err)
	}
	e, ok := m.Endpoints["docker"]
	if !ok {
		return fmt.Errorf("unable to resolve docker endpoint: context %q: no docker endpoint in it", name)
	}
	if ep.Options.Host, err = ParseHost(e.Host, false); err != nil {
		return err
	}
	var files [3][]byte
	for i, n := range []string{"ca.pem", "cert.pem", "key.pem"} {
		if files[i], err = readOptional(filepath.Join(dir, "tls", id, "docker", n), false); err != nil {
			return err
		}
	}
	if files[0] == nil && files[1] == nil && !e.SkipTLSVerify {
		return nil
	}
	ep.Options.TLS, err = tlsConfig(files[0], files[1], files[2], e.SkipTLSVerify)
	return err
}

func readOptional(name string, must bool) ([]byte, error) {
	b, err := os.ReadFile(name)
	if errors.Is(err, fs.ErrNotExist) && !must {
		return nil, nil
	}
	return b, err
}

func tlsConfig(ca, cert, key []byte, insecure bool) (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, InsecureSkipVerify: insecure}
	if ca != nil {
		c.RootCAs = x509.NewCertPool()
		if !c.RootCAs.AppendCertsFromPEM(ca) {
			return nil, errors.New("TLS: the CA file holds no PEM certificate")
		}
	}
	switch {
	case cert != nil && key != nil:
		pair, err := tls.X509KeyPair(cert, key)
		if err != nil {
			return nil, fmt.Errorf("TLS: %w", err)
		}
		c.Certificates = []tls.Certificate{pair}
	case cert != nil || key != nil:
		return nil, errors.New("TLS: a client certificate needs both its certificate and its key file")
	}
	return c, nil
}

// ParseHost completes the address of an engine: "" is the default socket,
// "unix://" Docker's, "host:port" and "tcp://host" get what they lack.
func ParseHost(s string, withTLS bool) (string, error) {
	s = strings.TrimSpace(s)
	if s == "" {
		if withTLS {
			return "tcp://localhost:2376", nil
		}
		return client.DefaultHost(), nil
	}
	proto, rest, ok := strings.Cut(s, "://")
	if !ok {
		proto, rest = "tcp", s
	}
	switch proto {
	case "unix":
		if strings.Contains(rest, "://") {
			return "", fmt.Errorf("invalid proto, expected unix: %s", rest)
		}
		if rest == "" {
			rest = client.DockerSocket
		}
		return "unix://" + rest, nil
	case "tcp":
		return parseTCP(rest, withTLS)
	case "ssh", "http", "https":
		return s, nil
	}
	return "", fmt.Errorf("invalid bind address format: %s", s)
}

func parseTCP(s string, withTLS bool) (string, error) {
	port := "2375"
	if withTLS {
		port = "2376"
	}
	if strings.Contains(s, "://") {
		return "", fmt.Errorf("invalid proto, expected tcp: %s", s)
	}
	addr, path, _ := strings.Cut(s, "/")
	if path != "" {
		path = "/" + path
	}
	host, p, err := net.SplitHostPort(addr)
	if err != nil {
		host, p, err = net.SplitHostPort(net.JoinHostPort(strings.Trim(addr, "[]"), port))
	}
	if err != nil {
		return "", fmt.Errorf("invalid bind address format: %s", s)
	}
	if host == "" {
		host = "localhost"
	}
	if p == "" {
		p = port
	}
	return "tcp://" + net.JoinHostPort(host, p) + path, nil
}
