package progress

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/moby/moby/api/types/swarm"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/internal/cli/verb"
)

// scripted is an engine of which a function tells what there is at each look.
type scripted struct {
	look  int
	at    func(look int) (*swarm.Service, []swarm.Task, error)
	tasks []swarm.Task
	swarm swarm.Swarm
	nodes []swarm.Node
}

func (s *scripted) ServiceInspect(ctx context.Context, _ string, _ moby.ServiceInspectOptions) (moby.ServiceInspectResult, error) {
	s.look++
	service, tasks, err := s.at(s.look)
	s.tasks = tasks
	if err != nil || ctx.Err() != nil {
		return moby.ServiceInspectResult{}, errors.Join(err, ctx.Err())
	}
	return moby.ServiceInspectResult{Service: *service}, nil
}

func (s *scripted) TaskList(context.Context, moby.TaskListOptions) (moby.TaskListResult, error) {
	return moby.TaskListResult{Items: s.tasks}, nil
}

func (s *scripted) NodeList(context.Context, moby.NodeListOptions) (moby.NodeListResult, error) {
	return moby.NodeListResult{Items: s.nodes}, nil
}

func (s *scripted) SwarmInspect(context.Context, moby.SwarmInspectOptions) (moby.SwarmInspectResult, error) {
	s.look++
	if s.at != nil {
		_, _, err := s.at(s.look)
		return moby.SwarmInspectResult{Swarm: s.swarm}, err
	}
	return moby.SwarmInspectResult{Swarm: s.swarm}, nil
}

func service(replicas uint64) *swarm.Service {
	s := &swarm.Service{ID: "id"}
	s.Spec.Mode.Replicated = &swarm.ReplicatedService{Replicas: &replicas}
	return s
}

func task(slot int, node string, state, desired swarm.TaskState, fault string) swarm.Task {
	return swarm.Task{Slot: slot, NodeID: node, DesiredState: desired, Status: swarm.TaskStatus{State: state, Err: fault}}
}

func live(names ...string) []swarm.Node {
	var list []swarm.Node
	for _, n := range names {
		list = append(list, swarm.Node{ID: n, Status: swarm.NodeStatus{State: swarm.NodeStateReady}})
	}
	return list
}

const (
	up   = swarm.TaskStateRunning
	prep = swarm.TaskStatePreparing
	bad  = swarm.TaskStateFailed
	off  = swarm.TaskStateShutdown
	done = swarm.TaskStateComplete
)

// watchOf waits for a service, and gives what was shown, how it ended and how long it took.
func watchOf(t *testing.T, s *scripted) (lines []string, took time.Duration, err error) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		var out strings.Builder
		begin := time.Now()
		err = Service(t.Context(), s, "escale", "id", &out, false)
		took = time.Since(begin)
		lines = strings.Split(strings.TrimRight(out.String(), "\n"), "\n")
	})
	return lines, took, err
}

// Services come up, fail on the way, are updated and go back; each line tells when what is shown has changed.
func TestServiceProgress(t *testing.T) {
	nodes := live("n", "m")
	update := func(state swarm.UpdateState, words string) *swarm.UpdateStatus {
		return &swarm.UpdateStatus{State: state, Message: words}
	}
	for name, c := range map[string]struct {
		at   func(int) (*swarm.Service, []swarm.Task, error)
		want []string // in this order, others between
		not  string
		err  string
		took time.Duration
	}{
		"comes up": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				tasks := []swarm.Task{task(1, "n", up, up, "")}
				if look > 3 {
					tasks = append(tasks, task(7, "m", up, up, ""))
				}
				return service(2), tasks, nil
			},
			want: []string{"overall progress: 0 out of 2 tasks", "1/2:  ", "2/2:  ", "overall progress: 1 out of 2 tasks", "overall progress: 2 out of 2 tasks", "verify: Waiting 5 seconds to verify that tasks are stable...", "verify: Service id converged"},
			took: 600*time.Millisecond + defaultMonitor,
		},
		"fails when it was up": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				if look == 4 {
					return service(1), []swarm.Task{task(1, "n", bad, off, "exit"), task(1, "n", prep, up, "no\nimage")}, nil
				}
				return service(1), []swarm.Task{task(1, "n", up, up, "")}, nil
			},
			want: []string{"overall progress: 1 out of 1 tasks", "1/1: no image", "verify: Detected task failure", "verify: Service id converged"},
			took: 800*time.Millisecond + defaultMonitor,
		},
		"a node is down": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				if look == 1 {
					return service(1), []swarm.Task{task(1, "gone", up, up, "")}, nil
				}
				s := service(1)
				s.UpdateStatus = update(swarm.UpdateStateCompleted, "")
				return s, nil, nil
			},
			want: []string{"overall progress: 0 out of 1 tasks"}, not: "1 out of 1",
			took: 200 * time.Millisecond,
		},
		"stops": {
			at: func(int) (*swarm.Service, []swarm.Task, error) {
				s := service(1)
				s.UpdateStatus = update(swarm.UpdateStatePaused, "a task failed")
				return s, nil, nil
			},
			err: "service update paused: a task failed",
		},
		"goes back": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				s := service(1)
				s.Spec.UpdateConfig = &swarm.UpdateConfig{Monitor: time.Second}
				s.UpdateStatus = update(swarm.UpdateStateRollbackStarted, "it failed")
				if look > 2 {
					s.UpdateStatus = update(swarm.UpdateStateRollbackCompleted, "rollback completed")
				}
				return s, []swarm.Task{task(1, "n", map[bool]swarm.TaskState{true: up, false: prep}[look > 2], up, "")}, nil
			},
			want: []string{"rollback: it failed", "overall progress: rolling back update: 0 out of 1 tasks", "overall progress: rolling back update: 1 out of 1 tasks", "verify: Service id converged", "rollback: rollback completed"},
			took: 1400 * time.Millisecond,
		},
		"the way back stops": {
			at: func(int) (*swarm.Service, []swarm.Task, error) {
				s := service(1)
				s.UpdateStatus = update(swarm.UpdateStateRollbackPaused, "so")
				return s, nil, nil
			},
			err: "service rollback paused: so",
		},
		"is removed": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				if look == 2 {
					return nil, nil, errors.New("no such service")
				}
				return service(1), nil, nil
			},
			err: "no such service", took: 200 * time.Millisecond,
		},
		"is on each node": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				s := &swarm.Service{}
				s.Spec.Mode.Global = &swarm.GlobalService{}
				if look == 1 {
					return s, nil, nil
				}
				return s, []swarm.Task{task(0, "n", up, up, ""), task(0, "m", up, up, "")}, nil
			},
			want: []string{"overall progress: waiting for new tasks", "overall progress: 0 out of 2 tasks", "overall progress: 2 out of 2 tasks", "verify: Service id converged"},
			took: 200*time.Millisecond + defaultMonitor,
		},
		"is a job": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				s := &swarm.Service{JobStatus: &swarm.JobStatus{JobIteration: swarm.Version{Index: 2}}}
				three, two := uint64(3), uint64(2)
				s.Spec.Mode.ReplicatedJob = &swarm.ReplicatedJob{TotalCompletions: &three, MaxConcurrent: &two}
				tasks := []swarm.Task{task(0, "n", done, done, ""), task(1, "n", up, done, ""), task(2, "n", done, done, "")}
				for i := range tasks {
					tasks[i].JobIteration = &swarm.Version{Index: 2}
					if look == 1 && i == 2 {
						tasks[i].JobIteration.Index = 1 // of the round before
					}
					if look > 1 {
						tasks[i].Status.State = done
					}
				}
				return s, tasks, nil
			},
			want: []string{"active tasks: 0 out of 2 tasks", "3/3:  ", "active tasks: 1 out of 2 tasks", "active tasks: 0 out of 0 tasks", "job complete"},
			took: 200 * time.Millisecond,
		},
		"is a job on each node": {
			at: func(look int) (*swarm.Service, []swarm.Task, error) {
				s := &swarm.Service{JobStatus: &swarm.JobStatus{}}
				s.Spec.Mode.GlobalJob = &swarm.GlobalJob{}
				if look == 1 {
					return s, nil, nil
				}
				a := task(0, "n", done, done, "")
				a.JobIteration = &swarm.Version{}
				return s, []swarm.Task{a}, nil
			},
			want: []string{"job progress: waiting for tasks", "job complete"},
			took: 200 * time.Millisecond,
		},
		"is something else": {
			at:  func(int) (*swarm.Service, []swarm.Task, error) { return &swarm.Service{}, nil, nil },
			err: "unrecognized service mode",
		},
	} {
		t.Run(name, func(t *testing.T) {
			lines, took, err := watchOf(t, &scripted{at: c.at, nodes: nodes})
			if fmt.Sprint(err) != c.err && (err != nil || c.err != "") {
				t.Errorf("ended with %v, want %q", err, c.err)
			}
			if took != c.took {
				t.Errorf("took %s, want %s", took, c.took)
			}
			rest := lines
			for _, w := range c.want {
				i := slices.Index(rest, w)
				if i < 0 {
					t.Fatalf("no line %q (in this order) in\n%s", w, strings.Join(lines, "\n"))
				}
				rest = rest[i+1:]
			}
			if c.not != "" && strings.Contains(strings.Join(lines, "\n"), c.not) {
				t.Errorf("%q in\n%s", c.not, strings.Join(lines, "\n"))
			}
		})
	}
}

// Ctrl-C leaves the service to itself, without an error; another signal is one.
func TestInterrupted(t *testing.T) {
	for sig, want := range map[syscall.Signal]string{syscall.SIGINT: "", syscall.SIGTERM: "terminated"} {
		synctest.Test(t, func(t *testing.T) {
			ctx, cancel := context.WithCancelCause(t.Context())
			s := &scripted{at: func(look int) (*swarm.Service, []swarm.Task, error) {
				if look == 3 {
					cancel(verb.Terminated{Sig: sig})
				}
				return service(1), nil, nil
			}}
			var out strings.Builder
			err := Service(ctx, s, "escale", "id", &out, false)
			if (err == nil) != (want == "") || err != nil && err.Error() != want {
				t.Errorf("%s: %v, want %q", sig, err, want)
			}
			if got := strings.Contains(out.String(), "Use `escale service ps id` to check progress."); got != (want == "") {
				t.Errorf("%s: %s", sig, out.String())
			}
		})
	}
}

// Nothing is shown when that is asked for.
func TestQuiet(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{nodes: live("n"), at: func(int) (*swarm.Service, []swarm.Task, error) {
			return service(1), []swarm.Task{task(1, "n", up, up, "")}, nil
		}}
		var out strings.Builder
		if err := Service(t.Context(), s, "escale", "id", &out, true); err != nil || out.Len() > 0 {
			t.Errorf("%v %q", err, out.String())
		}
	})
}

// A new root is there when all nodes have certificates of it and trust it alone.
func TestRootProgress(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &scripted{nodes: live("n", "m")}
		s.swarm.TLSInfo = swarm.TLSInfo{TrustRoot: "new", CertIssuerSubject: []byte("s"), CertIssuerPublicKey: []byte("k")}
		s.swarm.RootRotationInProgress = true
		s.at = func(look int) (*swarm.Service, []swarm.Task, error) {
			switch look {
			case 2:
				for i := range s.nodes {
					s.nodes[i].Description.TLSInfo = s.swarm.TLSInfo
				}
			case 4:
				s.swarm.RootRotationInProgress = false
			}
			return nil, nil, nil
		}
		var out strings.Builder
		if err := Root(t.Context(), s, "escale", &out, false); err != nil {
			t.Fatal(err)
		}
		if s.look < 5 || !strings.Contains(out.String(), "desired root digest: sha256:11507a0e2f5e69d5dfa40a62a1bd7b6ee57e6bcd85c67c9b8431b36fff21c437") {
			t.Errorf("after %d looks:\n%s", s.look, out.String())
		}
	})
}
