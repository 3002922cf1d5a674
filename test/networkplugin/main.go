// Command networkplugin is a small network plugin of Docker's protocols, for tests: a
// network is a bridge, an endpoint a pair of links, and it gives out addresses as well.
// It is static and needs nothing but its arguments, so that it runs on the host and as
// the only file of a managed plugin alike.
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

// loom is the plugin: its state lies in a file, so that it outlives the process.
type loom struct {
	root   string // state.json, and the files that make it misbehave
	prefix string // of its links' names, seven characters at most
	base   int    // of its pools: 10.BASE.0.0/16

	mu       sync.Mutex
	Networks map[string]*network // by id
	Pools    map[string]*pool    // by id
}

// request is the protocols', all calls in one.
type request struct {
	NetworkID, EndpointID, SandboxKey string
	Options                           map[string]any
	IPv4Data, IPv6Data                []ipamData
	Interface                         *face

	AddressSpace, Pool, SubPool, PoolID, Address string
	V6                                           bool
}

type ipamData struct{ AddressSpace, Pool, Gateway string }

type face struct {
	Address     string `json:",omitempty"`
	AddressIPv6 string `json:",omitempty"`
	MacAddress  string `json:",omitempty"`
}

func main() {
	socket := flag.String("socket", "/run/docker/plugins/loom.sock", "where to listen")
	address := flag.String("listen", "", "a TCP address to listen at instead")
	root := flag.String("root", "/data", "directory of its state")
	prefix := flag.String("prefix", "loom", "begins the names of its links")
	base := flag.Int("base", 231, "N of 10.N.0.0/16, of which its pools are")
	flag.Parse()
	s := &loom{root: *root, prefix: *prefix, base: *base, Networks: map[string]*network{}, Pools: map[string]*pool{}}
	if err := s.open(); err != nil {
		log.Fatal(err)
	}
	kind, where := "tcp", *address
	if where == "" {
		kind, where = "unix", *socket
		os.Remove(where)
		if err := os.MkdirAll(filepath.Dir(where), 0o755); err != nil {
			log.Fatal(err)
		}
	}
	l, err := net.Listen(kind, where)
	if err != nil {
		log.Fatal(err)
	}
	log.Fatal(http.Serve(l, s))
}

func (s *loom) state() string { return filepath.Join(s.root, "state.json") }

func (s *loom) open() error {
	if err := os.MkdirAll(s.root, 0o755); err != nil {
		return err
	}
	b, err := os.ReadFile(s.state())
	if errors.Is(err, os.ErrNotExist) {
		return s.save()
	}
	return errors.Join(err, json.Unmarshal(b, s))
}

func (s *loom) save() error {
	b, err := json.MarshalIndent(s, "", " ")
	if err != nil {
		return err
	}
	if err := os.WriteFile(s.state()+".new", b, 0o600); err != nil {
		return err
	}
	return os.Rename(s.state()+".new", s.state())
}

// has tells whether the test has put a file into the root.
func (s *loom) has(name string) bool {
	_, err := os.Stat(filepath.Join(s.root, name))
	return err == nil
}

// ServeHTTP answers one call. A file "hang" in the root keeps it from answering;
// "hold-X" keeps it from answering call X once it is done; "kill-X" ends by then the
// process whose number is in it.
func (s *loom) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	var req request
	if err := json.NewDecoder(r.Body).Decode(&req); err != nil && r.ContentLength > 0 {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	call := strings.TrimPrefix(r.URL.Path, "/")
	wait := func(name string) bool {
		for s.has(name) {
			select {
			case <-time.After(20 * time.Millisecond):
			case <-r.Context().Done():
				return false
			}
		}
		return true
	}
	if call != "Plugin.Activate" && !wait("hang") {
		return
	}
	s.mu.Lock()
	a, err := s.answer(call, &req)
	if err == nil {
		err = s.save()
	}
	s.mu.Unlock()
	short := call[strings.Index(call, ".")+1:]
	s.kill("kill-" + short)
	if !wait("hold-" + short) {
		return
	}
	w.Header().Set("Content-Type", "application/vnd.docker.plugins.v1.2+json")
	switch {
	case errors.Is(err, errUnknown):
		http.NotFound(w, r)
		return
	case err != nil && strings.HasPrefix(call, "IpamDriver."):
		a = map[string]any{"Error": err.Error()}
	case err != nil:
		a = map[string]any{"Err": err.Error()}
	}
	json.NewEncoder(w).Encode(a)
}

// kill kills the process whose number is in a file, once.
func (s *loom) kill(name string) {
	b, err := os.ReadFile(filepath.Join(s.root, name))
	if err != nil {
		return
	}
	os.Remove(filepath.Join(s.root, name))
	var pid int
	if _, err := fmt.Sscan(string(b), &pid); err == nil && pid > 1 {
		syscall.Kill(pid, syscall.SIGKILL)
	}
}

var errUnknown = errors.New("unknown call")

func (s *loom) answer(call string, req *request) (map[string]any, error) {
	kind, method, _ := strings.Cut(call, ".")
	switch {
	case call == "Plugin.Activate":
		return map[string]any{"Implements": []string{"NetworkDriver", "IpamDriver"}}, nil
	case s.has("refuse-" + method):
		return nil, errors.New("the loom is broken")
	case kind == "NetworkDriver":
		return s.networkCall(method, req)
	case kind == "IpamDriver":
		return s.ipamCall(method, req)
	}
	return nil, errUnknown
}
