package membership

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"path/filepath"

	"escale.dev/escale/internal/cluster/dispatch"
	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

// phase is where a host stands in a cluster.
type phase string

// The phases. Without a record a host is alone.
const (
	alone    phase = ""
	founding phase = "founding" // it is making a cluster of itself; an engine that finds this takes it back
	worker   phase = "worker"   // it runs what managers say
	manager  phase = "manager"  // it keeps the store, too
	restored phase = "restored" // it is a manager, once what lies ready is in its place
	leaving  phase = "leaving"  // what tasks have left here goes, and then the rest
)

// Format is that of the record (docs/formats.md).
const Format = 1

// record is what a host keeps of its part in a cluster.
type record struct {
	Format   int
	Phase    phase
	Node     string             // id
	Listen   string             `json:",omitempty"` // host:port where it is called, once it is a manager
	Addr     string             `json:",omitempty"` // host:port that the others are told
	DataPath string             `json:",omitempty"` // address of the overlay networks' packets; "": that of Addr
	Managers []dispatch.Manager `json:",omitempty"` // that were known when it joined
	Members  string             `json:",omitempty"` // of the store that it was added to, itself included; "": it has begun the store
	Fresh    bool               `json:",omitempty"` // the store's server has not been ready yet
	Home     bool               `json:",omitempty"` // of who leaves: the host's own store has all that was to be kept
	Force    bool               `json:",omitempty"` // the store goes on with this member alone, once
}

// The files below the directory.
const (
	recordFile   = "membership.json"
	identityFile = "identity.json"
	viewFile     = "view.json"
	keysFile     = "keys.json"
	serverDir    = "store"
	readyDir     = "restored" // what is to take the places of the others
)

// readRecord reads that of a directory; the zero record when there is none. DataLoss when it
// cannot be read as one; FailedPrecondition when it is of a later format.
func readRecord(dir string) (r record, err error) {
	path := filepath.Join(dir, recordFile)
	raw, err := os.ReadFile(path)
	if errors.Is(err, fs.ErrNotExist) {
		return record{}, nil
	}
	if err != nil {
		return r, err
	}
	r, err = parseRecord(raw)
	if err != nil {
		return r, fmt.Errorf("%s: %w", path, err)
	}
	return r, nil
}

func parseRecord(raw []byte) (r record, err error) {
	if err := json.Unmarshal(raw, &r); err != nil {
		return r, fmt.Errorf("record of the membership: %w: %w", err, errdefs.ErrDataLoss)
	}
	switch {
	case r.Format > Format:
		return r, fmt.Errorf("record of the membership: its format is %d, this version of Escale knows %d: %w", r.Format, Format, errdefs.ErrFailedPrecondition)
	case r.Phase != founding && r.Phase != worker && r.Phase != manager && r.Phase != restored && r.Phase != leaving, r.Node == "":
		return r, fmt.Errorf("record of the membership: phase %q of node %q: %w", r.Phase, r.Node, errdefs.ErrDataLoss)
	}
	return r, nil
}

// write keeps the record, durably.
func (r record) write(dir string) error {
	r.Format = Format
	raw, err := json.Marshal(r)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(dir, 0o700); err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, recordFile), append(raw, '\n'), 0o600, atomicfile.Options{Sync: true})
}

// host is the address by which other nodes reach this one.
func (r record) host() string {
	if a, err := netip.ParseAddrPort(r.Addr); err == nil {
		return a.Addr().String()
	}
	return ""
}

// peerPort is where nodes call each other.
const peerPort = "7946"

// peers is where this node listens for others.
func (r record) peers() string {
	host, _, err := net.SplitHostPort(r.Listen)
	if err != nil {
		host = ""
	}
	return net.JoinHostPort(host, peerPort)
}
