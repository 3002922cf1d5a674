package network

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"slices"
	"sync"

	"escale.dev/escale/internal/network/port"
	"escale.dev/escale/internal/network/port/forward"
	"escale.dev/escale/internal/network/resolvconf"
	"escale.dev/escale/internal/sys/netns"
	"escale.dev/escale/internal/sys/ready"
	"github.com/moby/moby/api/types/network"
)

// The networks that are always there.
const (
	Bridge = "bridge"
	Host   = "host"
	None   = "none"
)

// predefined names the driver of each network that is always there.
var predefined = map[string]string{Bridge: "bridge", Host: "host", None: "null"}

// Manager gives containers their networks and takes them back. Its methods may
// be called from several goroutines.
type Manager struct {
	*base
	maker

	mu       sync.Mutex
	handles  map[string]bool // names of the namespace handles in use
	stop     context.CancelFunc
	watching sync.WaitGroup
	folder   *netns.Folder // of the namespace handles; set by Open
	spares   *ready.Spares[*netns.Handle]
	served   sync.Map // handles of namespaces in which our name server answers
	host     *resolvconf.Live
	ingress  *ingress
}

// base is what every part of the Manager works with.
type base struct {
	cfg      Config
	log      *slog.Logger
	drivers  map[string]Driver
	ports    *port.Allocator
	networks *table
	names    *index
	forward  *forward.Forwarder // what the kernel cannot translate
	rotation *rotation
	balance  *balance
}

// NewManager makes a Manager of these drivers; nothing is touched before Open.
func NewManager(cfg Config, drivers ...Driver) *Manager {
	b := &base{
		cfg: cfg, log: cfg.logger(), drivers: map[string]Driver{}, ports: port.NewAllocator(),
		networks: newTable(), names: newIndex(), forward: forward.New(cfg.logger()), rotation: newRotation(), balance: newBalance(),
	}
	for _, d := range drivers {
		b.drivers[d.Type()] = d
		if mender, ok := d.(Mender); ok {
			mender.Mends(b.whose)
		}
	}
	return &Manager{
		base: b, maker: maker{base: b, records: records(cfg.Dir), making: new(sync.Mutex), spanning: new(sync.Mutex)}, handles: map[string]bool{}, host: resolvconf.NewLive(cfg.ResolvConf),
		ingress: newIngress(b), spares: newSpares(),
	}
}

// Open makes the predefined networks and those in the records, or takes up and
// repairs what an earlier engine left of them; what works goes on working
// meanwhile. A network that cannot be made is told of in the log, and is tried
// again when a container wants it. Idempotent. Until Restore was called the
// containers on them are not known.
func (m *Manager) Open(ctx context.Context) error {
	if err := m.cfg.Validate(); err != nil {
		return err
	}
	if err := m.openFolder(); err != nil {
		return err
	}
	list, bad, err := m.records.load()
	if err != nil {
		return err
	}
	for id, err := range bad {
		m.log.Error("record of a network is left alone: it cannot be read", "network", id, "error", err)
	}
	m.making.Lock()
	err = m.batch(func() error { return m.openAll(ctx, list) })
	m.making.Unlock()
	if err != nil {
		return err
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
	m.spares.Close()
	m.forward.Close()
	m.ingress.close()
	var errs []error
	for _, d := range m.drivers {
		errs = append(errs, d.Close())
	}
	return errors.Join(errs...)
}

// Destroy removes the networks of this instance and whatever is left on them
// from the kernel, and closes the Manager. No container may be running. The records
// stay: the networks of users are there again when an engine opens.
func (m *Manager) Destroy(ctx context.Context) error {
	m.mu.Lock()
	stop := m.stop
	m.stop = nil
	m.mu.Unlock()
	if stop != nil {
		stop() // or the watch would bring back what goes now
	}
	m.watching.Wait()
	errs := []error{m.Restore(ctx, nil), m.ingress.end(ctx, "")}
	networks := m.networks.drain()
	errs = append(errs, m.batch(func() error {
		var errs []error
		for _, a := range networks {
			if a.driver == nil || foreign(a.driver) { // a plugin keeps what the record tells of
				continue
			}
			if err := a.driver.Delete(ctx, a.info.ID); err != nil {
				errs = append(errs, fmt.Errorf("network %q: %w", a.info.Name, err))
			}
		}
		return errors.Join(errs...)
	}))
	if m.folder != nil {
		errs = append(errs, m.folder.Destroy())
	}
	errs = append(errs, m.Close())
	return errors.Join(errs...)
}

// List tells of all networks, by name.
func (m *Manager) List() []Info {
	m.networks.mu.Lock()
	defer m.networks.mu.Unlock()
	out := make([]Info, 0, len(m.networks.byName))
	for _, a := range m.networks.byName {
		out = append(out, a.snapshot())
	}
	slices.SortFunc(out, func(a, b Info) int { return cmp.Compare(a.Name, b.Name) })
	return out
}

// Inspect tells of one network, by its name, its id or a beginning of the id that
// only it has; NotFound, or InvalidArgument when several begin so.
func (m *Manager) Inspect(ref string) (Info, error) {
	return m.networks.inspect(ref)
}

// Find is Inspect without the containers: it costs the same however many there are.
func (m *Manager) Find(ref string) (Info, error) {
	a, err := m.networks.find(ref)
	if err != nil {
		return Info{}, err
	}
	return m.networks.infoOf(a), nil
}

// canonical is the name under which a network is kept.
func canonical(name string) string {
	if name == network.NetworkDefault {
		return Bridge
	}
	return name
}

// HostGateway is the host's address on the default network, empty without one.
func (m *Manager) HostGateway() string {
	m.networks.mu.Lock()
	defer m.networks.mu.Unlock()
	if a, ok := m.networks.byName[Bridge]; ok {
		if gw := a.info.Subnet(false).Gateway; gw.IsValid() {
			return gw.String()
		}
	}
	return ""
}
