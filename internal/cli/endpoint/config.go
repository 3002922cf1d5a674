// Package endpoint finds out which engine a command line means: from -H,
// ESCALE_HOST, DOCKER_HOST, contexts and the default sockets, with the TLS
// material that belongs to it. It reads the client's configuration file too,
// the same one as Docker's client, and never writes it.
package endpoint

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// Config is what Escale uses of config.json.
type Config struct {
	HTTPHeaders    map[string]string `json:"HttpHeaders"`
	CurrentContext string            `json:"currentContext"`
	DetachKeys     string            `json:"detachKeys"`
	PsFormat       string            `json:"psFormat"`
	StatsFormat    string            `json:"statsFormat"`
	ImagesFormat   string            `json:"imagesFormat"`
	VolumesFormat  string            `json:"volumesFormat"`
	PluginsFormat  string            `json:"pluginsFormat"`
	NetworksFormat string            `json:"networksFormat"`
	ServicesFormat string            `json:"servicesFormat"`
	ServiceFormat  string            `json:"serviceInspectFormat"`
	TasksFormat    string            `json:"tasksFormat"`
	NodesFormat    string            `json:"nodesFormat"`
	SecretFormat   string            `json:"secretFormat"`
	ConfigFormat   string            `json:"configFormat"`
	PruneFilters   []string          `json:"pruneFilters"`
	Proxies        map[string]Proxy  `json:"proxies"`
}

// Proxy holds the proxy variables that containers of one engine get.
type Proxy struct {
	HTTP  string `json:"httpProxy"`
	HTTPS string `json:"httpsProxy"`
	No    string `json:"noProxy"`
	FTP   string `json:"ftpProxy"`
	All   string `json:"allProxy"`
}

// ConfigDir is the folder of config.json when no flag names one.
func ConfigDir() string {
	if d := os.Getenv("DOCKER_CONFIG"); d != "" {
		return d
	}
	home, err := os.UserHomeDir()
	if err != nil {
		home = "/"
	}
	return filepath.Join(home, ".docker")
}

// LoadConfig reads dir/config.json. A file that is not there is an empty one. The
// words of an error are those of Docker's warning.
func LoadConfig(dir string) (Config, error) {
	name := filepath.Join(dir, "config.json")
	f, err := os.Open(name)
	if errors.Is(err, fs.ErrNotExist) {
		return Config{}, nil
	}
	if err != nil {
		return Config{}, fmt.Errorf("Error loading config file: %w", err) //nolint:staticcheck // Docker's words.
	}
	defer f.Close()
	var c Config
	if err := json.NewDecoder(f).Decode(&c); err != nil {
		return Config{}, fmt.Errorf("Error parsing config file (%s): %w", name, err) //nolint:staticcheck // Docker's words.
	}
	return c, nil
}

// ProxyEnv gives the variables for containers on the engine at host, in both
// cases of letters, as programs differ in which they read.
func (c Config) ProxyEnv(host string) map[string]string {
	p, ok := c.Proxies[host]
	if !ok {
		p = c.Proxies["default"]
	}
	out := map[string]string{}
	for _, v := range []struct{ upper, lower, value string }{
		{"HTTP_PROXY", "http_proxy", p.HTTP},
		{"HTTPS_PROXY", "https_proxy", p.HTTPS},
		{"NO_PROXY", "no_proxy", p.No},
		{"FTP_PROXY", "ftp_proxy", p.FTP},
		{"ALL_PROXY", "all_proxy", p.All},
	} {
		if v.value != "" {
			out[v.upper], out[v.lower] = v.value, v.value
		}
	}
	return out
}
