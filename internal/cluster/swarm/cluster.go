package swarm

import (
	"context"
	"net/netip"
	"reflect"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/swarm"
)

// What a swarm is when nobody says otherwise; Docker's.
const (
	defaultSubnet   = 24
	defaultDataPort = 4789
	minExpiry       = time.Hour
	maxSubnet       = 29 // of a smaller one too little is left for nodes' own addresses
)

var defaultPool = netip.MustParsePrefix("10.0.0.0/8")

// defaults fills in what a spec leaves out.
func defaults(s swarm.Spec) swarm.Spec {
	s.Name = cluster.DefaultCluster
	if s.Labels == nil {
		s.Labels = map[string]string{}
	}
	if s.Orchestration.TaskHistoryRetentionLimit == nil {
		n := int64(5)
		s.Orchestration.TaskHistoryRetentionLimit = &n
	}
	if s.Dispatcher.HeartbeatPeriod == 0 {
		s.Dispatcher.HeartbeatPeriod = 5 * time.Second
	}
	if s.CAConfig.NodeCertExpiry == 0 {
		s.CAConfig.NodeCertExpiry = 90 * 24 * time.Hour
	}
	raft := swarm.RaftConfig{SnapshotInterval: 10000, KeepOldSnapshots: new(uint64), LogEntriesForSlowFollowers: 500, ElectionTick: 10, HeartbeatTick: 1}
	if s.Raft.SnapshotInterval == 0 {
		s.Raft.SnapshotInterval = raft.SnapshotInterval
	}
	if s.Raft.KeepOldSnapshots == nil {
		s.Raft.KeepOldSnapshots = raft.KeepOldSnapshots
	}
	if s.Raft.LogEntriesForSlowFollowers == 0 {
		s.Raft.LogEntriesForSlowFollowers = raft.LogEntriesForSlowFollowers
	}
	if s.Raft.ElectionTick == 0 {
		s.Raft.ElectionTick = raft.ElectionTick
	}
	if s.Raft.HeartbeatTick == 0 {
		s.Raft.HeartbeatTick = raft.HeartbeatTick
	}
	return s
}

// check refuses what a swarm cannot be, or cannot be yet.
func check(s *swarm.Spec) error {
	ca := s.CAConfig
	standard := defaults(swarm.Spec{}).Raft
	if err := checkPermit(s.Labels); err != nil {
		return err
	}
	switch {
	case s.Name != "" && s.Name != cluster.DefaultCluster:
		return invalid("modification of cluster name is not allowed")
	case ca.NodeCertExpiry < minExpiry:
		return invalid("minimum certificate expiry time is: %s", minExpiry)
	case s.Dispatcher.HeartbeatPeriod < 0:
		return invalid("heartbeat time period cannot be a negative duration")
	case len(ca.ExternalCAs) > 0:
		return say(errdefs.ErrNotImplemented, "external certificate authorities are not supported: the swarm signs by itself, with a root that it makes or is given (docker swarm ca --rotate --ca-cert --ca-key)")
	case ca.SigningCACert == "" && ca.SigningCAKey != "":
		return invalid("if a signing CA key is provided, the signing CA cert must also be provided")
	case ca.SigningCACert != "" && ca.SigningCAKey == "":
		return say(errdefs.ErrNotImplemented, "a root without its key needs an external certificate authority to sign, which is not supported: give its key, too")
	case s.TaskDefaults.LogDriver != nil:
		return say(errdefs.ErrNotImplemented, "a log driver for all tasks is set by the engines (--log-driver), or by each service")
	case !reflect.DeepEqual(s.Raft, standard):
		return say(errdefs.ErrNotImplemented, "raft settings are those of the store, and cannot be changed")
	}
	return nil
}

// pools looks at where overlay networks are to get their subnets from.
func pools(asked []netip.Prefix, size uint32) ([]netip.Prefix, int, error) {
	if size == 0 {
		size = defaultSubnet
	}
	if len(asked) == 0 {
		return []netip.Prefix{defaultPool}, int(size), subnetFits(defaultPool, size)
	}
	if size > maxSubnet {
		return nil, 0, say(errdefs.ErrInvalidArgument, "subnet size is out of range: %d", size)
	}
	for i, p := range asked {
		switch {
		case !p.IsValid() || !p.Addr().Is4() || p != p.Masked():
			return nil, 0, say(errdefs.ErrInvalidArgument, "invalid base pool %s: IPv4 network with prefix length wanted", p)
		case subnetFits(p, size) != nil:
			return nil, 0, subnetFits(p, size)
		}
		for _, other := range asked[:i] {
			if other.Overlaps(p) {
				return nil, 0, say(errdefs.ErrInvalidArgument, "invalid base pool %s: it overlaps %s", p, other)
			}
		}
	}
	return asked, int(size), nil
}

func subnetFits(p netip.Prefix, size uint32) error {
	if size > maxSubnet || int(size) < p.Bits() {
		return say(errdefs.ErrInvalidArgument, "invalid CIDR: %q. Subnet size is too small or too large: %d", p, size)
	}
	return nil
}

// Init makes a swarm of this host, and gives the id of this node.
func (s *Swarm) Init(ctx context.Context, r swarm.InitRequest) (string, error) {
	v := s.Store.View()
	part := s.Membership.Part()
	switch {
	case r.ForceNewCluster && !part.Manager:
		return "", say(errdefs.ErrUnavailable, "This node is not a swarm manager: only a manager has what a new cluster could be made of.")
	case r.ForceNewCluster:
		return part.Node, s.Membership.Force(ctx)
	case part.In:
		return "", errInSwarm
	}
	if r.AutoLockManagers {
		r.Spec.EncryptionConfig.AutoLockManagers = true
	}
	spec := defaults(r.Spec)
	if err := check(&spec); err != nil {
		return "", err
	}
	list, size, err := pools(r.DefaultAddrPool, r.SubnetSize)
	if err != nil {
		return "", err
	}
	dataPort := r.DataPathPort
	if dataPort == 0 {
		dataPort = defaultDataPort
	}
	if dataPort < 1024 || dataPort > 49151 {
		return "", say(errdefs.ErrInvalidArgument, "invalid Data path port number (%d): valid range is 1024 to 49151", dataPort)
	}
	availability, err := availabilityOf(r.Availability)
	if err != nil {
		return "", err
	}
	node, err := s.placed(v, r)
	if err != nil {
		return "", err
	}
	node.Spec.Availability, node.Spec.Manager = availability, true

	c := &cluster.Cluster{Meta: cluster.Meta{ID: cluster.NewID(), Name: cluster.DefaultCluster, Labels: spec.Labels}, Spec: spec}
	root, err := firstRoot(s.Authority, c, s.Now())
	if err != nil {
		return "", err
	}
	c.Status = cluster.ClusterStatus{
		RootCA: root.Cert, Key: root.Key, WorkerSecret: s.Authority.NewSecret(), ManagerSecret: s.Authority.NewSecret(),
		AddressPools: list, SubnetSize: size, DataPathPort: uint16(dataPort),
	}
	if spec.EncryptionConfig.AutoLockManagers {
		c.Status.UnlockKey = s.Authority.NewUnlockKey()
	}
	err = s.Membership.Found(ctx, c, node)
	if errdefs.IsAlreadyExists(err) {
		return "", errInSwarm
	}
	return node.ID, err
}

// placed is this node with the addresses that a request gives it.
func (s *Swarm) placed(v store.View, r swarm.InitRequest) (*cluster.Node, error) {
	node, err := store.Find[*cluster.Node](v, s.Membership.Part().Node)
	if err != nil {
		return nil, say(errdefs.ErrUnavailable, "the engine is not ready for a swarm yet: its own node is not known")
	}
	node = store.Copy(node)
	h := host(s.Addrs)
	addr, at, err := h.listen(r.ListenAddr)
	if err != nil {
		return nil, err
	}
	advertised, err := h.advertise(r.AdvertiseAddr, addr, at)
	if err != nil {
		return nil, err
	}
	node.Status.Addr, node.Status.ListenAddr = advertised.Addr().String(), netAddr(addr, at)
	node.Status.Manager = &cluster.ManagerStatus{Leader: true, Reachable: true, Addr: advertised.String()}
	if r.DataPathAddr != "" {
		a, err := h.addr(r.DataPathAddr, errBadDataPath)
		if err != nil {
			return nil, err
		}
		node.Status.DataPathAddr = a.String()
	}
	return node, nil
}

func netAddr(addr, at string) string {
	if a, err := netip.ParseAddr(addr); err == nil && a.Is6() {
		return "[" + addr + "]:" + at
	}
	return addr + ":" + at
}

// Inspect tells of the swarm, and the tokens by which nodes join.
func (s *Swarm) Inspect() (swarm.Swarm, error) {
	c, err := the(s.Store.View())
	if err != nil {
		return swarm.Swarm{}, err
	}
	out := swarm.Swarm{ClusterInfo: info(c)}
	if out.JoinTokens.Worker, err = s.Authority.Token(c.Status.RootCA, c.Status.WorkerSecret); err == nil {
		out.JoinTokens.Manager, err = s.Authority.Token(c.Status.RootCA, c.Status.ManagerSecret)
	}
	return out, err
}

// info is what everybody may know of the swarm.
func info(c *cluster.Cluster) swarm.ClusterInfo {
	out := swarm.ClusterInfo{
		ID: c.ID, Meta: meta(&c.Meta), Spec: c.Spec, TLSInfo: tlsInfo(c), DefaultAddrPool: c.Status.AddressPools,
		SubnetSize: uint32(c.Status.SubnetSize), DataPathPort: uint32(c.Status.DataPathPort), RootRotationInProgress: c.Status.RootRotation != nil,
	}
	return out
}

// Rotate says which of a swarm's secrets are made anew.
type Rotate struct{ WorkerToken, ManagerToken, UnlockKey bool }

// Update changes what the swarm is, as it was at a version.
func (s *Swarm) Update(ctx context.Context, version uint64, asked swarm.Spec, rotate Rotate) error {
	v := s.Store.View()
	c, err := the(v)
	if err != nil {
		return err
	}
	spec := defaults(asked)
	if err := check(&spec); err != nil {
		return err
	}
	if version != c.Revision {
		return errOutOfOrder
	}
	c = store.Copy(c)
	if err := exchange(s.Authority, c, &spec.CAConfig, s.Now()); err != nil {
		return err
	}
	c.Status.LongestCert = max(c.Status.LongestCert, c.Spec.CAConfig.NodeCertExpiry)
	c.Spec, c.Labels = spec, spec.Labels
	forget(&c.Spec.CAConfig)
	if rotate.WorkerToken {
		c.Status.WorkerSecret = s.Authority.NewSecret()
	}
	if rotate.ManagerToken {
		c.Status.ManagerSecret = s.Authority.NewSecret()
	}
	switch locks := spec.EncryptionConfig.AutoLockManagers; {
	case !locks:
		c.Status.UnlockKey = ""
	case rotate.UnlockKey || c.Status.UnlockKey == "":
		c.Status.UnlockKey = s.Authority.NewUnlockKey()
	}
	_, err = s.Store.Commit(ctx, store.Update(c))
	return written(err)
}

// UnlockKey is what a manager that was locked is unlocked with; "": they are not locked.
func (s *Swarm) UnlockKey() (string, error) {
	c, err := the(s.Store.View())
	if err != nil {
		return "", err
	}
	return c.Status.UnlockKey, nil
}

// availabilityOf reads an availability; "" is active.
func availabilityOf(a swarm.NodeAvailability) (cluster.Availability, error) {
	switch a {
	case "", swarm.NodeAvailabilityActive:
		return cluster.Active, nil
	case swarm.NodeAvailabilityPause:
		return cluster.Paused, nil
	case swarm.NodeAvailabilityDrain:
		return cluster.Drain, nil
	}
	return "", say(errdefs.ErrInvalidArgument, "invalid Availability: %q", a)
}
