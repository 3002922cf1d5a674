package nft

import (
	"fmt"
	"slices"
	"sync"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"github.com/mdlayher/netlink"
	"golang.org/x/sys/unix"
)

// Elements holds the elements of a table's maps, by the name of the map.
type Elements map[string][]Element

// sendBuffer is what a transaction may weigh, in bytes: some 60000 elements. It is
// a bound, not memory set aside.
const sendBuffer = 16 << 20

// Conn is a connection to the kernel's nftables, made at its first use, in the
// network namespace of the thread that uses it first. The zero value is ready;
// its methods may be called from several goroutines.
//
// It lasts, for a reason: when a netfilter socket is closed after something was
// deleted, the kernel holds up the close until no packet can see what was
// deleted (nft_rcv_nl_event), which takes 10 ms and more.
type Conn struct {
	mu   sync.Mutex
	c    *nftables.Conn
	ids  map[uint32]bool // netlink's ids of the sockets made so far
	look *netlink.Conn   // for questions that the library does not ask
}

// Do runs fn with the connection. After an error a new connection is made, since
// answers to the old one may still be on their way.
func (c *Conn) Do(fn func(*nftables.Conn) error) error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.c == nil {
		conn, err := nftables.New(nftables.AsLasting(), nftables.WithSockOptions(c.prepare))
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

// prepare sets up a socket and notes its id. Called with mu held.
func (c *Conn) prepare(s *netlink.Conn) error {
	if err := s.SetWriteBuffer(sendBuffer); err != nil {
		return err
	}
	raw, err := s.SyscallConn()
	if err != nil {
		return err
	}
	var name syscall.Sockaddr
	if e := raw.Control(func(fd uintptr) { name, err = syscall.Getsockname(int(fd)) }); e != nil || err != nil {
		return fmt.Errorf("name of a netlink socket: %w", err)
	}
	if a, ok := name.(*syscall.SockaddrNetlink); ok {
		if c.ids == nil {
			c.ids = map[uint32]bool{}
		}
		c.ids[a.Pid] = true
	}
	return nil
}

// Made tells whether the change that an event tells of was made by this
// connection.
func (c *Conn) Made(e Event) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.ids[e.By]
}

// Close closes the connection; the next use opens it again. May block for some
// 20 ms.
func (c *Conn) Close() error {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.look != nil {
		c.look.Close()
		c.look = nil
	}
	if c.c == nil {
		return nil
	}
	err := c.c.CloseLasting()
	c.c = nil
	return err
}

// Exists tells whether the kernel has the table.
func (c *Conn) Exists(r Ref) (ok bool, err error) {
	err = c.Do(func(c *nftables.Conn) error {
		ok, err = exists(c, r)
		return err
	})
	return ok, err
}

func exists(c *nftables.Conn, r Ref) (bool, error) {
	tables, err := c.ListTablesOfFamily(families[r.Family].number)
	if err != nil {
		return false, fmt.Errorf("nftables tables: %w", err)
	}
	return slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == r.Name }), nil
}

// Delete removes tables with all that is in them. Idempotent.
func (c *Conn) Delete(tables ...Ref) error {
	err := c.Do(func(c *nftables.Conn) error {
		for _, r := range tables {
			remove(c, r)
		}
		return c.Flush()
	})
	if err != nil {
		return fmt.Errorf("nftables tables %v: %w", tables, err)
	}
	return nil
}

// remove deletes a table, whether it is there or not.
func remove(c *nftables.Conn, r Ref) {
	c.AddTable(r.table())
	c.DelTable(r.table())
}

// Read gives the elements that the kernel holds of the table's maps; none of a
// table or map that is not there or of another type.
func (c *Conn) Read(t Table) (Elements, error) {
	var s state
	err := c.Do(func(k *nftables.Conn) (err error) {
		s, err = c.state(k, t)
		return err
	})
	if err != nil {
		return nil, fmt.Errorf("nftables table %q: %w", t.Name, err)
	}
	return s.elements, nil
}

// state is what the kernel has of a table.
type state struct {
	chains   map[string]*nftables.Chain
	sets     map[string]shape
	elements Elements
}

// shape is the type of a set or map.
type shape struct {
	key, value uint32 // types as nft(8) numbers them
}

func shapeOf(s *nftables.Set) shape {
	h := shape{key: s.KeyType.GetNFTMagic()}
	if s.IsMap {
		h.value = s.DataType.GetNFTMagic()
		if s.DataType.Name == nftables.TypeVerdict.Name {
			h.value = unix.NFT_DATA_VERDICT
		}
	}
	return h
}

// state asks the kernel for what it has of t. Called within Do.
func (c *Conn) state(k *nftables.Conn, t Table) (state, error) {
	s := state{chains: map[string]*nftables.Chain{}, sets: map[string]shape{}, elements: Elements{}}
	if ok, err := exists(k, t.Ref()); err != nil || !ok {
		return s, err
	}
	chains, err := k.ListChainsOfTableFamily(families[t.Family].number)
	if err != nil {
		return s, fmt.Errorf("chains: %w", err)
	}
	for _, ch := range chains {
		if ch.Table.Name == t.Name {
			s.chains[ch.Name] = ch
		}
	}
	if s.sets, err = c.shapes(t.Ref()); err != nil {
		return s, fmt.Errorf("sets: %w", err)
	}
	kt := t.Ref().table()
	for i, m := range t.Maps {
		set := m.set(kt, uint32(i+1))
		if s.sets[m.Name] != shapeOf(set) {
			continue
		}
		elements, err := k.GetSetElements(set)
		if err != nil {
			return s, fmt.Errorf("%s %q: %w", m.word(), m.Name, err)
		}
		for _, e := range elements {
			value := string(e.Val)
			if m.verdicts() {
				value = verdictText(e.Val)
			}
			s.elements[m.Name] = append(s.elements[m.Name], Element{Key: string(e.Key), Value: value})
		}
	}
	return s, nil
}

// shapes are the sets of a table by name. The library's own list of sets is an
// error when somebody made one of a type that it does not know.
func (c *Conn) shapes(r Ref) (map[string]shape, error) {
	if c.look == nil {
		look, err := netlink.Dial(unix.NETLINK_NETFILTER, nil)
		if err != nil {
			return nil, err
		}
		c.look = look
	}
	body, err := netlink.MarshalAttributes([]netlink.Attribute{{Type: unix.NFTA_SET_TABLE, Data: []byte(r.Name + "\x00")}})
	if err != nil {
		return nil, err
	}
	msgs, err := c.look.Execute(netlink.Message{
		Header: netlink.Header{Type: unix.NFNL_SUBSYS_NFTABLES<<8 | unix.NFT_MSG_GETSET, Flags: netlink.Request | netlink.Dump},
		Data:   append([]byte{byte(families[r.Family].number), unix.NFNETLINK_V0, 0, 0}, body...),
	})
	if err != nil {
		c.look.Close()
		c.look = nil
		return nil, err
	}
	out := map[string]shape{}
	for _, m := range msgs {
		name, s, err := readShape(m.Data)
		if err != nil {
			return nil, err
		}
		out[name] = s
	}
	return out, nil
}

// readShape reads the message that describes a set: a struct nfgenmsg and
// attributes.
func readShape(data []byte) (name string, s shape, err error) {
	const header = 4
	if len(data) < header {
		return "", s, fmt.Errorf("a message of %d bytes: %w", len(data), unix.EBADMSG)
	}
	ad, err := netlink.NewAttributeDecoder(data[header:])
	if err != nil {
		return "", s, err
	}
	ad.ByteOrder = bigEndian
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_SET_NAME:
			name = ad.String()
		case unix.NFTA_SET_KEY_TYPE:
			s.key = ad.Uint32()
		case unix.NFTA_SET_DATA_TYPE:
			s.value = ad.Uint32()
		}
	}
	return name, s, ad.Err()
}

// verdictText reads the verdict of an element: NFTA_DATA_VERDICT's attributes.
func verdictText(b []byte) string {
	ad, err := netlink.NewAttributeDecoder(b)
	if err != nil {
		return ""
	}
	ad.ByteOrder = bigEndian
	var kind expr.VerdictKind
	chain := ""
	for ad.Next() {
		switch ad.Type() {
		case unix.NFTA_VERDICT_CODE:
			kind = expr.VerdictKind(int32(ad.Uint32()))
		case unix.NFTA_VERDICT_CHAIN:
			chain = ad.String()
		}
	}
	for word, k := range verdictWords {
		if k == kind {
			if chain != "" {
				return word + " " + chain
			}
			return word
		}
	}
	return ""
}

var verdictWords = map[string]expr.VerdictKind{
	"accept": expr.VerdictAccept, "drop": expr.VerdictDrop, "return": expr.VerdictReturn,
	"jump": expr.VerdictJump, "goto": expr.VerdictGoto,
}
