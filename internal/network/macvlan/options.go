package macvlan

import (
	"fmt"
	"slices"

	"escale.dev/escale/internal/network"
	"github.com/containerd/errdefs"
	"github.com/vishvananda/netlink"
)

// options are what the options of a network say. Those that are not named here are
// kept and shown, and mean nothing.
type options struct {
	parent string // name of a link
	mode   string
	flag   string // of ipvlan
	dummy  bool   // the parent is one of ours, since none was named
}

// modes of macvlan by name.
var modes = map[string]netlink.MacvlanMode{
	"bridge": netlink.MACVLAN_MODE_BRIDGE, "private": netlink.MACVLAN_MODE_PRIVATE,
	"vepa": netlink.MACVLAN_MODE_VEPA, "passthru": netlink.MACVLAN_MODE_PASSTHRU,
}

// ipModes and ipFlags are those of ipvlan.
var (
	ipModes = map[string]netlink.IPVlanMode{"l2": netlink.IPVLAN_MODE_L2, "l3": netlink.IPVLAN_MODE_L3, "l3s": netlink.IPVLAN_MODE_L3S}
	ipFlags = map[string]netlink.IPVlanFlag{"bridge": netlink.IPVLAN_FLAG_BRIDGE, "private": netlink.IPVLAN_FLAG_PRIVATE, "vepa": netlink.IPVLAN_FLAG_VEPA}
)

// ownName is the name of a parent that is made, at first at least.
func ownName(kind, id string) string {
	prefix := map[string]string{"macvlan": "dm-", "ipvlan": "di-"}[kind]
	return prefix + id[:min(12, len(id))]
}

// read reads the options of a network; errors are in Docker's words.
func (d *Driver) read(spec network.Spec) (options, error) {
	bad := func(format string, args ...any) error {
		return errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf(format, args...))
	}
	o := options{parent: spec.Options["parent"], mode: spec.Options[d.kind+"_mode"], flag: spec.Options["ipvlan_flag"]}
	if o.parent == "lo" {
		return o, bad("loopback interface is not a valid %s parent link", d.kind)
	}
	if d.kind == "macvlan" {
		if o.mode == "" {
			o.mode = "bridge"
		}
		if _, ok := modes[o.mode]; !ok {
			return o, bad("requested macvlan mode '%s' is not valid, 'bridge' mode is the macvlan driver default", o.mode)
		}
	} else {
		if o.mode == "" {
			o.mode = "l2"
		}
		if _, ok := ipModes[o.mode]; !ok {
			return o, bad("requested ipvlan mode '%s' is not valid, 'l2' mode is the ipvlan driver default", o.mode)
		}
		if o.flag == "" {
			o.flag = "bridge"
		}
		if _, ok := ipFlags[o.flag]; !ok {
			return o, bad("requested ipvlan flag '%s' is not valid, 'bridge' is the ipvlan driver default", o.flag)
		}
	}
	if o.parent == "" {
		o.parent, o.dummy = ownName(d.kind, spec.ID), true
	}
	if !network.ValidLink(o.parent) {
		return o, bad("parent %q is no name of a link", o.parent)
	}
	return o, nil
}

// layer3 tells whether neighbours are not asked for on the link.
func (o options) layer3() bool { return slices.Contains([]string{"l3", "l3s"}, o.mode) }
