package firewalld

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/godbus/dbus/v5"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// fake is firewalld on paper.
type fake struct {
	zones, policies []string // of now
	made            []string // since the last reload
	in              map[string]string
	calls           int
	fail            string // a method that fails
}

func (f *fake) call(_ context.Context, _ dbus.ObjectPath, method string, out any, args ...any) error {
	f.calls++
	_, name, _ := strings.Cut(method, service+".")
	if name == f.fail {
		return dbus.Error{Name: service + ".Exception", Body: []any{"BROKEN: on purpose"}}
	}
	exception := func(kind string) error {
		return dbus.Error{Name: service + ".Exception", Body: []any{kind + ": x"}}
	}
	switch name {
	case "zone.getZones":
		*out.(*[]string) = f.zones
	case "policy.getPolicies":
		*out.(*[]string) = f.policies
	case "config.addZone2", "config.addPolicy":
		if slices.Contains(f.made, args[0].(string)) {
			return exception("NAME_CONFLICT")
		}
		f.made = append(f.made, args[0].(string))
	case "reload":
		f.zones, f.policies, f.in = append(f.zones, f.made...), append(f.policies, f.made...), map[string]string{}
	case "zone.getZoneOfInterface":
		*out.(*string) = f.in[args[0].(string)]
	case "zone.changeZoneOfInterface":
		if !slices.Contains(f.zones, args[0].(string)) {
			return exception("INVALID_ZONE")
		}
		f.in[args[1].(string)] = args[0].(string)
	case "zone.removeInterface":
		if f.in[args[1].(string)] == "" {
			return exception("UNKNOWN_INTERFACE")
		}
		delete(f.in, args[1].(string))
	default:
		return fmt.Errorf("no method %q", name)
	}
	return nil
}

func zoneOn(f *fake) *Zone {
	z := NewZone("escale")
	z.dial = func() (caller, func(), error) { return f, func() {}, nil }
	return z
}

func TestZone(t *testing.T) {
	f := &fake{in: map[string]string{"escale0": "public"}}
	z := zoneOn(f)
	set := func(want string, bridges ...string) {
		t.Helper()
		if err := z.Set(t.Context(), bridges); err != nil {
			t.Fatal(err)
		}
		if got := fmt.Sprint(f.in); got != want {
			t.Errorf("interfaces are in %s, want %s", got, want)
		}
	}
	set("map[escale0:escale]", "escale0")
	set("map[br-1:escale escale0:escale]", "escale0", "br-1")
	before := f.calls
	set("map[br-1:escale escale0:escale]", "escale0", "br-1")
	if f.calls-before != 4 {
		t.Errorf("%d calls when all is well", f.calls-before)
	}
	set("map[br-1:escale]", "br-1")
	f.in = map[string]string{} // firewalld was started anew
	set("map[br-1:escale]", "br-1")
	delete(f.in, "br-1")
	set("map[]")
	if !slices.Equal(f.made, []string{"escale", "escale-fwd"}) {
		t.Errorf("made %q", f.made)
	}
	f.fail = "zone.changeZoneOfInterface"
	if err := z.Set(t.Context(), []string{"br-1"}); err == nil || !strings.Contains(err.Error(), `firewalld zone "escale": interface "br-1"`) {
		t.Errorf("error %v", err)
	}
	if n := NewZone("esc-some-long-instance"); len(n.name) > 17 || len(n.policy) > 17 {
		t.Errorf("names %q and %q are too long", n.name, n.policy)
	}
}

func TestWithoutFirewalld(t *testing.T) {
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+filepath.Join(t.TempDir(), "none"))
	if err := NewZone("escale").Set(t.Context(), []string{"escale0"}); !errors.Is(err, ErrAbsent) {
		t.Errorf("error %v", err)
	}
}

// run starts a program for as long as the test lasts.
func run(t *testing.T, name string, args ...string) {
	t.Helper()
	cmd := exec.Command(name, args...)
	cmd.Stdout, cmd.Stderr = t.Output(), t.Output()
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		_ = cmd.Wait()
	})
}

// The real one, with a bus of its own, in the network namespace of this test.
func TestFirewalldItself(t *testing.T) {
	netnstest.Root(t)
	for _, p := range []string{"dbus-daemon", "firewalld", "nft"} {
		if _, err := exec.LookPath(p); err != nil {
			t.Skipf("needs %s (Debian: firewalld, dbus, nftables)", p)
		}
	}
	dir, err := os.MkdirTemp("", "fwd") // a socket's path is short
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	address := "unix:path=" + filepath.Join(dir, "bus")
	config := `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><listen>` + address + `</listen><auth>EXTERNAL</auth><policy context="default">
<allow send_destination="*" eavesdrop="true"/><allow eavesdrop="true"/><allow own="*"/></policy></busconfig>`
	if err := os.WriteFile(filepath.Join(dir, "bus.conf"), []byte(config), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	run(t, "dbus-daemon", "--config-file="+filepath.Join(dir, "bus.conf"), "--nofork", "--nopidfile")
	await(t, "the bus", func() bool { _, err := os.Stat(filepath.Join(dir, "bus")); return err == nil })
	run(t, "firewalld", "--nofork", "--nopid", "--system-config", filepath.Join(dir, "etc"))
	t.Cleanup(func() { _ = exec.Command("nft", "delete", "table", "inet", Table).Run() })
	z := NewZone("escale-test")
	await(t, "firewalld", func() bool { // it has its name before it answers
		err := z.Set(t.Context(), []string{"br-a"})
		if err != nil && !errors.Is(err, ErrAbsent) {
			t.Log(err)
		}
		return err == nil
	})
	rules := func() string {
		out, err := exec.Command("nft", "list", "table", "inet", Table).CombinedOutput()
		if err != nil {
			t.Fatalf("%v: %s", err, out)
		}
		return string(out)
	}
	if got := rules(); !strings.Contains(got, `iifname "br-a" goto filter_FWD_escale-test`) && !strings.Contains(got, `"br-a"`) {
		t.Errorf("the bridge is in no zone:\n%s", got)
	}
	for range 2 {
		if err := z.Set(t.Context(), []string{"br-b"}); err != nil {
			t.Fatal(err)
		}
	}
	if got := rules(); strings.Contains(got, `"br-a"`) || !strings.Contains(got, `"br-b"`) {
		t.Errorf("the bridge was not exchanged:\n%s", got)
	}
}

func await(t *testing.T, what string, ready func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ready(); time.Sleep(50 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s does not come up", what)
		}
	}
}
