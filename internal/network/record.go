package network

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

// recordFormat is the version of record on disk (docs/formats.md).
const recordFormat = 1

// record is all that is kept of a network that a user made: <id>.json. It is
// written before the kernel is touched and removed after the kernel holds nothing
// of the network any more: what is in the kernel without one is garbage.
type record struct {
	Format                 int
	ID, Name, Driver       string
	Created                time.Time
	EnableIPv4, EnableIPv6 bool
	Internal, Attachable   bool
	Ingress                bool              `json:",omitempty"`
	Scope                  string            `json:",omitempty"` // empty: local
	ConfigOnly             bool              `json:",omitempty"`
	ConfigFrom             string            `json:",omitempty"`
	IPAM                   IPAM              // subnets as they were given or chosen
	Options, Labels        map[string]string // as asked
}

func (r *record) info() Info {
	return Info{
		Name: r.Name, ID: r.ID, Driver: r.Driver, Scope: cmp.Or(r.Scope, "local"), Created: r.Created,
		EnableIPv4: r.EnableIPv4, EnableIPv6: r.EnableIPv6, Internal: r.Internal, Attachable: r.Attachable, Ingress: r.Ingress,
		ConfigOnly: r.ConfigOnly, ConfigFrom: r.ConfigFrom, IPAM: r.IPAM,
		Options: maps.Clone(r.Options), Labels: maps.Clone(r.Labels),
	}
}

func (r *record) spec() Spec {
	return Spec{
		Name: r.Name, ID: r.ID, Options: r.Options, IPv4: r.EnableIPv4, IPv6: r.EnableIPv6, Internal: r.Internal,
		Subnets: r.IPAM.Subnets,
	}
}

// records keeps the records of networks in a directory; "" for none.
type records string

// networkID is an id of the engine's own, or of a cluster.
var networkID = regexp.MustCompile(`^([0-9a-f]{64}|[0-9a-z]{25})$`)

func (d records) path(id string) string { return filepath.Join(string(d), id+".json") }

// save writes a record durably.
func (d records) save(r *record) error {
	if d == "" {
		return errdefs.ErrFailedPrecondition.WithMessage("this engine keeps no networks of users")
	}
	if err := os.MkdirAll(string(d), 0o700); err != nil {
		return err
	}
	b, err := json.Marshal(r)
	if err != nil {
		return err
	}
	return atomicfile.Write(d.path(r.ID), append(b, '\n'), 0o600, atomicfile.Options{Sync: true})
}

// remove removes a record durably. Idempotent.
func (d records) remove(id string) error {
	if err := os.Remove(d.path(id)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return atomicfile.SyncDir(string(d))
}

// load reads all records, in order of their making. bad are those that cannot be
// read, by id: they are left alone. One of a newer engine is an error for all.
func (d records) load() (list []*record, bad map[string]error, err error) {
	if d == "" {
		return nil, nil, nil
	}
	if err := atomicfile.Collect(string(d)); err != nil {
		return nil, nil, err
	}
	files, err := os.ReadDir(string(d))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	bad, names := map[string]error{}, map[string]bool{}
	for _, f := range files {
		id, ok := strings.CutSuffix(f.Name(), ".json")
		if !ok || !networkID.MatchString(id) {
			continue
		}
		b, err := os.ReadFile(d.path(id))
		if err != nil {
			bad[id] = err
			continue
		}
		r, err := parseRecord(b)
		switch {
		case errors.Is(err, errdefs.ErrFailedPrecondition):
			return nil, nil, fmt.Errorf("network record %q: %w", d.path(id), err)
		case err == nil && r.ID != id:
			err = fmt.Errorf("it is that of %q", r.ID)
		case err == nil && names[r.Name]:
			err = fmt.Errorf("another network is called %q", r.Name)
		}
		if err != nil {
			bad[id] = err
			continue
		}
		names[r.Name] = true
		list = append(list, r)
	}
	slices.SortFunc(list, func(a, b *record) int { return a.Created.Compare(b.Created) })
	return list, bad, nil
}

// parseRecord reads a record. FailedPrecondition when a newer engine wrote it.
func parseRecord(b []byte) (*record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return nil, err
	}
	switch {
	case r.Format > recordFormat:
		return nil, fmt.Errorf("its format is %d, this engine knows %d: start a newer engine: %w", r.Format, recordFormat, errdefs.ErrFailedPrecondition)
	case r.Format < 1 || !networkID.MatchString(r.ID) || strings.TrimSpace(r.Name) == "" || predefined[r.Name] != "" || r.Driver == "":
		return nil, errors.New("no engine has written it")
	}
	for _, s := range r.IPAM.Subnets {
		if _, err := newPool(s); err != nil {
			return nil, err
		}
	}
	return &r, nil
}
