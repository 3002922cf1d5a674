package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"strings"
	"sync"
	"time"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/sys/netns"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/network"
)

// The networks that are always there.
const (
	Bridge = "bridge"
	None   = "none"
)

// predefined names the driver of each network that is always there.
var predefined = map[string]string{Bridge: "bridge", None: "null"}

// Manager gives containers their networks and takes them back. Its methods may
// be called from several goroutines.
type Manager struct {
	cfg     Config
	log     *slog.Logger
	drivers map[string]Driver
	ports   *port.Allocator

	mu       sync.Mutex
	networks map[string]*attached // by name
	handles  map[string]bool      // names of the namespace handles in use
	stop     context.CancelFunc
	watching sync.WaitGroup
	folder   *netns.Folder // of the namespace handles; set by Open
}

// attached is a network with its driver and the containers on it.
type attached struct {
	info       Info
	driver     Driver
	containers map[string]Endpoint
}

// NewManager makes a Manager of these drivers; nothing is touched before Open.
func NewManager(cfg Config, drivers ...Driver) *Manager {
	m := &Manager{
		cfg: cfg, log: cfg.logger(), drivers: map[string]Driver{}, ports: port.NewAllocator(),
		networks: map[string]*attached{}, handles: map[string]bool{},
	}
	for _, d := range drivers {
		m.drivers[d.Type()] = d
	}
	return m
}

// Open makes the predefined networks, or takes up and repairs those that an
// earlier engine left; what works goes on working meanwhile. Idempotent. Until
// Restore was called the containers on them are not known.
func (m *Manager) Open(ctx context.Context) error {
	if err := m.cfg.Validate(); err != nil {
		return err
	}
	if err := m.openFolder(); err != nil {
		return err
	}
	for _, name := range slices.Sorted(maps.Keys(predefined)) {
		d, ok := m.drivers[predefined[name]]
		if !ok {
			continue
		}
		info, err := d.Create(ctx, Spec{Name: name, ID: m.cfg.NetworkID(name)})
		if err != nil {
			return fmt.Errorf("network %q: %w", name, err)
		}
		info.Created = time.Now()
		m.mu.Lock()
		if a, ok := m.networks[name]; ok {
			a.info = info
		} else {
			m.networks[name] = &attached{info: info, driver: d, containers: map[string]Endpoint{}}
		}
		m.mu.Unlock()
	}
	m.watch(ctx)
	return nil
}

func (m *Manager) openFolder() (err error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.folder == nil {
		m.folder, err = netns.OpenFolder(m.cfg.NetnsDir)
	}
	return err
}

// watch starts the drivers' watches, which end with Close rather than with the
// call that opened the networks.
func (m *Manager) watch(ctx context.Context) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.stop != nil {
		return
	}
	ctx, m.stop = context.WithCancel(context.WithoutCancel(ctx))
	for _, d := range m.drivers {
		w, ok := d.(Watcher)
		if !ok {
			continue
		}
		ready := make(chan struct{})
		m.watching.Go(func() {
			if err := w.Watch(ctx, sync.OnceFunc(func() { close(ready) })); err != nil {
				m.log.Warn("networks are not looked after", "driver", d.Type(), "error", err)
			}
		})
		<-ready
	}
}

// Close ends the watches and lets go of the kernel; networks and containers stay
// as they are. What a container that ends meanwhile had is still given back: the
// folder of handles stays open as long as the process, or until Destroy. Idempotent.
func (m *Manager) Close() error {
	m.mu.Lock()
	stop := m.stop
	m.stop = nil
	m.mu.Unlock()
	if stop != nil {
		stop()
	}
	m.watching.Wait()
	var errs []error
	for _, d := range m.drivers {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// Destroy removes the networks of this instance and whatever is left on them
// from the kernel, and closes the Manager. No container may be running.
func (m *Manager) Destroy(ctx context.Context) error {
	m.mu.Lock()
	stop := m.stop
	m.stop = nil
	m.mu.Unlock()
	if stop != nil {
		stop() // or the watch would bring back what goes now
	}
	m.watching.Wait()
	errs := []error{m.Restore(ctx, nil)}
	m.mu.Lock()
	networks := m.networks
	m.networks = map[string]*attached{}
	m.mu.Unlock()
	for _, a := range networks {
		if err := a.driver.Delete(ctx, a.info.ID); err != nil {
			errs = append(errs, fmt.Errorf("network %q: %w", a.info.Name, err))
		}
	}
	if m.folder != nil {
		errs = append(errs, m.folder.Destroy())
	}
	errs = append(errs, m.Close())
	return errors.Join(errs...)
}

// List tells of all networks, by name.
func (m *Manager) List() []Info {
	m.mu.Lock()
	defer m.mu.Unlock()
	out := make([]Info, 0, len(m.networks))
	for _, a := range m.networks {
		out = append(out, a.snapshot())
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Inspect tells of one network, by its name, its id or a beginning of the id that
// only it has; NotFound, or InvalidArgument when several begin so.
func (m *Manager) Inspect(ref string) (Info, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.networks[ref]; ok {
		return a.snapshot(), nil
	}
	var found []*attached
	for _, a := range m.networks {
		if ref != "" && strings.HasPrefix(a.info.ID, ref) {
			found = append(found, a)
		}
	}
	switch len(found) {
	case 1:
		return found[0].snapshot(), nil
	case 0:
		return Info{}, worded(errdefs.ErrNotFound, "network %s not found", ref)
	default:
		return Info{}, worded(errdefs.ErrInvalidArgument, "network %s is ambiguous (%d matches found on name)", ref, len(found))
	}
}

// ID is the id that a network of this name has or would have.
func (m *Manager) ID(name string) string { return m.cfg.NetworkID(name) }

// canonical is the name under which a network is kept.
func canonical(name string) string {
	if name == network.NetworkDefault {
		return Bridge
	}
	return name
}

// HostGateway is the host's address on the default network, empty without one.
func (m *Manager) HostGateway() string {
	m.mu.Lock()
	defer m.mu.Unlock()
	if a, ok := m.networks[Bridge]; ok {
		return a.info.Gateway
	}
	return ""
}

// snapshot is the network's Info with its containers.
func (a *attached) snapshot() Info {
	info := a.info
	info.Options = maps.Clone(info.Options)
	info.Containers = maps.Clone(a.containers)
	return info
}

// worded is an error of a kind with exactly these words, which clients know.
func worded(kind error, format string, args ...any) error {
	return &wordedError{kind: kind, words: fmt.Sprintf(format, args...)}
}

type wordedError struct {
	kind  error
	words string
}

func (e *wordedError) Error() string { return e.words }
func (e *wordedError) Unwrap() error { return e.kind }
