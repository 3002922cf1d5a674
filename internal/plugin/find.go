package plugin

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

const maxSpec = 64 << 10 // bytes of a file that describes a plugin

// where is how a plugin can be reached.
type where struct {
	Addr string
	TLS  *TLS `json:"TLSConfig"`
}

// places are the directories in which plugins make themselves known.
type places struct {
	sockets, specs []string
}

// find looks for a plugin by its name: sockets first, then files. Absent: fs.ErrNotExist.
func (p places) find(name string) (where, error) {
	if name == "" || strings.ContainsAny(name, "/\x00") || name == "." || name == ".." {
		return where{}, fs.ErrNotExist // no such file can be
	}
	for _, dir := range p.sockets {
		for _, path := range spellings(dir, name, ".sock") {
			if info, err := os.Stat(path); err == nil && info.Mode()&fs.ModeSocket != 0 {
				return where{Addr: "unix://" + path}, nil
			}
		}
	}
	for _, dir := range p.specs {
		for _, ext := range []string{".spec", ".json"} {
			for _, path := range spellings(dir, name, ext) {
				b, err := readSmall(path)
				if errors.Is(err, fs.ErrNotExist) || errors.Is(err, fs.ErrPermission) || errors.Is(err, unix.ENOTDIR) {
					continue
				}
				var w where
				if err == nil {
					w, err = parseSpec(ext, b)
				}
				if err != nil {
					return where{}, fmt.Errorf("%s: %w", path, err)
				}
				return w, nil
			}
		}
	}
	return where{}, fs.ErrNotExist
}

// spellings are where a plugin's file may be: in the directory, or in one of its own there.
func spellings(dir, name, ext string) []string {
	return []string{filepath.Join(dir, name+ext), filepath.Join(dir, name, name+ext)}
}

// readSmall reads a regular file of some bytes.
func readSmall(path string) ([]byte, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, err
	}
	if !info.Mode().IsRegular() || info.Size() > maxSpec {
		return nil, errors.New("not the description of a plugin")
	}
	return os.ReadFile(path)
}

// parseSpec reads the description of a plugin: an address alone (.spec), or with
// what secures it (.json).
func parseSpec(ext string, b []byte) (where, error) {
	var w where
	if ext == ".json" {
		if err := json.Unmarshal(b, &w); err != nil {
			return where{}, err
		}
	} else {
		w = where{Addr: strings.TrimSpace(string(b)), TLS: &TLS{InsecureSkipVerify: true}}
	}
	u, err := url.Parse(w.Addr)
	if err != nil {
		return where{}, err
	}
	if u.Scheme == "" {
		return where{}, errors.New("Unknown protocol")
	}
	return w, nil
}

// names lists the plugins there are, each once, sorted.
func (p places) names() []string {
	seen := map[string]bool{}
	for _, dir := range p.sockets {
		for name, socket := range entries(dir) {
			if base, ok := strings.CutSuffix(name, ".sock"); ok && socket {
				seen[base] = true
			} else if isSocket(filepath.Join(dir, name, name+".sock")) {
				seen[name] = true
			}
		}
	}
	for _, dir := range p.specs {
		for name := range entries(dir) {
			base := strings.TrimSuffix(strings.TrimSuffix(name, ".spec"), ".json")
			for _, ext := range []string{".spec", ".json"} {
				if name == base+ext || exists(filepath.Join(dir, name, name+ext)) {
					seen[base] = true
				}
			}
		}
	}
	out := make([]string, 0, len(seen))
	for name := range seen {
		out = append(out, name)
	}
	slices.Sort(out)
	return out
}

// entries are the names in a directory, each with whether it is a socket.
func entries(dir string) map[string]bool {
	list, err := os.ReadDir(dir)
	if err != nil {
		return nil // it need not be there
	}
	out := make(map[string]bool, len(list))
	for _, d := range list {
		out[d.Name()] = isSocket(filepath.Join(dir, d.Name()))
	}
	return out
}

func isSocket(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode()&fs.ModeSocket != 0
}

func exists(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.Mode().IsRegular()
}
