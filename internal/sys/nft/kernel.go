package nft

import (
	"errors"
	"fmt"
	"slices"
	"sync"

	"github.com/google/nftables"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Elements holds the elements of a table's maps, by the name of the map.
type Elements map[string][]Element

// chunk is how many elements go in one message: its list is an attribute, and
// the length of an attribute has 16 bits.
const chunk = 400

// sendBuffer is what a transaction may weigh, in bytes: some 60000 elements. It is
// a bound, not memory set aside.
const sendBuffer = 16 << 20

func table(name string) *nftables.Table {
	return &nftables.Table{Family: nftables.TableFamilyIPv4, Name: name}
}

func concat(types []Type) nftables.SetDatatype {
	datas := make([]nftables.SetDatatype, len(types))
	for i, t := range types {
		datas[i] = t.data()
	}
	return nftables.MustConcatSetType(datas...) // at most five fields, fixed in the source
}

// set is the map as the library knows it. Its id counts within one transaction,
// where a table has one map of each number.
func (t Table) set(kt *nftables.Table, i int) *nftables.Set {
	m := t.Maps[i]
	return &nftables.Set{
		ID: uint32(i + 1), Table: kt, Name: m.Name, IsMap: true, Concatenation: len(m.Key) > 1,
		KeyType: concat(m.Key), DataType: concat(m.Value),
	}
}

// Conn is a connection to the kernel's nftables, made at its first use, in the
// network namespace of the thread that uses it first. The zero value is ready;
// its methods may be called from several goroutines.
//
// It lasts, for a reason: when a netfilter socket is closed after something was
// deleted, the kernel holds up the close until no packet can see what was
// deleted (nft_rcv_nl_event), which takes 10 ms and more.
type Conn struct {
	mu sync.Mutex
	c  *nftables.Conn
}

// Do runs fn with the connection. After an error a new connection is made, since
// answers to the old one may still be on their way.
func (c *Conn) Do(fn func(*nftables.Conn) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.c == nil {
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(func(s *netlink.Conn) error {
			return s.SetWriteBuffer(sendBuffer)
		}))
		if err != nil {
			return fmt.Errorf("nftables: %w", err)
		}
		c.c = conn
	}
	err := fn(c.c)
	if err != nil {
		old := c.c
		c.c = nil
		go old.CloseLasting() // in the background: see Conn
	}
	return err
}

// Close closes the connection; the next use opens it again. May block for some
// 20 ms.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.c == nil {
		return nil
	}
	err := c.c.CloseLasting()
	c.c = nil
	return err
}

// Replace makes the table exactly t with exactly these elements, in one
// transaction: there is no moment at which half of it holds, and nothing of
// other tables is touched.
func (c *Conn) Replace(t Table, elements Elements) error {
	err := c.Do(func(c *nftables.Conn) error {
		kt := table(t.Name)
		c.AddTable(kt) // so that deleting it cannot miss
		c.DelTable(kt)
		c.AddTable(kt)
		for i, m := range t.Maps {
			set := t.set(kt, i)
			if err := c.AddSet(set, nil); err != nil {
				return err
			}
			if err := add(c, set, elements[m.Name]); err != nil {
				return err
			}
		}
		for _, ch := range t.Chains {
			c.AddChain(ch.chain(kt))
		}
		for _, ch := range t.Chains {
			kc := &nftables.Chain{Table: kt, Name: ch.Name}
			for _, r := range ch.Rules {
				c.AddRule(&nftables.Rule{Table: kt, Chain: kc, Exprs: r.Exprs()})
			}
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("nftables table %q: %w", t.Name, err)
	}
	return nil
}

func (ch Chain) chain(t *nftables.Table) *nftables.Chain {
	c := &nftables.Chain{Table: t, Name: ch.Name}
	if ch.Base == nil {
		return c
	}
	hooks := map[string]*nftables.ChainHook{
		"prerouting": nftables.ChainHookPrerouting, "input": nftables.ChainHookInput, "forward": nftables.ChainHookForward,
		"output": nftables.ChainHookOutput, "postrouting": nftables.ChainHookPostrouting,
	}
	policy := nftables.ChainPolicyAccept
	c.Type, c.Hooknum, c.Policy = nftables.ChainType(ch.Base.Type), hooks[ch.Base.Hook], &policy
	c.Priority = nftables.ChainPriorityRef(nftables.ChainPriority(ch.Base.Priority))
	return c
}

func add(c *nftables.Conn, s *nftables.Set, elements []Element) error {
	for part := range slices.Chunk(elements, chunk) {
		if err := c.SetAddElements(s, convert(part, true)); err != nil {
			return err
		}
	}
	return nil
}

func convert(elements []Element, values bool) []nftables.SetElement {
	out := make([]nftables.SetElement, len(elements))
	for i, e := range elements {
		out[i].Key = []byte(e.Key)
		if values {
			out[i].Val = []byte(e.Value)
		}
	}
	return out
}

// Change deletes and adds elements of the table's maps in one transaction, whose
// cost depends on their number only. An error wraps ENOENT when the table or an
// element to delete is not there, and EEXIST when a key to add holds another
// value; nothing was changed then.
func (c *Conn) Change(t Table, del, ins Elements) error {
	err := c.Do(func(c *nftables.Conn) error {
		kt := table(t.Name)
		for i, m := range t.Maps {
			set := t.set(kt, i)
			for part := range slices.Chunk(del[m.Name], chunk) {
				if err := c.SetDeleteElements(set, convert(part, false)); err != nil {
					return err
				}
			}
			if err := add(c, set, ins[m.Name]); err != nil {
				return err
			}
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("nftables table %q: %w", t.Name, err)
	}
	return nil
}

// Exists tells whether the kernel has a table of this name.
func (c *Conn) Exists(name string) (ok bool, err error) {
	err = c.Do(func(c *nftables.Conn) error {
		ok, err = exists(c, name)
		return err
	})
	return ok, err
}

func exists(c *nftables.Conn, name string) (bool, error) {
	tables, err := c.ListTablesOfFamily(nftables.TableFamilyIPv4)
	if err != nil {
		return false, fmt.Errorf("nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == name }), nil
}

// Read gives the elements that the kernel holds of the table's maps; none of a
// table or map that is not there.
func (c *Conn) Read(t Table) (Elements, error) {
	out := Elements{}
	err := c.Do(func(c *nftables.Conn) error {
		if ok, err := exists(c, t.Name); err != nil || !ok {
			return err
		}
		kt := table(t.Name)
		sets, err := c.GetSets(kt)
		if err != nil {
			return err
		}
		for i, m := range t.Maps {
			if !slices.ContainsFunc(sets, func(s *nftables.Set) bool { return s.Name == m.Name }) {
				continue
			}
			elements, err := c.GetSetElements(t.set(kt, i))
			if err != nil {
				return fmt.Errorf("map %q: %w", m.Name, err)
			}
			for _, e := range elements {
				out[m.Name] = append(out[m.Name], Element{Key: string(e.Key), Value: string(e.Val)})
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("nftables table %q: %w", t.Name, err)
	}
	return out, nil
}

// Delete removes the table called name with all that is in it. Idempotent.
func (c *Conn) Delete(name string) error {
	err := c.Do(func(c *nftables.Conn) error {
		c.AddTable(table(name))
		c.DelTable(table(name))
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("nftables table %q: %w", name, err)
	}
	return nil
}

// Event is a change of somebody's tables. Table is empty when changes were lost,
// so that anything may have happened.
type Event struct {
	Table string
	Kind  Kind
}

// Kind is what an Event tells of.
type Kind int

// The kinds of events.
const (
	Lost    Kind = iota // the kernel dropped events
	Deleted             // a table of the family ip is gone
	Rules               // chains or rules of a table of the family ip changed
)

// Watcher receives the changes that any program makes to nftables.
type Watcher struct{ conn *netlink.Conn }

// Watch starts to listen, in the network namespace of the calling thread.
func Watch() (*Watcher, error) {
	conn, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
	if err != nil {
		return nil, fmt.Errorf("nftables events: %w", err)
	}
	if err := conn.JoinGroup(unix.NFNLGRP_NFTABLES); err != nil {
		conn.Close()
		return nil, fmt.Errorf("nftables events: %w", err)
	}
	return &Watcher{conn: conn}, nil
}

// Next blocks until something has changed. Its error is permanent: the watcher
// was closed.
func (w *Watcher) Next() ([]Event, error) {
	for {
		msgs, err := w.conn.Receive()
		if errors.Is(err, unix.ENOBUFS) {
			return []Event{{Kind: Lost}}, nil
		}
		if err != nil {
			return nil, err
		}
		var events []Event
		for _, m := range msgs {
			if e, ok := event(m); ok {
				events = append(events, e)
			}
		}
		if len(events) > 0 {
			return events, nil
		}
	}
}

// Close ends Next.
func (w *Watcher) Close() error { return w.conn.Close() }

// event reads what one message tells. In all of them the body begins with a
// struct nfgenmsg, whose first byte is the family, and attribute 1 names the table.
func event(m netlink.Message) (Event, bool) {
	const header = 4
	if m.Header.Type>>8 != unix.NFNL_SUBSYS_NFTABLES || len(m.Data) < header || m.Data[0] != unix.NFPROTO_IPV4 {
		return Event{}, false
	}
	var kind Kind
	switch m.Header.Type & 0xff {
	case unix.NFT_MSG_DELTABLE:
		kind = Deleted
	case unix.NFT_MSG_NEWCHAIN, unix.NFT_MSG_DELCHAIN, unix.NFT_MSG_NEWRULE, unix.NFT_MSG_DELRULE:
		kind = Rules
	default:
		return Event{}, false
	}
	attrs, err := netlink.NewAttributeDecoder(m.Data[header:])
	if err != nil {
		return Event{}, false
	}
	for attrs.Next() {
		if attrs.Type() == unix.NFTA_TABLE_NAME {
			return Event{Table: attrs.String(), Kind: kind}, true
		}
	}
	return Event{}, false
}
