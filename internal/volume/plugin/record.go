package plugin

import (
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/containerd/errdefs"
)

const format = 1 // of both records; see docs/formats.md

// record is a volume on the disk, for as long as it lives.
type record struct {
	Version   int
	Name      string
	Driver    string
	Scope     string            `json:",omitempty"`
	Labels    map[string]string `json:",omitempty"`
	Options   map[string]string `json:",omitempty"`
	CreatedAt time.Time
}

// mounts is what the plugin has mounted, for as long as the machine runs.
type mounts struct {
	Version int
	Name    string
	Driver  string
	Users   map[string]mounted
}

// mounted is a mount for one user.
type mounted struct {
	ID   string // under which the plugin knows it
	Path string `json:",omitempty"` // on this machine; empty: the plugin has not said it yet
}

// fileOf names the records of a volume: a plugin's volume may have any name.
func fileOf(name string) string {
	sum := sha256.Sum256([]byte(name))
	return hex.EncodeToString(sum[:]) + ".json"
}

// parseRecord reads the record of a volume, which lies in file. Kind:
// FailedPrecondition for one of a later format.
func parseRecord(file string, b []byte) (record, error) {
	var r record
	if err := json.Unmarshal(b, &r); err != nil {
		return r, err
	}
	if r.Version > format {
		return r, fmt.Errorf("the record has format %d, this version of Escale knows %d; downgrading is not possible: %w", r.Version, format, errdefs.ErrFailedPrecondition)
	}
	if r.Name == "" || r.Driver == "" || fileOf(r.Name) != file {
		return r, errors.New("it is of no volume")
	}
	return r, nil
}

// parseMounts reads what was mounted.
func parseMounts(file string, b []byte) (mounts, error) {
	var m mounts
	if err := json.Unmarshal(b, &m); err != nil {
		return m, err
	}
	if m.Version > format || m.Name == "" || m.Driver == "" || fileOf(m.Name) != file {
		return m, errors.New("it is of no volume")
	}
	for user, one := range m.Users {
		if one.ID == "" {
			delete(m.Users, user)
		}
	}
	return m, nil
}

// readAll gives the content of every record of a directory to f, by its file's name.
func readAll(dir string, f func(file string, b []byte) error) error {
	list, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	if err := atomicfile.Collect(dir); err != nil {
		return err
	}
	for _, d := range list {
		if !strings.HasSuffix(d.Name(), ".json") || strings.HasPrefix(d.Name(), ".") {
			continue
		}
		b, err := os.ReadFile(filepath.Join(dir, d.Name()))
		if err == nil {
			err = f(d.Name(), b)
		}
		if err != nil {
			return fmt.Errorf("%s: %w", filepath.Join(dir, d.Name()), err)
		}
	}
	return nil
}

// write puts a record on the disk; with sync it is there after the power has gone.
func write(dir, name string, v any, sync bool) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	return atomicfile.Write(filepath.Join(dir, fileOf(name)), b, 0o600, atomicfile.Options{Sync: sync})
}

// erase removes a record. That there is none is fine.
func erase(dir, name string) error {
	err := os.Remove(filepath.Join(dir, fileOf(name)))
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}
