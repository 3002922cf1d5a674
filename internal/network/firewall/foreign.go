package firewall

import (
	"context"
	"fmt"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/network/firewall/firewalld"
	"escale.dev/escale/internal/sys/nft"
	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/google/nftables/userdata"
	"golang.org/x/sys/unix"
)

// An accept of ours cannot undo a drop of somebody else: every base chain of a
// hook has its say. Where iptables (by way of nftables) drops what is forwarded,
// as with dockerd beside us, two tagged rules a bridge let its traffic through;
// what may pass is decided in our own table. They come last in the chain meant
// for the administrator's rules, so that those still win.

// foreignTable is where iptables keeps its filter rules.
const foreignTable = "filter"

// The chains of it that matter, the one to prefer first.
const (
	userChain    = "DOCKER-USER"
	forwardChain = "FORWARD"
)

// settle is how long changes of others must rest before they are looked at:
// iptables writes many rules one by one.
const settle = 100 * time.Millisecond

// tag marks a rule of ours in a foreign chain; it is the rule's comment.
func (f *Firewall) tag(bridge, direction string) string {
	return f.tagPrefix() + bridge + " " + direction
}

func (f *Firewall) tagPrefix() string { return TableName(f.instance) + ": " }

// letThrough makes the tagged rules in foreign chains what the networks need.
func (f *Firewall) letThrough() error { return f.conn.Do(f.tendAll) }

// bridges are those with addresses of a family.
func (f *Firewall) bridges(family nftables.TableFamily) []string {
	var out []string
	for _, n := range f.networks {
		if family == nftables.TableFamilyIPv4 && n.V4.Subnet.IsValid() || family == nftables.TableFamilyIPv6 && n.V6.Subnet.IsValid() {
			out = append(out, n.Bridge)
		}
	}
	return out
}

func (f *Firewall) tendAll(c *nftables.Conn) error {
	chains, err := c.ListChainsOfTableFamily(nftables.TableFamilyUnspecified)
	if err != nil {
		return fmt.Errorf("nftables chains: %w", err)
	}
	f.warn(chains)
	f.beside = slices.ContainsFunc(chains, func(ch *nftables.Chain) bool {
		return ch.Table.Family == nftables.TableFamilyINet && ch.Table.Name == firewalld.Table
	})
	for _, family := range []nftables.TableFamily{nftables.TableFamilyIPv4, nftables.TableFamilyIPv6} {
		target := wanted(chains, family)
		for _, name := range []string{userChain, forwardChain} {
			chain := find(chains, family, name)
			if chain == nil {
				continue
			}
			var bridges []string
			if chain == target && !f.strict {
				bridges = f.bridges(family)
			}
			if err := f.tend(c, chain, bridges); err != nil {
				return fmt.Errorf("nftables chain %q of iptables: %w", name, err)
			}
		}
	}
	return nil
}

func find(chains []*nftables.Chain, family nftables.TableFamily, name string) *nftables.Chain {
	for _, ch := range chains {
		if ch.Table.Family == family && ch.Table.Name == foreignTable && ch.Name == name {
			return ch
		}
	}
	return nil
}

// wanted is the chain that needs our rules; nil when nothing drops by policy.
func wanted(chains []*nftables.Chain, family nftables.TableFamily) *nftables.Chain {
	forward := find(chains, family, forwardChain)
	if forward == nil {
		return nil
	}
	if user := find(chains, family, userChain); user != nil {
		return user
	}
	if forward.Policy != nil && *forward.Policy == nftables.ChainPolicyDrop {
		return forward
	}
	return nil
}

// tend makes the chain have our two rules for each of bridges, and no others of
// ours, before an unconditional return at its end.
func (f *Firewall) tend(c *nftables.Conn, chain *nftables.Chain, bridges []string) error {
	rules, err := c.GetRules(chain.Table, chain)
	if err != nil {
		return err
	}
	missing := map[string]nft.Rule{}
	for _, b := range bridges {
		missing[f.tag(b, "out")] = nft.Rule{nft.IIf(b), nft.Accept()}
		missing[f.tag(b, "in")] = nft.Rule{nft.OIf(b), nft.Accept()}
	}
	end := slices.IndexFunc(rules, returns)
	for i, r := range rules {
		comment, _ := userdata.GetString(r.UserData, userdata.TypeComment)
		if !strings.HasPrefix(comment, f.tagPrefix()) {
			continue
		}
		if _, ok := missing[comment]; ok && (end < 0 || i < end) {
			delete(missing, comment)
			continue
		}
		if err := c.DelRule(&nftables.Rule{Table: chain.Table, Chain: chain, Handle: r.Handle}); err != nil {
			return err
		}
	}
	for _, b := range bridges {
		for _, direction := range []string{"out", "in"} {
			tag := f.tag(b, direction)
			rule, ok := missing[tag]
			if !ok {
				continue
			}
			r := &nftables.Rule{Table: chain.Table, Chain: chain, Exprs: rule.Exprs(),
				UserData: userdata.AppendString(nil, userdata.TypeComment, tag)}
			if end < 0 {
				c.AddRule(r)
			} else {
				r.Position = rules[end].Handle
				c.InsertRule(r)
			}
		}
	}
	return c.Flush()
}

// returns tells whether a rule leaves its chain whatever the packet is.
func returns(r *nftables.Rule) bool {
	for _, e := range r.Exprs {
		switch e := e.(type) {
		case *expr.Counter:
		case *expr.Verdict:
			return e.Kind == expr.VerdictReturn
		default:
			return false
		}
	}
	return false
}

// warn tells once of each chain of others, beside that of iptables, that drops
// what is forwarded: only its owner can let containers through.
func (f *Firewall) warn(chains []*nftables.Chain) {
	if len(f.networks) == 0 {
		return
	}
	for _, ch := range chains {
		family := map[nftables.TableFamily]string{
			nftables.TableFamilyIPv4: "ip", nftables.TableFamilyIPv6: "ip6", nftables.TableFamilyINet: "inet",
		}[ch.Table.Family]
		if family == "" || ch.Hooknum == nil || *ch.Hooknum != unix.NF_INET_FORWARD ||
			ch.Policy == nil || *ch.Policy != nftables.ChainPolicyDrop ||
			(family != "inet" && ch.Table.Name == foreignTable && ch.Name == forwardChain) ||
			(family == "ip6" && len(f.bridges(ch.Table.Family)) == 0) {
			continue
		}
		name := family + " " + ch.Table.Name + " " + ch.Name
		if f.warned[name] {
			continue
		}
		f.warned[name] = true
		b := f.networks[0].Bridge
		f.log.Warn("another firewall drops forwarded packets: containers will not reach the outside unless it lets them through",
			"chain", name, "add", fmt.Sprintf("nft insert rule %s iifname %q accept; nft insert rule %s oifname %q accept", name, b, name, b))
	}
}

// askFirewalld puts the bridges into firewalld's zone for containers, where it runs.
// A failure is told of once.
func (f *Firewall) askFirewalld(ctx context.Context) {
	f.mu.Lock()
	var bridges []string
	for _, n := range f.networks {
		bridges = append(bridges, n.Bridge)
	}
	beside := f.beside && !f.strict
	f.mu.Unlock()
	if !beside {
		return
	}
	err := f.zone.Set(ctx, bridges)
	if err == nil {
		return
	}
	f.mu.Lock()
	defer f.mu.Unlock()
	if text := err.Error(); !f.warned[text] {
		f.warned[text] = true
		f.log.Warn("firewalld does not let containers through: their bridges are to be in a zone whose target is ACCEPT", "bridges", bridges, "error", err)
	}
}

// Watch looks after the table and the foreign rules for as long as ctx lives:
// when somebody flushes the rule set or a firewall beside us starts anew, Check
// puts right what is missing. ready is called once changes are seen. Blocks.
func (f *Firewall) Watch(ctx context.Context, ready func()) error {
	w, err := nft.Watch()
	if err != nil {
		ready()
		return err
	}
	defer w.Close()
	stop := context.AfterFunc(ctx, func() { w.Close() })
	defer stop()
	changed := make(chan struct{}, 1)
	ended := make(chan error, 1)
	go func() { ended <- f.listen(w, changed) }()
	f.askFirewalld(ctx)
	ready()
	for {
		select {
		case err := <-ended:
			if ctx.Err() != nil {
				return nil
			}
			return err
		case <-changed:
		}
		select {
		case <-time.After(settle):
		case <-ctx.Done():
			continue // listen ends, too
		}
		check := f.CheckForeign
		if f.suspect.Swap(false) {
			check = f.Check
		}
		if err := check(); err != nil {
			f.log.Error("nftables could not be put right", "error", err)
		}
		f.askFirewalld(ctx)
	}
}

// listen tells of changes that concern us until the watcher is closed.
func (f *Firewall) listen(w *nft.Watcher, changed chan<- struct{}) error {
	for {
		events, err := w.Next()
		if err != nil {
			return err
		}
		for _, e := range events {
			if e.Kind != nft.Lost && f.conn.Made(e) {
				continue
			}
			ours := e.Kind == nft.Lost || (e.Family == nft.Inet || e.Family == nft.Bridge) && e.Table == TableName(f.instance)
			if ours {
				f.suspect.Store(true)
			}
			if ours || e.Table == foreignTable || e.Kind == nft.Chains {
				select {
				case changed <- struct{}{}:
				default:
				}
			}
		}
	}
}
