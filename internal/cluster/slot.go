package cluster

import (
	"cmp"
	"fmt"
	"slices"
)

// Slot is a place of a service that is held by one task after the other: one of its
// replicas, or, of a global service, a node.
type Slot struct {
	Number uint64
	Node   string  // of a global service
	Tasks  []*Task // the newest first; those that are to be removed are not among them
}

// Slots sorts the tasks of a service by their places, in order of number and node.
func Slots(tasks []*Task) []Slot {
	type place struct {
		number uint64
		node   string
	}
	at := map[place]*Slot{}
	var order []place
	for _, t := range tasks {
		if t.Desired == TaskRemove {
			continue
		}
		p := place{number: t.Slot}
		if t.Slot == 0 {
			p.node = t.Node
		}
		if at[p] == nil {
			at[p] = &Slot{Number: p.number, Node: p.node}
			order = append(order, p)
		}
		at[p].Tasks = append(at[p].Tasks, t)
	}
	slices.SortFunc(order, func(a, b place) int { return cmp.Or(cmp.Compare(a.number, b.number), cmp.Compare(a.node, b.node)) })
	out := make([]Slot, len(order))
	for i, p := range order {
		out[i] = *at[p]
		slices.SortFunc(out[i].Tasks, func(a, b *Task) int { return -a.age(b) })
	}
	return out
}

// age orders tasks by when they were made.
func (t *Task) age(other *Task) int {
	return cmp.Or(t.CreatedAt.Compare(other.CreatedAt), cmp.Compare(t.Number, other.Number), cmp.Compare(t.ID, other.ID))
}

// Current is the newest task of the slot.
func (s Slot) Current() *Task { return s.Tasks[0] }

// Old are the tasks but the newest that have not ended yet.
func (s Slot) Old() []*Task {
	var out []*Task
	for _, t := range s.Tasks[1:] {
		if !t.Status.State.Ended() {
			out = append(out, t)
		}
	}
	return out
}

// First is the first task of a place: a number, or a node of a global service.
func (s *Service) First(slot uint64, node string) *Task {
	name := fmt.Sprintf("%s.%d", s.Name, slot)
	if slot == 0 {
		name = s.Name + "." + node
	}
	return &Task{
		Meta: Meta{Name: name, Owner: s.ID, Labels: s.Spec.Labels}, Spec: s.Spec.Task, SpecNumber: s.Spec.Number, Slot: slot, Node: node,
		Number: 1, Desired: TaskRunning, Status: TaskStatus{State: TaskNew}, Networks: s.Spec.Networks, Ports: s.Spec.HostPorts(), Halted: s.Spec.Halted, App: s.Owner,
	}
}

// Successor is a task that takes another's place, made as spec says.
func (t *Task) Successor(spec TaskSpec, number uint64) *Task {
	next := &Task{
		Meta: Meta{Name: t.Name, Owner: t.Owner, Labels: t.Labels}, Spec: spec, SpecNumber: number, Slot: t.Slot,
		Number: t.Number + 1, Desired: TaskRunning, Status: TaskStatus{State: TaskNew}, Networks: t.Networks, Ports: t.Ports, App: t.App, Home: t.home(&spec),
	}
	if t.Slot == 0 {
		next.Node = t.Node
	}
	return next
}
