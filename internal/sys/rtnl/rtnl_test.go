package rtnl

import (
	"errors"
	"os"
	"testing"

	"escale.dev/escale/internal/sys/netns/netnstest"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func dial(t *testing.T) *Conn {
	t.Helper()
	c, err := Dial()
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func TestIndex(t *testing.T) {
	c := dial(t)
	if i, err := c.Index("lo"); err != nil || i != 1 {
		t.Errorf("lo: %d, %v", i, err)
	}
	if _, err := c.Index("nothing7"); !errors.Is(err, unix.ENODEV) {
		t.Errorf("no such link: %v", err)
	}
}

// What a link's answer tells of IPv6 is what its sysctl says.
func TestNoIPv6(t *testing.T) {
	netnstest.Root(t)
	const file = "/proc/sys/net/ipv6/conf/lo/disable_ipv6"
	if _, err := os.Stat(file); err != nil {
		t.Skip("the kernel has no IPv6")
	}
	c := dial(t)
	for _, want := range []string{"1", "0"} {
		if err := os.WriteFile(file, []byte(want), 0); err != nil {
			t.Fatal(err)
		}
		if l, err := c.Link("lo"); err != nil || l.Index != 1 || l.NoIPv6 != (want == "1") {
			t.Errorf("disable_ipv6=%s: %+v, %v", want, l, err)
		}
	}
}

func FuzzNoIPv6(f *testing.F) {
	whole := nl.NewRtAttr(unix.IFLA_AF_SPEC|unix.NLA_F_NESTED, nil)
	whole.AddRtAttr(unix.AF_INET6, nil).AddRtAttr(inet6Conf, append(make([]byte, disableIPv6*4), 1, 0, 0, 0))
	good := whole.Serialize()
	if !noIPv6(good) || noIPv6(good[:len(good)-4]) || noIPv6(nil) {
		f.Error("attributes are misread")
	}
	f.Add(good)
	f.Fuzz(func(t *testing.T, b []byte) { noIPv6(b) })
}

func create(name string) *nl.NetlinkRequest {
	req := nl.NewNetlinkRequest(unix.RTM_NEWLINK, unix.NLM_F_CREATE|unix.NLM_F_EXCL)
	req.AddData(nl.NewIfInfomsg(unix.AF_UNSPEC))
	req.AddData(nl.NewRtAttr(unix.IFLA_IFNAME, nl.ZeroTerminated(name)))
	info := nl.NewRtAttr(unix.IFLA_LINKINFO, nil)
	info.AddRtAttr(nl.IFLA_INFO_KIND, []byte("bridge"))
	req.AddData(info)
	return req
}

// Each request of a batch has its own answer, and those after a failure are
// carried out too.
func TestBatch(t *testing.T) {
	netnstest.Root(t)
	c := dial(t)
	t.Cleanup(func() {
		for _, n := range []string{"rtnl0", "rtnl1"} {
			if l, err := netlink.LinkByName(n); err == nil {
				_ = netlink.LinkDel(l)
			}
		}
	})
	errs, err := c.DoAll(create("rtnl0"), create("rtnl0"), create("rtnl1"))
	if err != nil || len(errs) != 3 || errs[0] != nil || !errors.Is(errs[1], unix.EEXIST) || errs[2] != nil {
		t.Fatalf("%v, %v", errs, err)
	}
	for _, n := range []string{"rtnl0", "rtnl1"} {
		if i, err := c.Index(n); err != nil || i == 0 {
			t.Errorf("%s: %d, %v", n, i, err)
		}
	}
	var e *Error
	if err := c.Do(create("rtnl0")); !errors.As(err, &e) || e.Index != 0 || e.Errno != unix.EEXIST {
		t.Errorf("Do: %v", err)
	}
	if err := c.Do(); err != nil {
		t.Errorf("an empty batch: %v", err)
	}
}
