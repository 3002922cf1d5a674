package apps

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"escale.dev/escale/internal/cluster"
	"escale.dev/escale/internal/cluster/store"
	"github.com/containerd/errdefs"
)

// View is what clients are told of an app. Its form is the client package's.
type View struct {
	ID, Name  string
	Number    uint64 // of what is in place, or being put there
	Asked     uint64 // of what was asked last
	Phase     cluster.AppPhase
	Message   string `json:",omitempty"`
	Removed   bool   `json:",omitempty"`
	CreatedAt time.Time
	UpdatedAt time.Time
	Dir       string   `json:",omitempty"`
	Files     []string `json:",omitempty"`
	Services  []ServiceView
	Networks  []string `json:",omitempty"` // names in the engine, of the app's own
	Volumes   []string `json:",omitempty"` // names in the engine, of the app's own
}

// ServiceView is what clients are told of a service.
type ServiceView struct {
	Name     string // in the app
	Mode     string
	Replicas uint64 // wanted
	Healthy  uint64 // of them, those that are as they are to be
	Image    string
	Rollout  *RolloutView `json:",omitempty"`
	Tasks    []TaskView   `json:",omitempty"`
}

// RolloutView is what clients are told of a rollout.
type RolloutView struct {
	State     cluster.RolloutState
	Message   string `json:",omitempty"`
	StartedAt time.Time
	EndedAt   time.Time `json:",omitzero"`
}

// TaskView is what clients are told of a task.
type TaskView struct {
	ID        string
	Name      string // of the container
	Node      string `json:",omitempty"`
	Slot      uint64 `json:",omitempty"`
	Number    uint64
	State     cluster.TaskState
	Desired   cluster.TaskState
	Message   string `json:",omitempty"`
	Err       string `json:",omitempty"`
	Since     time.Time
	Container string `json:",omitempty"`
	ExitCode  int    `json:",omitempty"`
	Healthy   bool   `json:",omitempty"`
	Halted    bool   `json:",omitempty"`
	Away      string `json:",omitempty"` // its node's name, when nothing is heard of that
}

// Revision is something that an app was asked to be.
type Revision struct {
	Number   uint64
	At       time.Time
	Current  bool              `json:",omitempty"`
	Services map[string]string // their images
	Source   string            `json:",omitempty"`
}

// List tells of all apps, without the tasks of their services.
func (a *Apps) List() []View {
	v := a.s.View()
	out := []View{}
	for _, app := range store.List[*cluster.App](v) {
		view := tell(v, app)
		for i := range view.Services {
			view.Services[i].Tasks = nil
		}
		out = append(out, view)
	}
	return out
}

// Get tells of an app. NotFound.
func (a *Apps) Get(name string) (View, error) {
	v := a.s.View()
	app, err := store.Named[*cluster.App](v, name)
	if err != nil {
		return View{}, notFound(name)
	}
	return tell(v, app), nil
}

// History lists what an app was asked to be, the newest first. NotFound.
func (a *Apps) History(name string) ([]Revision, error) {
	app, err := store.Named[*cluster.App](a.s.View(), name)
	if err != nil {
		return nil, notFound(name)
	}
	out := []Revision{revision(app.AskedAt, &app.Spec)}
	out[0].Current = true
	for i := range app.History {
		out = append(out, revision(app.History[i].At, &app.History[i].Spec))
	}
	return out, nil
}

func revision(at time.Time, s *cluster.AppSpec) Revision {
	r := Revision{Number: s.Number, At: at, Services: map[string]string{}, Source: s.Source}
	for name, service := range s.Services {
		r.Services[name] = service.Task.Container.Image
	}
	return r
}

func tell(v store.View, app *cluster.App) View {
	out := View{
		ID: app.ID, Name: app.Name, Number: app.Status.Number, Asked: app.Spec.Number, Phase: cmp.Or(app.Status.Phase, cluster.AppChanging),
		Message: app.Status.Message, Removed: app.Spec.Removed || app.Spec.Released, CreatedAt: app.CreatedAt, UpdatedAt: app.UpdatedAt,
		Dir: app.Spec.Dir, Files: app.Spec.Files, Services: []ServiceView{},
	}
	if out.Removed || out.Number != out.Asked {
		out.Phase = cluster.AppChanging
	}
	for _, part := range sortedKeys(app.Spec.Networks) {
		if n := app.Spec.Networks[part]; !n.External {
			out.Networks = append(out.Networks, n.Name)
		}
	}
	for _, part := range sortedKeys(app.Spec.Volumes) {
		if v := app.Spec.Volumes[part]; !v.External {
			out.Volumes = append(out.Volumes, v.Name)
		}
	}
	services := map[string]*cluster.Service{}
	for _, s := range store.List[*cluster.Service](v, store.Owner(app.ID)) {
		services[strings.TrimPrefix(s.Name, app.Name+"_")] = s
	}
	for name := range app.Spec.Services {
		if services[name] == nil && !out.Removed {
			services[name] = &cluster.Service{Spec: app.Spec.Services[name]} // the loop comes to it
		}
	}
	for _, name := range sortedKeys(services) {
		out.Services = append(out.Services, tellService(v, name, services[name]))
	}
	return out
}

// mode is the word for a mode.
func mode(m cluster.Mode) string {
	switch {
	case m.Schedule != "":
		return "schedule"
	case m.Global:
		return "global"
	case m.Job != nil || m.GlobalJob:
		return "job"
	}
	return "replicated"
}

func tellService(v store.View, name string, s *cluster.Service) ServiceView {
	out := ServiceView{Name: name, Mode: mode(s.Spec.Mode), Image: s.Spec.Task.Container.Image}
	if r := s.Status.Rollout; r != nil {
		out.Rollout = &RolloutView{State: r.State, Message: r.Message, StartedAt: r.StartedAt, EndedAt: r.EndedAt}
	}
	if s.ID == "" {
		_, want, _ := s.Up(nil)
		out.Replicas = uint64(want)
		return out
	}
	slots := cluster.Slots(store.List[*cluster.Task](v, store.Owner(s.ID)))
	up, want, _ := s.Up(slots)
	out.Healthy, out.Replicas = uint64(up), uint64(want)
	for _, slot := range slots {
		for _, t := range slot.Tasks {
			out.Tasks = append(out.Tasks, tellTask(v, t))
		}
	}
	return out
}

func tellTask(v store.View, t *cluster.Task) TaskView {
	out := TaskView{
		ID: t.ID, Name: t.ContainerName(), Node: t.Node, Slot: t.Slot, Number: t.SpecNumber, State: t.Status.State, Desired: t.Desired,
		Message: t.Status.Message, Err: t.Status.Err, Since: t.Status.At, Healthy: t.Status.Healthy, Halted: t.Halted,
	}
	if n, err := store.Find[*cluster.Node](v, t.Node); err == nil && !n.Status.Ready {
		out.Away = cmp.Or(n.Name, n.ID)
	}
	if out.Since.IsZero() {
		out.Since = t.CreatedAt
	}
	if c := t.Status.Container; c != nil {
		out.Container, out.ExitCode = c.ID, c.ExitCode
	}
	return out
}

// VolumeView is a volume of an app that is known to be on one node.
type VolumeView struct {
	Name    string // in the engine
	Node    string // the host's name
	Away    bool   `json:",omitempty"` // nothing is heard of the node
	Removed bool   `json:",omitempty"` // it goes, as soon as the node is there
}

// Volumes lists those of an app, or of one that has gone, that are on one node each, as far as that is known.
func (a *Apps) Volumes(name string) []VolumeView {
	v := a.s.View()
	out := []VolumeView{}
	for _, vol := range store.List[*cluster.Volume](v) {
		n, err := store.Find[*cluster.Node](v, vol.Status.Node)
		if err != nil || vol.Spec.External || vol.Spec.Labels[labelProject] != name {
			continue
		}
		out = append(out, VolumeView{Name: vol.Spec.Name, Node: cmp.Or(n.Name, n.ID), Away: !n.Status.Ready, Removed: vol.Spec.Removed})
	}
	return out
}

// together is how long changes are collected before they are told.
const together = 30 * time.Millisecond

// Follow tells f of an app as it is and each time it has changed, until it has gone, of
// which f is told, too, until f fails, or until ctx ends. It blocks. NotFound when there is no such app at first.
func (a *Apps) Follow(ctx context.Context, name string, f func(View) error) error {
	var last []byte
	seen := false
	for {
		v := a.s.View()
		w, err := a.s.Watch(v.Revision(), cluster.KindApp, cluster.KindService, cluster.KindTask)
		if errdefs.IsOutOfRange(err) {
			continue // between the two lines above much was written
		}
		if err != nil {
			return err
		}
		app, err := store.Named[*cluster.App](v, name)
		if err != nil {
			if !seen {
				return notFound(name)
			}
			return f(View{Name: name, Removed: true, Services: []ServiceView{}})
		}
		seen = true
		view := tell(v, app)
		line, err := json.Marshal(view)
		if err != nil {
			return fmt.Errorf("app %s: %w", name, err)
		}
		if !bytes.Equal(line, last) {
			last = line
			if err := f(view); err != nil {
				return err
			}
		}
		if _, err := w.Next(ctx); err != nil && !errdefs.IsOutOfRange(err) {
			return err
		}
		select {
		case <-time.After(together):
		case <-ctx.Done():
			return context.Cause(ctx)
		}
	}
}
