package cluster

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"time"
)

// LabelTask is the label of a container that says of which task it is, by its id; Docker's.
const LabelTask = "com.docker.swarm.task.id"

// Task is one container's life under a service: it is never restarted, but
// replaced by another task.
type Task struct {
	Meta       // Owner is the service
	Spec       TaskSpec
	SpecNumber uint64 // the service's Number that it was made for
	Number     uint64 // counts the tasks of a slot
	Slot       uint64 `json:",omitempty"` // of a replicated service, from 1; 0 in global ones
	Node       string `json:",omitempty"` // id; set by the scheduler, once
	Desired    TaskState
	Status     TaskStatus
	Released   bool         `json:",omitempty"` // its Needs were met
	Joined     bool         `json:",omitempty"` // the containers with which its own is to share are there
	Halted     bool         `json:",omitempty"` // a client has stopped or removed its container: it is left so
	NotBefore  time.Time    `json:",omitzero"`  // it may start from then on: the delay of a restart
	Restarts   []time.Time  `json:",omitempty"` // of its place under this spec, those that the policy's Attempts count
	Failures   uint64       `json:",omitempty"` // bad ends in a row that its place has had before it
	Networks   []Attachment `json:",omitempty"`
	App        string       `json:",omitempty"` // id of the app that the service is of
	// Addresses are those on overlay networks; it gets a node once it has all of them.
	Addresses []TaskAddress `json:",omitempty"`
	Ports     []Port        `json:",omitempty"` // that it has on its own node
	Home      *Home         `json:",omitempty"` // where its volumes are
	// Claimed are the resources that the task has got of those that have names on its node,
	// by their kind.
	Claimed map[string][]string `json:",omitempty"`
	Toward  string              `json:",omitempty"` // id of a node that it goes to if that will do
}

// TaskAddress is an address of a task on an overlay network.
type TaskAddress struct {
	Network string // id
	Addr    netip.Prefix
}

// MAC is the hardware address that goes with an address on an overlay network, so that every
// node knows it: 02:42 and the address of IPv4.
func MAC(ip netip.Addr) net.HardwareAddr {
	if ip.Is4() {
		a := ip.As4()
		return net.HardwareAddr{0x02, 0x42, a[0], a[1], a[2], a[3]}
	}
	a := ip.As16()
	return net.HardwareAddr{0x02, 0x42, a[12], a[13], a[14], a[15]}
}

// Kind implements Object.
func (*Task) Kind() Kind { return KindTask }

// TaskState is where a task stands in its life.
type TaskState string

// The states of a task, in Docker's words.
const (
	TaskNew       TaskState = "new"
	TaskPending   TaskState = "pending" // waits for a node
	TaskAssigned  TaskState = "assigned"
	TaskAccepted  TaskState = "accepted" // the node knows it
	TaskPreparing TaskState = "preparing"
	TaskReady     TaskState = "ready" // made, and waits for its turn to start
	TaskStarting  TaskState = "starting"
	TaskRunning   TaskState = "running"
	TaskComplete  TaskState = "complete"
	TaskShutdown  TaskState = "shutdown" // was told to end
	TaskFailed    TaskState = "failed"
	TaskRejected  TaskState = "rejected" // could not be made
	TaskRemove    TaskState = "remove"   // only desired: its container goes, then itself
	TaskOrphaned  TaskState = "orphaned" // its node is gone for long, or its container was let go
)

// order is the way of a task: it only goes forward.
var order = []TaskState{
	TaskNew, TaskPending, TaskAssigned, TaskAccepted, TaskPreparing, TaskReady, TaskStarting, TaskRunning,
	TaskComplete, TaskShutdown, TaskFailed, TaskRejected, TaskRemove, TaskOrphaned,
}

// Valid tells whether it is a state.
func (s TaskState) Valid() bool { return slices.Contains(order, s) }

// Ended tells whether nothing of the task runs, nor will.
func (s TaskState) Ended() bool { return s.Valid() && !s.Before(TaskComplete) }

// Stops tells, of what is desired, whether the task is to be ended; one that is to
// be Complete is left to come to its own end.
func (s TaskState) Stops() bool { return s.Ended() && s != TaskComplete }

// Before tells whether s is earlier on a task's way than other.
func (s TaskState) Before(other TaskState) bool {
	return slices.Index(order, s) < slices.Index(order, other)
}

// May tells whether a task may go from s to next: forward, and from an ended state
// nowhere but to orphaned.
func (s TaskState) May(next TaskState) bool {
	switch {
	case !s.Valid() || !next.Valid() || s == next || next == TaskRemove:
		return false
	case s.Ended():
		return false
	}
	return s.Before(next)
}

// TaskStatus is what a task's node says of it.
type TaskStatus struct {
	State     TaskState
	At        time.Time
	Message   string           `json:",omitempty"`
	Err       string           `json:",omitempty"`
	RunningAt time.Time        `json:",omitzero"` // when it began to run
	HealthyAt time.Time        `json:",omitzero"` // when it was Healthy for the first time; it stays when it is so no more
	Container *ContainerStatus `json:",omitempty"`
	Healthy   bool             `json:",omitempty"` // it has no health check, or passed it
	Gone      bool             `json:",omitempty"` // it is to be removed, and its node has nothing of it any more
}

// ContainerStatus is what is known of a task's container.
type ContainerStatus struct {
	ID       string
	PID      int    `json:",omitempty"`
	ExitCode int    `json:",omitempty"`
	Ports    []Port `json:",omitempty"` // of its own node, as it has got them
}

// Held tells whether the task must not start yet: it waits for its turn, for what it
// needs, or for a client who wants it made only. Its time (NotBefore) is another matter.
func (t *Task) Held() bool {
	return t.Halted || t.Desired == TaskReady || len(t.Spec.Needs) > 0 && !t.Released
}

// Waits tells whether the task has still to be given its node. Of a global service it says
// already which one that is to be.
func (t *Task) Waits() bool { return t.Status.State == TaskNew || t.Status.State == TaskPending }

// Needy tells whether the task waits for what it needs of other services.
func (t *Task) Needy() bool { return len(t.Spec.Needs) > 0 && !t.Released && t.Live() }

// Shares tells whether the task's container shares namespaces or volumes of another service's.
func (t *Task) Shares() bool {
	return slices.ContainsFunc(t.Spec.Needs, func(n Need) bool { return n.Shared })
}

// Apart tells whether the task's container must not be made yet: one with which it shares is
// not there.
func (t *Task) Apart() bool { return t.Shares() && !t.Released && !t.Joined }

// Live tells whether the task runs or is on its way there, and shall.
func (t *Task) Live() bool { return !t.Desired.Stops() && !t.Status.State.Ended() }

// ContainerName is the name of the task's container: the one asked for, as Compose would
// name it, or the task's.
func (t *Task) ContainerName() string {
	if t.Spec.Name != "" {
		return t.Spec.Name
	}
	if c := t.Spec.Container; c != nil {
		if project, service := c.Labels["com.docker.compose.project"], c.Labels["com.docker.compose.service"]; project != "" && service != "" {
			return fmt.Sprintf("%s-%s-%d", project, service, max(t.Slot, 1))
		}
	}
	return t.Name + "." + t.ID
}
