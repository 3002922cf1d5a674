package harness

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"
)

// Kind is a sort of thing that an engine may leave behind.
type Kind string

// The kinds, as a report prints them.
const (
	Mounts      Kind = "mounts"
	Namespaces  Kind = "namespaces"
	Veths       Kind = "veths"
	Cgroups     Kind = "cgroups"
	Processes   Kind = "processes"
	Records     Kind = "records"      // container folders, run folders
	NFT         Kind = "nft elements" // tables, chains, rules, set elements
	Snapshots   Kind = "snapshots"
	Content     Kind = "blobs"
	Ports       Kind = "ports"       // host ports that something of the engine listens on
	Descriptors Kind = "descriptors" // open files of the engine
)

// Kinds lists them in the order they are printed.
var Kinds = []Kind{Mounts, Namespaces, Veths, Cgroups, Processes, Records, NFT, Snapshots, Content, Ports, Descriptors}

const (
	// settle is how long after the last operation things may still be going away.
	settle = 2 * time.Second
	// diskSettle is the same for layers and blobs: on a disk that others keep
	// busy their removal, which nobody waits for, may take its time.
	diskSettle = 20 * time.Second
)

// descriptorSlack is by how many open files an engine may differ from its
// baseline: a connection that closes just now, a database that reads.
const descriptorSlack = 6

// pipeSlack is the same for pipes: Go keeps those through which it has spliced for
// the next time, two descriptors for each of as many as were at work at once, until
// its collector has run twice.
const pipeSlack = 64

// Report says what was left, by kind.
type Report map[Kind][]string

// Empty tells that nothing was left.
func (r Report) Empty() bool {
	for _, l := range r {
		if len(l) > 0 {
			return false
		}
	}
	return true
}

// Counts is "leaked mounts 0, namespaces 0, …".
func (r Report) Counts() string {
	parts := make([]string, len(Kinds))
	for i, k := range Kinds {
		parts[i] = fmt.Sprintf("%s %d", k, len(r[k]))
	}
	return "leaked " + strings.Join(parts, ", ")
}

// String names every thing left, at most 20 of a kind.
func (r Report) String() string {
	var b strings.Builder
	for _, k := range Kinds {
		for i, s := range r[k] {
			if i == 20 {
				fmt.Fprintf(&b, "%s: … and %d more\n", k, len(r[k])-i)
				break
			}
			fmt.Fprintf(&b, "%s: %s\n", k, s)
		}
	}
	return b.String()
}

// inventory is what there is of an engine at one instant.
type inventory struct {
	things map[Kind]map[string]bool
	fds    map[string]int // open files of the engine, by what they are
}

func (inv *inventory) add(k Kind, what string) {
	if inv.things[k] == nil {
		inv.things[k] = map[string]bool{}
	}
	inv.things[k][what] = true
}

// take makes an inventory. Blocks for some milliseconds.
func (e *Engine) take() (*inventory, error) {
	inv := &inventory{things: map[Kind]map[string]bool{}, fds: map[string]int{}}
	e.noteIDs()
	if err := e.takeMounts(inv); err != nil {
		return nil, err
	}
	if err := e.takeLinks(inv); err != nil {
		return nil, err
	}
	if err := e.takeNFT(inv); err != nil {
		return nil, err
	}
	pids := e.takeProcesses(inv)
	e.takeCgroups(inv)
	e.takeFolders(inv)
	if pid := e.Pid(); pid > 0 {
		pids = append(pids, pid)
		inv.fds = descriptors(pid)
	}
	for _, s := range listening(pids) {
		inv.add(Ports, s)
	}
	return inv, nil
}

// Mark takes the baseline: what is there now is not a leak. Call it when the
// engine is idle, best after one container has come and gone.
func (e *Engine) Mark() error {
	inv, err := e.take()
	if err == nil {
		e.baseline = inv
	}
	return err
}

// Leaks compares with the baseline. What is still going away has two seconds
// for it, on the disk twenty; the answer comes earlier when nothing is left.
func (e *Engine) Leaks(ctx context.Context) (Report, error) {
	begun := time.Now()
	for {
		inv, err := e.take()
		if err != nil {
			return nil, err
		}
		r := inv.since(e.baseline)
		if waited := time.Since(begun); r.Empty() || waited > Patience(diskSettle) || (waited > Patience(settle) && !r.onlyDisk()) {
			return r, nil
		}
		select {
		case <-ctx.Done():
			return r, ctx.Err()
		case <-time.After(50 * time.Millisecond):
		}
	}
}

// LeaksNow is Leaks that waits for nothing.
func LeaksNow(e *Engine) (Report, error) {
	inv, err := e.take()
	if err != nil {
		return nil, err
	}
	return inv.since(e.baseline), nil
}

// onlyDisk tells whether nothing is left but what lies on the disk.
func (r Report) onlyDisk() bool {
	for kind, left := range r {
		if len(left) > 0 && kind != "snapshots" && kind != "blobs" {
			return false
		}
	}
	return true
}

// since lists what inv has and base has not.
func (inv *inventory) since(base *inventory) Report {
	if base == nil {
		base = &inventory{}
	}
	r := Report{}
	for k, set := range inv.things {
		for what := range set {
			if !base.things[k][what] {
				r[k] = append(r[k], what)
			}
		}
		slices.Sort(r[k])
	}
	total, pipes := 0, inv.fds["pipe"]-base.fds["pipe"]
	for _, n := range inv.fds {
		total += n
	}
	for _, n := range base.fds {
		total -= n
	}
	if len(base.fds) > 0 && (total-pipes > descriptorSlack || pipes > pipeSlack) {
		for _, what := range slices.Sorted(maps.Keys(inv.fds)) {
			if d := inv.fds[what] - base.fds[what]; d > 0 {
				r[Descriptors] = append(r[Descriptors], fmt.Sprintf("%d more of %s", d, what))
			}
		}
	}
	return r
}
