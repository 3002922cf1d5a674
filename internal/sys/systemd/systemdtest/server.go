// Package systemdtest is a systemd for tests: it listens on a bus of its own and makes
// the cgroups of transient scopes as systemd would, in hierarchies it is given. Messages are read
// and written by another implementation than the one that is tested.
package systemdtest

import (
	"bufio"
	"fmt"
	"maps"
	"net"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/systemd"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"
)

// Server is a systemd. Its methods may be called by several goroutines.
type Server struct {
	t     *testing.T
	roots []string // mount points of hierarchies
	l     net.Listener

	mu     sync.Mutex
	units  map[string]*Unit
	calls  []string
	result string // of the next job
	silent bool
	jobs   int
	loops  sync.WaitGroup
}

// Unit is one that was made.
type Unit struct {
	Properties map[string]any // as they were set last
	Failed     bool           // it stays until it is reset
	path       string         // below the roots
}

// Start listens at a socket below a new directory; roots are where cgroups are made. The
// environment leads to it, until the test ends.
func Start(t *testing.T, roots ...string) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "systemd-test-") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	s := &Server{t: t, roots: roots, units: map[string]*Unit{}, result: "done"}
	path := filepath.Join(dir, "bus")
	if s.l, err = net.Listen("unix", path); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+path)
	s.loops.Add(1)
	go s.accept()
	t.Cleanup(func() {
		s.l.Close()
		s.loops.Wait()
		os.RemoveAll(dir)
	})
	return s
}

// Fail has the next job end with result instead of "done".
func (s *Server) Fail(result string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.result = result
}

// Hush has it answer nothing any more.
func (s *Server) Hush() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.silent = true
}

// Add makes a unit that nobody has asked for.
func (s *Server) Add(name string, failed bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.units[name] = &Unit{Properties: map[string]any{}, Failed: failed}
}

// Unit is a copy of a unit; nil without it.
func (s *Server) Unit(name string) *Unit {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collect()
	u := s.units[name]
	if u == nil {
		return nil
	}
	return &Unit{Properties: maps.Clone(u.Properties), Failed: u.Failed}
}

// Units are the names of those that are there.
func (s *Server) Units() (names []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.collect()
	for n := range s.units {
		names = append(names, n)
	}
	return names
}

// Calls are the methods that were called, in their order.
func (s *Server) Calls() []string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return append([]string(nil), s.calls...)
}

// collect forgets scopes that nobody is in any more. Called with mu held.
func (s *Server) collect() {
	for name, u := range s.units {
		if u.path != "" && len(s.pids(u)) == 0 {
			s.end(name, u)
		}
	}
}

func (s *Server) end(name string, u *Unit) {
	for _, dir := range s.dirs(u) {
		below, _ := filepath.Glob(filepath.Join(dir, "*", "."))
		for _, d := range append(below, dir) {
			_ = unix.Rmdir(d) // it may be gone, or have more below it
		}
	}
	delete(s.units, name)
}

func (s *Server) dirs(u *Unit) (list []string) {
	for _, r := range s.roots {
		list = append(list, filepath.Join(r, u.path))
	}
	return list
}

func (s *Server) pids(u *Unit) (list []int) {
	for _, dir := range s.dirs(u) {
		b, _ := os.ReadFile(filepath.Join(dir, "cgroup.procs")) // gone: nobody is in it
		for _, f := range strings.Fields(string(b)) {
			if n, err := strconv.Atoi(f); err == nil && n > 0 {
				list = append(list, n)
			}
		}
	}
	return list
}

func (s *Server) accept() {
	defer s.loops.Done()
	for {
		c, err := s.l.Accept()
		if err != nil {
			return
		}
		s.loops.Add(1)
		go func() {
			defer s.loops.Done()
			defer c.Close()
			stop := make(chan struct{})
			defer close(stop)
			s.serve(c)
		}()
	}
}

// serve talks to one client, until that goes.
func (s *Server) serve(c net.Conn) {
	r := bufio.NewReader(c)
	if zero, err := r.ReadByte(); err != nil || zero != 0 {
		return
	}
	line, err := r.ReadString('\n')
	if err != nil {
		return
	}
	if want := fmt.Sprintf("AUTH EXTERNAL %x\r\n", strconv.Itoa(os.Geteuid())); line != want {
		fmt.Fprint(c, "REJECTED EXTERNAL\r\n")
		return
	}
	fmt.Fprint(c, "OK 0123456789abcdef0123456789abcdef\r\n")
	if line, err = r.ReadString('\n'); err != nil || line != "BEGIN\r\n" {
		return
	}
	for {
		m, err := dbus.DecodeMessage(r)
		if err != nil {
			return
		}
		if err := m.IsValid(); err != nil {
			s.t.Errorf("systemdtest: message: %v", err)
			return
		}
		if !s.answer(c, m) {
			return
		}
	}
}

// answer answers a call, and tells of the job that it began.
func (s *Server) answer(c net.Conn, m *dbus.Message) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.silent {
		return true
	}
	member, _ := m.Headers[dbus.FieldMember].Value().(string)
	s.calls = append(s.calls, member)
	reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{}}
	out, refused := s.do(member, m.Body)
	if refused != nil {
		reply.Type, out = dbus.TypeError, []any{refused.Message}
		reply.Headers[dbus.FieldErrorName] = dbus.MakeVariant(refused.Name)
	}
	reply.Body = out
	reply.Headers[dbus.FieldReplySerial] = dbus.MakeVariant(m.Serial())
	reply.Headers[dbus.FieldSender] = dbus.MakeVariant(":1.1")
	messages := []*dbus.Message{reply}
	if len(out) == 1 {
		if path, ok := out[0].(dbus.ObjectPath); ok {
			told := &dbus.Message{Type: dbus.TypeSignal, Body: []any{uint32(s.jobs), path, m.Body[0], s.result}, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldPath: dbus.MakeVariant(dbus.ObjectPath("/org/freedesktop/systemd1")), dbus.FieldInterface: dbus.MakeVariant("org.freedesktop.systemd1.Manager"),
				dbus.FieldMember: dbus.MakeVariant("JobRemoved"), dbus.FieldSender: dbus.MakeVariant(":1.1")}}
			s.result = "done"
			// Somebody else's word for it comes first.
			lie := &dbus.Message{Type: dbus.TypeSignal, Body: []any{uint32(s.jobs), path, m.Body[0], "failed"}, Headers: maps.Clone(told.Headers)}
			lie.Headers[dbus.FieldSender] = dbus.MakeVariant(":1.66")
			messages = append([]*dbus.Message{lie}, reply, told)
			if s.jobs%2 == 0 { // a job may have ended before its beginning is answered
				messages = []*dbus.Message{told, lie, reply}
			}
		}
	}
	for _, one := range messages {
		sig := dbus.SignatureOf(one.Body...)
		if len(one.Body) > 0 {
			one.Headers[dbus.FieldSignature] = dbus.MakeVariant(sig)
		}
		if err := one.EncodeTo(c, binaryOrder(s.jobs)); err != nil {
			return false
		}
	}
	return true
}

// do does what a method asks for. Called with mu held.
func (s *Server) do(member string, args []any) ([]any, *systemd.Error) {
	s.collect()
	switch member {
	case "Hello":
		return []any{":1.7"}, nil
	case "AddMatch", "Subscribe":
		return nil, nil
	case "Get":
		return []any{dbus.MakeVariant("252.39-1~deb12u1")}, nil
	}
	name, _ := args[0].(string)
	u := s.units[name]
	if u == nil && member != "StartTransientUnit" {
		return nil, &systemd.Error{Name: "org.freedesktop.systemd1.NoSuchUnit", Message: "Unit " + name + " not loaded."}
	}
	switch member {
	case "StartTransientUnit":
		if u != nil {
			return nil, &systemd.Error{Name: "org.freedesktop.systemd1.UnitExists", Message: "Unit " + name + " was already loaded or has a fragment file."}
		}
		if err := s.start(name, args[2]); err != nil {
			return nil, err
		}
	case "SetUnitProperties":
		return nil, set(u, args[2])
	case "ResetFailedUnit":
		if u.Failed {
			delete(s.units, name)
		}
		return nil, nil
	case "StopUnit":
		for range 1000 {
			list := s.pids(u)
			if len(list) == 0 {
				break
			}
			for _, pid := range list {
				_ = unix.Kill(pid, unix.SIGKILL) // it may be gone
			}
			time.Sleep(time.Millisecond)
		}
		s.end(name, u)
	default:
		return nil, &systemd.Error{Name: "org.freedesktop.DBus.Error.UnknownMethod", Message: "Unknown method " + member}
	}
	s.jobs++
	return []any{dbus.ObjectPath("/org/freedesktop/systemd1/job/" + strconv.Itoa(s.jobs))}, nil
}

// set takes properties over.
func set(u *Unit, list any) *systemd.Error {
	for _, p := range list.([][]any) {
		name, v := p[0].(string), p[1].(dbus.Variant).Value()
		if name == "Nonsense" {
			return &systemd.Error{Name: "org.freedesktop.DBus.Error.PropertyReadOnly", Message: "Cannot set property Nonsense, or unknown property."}
		}
		u.Properties[name] = v
	}
	return nil
}

// start makes a scope with its processes, as systemd does.
func (s *Server) start(name string, list any) *systemd.Error {
	u := &Unit{Properties: map[string]any{}}
	if err := set(u, list); err != nil {
		return err
	}
	pids, _ := u.Properties["PIDs"].([]uint32)
	if len(pids) == 0 {
		return &systemd.Error{Name: "org.freedesktop.systemd1.BadUnitSetting", Message: "Unit " + name + " has a bad unit file setting."}
	}
	slice, _ := u.Properties["Slice"].(string)
	u.path = systemd.Cgroup(slice, "", strings.TrimSuffix(name, ".scope"))
	if s.result != "done" {
		return nil
	}
	for _, dir := range s.dirs(u) {
		err := os.MkdirAll(dir, 0o755)
		for _, pid := range pids {
			if err == nil {
				err = os.WriteFile(filepath.Join(dir, "cgroup.procs"), []byte(strconv.Itoa(int(pid))), 0o644)
			}
		}
		if err != nil {
			return &systemd.Error{Name: "org.freedesktop.DBus.Error.Failed", Message: err.Error()}
		}
	}
	s.units[name] = u
	return nil
}
