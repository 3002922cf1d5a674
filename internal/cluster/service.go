package cluster

import (
	"maps"
	"net/netip"
	"time"

	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/swarm"
)

// Service is a task that is kept running, in so many replicas.
type Service struct {
	Meta
	Spec     ServiceSpec
	Previous *ServiceSpec `json:",omitempty"` // what a rollback goes to
	Numbers  uint64       // the highest Number that a spec of it has had
	Status   ServiceStatus
}

// Kind implements Object.
func (*Service) Kind() Kind { return KindService }

// ServiceSpec is what a service is to be.
type ServiceSpec struct {
	Labels   map[string]string `json:",omitempty"`
	Mode     Mode
	Task     TaskSpec
	Update   *Rollout     `json:",omitempty"` // nil: one at a time, pause on failure
	Rollback *Rollout     `json:",omitempty"`
	Ports    []Port       `json:",omitempty"` // published; balanced between its tasks
	Endpoint EndpointMode `json:",omitempty"`
	Number   uint64       // counts changes of Task that need new tasks; kept by who writes the spec
	Networks []Attachment `json:",omitempty"`
	Halted   bool         `json:",omitempty"` // its tasks are made, but not started

	// Swarm is what Docker's API was asked for, word for word; nil: it was not asked. All
	// of it that matters is in the other fields, too.
	Swarm *swarm.ServiceSpec `json:",omitempty"`
}

// Mode is how many tasks a service has; exactly one field is set.
type Mode struct {
	Replicated *Replicated `json:",omitempty"`
	Global     bool        `json:",omitempty"` // one on each node
	Job        *Job        `json:",omitempty"`
	GlobalJob  bool        `json:",omitempty"` // to its end once on each node
	Schedule   string      `json:",omitempty"` // cron: minute hour day month weekday, in the time of the host
}

// Replicated is a number of tasks.
type Replicated struct{ Replicas uint64 }

// Job runs tasks to their end.
type Job struct {
	Concurrent uint64 // at once; 0 is Total
	Total      uint64
}

// EndpointMode is how a service's name resolves.
type EndpointMode string

// The endpoint modes.
const (
	EndpointVIP   EndpointMode = "vip" // to one address that is balanced; the default
	EndpointDNSRR EndpointMode = "dnsrr"
)

// Rollout is how tasks are exchanged for those of a new spec.
type Rollout struct {
	Parallelism     uint64        // tasks at once; 0 is all
	Delay           time.Duration // between one batch and the next
	StartFirst      bool          // the new one runs before the old one stops
	OnFailure       FailureAction
	Monitor         time.Duration // how long a new task is watched for failure; 0 is 5 s
	MaxFailureRatio float64       // of the tasks that may fail before OnFailure
}

// FailureAction is what is done when too many new tasks fail.
type FailureAction string

// The failure actions.
const (
	FailurePause    FailureAction = "pause"
	FailureContinue FailureAction = "continue"
	FailureRollback FailureAction = "rollback"
)

// Port is a published port of a service.
type Port struct {
	Name      string `json:",omitempty"`
	Proto     network.IPProtocol
	Target    uint16
	Published uint16 `json:",omitempty"` // 0: any
	Last      uint16 `json:",omitempty"` // of a range that begins with Published, of which any will do; 0: there is none
	Address   string `json:",omitempty"` // of the host
	Host      bool   `json:",omitempty"` // each task on its own node, rather than balanced
}

// HostPorts are those that each task has on its own node.
func (s *ServiceSpec) HostPorts() (out []Port) {
	for _, p := range s.Ports {
		if p.Host {
			out = append(out, p)
		}
	}
	return out
}

// Need is a condition on another service.
type Need struct {
	Service   string // name
	Condition Condition
	Restart   bool `json:",omitempty"` // when tasks of it are exchanged, so are these
	Optional  bool `json:",omitempty"` // it may be missing or fail
	Shared    bool `json:",omitempty"` // namespaces or volumes of its first container are shared: that is there first
}

// Condition is what a service waits for in another.
type Condition string

// The conditions, in compose's words.
const (
	Started   Condition = "service_started"
	Healthy   Condition = "service_healthy"
	Completed Condition = "service_completed_successfully"
)

// TaskSpec is what a task is made from.
type TaskSpec struct {
	Name      string `json:",omitempty"` // of the container; "": the task's
	Container *container.Config
	Host      *container.HostConfig
	ImageID   string    `json:",omitempty"` // that the image's name stands for; "": whatever it stands for when the task is made
	Platform  string    `json:",omitempty"`
	Pull      string    `json:",omitempty"` // always, missing, never; "" is missing
	Auth      string    `json:",omitempty"` // for the registry, as X-Registry-Auth has it
	Secrets   []FileRef `json:",omitempty"`
	Configs   []FileRef `json:",omitempty"`
	Needs     []Need    `json:",omitempty"` // what must be so before it starts
	Restart   RestartPolicy
	Reserved  Resources     `json:",omitzero"`
	Placement Placement     `json:",omitzero"`
	Grace     time.Duration `json:",omitempty"` // to stop; 0 is the container's own, else 10 s
	Force     uint64        `json:",omitempty"` // a change of it alone needs new tasks
	Fresh     uint64        `json:",omitempty"` // a task takes over the anonymous volumes of the one before it that has the same
	PostStart []Hook        `json:",omitempty"` // done one after the other once its process is there, before it counts as running
	PreStop   []Hook        `json:",omitempty"` // done before its stop signal, within its time of grace
}

// Hook is a command that is run in a container beside its own process.
type Hook struct {
	Command    []string
	User       string   `json:",omitempty"`
	Privileged bool     `json:",omitempty"`
	WorkingDir string   `json:",omitempty"`
	Env        []string `json:",omitempty"` // NAME=value
}

// Attachment is a place on a network.
type Attachment struct {
	Network  string                    // id or name
	Made     uint64                    `json:",omitempty"` // that of the network's spec, for which the task is made
	Settings *network.EndpointSettings `json:",omitempty"`
}

// FileRef puts a secret or a config into a container.
type FileRef struct {
	ID     string `json:",omitempty"`
	Name   string
	Target string
	UID    string `json:",omitempty"`
	GID    string `json:",omitempty"`
	Mode   uint32 `json:",omitempty"`
}

// RestartPolicy says when a task that has ended is replaced.
type RestartPolicy struct {
	Condition RestartCondition
	Delay     time.Duration
	Attempts  uint64        // in Window; 0 is without bound
	Window    time.Duration // 0 is for ever
}

// RestartCondition is when a task that has ended is replaced.
type RestartCondition string

// The restart conditions.
const (
	RestartAny       RestartCondition = "any"
	RestartOnFailure RestartCondition = "on-failure"
	RestartNone      RestartCondition = "none"
)

// Resources are amounts of what nodes have.
type Resources struct {
	NanoCPUs int64            `json:",omitempty"`
	Memory   int64            `json:",omitempty"` // bytes
	Generic  map[string]int64 `json:",omitempty"`
}

// Plus is r and so many times other.
func (r Resources) Plus(other Resources, times int64) Resources {
	r.NanoCPUs += times * other.NanoCPUs
	r.Memory += times * other.Memory
	if len(other.Generic) > 0 {
		r.Generic = maps.Clone(r.Generic)
		if r.Generic == nil {
			r.Generic = map[string]int64{}
		}
		for name, n := range other.Generic {
			if r.Generic[name] += times * n; r.Generic[name] == 0 {
				delete(r.Generic, name)
			}
		}
	}
	return r
}

// Equal tells whether two amounts are the same.
func (r Resources) Equal(other Resources) bool {
	return r.NanoCPUs == other.NanoCPUs && r.Memory == other.Memory && maps.Equal(r.Generic, other.Generic)
}

// Placement is where tasks may be.
type Placement struct {
	Constraints []string   `json:",omitempty"` // "node.role == manager"
	Spread      []string   `json:",omitempty"` // node labels over which tasks are spread, "node.labels.zone"
	MaxPerNode  uint64     `json:",omitempty"` // 0 is without bound
	Platforms   []Platform `json:",omitempty"` // that the image is for; empty: any
	Keep        *Keep      `json:",omitempty"` // of an app in a cluster: the one node for them
}

// Keep holds tasks on a node, for they use what exists there alone.
type Keep struct {
	Node string // id
	Why  string // what that is: "bind /srv/site"
}

// Platform is what programs are for.
type Platform struct{ OS, Architecture string }

// ServiceStatus is how far a service is.
type ServiceStatus struct {
	Rollout *RolloutStatus `json:",omitempty"` // the last one
	Wanted  *ServiceSpec   `json:",omitempty"` // what was asked last, when a rollout has gone back from it
	Run     uint64         `json:",omitempty"` // of a schedule: the Number of the spec that was due last
	Due     time.Time      `json:",omitzero"`  // of a schedule: the next run
	VIPs    []VIP          `json:",omitempty"` // on overlay networks
	Ports   []Port         `json:",omitempty"` // as they are published on all nodes
	Err     string         `json:",omitempty"` // why its tasks wait: an address or a port that is not to be had
}

// VIP is the address of a service on an overlay network, balanced between its tasks.
type VIP struct {
	Network string // id
	Addr    netip.Prefix
}

// RolloutStatus is how far a rollout is.
type RolloutStatus struct {
	State     RolloutState
	Number    uint64 // of the spec that is rolled out
	StartedAt time.Time
	EndedAt   time.Time `json:",omitzero"`
	Message   string
	Reason    string `json:",omitempty"` // what failed, if something did: "shop-web-1: task: non-zero exit (3)"
}

// UnderWay tells whether tasks are being exchanged.
func (s RolloutState) UnderWay() bool { return s == Updating || s == RollingBack }

// RolloutState is the state of a rollout.
type RolloutState string

// The states of a rollout, in Docker's words.
const (
	Updating          RolloutState = "updating"
	UpdatePaused      RolloutState = "paused"
	UpdateCompleted   RolloutState = "completed"
	RollingBack       RolloutState = "rollback_started"
	RollbackPaused    RolloutState = "rollback_paused"
	RollbackCompleted RolloutState = "rollback_completed"
)
