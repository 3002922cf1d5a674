// Command volumeplugin is a small volume plugin of Docker's protocol, for tests: its
// volumes are directories, and a mount is a bind mount of one. It is static and
// needs nothing but its arguments, so that it runs on the host and as the only
// file of a managed plugin alike.
package main

import (
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"log"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"time"
)

// volume is one of the plugin's.
type volume struct {
	Options map[string]string
	Made    time.Time
	Users   map[string]bool // by the id of their mount
}

// shelf is the plugin: its state lies in a file, so that it outlives the process.
type shelf struct {
	root   string // data of the volumes, and state.json
	mounts string // where they are mounted

	mu      sync.Mutex
	Volumes map[string]*volume
}

// request and answer are the protocol's, all calls in one.
type request struct {
	Name, ID string
	Opts     map[string]string
}

type told struct {
	Name, Mountpoint, CreatedAt string
	Status                      map[string]any
}

type answer struct {
	Implements   []string          `json:",omitempty"`
	Err          string            `json:",omitempty"`
	Mountpoint   string            `json:",omitempty"`
	Volume       *told             `json:",omitempty"`
	Volumes      []told            `json:",omitempty"`
	Capabilities map[string]string `json:",omitempty"`
}

func main() {
	socket := flag.String("socket", "/run/docker/plugins/shelf.sock", "where to listen")
	root := flag.String("root", "/data", "directory of the volumes")
	mounts := flag.String("mounts", "/mnt/volumes", "directory of mount points")
	flag.Parse()
	s := &shelf{root: *root, mounts: *mounts, Volumes: map[string]*volume{}}
	if err := s.open(); err != nil {
		log.Fatal(err)
	}
	os.Remove(*socket)
	if err := os.MkdirAll(filepath.Dir(*socket), 0o755); err != nil {
		log.Fatal(err)
	}
	l, err := net.Listen("unix", *socket)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, s))
}

func (s *shelf) state() string { return filepath.Join(s.root, "state.json") }

func (s *shelf) open() error {
	for _, dir := range []string{s.root, s.mounts} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	b, err := os.ReadFile(s.state())
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	return errors.Join(err, json.Unmarshal(b, s))
}

func (s *shelf) save() error {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.state()+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(s.state()+".new", s.state())
}

// ServeHTTP answers one call. A file "hang" in the root keeps it from answering.
func (s *shelf) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req request
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil && r.ContentLength > 0 {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	for r.URL.Path != "/Plugin.Activate" {
		if _, err := os.Stat(filepath.Join(s.root, "hang")); err != nil {
			break
		}
		select {
		case <-time.After(50 * time.Millisecond):
		case <-r.Context().Done():
			return
		}
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	a, err := s.answer(strings.TrimPrefix(r.URL.Path, "/"), &req)
	if err != nil {
		a = answer{Err: err.Error()}
	}
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
	json.NewEncoder(w).Encode(a)
}

func (s *shelf) answer(call string, req *request) (a answer, err error) {
	v := s.Volumes[req.Name]
	switch call {
	case "Plugin.Activate":
		return answer{Implements: []string{"VolumeDriver"}}, nil
	case "VolumeDriver.Capabilities":
		return answer{Capabilities: map[string]string{"Scope": "local"}}, nil
	case "VolumeDriver.Create":
		return answer{}, s.create(req)
	case "VolumeDriver.List":
		for name := range s.Volumes {
			a.Volumes = append(a.Volumes, *s.tell(name))
		}
		return a, nil
	}
	if v == nil {
		return answer{}, fmt.Errorf("volume %s not on the shelf", req.Name)
	}
	switch call {
	case "VolumeDriver.Get":
		return answer{Volume: s.tell(req.Name)}, nil
	case "VolumeDriver.Path":
		return answer{Mountpoint: s.tell(req.Name).Mountpoint}, nil
	case "VolumeDriver.Mount":
		return answer{Mountpoint: s.point(req.Name)}, s.mount(v, req)
	case "VolumeDriver.Unmount":
		return answer{}, s.unmount(v, req)
	case "VolumeDriver.Remove":
		return answer{}, s.remove(v, req)
	}
	return answer{}, errors.New("unknown call " + call)
}

func (s *shelf) data(name string) string  { return filepath.Join(s.root, "v-"+name) }
func (s *shelf) point(name string) string { return filepath.Join(s.mounts, name) }

func (s *shelf) tell(name string) *told {
	v := s.Volumes[name]
	t := &told{Name: name, CreatedAt: v.Made.Format(time.RFC3339), Status: map[string]any{"users": len(v.Users)}}
	if len(v.Users) > 0 {
		t.Mountpoint = s.point(name)
	}
	return t
}

func (s *shelf) create(req *request) error {
	if why := req.Opts["refuse"]; why != "" {
		return errors.New(why)
	}
	if s.Volumes[req.Name] != nil {
		return nil
	}
	if err := os.MkdirAll(s.data(req.Name), 0o755); err != nil {
		return err
	}
	s.Volumes[req.Name] = &volume{Options: req.Opts, Made: time.Now().UTC(), Users: map[string]bool{}}
	return s.save()
}

func (s *shelf) mount(v *volume, req *request) error {
	if v.Options["mount"] == "refuse" {
		return errors.New("the shelf is locked")
	}
	if len(v.Users) == 0 {
		if err := os.MkdirAll(s.point(req.Name), 0o755); err != nil {
			return err
		}
		if err := syscall.Mount(s.data(req.Name), s.point(req.Name), "", syscall.MS_BIND, ""); err != nil {
			return fmt.Errorf("mount: %w", err)
		}
	}
	v.Users[req.ID] = true
	return s.save()
}

func (s *shelf) unmount(v *volume, req *request) error {
	if !v.Users[req.ID] {
		return fmt.Errorf("volume %s is not mounted for %s", req.Name, req.ID)
	}
	delete(v.Users, req.ID)
	if len(v.Users) == 0 {
		if err := syscall.Unmount(s.point(req.Name), syscall.MNT_DETACH); err != nil {
			return fmt.Errorf("unmount: %w", err)
		}
		os.Remove(s.point(req.Name))
	}
	return s.save()
}

func (s *shelf) remove(v *volume, req *request) error {
	if len(v.Users) > 0 {
		return fmt.Errorf("volume %s is mounted", req.Name)
	}
	if err := os.RemoveAll(s.data(req.Name)); err != nil {
		return err
	}
	delete(s.Volumes, req.Name)
	return s.save()
}
