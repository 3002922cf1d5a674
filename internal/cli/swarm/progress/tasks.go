package progress

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"

	"github.com/moby/moby/api/types/jsonstream"
	"github.com/moby/moby/api/types/swarm"
)

// states are those of a task, in the order of its life.
var states = []swarm.TaskState{
	swarm.TaskStateNew, swarm.TaskStateAllocated, swarm.TaskStatePending, swarm.TaskStateAssigned, swarm.TaskStateAccepted,
	swarm.TaskStatePreparing, swarm.TaskStateReady, swarm.TaskStateStarting, swarm.TaskStateRunning,
	swarm.TaskStateComplete, swarm.TaskStateShutdown, swarm.TaskStateFailed, swarm.TaskStateRejected,
}

// number counts states from 1; 0 is none of them.
func number(s swarm.TaskState) int { return slices.Index(states, s) + 1 }

// ended tells whether a task in that state runs no more.
func ended(s swarm.TaskState) bool { return number(s) > number(swarm.TaskStateRunning) }

// stateWidth is that of the longest state that is shown.
const stateWidth = len(swarm.TaskStatePreparing)

// known leaves out tasks whose states are none.
func known(tasks []swarm.Task) []*swarm.Task {
	var list []*swarm.Task
	for i := range tasks {
		if t := &tasks[i]; number(t.DesiredState) > 0 && number(t.Status.State) > 0 {
			list = append(list, t)
		}
	}
	return list
}

// newer chooses one of two tasks in a place: that which is to live, else that which has
// come less far, as it follows the other.
func newer(x, y *swarm.Task) *swarm.Task {
	if cmp.Or(cmp.Compare(number(x.DesiredState), number(y.DesiredState)), cmp.Compare(number(x.Status.State), number(y.Status.State))) <= 0 {
		return x
	}
	return y
}

// running tells whether a task runs, and is to.
func running(t *swarm.Task) bool {
	return !ended(t.DesiredState) && t.Status.State == swarm.TaskStateRunning
}

func (w *watch) counterOf(s *swarm.Service) counter {
	m := s.Spec.Mode
	switch {
	case m.Replicated != nil && m.Replicated.Replicas != nil:
		return &replicated{screen: w.screen, places: map[int]int{}}
	case m.Global != nil:
		return &global{screen: w.screen}
	case s.JobStatus == nil:
		return nil
	case m.ReplicatedJob != nil && m.ReplicatedJob.TotalCompletions != nil && m.ReplicatedJob.MaxConcurrent != nil:
		return &job{screen: w.screen, places: map[int]int{}, total: int(*m.ReplicatedJob.TotalCompletions), atATime: int(*m.ReplicatedJob.MaxConcurrent)}
	case m.GlobalJob != nil:
		return &globalJob{screen: w.screen}
	}
	return nil
}

func (s *screen) overall(n, of int, rollback bool) {
	words := fmt.Sprintf("%d out of %d tasks", n, of)
	if rollback {
		words = "rolling back update: " + words
	}
	s.line("overall progress", words, jsonstream.Progress{})
}

// task shows one task: what is wrong with it, or how far it is of so many states.
func (s *screen) task(id string, t *swarm.Task, of int64) {
	if t.Status.Err != "" {
		s.line(id, short(t.Status.Err), jsonstream.Progress{})
		return
	}
	s.line(id, fmt.Sprintf("%-*s", stateWidth, t.Status.State), jsonstream.Progress{Current: int64(number(t.Status.State)), Total: of, HideCounts: true})
}

// short makes an error fit into a line.
func short(text string) string {
	const most = 75
	text = strings.ReplaceAll(text, "\n", " ")
	if len(text) > most {
		return text[:most-1] + "…"
	}
	return text
}

// alive tells whether a task's state is worth a line.
func alive(t *swarm.Task) bool {
	return t.Status.Err != "" || !ended(t.DesiredState) && !ended(t.Status.State)
}

// replicated counts the tasks of a service with a number of replicas.
type replicated struct {
	*screen
	places      map[int]int // of slots: in the order in which they were seen
	begun, done bool
}

func (r *replicated) count(s *swarm.Service, tasks []swarm.Task, live map[string]bool, rollback bool) bool {
	if s.Spec.Mode.Replicated == nil || s.Spec.Mode.Replicated.Replicas == nil {
		return false
	}
	want := int(*s.Spec.Mode.Replicated.Replicas)
	if !r.begun {
		r.begun = true
		r.overall(0, want, rollback)
		for i := 1; i <= want && want <= mostBars; i++ {
			r.line(fmt.Sprintf("%d/%d", i, want), " ", jsonstream.Progress{})
		}
	}
	bySlot := map[int]*swarm.Task{}
	for _, t := range known(tasks) {
		if t.NodeID != "" && !live[t.NodeID] {
			continue
		}
		if other := bySlot[t.Slot]; other != nil {
			t = newer(other, t)
		}
		bySlot[t.Slot] = t
	}
	if r.done {
		r.done = allRun(maps.Values(bySlot))
	}
	up := 0
	for _, slot := range slices.Sorted(maps.Keys(bySlot)) {
		t := bySlot[slot]
		if r.places[slot] == 0 {
			r.places[slot] = len(r.places) + 1
		}
		if running(t) {
			up++
		}
		if place := r.places[slot]; !r.done && want <= mostBars && place <= want && alive(t) {
			r.task(fmt.Sprintf("%d/%d", place, want), t, int64(number(swarm.TaskStateRunning)))
		}
	}
	if !r.done {
		r.overall(up, want, rollback)
		r.done = up == want
	}
	return up == want
}

func allRun(tasks func(func(*swarm.Task) bool)) bool {
	for t := range tasks {
		if t.Status.State != swarm.TaskStateRunning {
			return false
		}
	}
	return true
}

// global counts the tasks of a service with one on each node.
type global struct {
	*screen
	begun, done bool
}

func (g *global) count(_ *swarm.Service, tasks []swarm.Task, live map[string]bool, rollback bool) bool {
	byNode := map[string]*swarm.Task{}
	for _, t := range known(tasks) {
		if other := byNode[t.NodeID]; other != nil {
			t = newer(other, t)
		}
		byNode[t.NodeID] = t
	}
	want := len(byNode)
	if !g.begun {
		if want == 0 { // they are not made yet, or there is no node for one
			g.line("overall progress", "waiting for new tasks", jsonstream.Progress{})
			return false
		}
		g.begun = true
		g.overall(0, want, rollback)
	}
	if g.done {
		g.done = allRun(maps.Values(byNode))
	}
	up := 0
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		t := byNode[node]
		if !live[node] {
			continue
		}
		if running(t) {
			up++
		}
		if !g.done && want <= mostBars && alive(t) {
			g.task(node[:min(12, len(node))], t, int64(number(swarm.TaskStateRunning)))
		}
	}
	if !g.done {
		g.overall(up, want, rollback)
		g.done = up == want
	}
	return up == want
}

// ofJob are the tasks of a job's present round, one a place: that which has come less far.
func ofJob[K comparable](s *swarm.Service, tasks []swarm.Task, place func(*swarm.Task) (K, bool)) map[K]*swarm.Task {
	found := map[K]*swarm.Task{}
	for _, t := range known(tasks) {
		p, ok := place(t)
		if !ok || s.JobStatus == nil || t.JobIteration == nil || t.JobIteration.Index != s.JobStatus.JobIteration.Index {
			continue
		}
		if other := found[p]; other == nil || number(other.Status.State) > number(t.Status.State) {
			found[p] = t
		}
	}
	return found
}

// jobStates is how many states a bar of a job's task has.
const jobStates = 10

func completed(done, of int) (string, jsonstream.Progress) {
	words := fmt.Sprintf("%*d out of %d complete", len(strconv.Itoa(of)), done, of)
	return words, jsonstream.Progress{Current: int64(done), Total: int64(of), HideCounts: true}
}

// job counts the tasks of a job that is done a number of times.
type job struct {
	*screen
	places         map[int]int
	total, atATime int
	begun          bool
}

func (j *job) count(s *swarm.Service, tasks []swarm.Task, _ map[string]bool, _ bool) bool {
	if !j.begun {
		j.begun = true
		j.show(0, 0)
		for i := 1; i <= j.total && j.total <= mostBars; i++ {
			j.line(fmt.Sprintf("%d/%d", i, j.total), " ", jsonstream.Progress{})
		}
	}
	active, done := 0, 0
	bySlot := ofJob(s, tasks, func(t *swarm.Task) (int, bool) { return t.Slot, true })
	for _, slot := range slices.Sorted(maps.Keys(bySlot)) {
		t := bySlot[slot]
		if j.places[slot] == 0 {
			j.places[slot] = len(j.places) + 1
		}
		if j.total <= mostBars {
			j.task(fmt.Sprintf("%d/%d", j.places[slot], j.total), t, jobStates)
		}
		switch {
		case t.Status.State == swarm.TaskStateComplete:
			done++
		case !ended(t.Status.State):
			active++
		}
	}
	j.show(active, done)
	return done == j.total
}

func (j *job) show(active, done int) {
	words, p := completed(done, j.total)
	j.line("job progress", words, p)
	width := len(strconv.Itoa(j.atATime))
	j.line("active tasks", fmt.Sprintf("%*d out of %*d tasks", width, active, width, min(j.total-done, j.atATime)), jsonstream.Progress{})
}

// globalJob counts the tasks of a job that is done on each node there was when it began.
type globalJob struct {
	*screen
	nodes map[string]bool
	begun bool
}

func (g *globalJob) count(s *swarm.Service, tasks []swarm.Task, live map[string]bool, _ bool) bool {
	byNode := ofJob(s, tasks, func(t *swarm.Task) (string, bool) { return t.NodeID, !g.begun || g.nodes[t.NodeID] })
	if !g.begun {
		if len(tasks) == 0 && len(live) > 0 {
			g.line("job progress", "waiting for tasks", jsonstream.Progress{})
			return false
		}
		g.begun, g.nodes = true, map[string]bool{}
		for node := range byNode {
			g.nodes[node] = true
		}
		g.show(0)
	}
	done := 0
	for _, node := range slices.Sorted(maps.Keys(byNode)) {
		t := byNode[node]
		if len(g.nodes) <= mostBars {
			g.task(node, t, jobStates)
		}
		if t.Status.State == swarm.TaskStateComplete {
			done++
		}
	}
	g.show(done)
	return done == len(g.nodes)
}

func (g *globalJob) show(done int) {
	words, p := completed(done, len(g.nodes))
	g.line("job progress", words, p)
}
