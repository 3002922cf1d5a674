package firewall

import (
	"errors"
	"net/netip"
	"slices"

	"escale.dev/escale/internal/sys/nft"
	"golang.org/x/sys/unix"
)

// A second table, of the family bridge, sees frames as they come from containers:
// none may bear the address of another container or of the host. Addresses that
// nobody was given (an address that moves between containers, a container that
// routes for others) pass. The table of the family inet does not see what goes from
// one container of a bridge to the next.

// honesty is what of that table belongs to one address family.
type honesty struct {
	owned, owners nft.Map // addresses; and the links that have them
	claims        []nft.Claim
}

var honesties = []honesty{
	{
		owned:  nft.Map{Name: "owned", Key: []nft.Type{nft.Addr4}},
		owners: nft.Map{Name: "owners", Key: []nft.Type{nft.Link, nft.Addr4}},
		claims: []nft.Claim{nft.IPv4Source, nft.ARPSender},
	},
	{
		owned:  nft.Map{Name: "owned6", Key: []nft.Type{nft.Addr6}},
		owners: nft.Map{Name: "owners6", Key: []nft.Type{nft.Link, nft.Addr6}},
		claims: []nft.Claim{nft.IPv6Source, nft.Advertised},
	},
}

// Honesty is the table that keeps containers to their own addresses: those of links
// whose names begin with prefix.
func Honesty(instance, prefix string) nft.Table {
	t := nft.Table{Family: nft.Bridge, Name: TableName(instance)}
	var rules []nft.Rule
	for _, h := range honesties {
		t.Maps = append(t.Maps, h.owned, h.owners)
		for _, c := range h.claims {
			rules = append(rules, nft.Rule{nft.Claims(c, h.owned), nft.NotOwned(c, h.owners), nft.Drop()})
		}
	}
	t.Chains = []nft.Chain{
		{Name: "prerouting", Base: &nft.Base{Type: "filter", Hook: "prerouting", Priority: -300}, Rules: []nft.Rule{
			{nft.IIfLike(prefix), nft.Jump("honest")},
		}},
		{Name: "honest", Rules: rules},
	}
	return t
}

// links holds the addresses of each link.
type links map[string][]netip.Addr

// elements are those of the table for these links, beside the host's own addresses.
func (l links) elements(host []netip.Addr) nft.Elements {
	out := nft.Elements{}
	put := func(a netip.Addr, owner string) {
		h := honesties[0]
		if a.Is6() {
			h = honesties[1]
		}
		if e := (nft.Element{Key: nft.Bytes(a)}); !slices.Contains(out[h.owned.Name], e) || owner == "" {
			out[h.owned.Name] = append(out[h.owned.Name], e)
		}
		if owner != "" {
			out[h.owners.Name] = append(out[h.owners.Name], nft.Element{Key: nft.Bytes(owner, a)})
		}
	}
	for _, a := range host {
		put(a, "")
	}
	for link, addrs := range l {
		for _, a := range addrs {
			put(a, link)
		}
	}
	return out
}

// hosts are the host's own addresses on the bridges.
func hosts(networks []Network) []netip.Addr {
	var out []netip.Addr
	for _, n := range networks {
		for _, s := range n.sides() {
			if s.Host.IsValid() {
				out = append(out, s.Host)
			}
		}
	}
	return out
}

// Attach says which addresses the container behind a link of the host has: it
// cannot send with those of others, nor others with its own.
func (f *Firewall) Attach(link string, addrs ...netip.Addr) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attach(link, slices.DeleteFunc(slices.Clone(addrs), func(a netip.Addr) bool { return !a.IsValid() }))
}

// Detach forgets a link. Idempotent.
func (f *Firewall) Detach(link string) error {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.attach(link, nil)
}

func (f *Firewall) attach(link string, addrs []netip.Addr) error {
	was := f.links[link]
	if slices.Equal(was, addrs) {
		return nil
	}
	if len(addrs) == 0 {
		delete(f.links, link)
	} else {
		f.links[link] = addrs
	}
	gone := slices.DeleteFunc(slices.Clone(was), func(a netip.Addr) bool { return slices.Contains(addrs, a) })
	del := links{link: gone}.elements(nil)
	for _, a := range gone { // an address that another has stays owned
		if f.links.have(a) || slices.Contains(f.hosts, a) {
			for _, h := range honesties {
				del[h.owned.Name] = slices.DeleteFunc(del[h.owned.Name], func(e nft.Element) bool { return e.Key == nft.Bytes(a) })
			}
		}
	}
	return f.frames(del, links{link: addrs}.elements(nil))
}

func (l links) have(a netip.Addr) bool {
	for _, addrs := range l {
		if slices.Contains(addrs, a) {
			return true
		}
	}
	return false
}

// hostsAre notes the host's own addresses on the bridges.
func (f *Firewall) hostsAre(addrs []netip.Addr) error {
	gone := slices.DeleteFunc(slices.Clone(f.hosts), func(a netip.Addr) bool { return slices.Contains(addrs, a) || f.links.have(a) })
	f.hosts = addrs
	if f.honest {
		return f.frames(links{}.elements(gone), links{}.elements(addrs))
	}
	return f.frames(nil, nil)
}

// frames changes the elements of the table, which f.links and f.hosts have done
// already, or writes it anew when it is not what it should be.
func (f *Firewall) frames(del, ins nft.Elements) error {
	if f.frameless {
		return nil
	}
	t := Honesty(f.instance, f.prefix)
	if f.honest {
		if err := f.conn.Change(t, t, del, ins); err == nil {
			return nil
		}
	}
	err := f.conn.Set(t, f.links.elements(f.hosts), f.synced)
	if errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP) {
		f.frameless = true
		f.log.Warn("this kernel has no nftables for bridges (NF_TABLES_BRIDGE): containers of one network can send with each other's addresses")
		return nil
	}
	f.honest = err == nil
	return err
}
