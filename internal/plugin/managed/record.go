package managed

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/plugin"
	"github.com/opencontainers/go-digest"
)

const (
	format     = 1 // of record; see docs/formats.md
	recordFile = "plugin.json"
	propagated = "propagated-mount"
	// Directories of what is being made, or was removed.
	newPrefix, oldPrefix = ".new-", ".removed-"
)

var idRule = regexp.MustCompile(`^[0-9a-f]{64}$`)

// record is a plugin on the disk.
type record struct {
	Version    int
	Plugin     plugin.Plugin
	Config     digest.Digest // of the configuration, as the registry has it
	Blobs      []digest.Digest
	Manifest   digest.Digest
	Rootfs     string // name of the directory of the root file system
	Generation uint64 // counts starts
}

// parseRecord reads the record of the plugin whose directory is id. Kind:
// FailedPrecondition for one of a later format.
func parseRecord(id string, b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	switch {
	case r.Version > format:
		return r, fmt.Errorf("plugin %s: its record has format %d, this version of Escale knows %d; downgrading is not possible: %w", id, r.Version, format, errdefs.ErrFailedPrecondition)
	case r.Plugin.ID != id || r.Plugin.Name == "" || !strings.HasPrefix(r.Rootfs, "rootfs") || strings.ContainsRune(r.Rootfs, '/'):
		return r, errors.New("it is of no plugin")
	}
	return r, checkConfig(&r.Plugin.Config)
}

// checkConfig refuses configurations that lead outside what is the plugin's. Kind:
// InvalidArgument.
func checkConfig(c *plugin.Config) error {
	socket := c.Interface.Socket
	switch {
	case len(c.Entrypoint) == 0:
		return invalidf("plugin config: no entrypoint")
	case socket == "" || socket == "." || socket == ".." || strings.ContainsAny(socket, "/\x00"):
		return invalidf("plugin config: %q is no name of a socket", socket)
	case c.PropagatedMount != "" && (!filepath.IsAbs(c.PropagatedMount) || filepath.Clean(c.PropagatedMount) == "/"):
		return invalidf("plugin config: propagated mount %q must be an absolute path", c.PropagatedMount)
	}
	switch p := c.Interface.ProtocolScheme; p {
	case "", "moby.plugins.http/v1":
	default:
		return invalidf("plugin protocol not supported: %s", p)
	}
	switch n := c.Network.Type; n {
	case "", "host", "none", "null", "bridge":
	default:
		return invalidf("plugin config: network %q is not supported", n)
	}
	return nil
}

func invalidf(text string, a ...any) error {
	return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(text, a...))
}

// save writes a plugin's record into its directory, durably.
func save(dir string, r *record) error {
	r.Version = format
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, recordFile), b, 0o600, atomicfile.Options{Sync: true})
}

// load reads a plugin's record and collects what a killed engine left beside it.
func load(dir string) (record, error) {
	b, err := os.ReadFile(filepath.Join(dir, recordFile))
	if err != nil {
		return record{}, err
	}
	r, err := parseRecord(filepath.Base(dir), b)
	if err != nil {
		return r, err
	}
	list, err := os.ReadDir(dir)
	if err != nil {
		return r, err
	}
	for _, d := range list {
		if strings.HasPrefix(d.Name(), "rootfs") && d.Name() != r.Rootfs {
			err = errors.Join(err, os.RemoveAll(filepath.Join(dir, d.Name())))
		}
	}
	return r, errors.Join(err, atomicfile.Collect(dir))
}
