package client

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/url"
	"strconv"
	"time"
)

// App is a project of compose that the engine keeps as it was asked.
type App struct {
	ID, Name  string
	Number    uint64 // of what is in place, or being put there
	Asked     uint64 // of what was asked last
	Phase     string // changing, steady, failed, or reverted to what was before
	Message   string `json:",omitempty"`
	Removed   bool   `json:",omitempty"` // it is being removed
	CreatedAt time.Time
	UpdatedAt time.Time
	Dir       string   `json:",omitempty"` // of the project
	Files     []string `json:",omitempty"`
	Services  []AppService
	Networks  []string `json:",omitempty"` // names in the engine, of its own
	Volumes   []string `json:",omitempty"` // names in the engine, of its own
}

// AppService is a service of an app.
type AppService struct {
	Name     string // in the app
	Mode     string // replicated, global, job, schedule
	Replicas uint64 // wanted
	Healthy  uint64 // of them, those that are as they are to be
	Image    string
	Rollout  *AppRollout `json:",omitempty"` // the last one
	Tasks    []AppTask   `json:",omitempty"`
}

// AppRollout is an exchange of tasks for those of a new specification.
type AppRollout struct {
	State     string // Docker's words: updating, paused, completed, rollback_started, rollback_paused, rollback_completed
	Message   string `json:",omitempty"`
	StartedAt time.Time
	EndedAt   time.Time `json:",omitzero"`
}

// AppTask is one container of a service, or one to be.
type AppTask struct {
	ID        string
	Name      string // of the container
	Node      string `json:",omitempty"`
	Slot      uint64 `json:",omitempty"`
	Number    uint64 // of the service's specification that it was made for
	State     string // Docker's words: new, pending, assigned, accepted, preparing, ready, starting, running, complete, shutdown, failed, rejected, orphaned
	Desired   string
	Message   string    `json:",omitempty"`
	Err       string    `json:",omitempty"`
	Since     time.Time // when it came into its state
	Container string    `json:",omitempty"` // id
	ExitCode  int       `json:",omitempty"`
	Healthy   bool      `json:",omitempty"`
	Halted    bool      `json:",omitempty"` // stopped or removed by a client, and left so
	Away      string    `json:",omitempty"` // its node's name, when nothing is heard of that
}

// AppPlan is what a change does, or would.
type AppPlan struct {
	App      string
	From, To uint64 // numbers; From is 0 of an app that is new
	Steps    []AppStep
}

// AppStep is one thing of a plan.
type AppStep struct {
	Action string   // create, change, replace, start, remove, keep
	Kind   string   // network, volume, secret, config, service
	Name   string   // in the app
	Why    []string `json:",omitempty"` // "image: app:1 → app:2"
}

// AppRevision is something that an app was asked to be.
type AppRevision struct {
	Number   uint64
	At       time.Time
	Current  bool              `json:",omitempty"`
	Services map[string]string // their images
	Source   string            `json:",omitempty"` // the compose file, as it was resolved
}

// AppPutOptions say how an app is changed.
type AppPutOptions struct {
	DryRun       bool     // only the plan
	Merge        bool     // services that the specification does not name stay as they are
	Remove       []string // services that go, with Merge
	Replace      []string // services whose containers are made anew though nothing has changed
	RenewVolumes bool     // anonymous volumes of containers that are exchanged are not taken over
	Create       bool     // containers are made, but not started
}

func (o AppPutOptions) query() url.Values {
	q := url.Values{}
	setTrue(q, "dryRun", o.DryRun)
	setTrue(q, "merge", o.Merge)
	setTrue(q, "renewVolumes", o.RenewVolumes)
	setTrue(q, "create", o.Create)
	q["remove"], q["replace"] = o.Remove, o.Replace
	return q
}

// Apps lists the apps, without the tasks of their services.
func (c *Client) Apps(ctx context.Context) ([]App, error) {
	return ask[[]App](ctx, c, http.MethodGet, "/escale/apps", nil, nil)
}

// App tells of one app. NotFound when there is none of the name.
func (c *Client) App(ctx context.Context, name string) (*App, error) {
	return ask[*App](ctx, c, http.MethodGet, appPath(name, ""), nil, nil)
}

// AppPut asks the engine to make and keep an app as a specification has it (the
// document of internal/cluster.AppSpec), and returns at once with what will be done.
func (c *Client) AppPut(ctx context.Context, name string, spec json.RawMessage, o AppPutOptions) (*AppPlan, error) {
	return ask[*AppPlan](ctx, c, http.MethodPut, appPath(name, ""), o.query(), spec)
}

// AppScale changes how many replicas services have.
func (c *Client) AppScale(ctx context.Context, name string, replicas map[string]uint64) (*AppPlan, error) {
	return ask[*AppPlan](ctx, c, http.MethodPost, appPath(name, "/scale"), nil, replicas)
}

// AppRemove asks for an app to be removed with its containers and networks, and
// returns at once. Its volumes go with it when that is said.
func (c *Client) AppRemove(ctx context.Context, name string, volumes bool) error {
	q := url.Values{}
	setTrue(q, "volumes", volumes)
	return c.tell(ctx, http.MethodDelete, appPath(name, ""), q)
}

// AppHistory lists what an app was asked to be, the newest first.
func (c *Client) AppHistory(ctx context.Context, name string) ([]AppRevision, error) {
	return ask[[]AppRevision](ctx, c, http.MethodGet, appPath(name, "/history"), nil, nil)
}

// AppVolume is a volume of an app in a cluster that is known to be on one node.
type AppVolume struct {
	Name    string // in the engine
	Node    string // the host's name
	Away    bool   `json:",omitempty"` // nothing is heard of the node
	Removed bool   `json:",omitempty"` // it goes, as soon as the node is there
}

// AppVolumes lists volumes of an app, or of one that has gone, that are known to be on one node each.
func (c *Client) AppVolumes(ctx context.Context, name string) ([]AppVolume, error) {
	return ask[[]AppVolume](ctx, c, http.MethodGet, appPath(name, "/volumes"), nil, nil)
}

// AppRollback asks for what an app was before, or at a number of its history.
func (c *Client) AppRollback(ctx context.Context, name string, to uint64, dryRun bool) (*AppPlan, error) {
	q := url.Values{}
	if to != 0 {
		q.Set("to", strconv.FormatUint(to, 10))
	}
	setTrue(q, "dryRun", dryRun)
	return ask[*AppPlan](ctx, c, http.MethodPost, appPath(name, "/rollback"), q, nil)
}

// AppRelease ends the keeping of an app: its containers, networks and volumes stay, and
// are ordinary ones from then on. It returns at once; AppFollow tells when it is done.
func (c *Client) AppRelease(ctx context.Context, name string) error {
	return c.tell(ctx, http.MethodPost, appPath(name, "/release"), nil)
}

// AppAgain has another task take the place of one that has come to its end and is left so, and
// gives its id; it returns at once. NotFound, Conflict when another has the place.
func (c *Client) AppAgain(ctx context.Context, name, task string) (string, error) {
	q := url.Values{"task": {task}}
	out, err := ask[struct{ Task string }](ctx, c, http.MethodPost, appPath(name, "/again"), q, nil)
	return out.Task, err
}

// AppFollow tells f of an app as it is, and each time it has changed; changes that come
// fast are told of together. It blocks until the app has gone, which is no error and of
// which f has been told (Removed, without services), until f fails, whose error it
// returns, or until ctx ends.
func (c *Client) AppFollow(ctx context.Context, name string, f func(*App) error) error {
	res, err := c.Do(ctx, http.MethodGet, appPath(name, "/follow"), nil, nil)
	if err != nil {
		return err
	}
	defer res.Body.Close()
	d := json.NewDecoder(res.Body)
	for last := (*App)(nil); ; {
		a := new(App)
		switch err := d.Decode(a); {
		case ctx.Err() != nil:
			return context.Cause(ctx)
		case errors.Is(err, io.EOF) && last != nil && last.Removed && len(last.Services) == 0:
			return nil
		case errors.Is(err, io.EOF):
			return fmt.Errorf("app %s: the engine has stopped telling of it: %w", name, io.ErrUnexpectedEOF)
		case err != nil:
			return fmt.Errorf("app %s: %w", name, err)
		}
		if err := f(a); err != nil {
			return err
		}
		last = a
	}
}

func appPath(name, what string) string { return "/escale/apps/" + url.PathEscape(name) + what }

// ask sends a request and reads the answer's JSON.
func ask[T any](ctx context.Context, c *Client, method, endpoint string, q url.Values, body any) (out T, err error) {
	res, err := c.Do(ctx, method, endpoint, q, body)
	if err != nil {
		return out, err
	}
	defer res.Body.Close()
	if err := json.NewDecoder(res.Body).Decode(&out); err != nil {
		return out, fmt.Errorf("answer to %s %s: %w", method, endpoint, err)
	}
	return out, nil
}

// tell sends a request whose answer says nothing.
func (c *Client) tell(ctx context.Context, method, endpoint string, q url.Values) error {
	res, err := c.Do(ctx, method, endpoint, q, nil)
	if err != nil {
		return err
	}
	return res.Body.Close()
}
