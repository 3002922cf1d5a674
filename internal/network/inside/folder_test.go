package inside

import (
	"errors"
	"io/fs"
	"testing"

	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

// A folder is that of the namespace in which it was opened, wherever it is used.
func TestFolder(t *testing.T) {
	netnstest.Root(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	const name = "net/ipv4/conf/lo"
	var f Folder
	if err := ns.Do(func() (err error) { f, err = OpenFolder(name); return err }); err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	here, err := Read(name + "/route_localnet")
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error { return Sysctl(name+"/route_localnet", "0") }); err != nil {
		t.Fatal(err)
	}
	for range 2 { // the second finds it done
		if err := f.Set("route_localnet", "1"); err != nil {
			t.Fatal(err)
		}
	}
	var there string
	if err := ns.Do(func() (err error) { there, err = Read(name + "/route_localnet"); return err }); err != nil || there != "1" {
		t.Errorf("there it is %q, %v", there, err)
	}
	if now, err := Read(name + "/route_localnet"); err != nil || now != here {
		t.Errorf("here it has become %q, %v", now, err)
	}
	if err := f.Set("nothing", "1"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such sysctl: %v", err)
	}
	if err := f.Set("route_localnet", "many"); err == nil {
		t.Error("a value that is none was taken")
	}
	if _, err := OpenFolder("net/ipv4/conf/nothing"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("no such folder: %v", err)
	}
}

// A namespace that was just made has its loopback link, and no IPv6 on links that come.
func TestPrepare(t *testing.T) {
	netnstest.Root(t)
	ns, err := netns.New()
	if err != nil {
		t.Fatal(err)
	}
	defer ns.Close()
	if err := ns.Do(Prepare); err != nil {
		t.Fatal(err)
	}
	if err := ns.Do(func() error {
		for file, want := range map[string]string{"default": "1", "lo": "0"} {
			v, err := Read("net/ipv6/conf/" + file + "/disable_ipv6")
			if errors.Is(err, fs.ErrNotExist) {
				return nil // the kernel has no IPv6
			}
			if err != nil || v != want {
				t.Errorf("disable_ipv6 of %s: %q, %v", file, v, err)
			}
		}
		return nil
	}); err != nil {
		t.Error(err)
	}
}
