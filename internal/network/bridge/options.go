package bridge

import (
	"fmt"
	"maps"
	"net/netip"
	"strconv"
	"strings"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/firewall"
	"github.com/containerd/errdefs"
)

// Options of bridged networks, as Docker names them. Others are kept and shown,
// and mean nothing.
const (
	optPrefix       = "com.docker.network.bridge."
	optName         = optPrefix + "name"
	optICC          = optPrefix + "enable_icc"
	optMasquerade   = optPrefix + "enable_ip_masquerade"
	optBinding      = optPrefix + "host_binding_ipv4"
	optDefault      = optPrefix + "default_bridge"
	optTrusted      = optPrefix + "trusted_host_interfaces"
	optInhibitIPv4  = optPrefix + "inhibit_ipv4"
	optGatewayMode4 = optPrefix + "gateway_mode_ipv4"
	optGatewayMode6 = optPrefix + "gateway_mode_ipv6"
	optMTU          = "com.docker.network.driver.mtu"
	optHostIPv4     = "com.docker.network.host_ipv4"
	optHostIPv6     = "com.docker.network.host_ipv6"
)

// options are what the options of a network say.
type options struct {
	link         string // name of the bridge
	mtu          int    // bytes
	icc, masq    bool
	inhibit      bool // the bridge gets no IPv4 address
	mode4, mode6 firewall.Mode
	trusted      []string   // links of the host that reach published ports at the containers' addresses
	host4, host6 netip.Addr // what leaves bears this address of the host
}

// modes are the gateway modes by name.
var modes = map[string]firewall.Mode{
	"nat": firewall.NAT, "nat-unprotected": firewall.NATUnprotected, "routed": firewall.Routed, "isolated": firewall.Isolated,
}

// read reads the options of a network; InvalidArgument in Docker's words.
func (d *Driver) read(spec network.Spec) (options, error) {
	o := options{link: ownName(spec.ID), mtu: d.cfg.LinkMTU(), icc: true, masq: true}
	if spec.Name == network.Bridge {
		o.link, o.icc, o.masq = d.cfg.Bridge(), d.cfg.ICC, d.cfg.IPMasq
		return o, nil
	}
	for key, value := range spec.Options {
		if err := o.set(key, value); err != nil {
			return o, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("failed to parse %s value: %v (%s)", key, value, err))
		}
	}
	switch {
	case o.mtu < 0:
		return o, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid MTU number: %d", o.mtu))
	case o.mtu == 0:
		o.mtu = d.cfg.LinkMTU()
	case o.mtu < 68 || o.mtu > 65535:
		return o, errdefs.ErrInvalidArgument.WithMessage(fmt.Sprintf("invalid MTU number: %d", o.mtu))
	}
	if (o.mode4 == firewall.Isolated || o.mode6 == firewall.Isolated) && !spec.Internal {
		return o, errdefs.ErrInvalidArgument.WithMessage("gateway mode 'isolated' can only be used for an internal network")
	}
	return o, nil
}

// set takes over one option.
func (o *options) set(key, value string) (err error) {
	truth := func(to *bool) {
		*to, err = strconv.ParseBool(value)
	}
	mode := func(to *firewall.Mode) {
		m, ok := modes[value]
		if !ok {
			err = fmt.Errorf("unknown gateway mode %s", value)
			return
		}
		*to = m
	}
	addr := func(to *netip.Addr) {
		a, bad := netip.ParseAddr(value)
		if bad != nil {
			err = fmt.Errorf("nil ip")
			return
		}
		*to = a
	}
	switch key {
	case optName:
		if value != "" {
			o.link = value
		}
		if !network.ValidLink(o.link) {
			err = fmt.Errorf("no name for a link")
		}
	case optMTU:
		o.mtu, err = strconv.Atoi(value)
	case optICC:
		truth(&o.icc)
	case optMasquerade:
		truth(&o.masq)
	case optInhibitIPv4:
		truth(&o.inhibit)
	case optDefault:
		truth(new(bool))
	case optGatewayMode4:
		mode(&o.mode4)
	case optGatewayMode6:
		mode(&o.mode6)
	case optTrusted:
		o.trusted = strings.FieldsFunc(value, func(r rune) bool { return r == ':' })
		for _, l := range o.trusted {
			if !network.ValidLink(l) {
				err = fmt.Errorf("no name for a link")
			}
		}
	case optBinding:
		addr(new(netip.Addr))
	case optHostIPv4:
		addr(&o.host4)
	case optHostIPv6:
		addr(&o.host6)
	}
	return err
}

// shown are the options of a network as it is looked at: of the default one those
// that the engine's configuration makes, of others what was asked.
func (d house) shown(spec network.Spec, o options) map[string]string {
	if spec.Name != network.Bridge {
		return maps.Clone(spec.Options)
	}
	binding := netip.IPv4Unspecified()
	if d.cfg.Binding.IsValid() {
		binding = d.cfg.Binding
	}
	return map[string]string{
		optDefault: "true", optICC: strconv.FormatBool(o.icc), optMasquerade: strconv.FormatBool(o.masq),
		optBinding: binding.String(), optName: o.link, optMTU: strconv.Itoa(o.mtu),
	}
}

// nat tells whether a mode gives what leaves the host's address.
func (o options) nat(m firewall.Mode) bool { return m == firewall.NAT || m == firewall.NATUnprotected }
