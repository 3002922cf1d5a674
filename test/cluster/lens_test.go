package cluster

import (
	"errors"
	"fmt"
	"maps"
	"net/http"
	"net/netip"
	"net/url"
	"regexp"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/google/nftables"
	"github.com/miekg/dns"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"escale.dev/escale/test/internal/harness"
)

// host is the network namespace of a node.
func (s *site) host(n string) string { return "/run/netns/" + s.name + "-" + n }

// client is the network namespace of a service's container on a node.
func (s *site) client(n, service string) (string, error) {
	var list []struct{ ID string }
	filter := url.QueryEscape(`{"label":["com.docker.swarm.service.name=` + service + `"]}`)
	if err := s.do(n, http.MethodGet, "/containers/json?filters="+filter, nil, &list); err != nil {
		return "", err
	}
	if len(list) != 1 {
		return "", fmt.Errorf("%s has %d containers of %s", n, len(list), service)
	}
	var c struct{ State struct{ Pid int } }
	if err := s.do(n, http.MethodGet, "/containers/"+list[0].ID+"/json", nil, &c); err != nil {
		return "", err
	}
	return fmt.Sprintf("/proc/%d/ns/net", c.State.Pid), nil
}

// addresses are those of overlay networks that stand in a row of fields.
func addresses(row []byte) (out []string) {
	for ; len(row) >= 4; row = row[4:] {
		if row[0] == 10 {
			out = append(out, netip.AddrFrom4([4]byte(row[:4])).String())
		}
	}
	return out
}

// digits are in the names of maps that belong to one rule.
var digits = regexp.MustCompile(`[0-9]+$`)

// rows are the elements of an engine's tables in the namespace of the calling thread.
func rows() (out []string, addrs map[string]bool, err error) {
	addrs = map[string]bool{}
	c, err := nftables.New()
	if err != nil {
		return nil, nil, err
	}
	tables, err := c.ListTables()
	if err != nil {
		return nil, nil, err
	}
	for _, t := range tables {
		if !strings.HasPrefix(t.Name, "escale") || t.Family != nftables.TableFamilyINet && t.Family != nftables.TableFamilyIPv4 {
			continue
		}
		sets, err := c.GetSets(t)
		if err != nil {
			return nil, nil, err
		}
		for _, set := range sets {
			elements, err := c.GetSetElements(set)
			if err != nil {
				return nil, nil, err
			}
			for _, e := range elements {
				verdict := ""
				if e.VerdictData != nil {
					verdict = e.VerdictData.Chain
				}
				out = append(out, fmt.Sprintf("%s %s %x %x %s", t.Name, digits.ReplaceAllString(set.Name, ""), e.Key, e.Val, verdict))
				for _, a := range slices.Concat(addresses(e.Key), addresses(e.Val)) {
					addrs[a] = true
				}
			}
		}
	}
	slices.Sort(out)
	return out, addrs, nil
}

// names asks the name server of the calling thread's container.
func names(name string) (map[string]bool, error) {
	q := new(dns.Msg)
	q.SetQuestion(name+".", dns.TypeA)
	a, _, err := (&dns.Client{Timeout: time.Second}).Exchange(q, "127.0.0.11:53") // by this very thread
	if err != nil {
		return nil, err
	}
	out := map[string]bool{}
	for _, r := range a.Answer {
		if a, ok := r.(*dns.A); ok {
			out[a.A.String()] = true
		}
	}
	return out, nil
}

// The places in which a node has what there is on networks.
const (
	inNames  = "names"
	inVIP    = "addresses of services"
	inMesh   = "published ports"
	interval = 10 * time.Millisecond
)

// lens notes when addresses come and go on all nodes.
type lens struct {
	mu    sync.Mutex
	came  map[string]map[string]time.Time // by "node place", address
	went  map[string]map[string]time.Time
	there map[string]map[string]bool
	errs  []error
	stop  chan struct{}
	done  sync.WaitGroup
}

// watch begins to look, with the clients of a service at the names of another.
func (s *site) watch(clients, service string) *lens {
	s.Helper()
	l := &lens{came: map[string]map[string]time.Time{}, went: map[string]map[string]time.Time{}, there: map[string]map[string]bool{}, stop: make(chan struct{})}
	for _, n := range s.names() {
		box := ""
		s.till("a client on "+n, func() (err error) { box, err = s.client(n, clients); return err })
		l.look(s.host(n), map[string]func() (map[string]bool, error){
			n + " " + inMesh: func() (map[string]bool, error) { _, a, err := rows(); return a, err },
		})
		l.look(box, map[string]func() (map[string]bool, error){
			n + " " + inVIP:   func() (map[string]bool, error) { _, a, err := rows(); return a, err },
			n + " " + inNames: func() (map[string]bool, error) { return names("tasks." + service) },
		})
	}
	s.Cleanup(l.close)
	return l
}

func (l *lens) close() {
	l.mu.Lock()
	select {
	case <-l.stop:
	default:
		close(l.stop)
	}
	l.mu.Unlock()
	l.done.Wait()
}

func (l *lens) look(ns string, at map[string]func() (map[string]bool, error)) {
	for place := range at {
		l.came[place], l.went[place], l.there[place] = map[string]time.Time{}, map[string]time.Time{}, map[string]bool{}
	}
	l.done.Go(func() {
		err := harness.Within(ns, func() error {
			for {
				for place, see := range at {
					if a, err := see(); err == nil { // a table that changes meanwhile is looked at again
						l.note(place, a)
					}
				}
				select {
				case <-l.stop:
					return nil
				case <-time.After(interval):
				}
			}
		})
		l.mu.Lock()
		defer l.mu.Unlock()
		l.errs = append(l.errs, err)
	})
}

func (l *lens) note(place string, is map[string]bool) {
	now := time.Now()
	l.mu.Lock()
	defer l.mu.Unlock()
	for a := range is {
		if !l.there[place][a] {
			l.came[place][a] = now
		}
	}
	for a := range l.there[place] {
		if !is[a] {
			l.went[place][a] = now
		}
	}
	l.there[place] = is
}

// since gives how long it took, at the node that took longest, until all addresses were there,
// or gone, in each place; an error when they are not.
func (l *lens) since(begin time.Time, come bool, of map[string][]string) (map[string]time.Duration, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	if err := errors.Join(l.errs...); err != nil {
		return nil, err
	}
	worst := map[string]time.Duration{}
	for where := range l.there {
		_, place, _ := strings.Cut(where, " ")
		for _, a := range of[place] {
			if l.there[where][a] != come {
				return nil, fmt.Errorf("%s: %s is there: %t", where, a, !come)
			}
			at := l.came[where][a]
			if !come {
				at = l.went[where][a]
			}
			worst[place] = max(worst[place], at.Sub(begin))
		}
	}
	return worst, nil
}

// entries are all that a node has of overlay networks: forwarding entries, neighbours,
// nftables, and the names as a container on it sees them.
func (s *site) entries(n, clients, service string) ([]string, error) {
	var out []string
	err := harness.Within(s.host(n), func() error {
		list, _, err := rows()
		if err != nil {
			return err
		}
		out = append(out, list...)
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() != "vxlan" {
				continue
			}
			for _, family := range []int{unix.AF_BRIDGE, unix.AF_INET, unix.AF_INET6} {
				list, err := netlink.NeighList(l.Attrs().Index, family)
				if err != nil {
					return err
				}
				for _, e := range list {
					// The kernel's own are those of the link itself, and of groups.
					if (e.State&netlink.NUD_PERMANENT != 0 || family == unix.AF_BRIDGE) && !slices.Equal(e.HardwareAddr, l.Attrs().HardwareAddr) {
						out = append(out, fmt.Sprintf("%s %d %s %s %d", l.Attrs().Name, family, e.HardwareAddr, e.IP, e.Flags))
					}
				}
			}
		}
		return nil
	})
	if err != nil {
		return nil, err
	}
	box, err := s.client(n, clients)
	if err != nil {
		return nil, err
	}
	err = harness.Within(box, func() error {
		list, _, err := rows()
		if err != nil {
			return err
		}
		for _, row := range list {
			out = append(out, "client: "+row)
		}
		for _, name := range []string{service, "tasks." + service, "tasks." + clients} {
			is, err := names(name)
			if err != nil {
				return err
			}
			out = append(out, fmt.Sprint(name, " ", slices.Sorted(maps.Keys(is))))
		}
		return nil
	})
	slices.Sort(out)
	return out, err
}

// wipe removes from a node's kernel what an engine makes it know of other nodes, in its own
// namespace and that of a container.
func (s *site) wipe(n, box string) error {
	tables := func() error {
		c, err := nftables.New()
		if err != nil {
			return err
		}
		list, err := c.ListTables()
		if err != nil {
			return err
		}
		for _, t := range list {
			if strings.HasPrefix(t.Name, "escale") && !strings.Contains(t.Name, "dns") {
				c.DelTable(t)
			}
		}
		return c.Flush()
	}
	return errors.Join(harness.Within(box, tables), harness.Within(s.host(n), func() error {
		links, err := netlink.LinkList()
		if err != nil {
			return err
		}
		for _, l := range links {
			if l.Type() == "vxlan" {
				if err := netlink.LinkDel(l); err != nil {
					return err
				}
			}
		}
		return tables()
	}))
}
