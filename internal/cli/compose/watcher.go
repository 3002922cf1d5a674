package compose

import (
	"context"
	"fmt"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/containerd/errdefs"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/events"
	moby "github.com/moby/moby/client"

	"escale.dev/escale/client"
	composefile "escale.dev/escale/internal/compose"
)

// watcher follows the logs of a project's containers, also of those that are started
// while it looks: containers of a kept app are exchanged.
type watcher struct {
	s       *session
	c       *client.Client
	p       *printer
	project string
	meant   func(*container.Summary) bool
	logs    moby.ContainerLogsOptions
	// exited, when set, is told of each container that ends; true ends the watch.
	exited func(c *container.Summary, code int) bool

	mu       sync.Mutex
	stays    bool // it goes on though nothing runs, until finish
	followed map[string]bool
	shownTo  map[string]string // by container: until when its log was shown
	far      map[string]string // by container of another node: the state of its task
	all      sync.WaitGroup
	idle     chan struct{} // a log has come to its end
}

// run blocks until nothing runs any more nor will, or until ctx is done.
func (w *watcher) run(ctx context.Context, list []container.Summary) error {
	ctx, cancel := context.WithCancel(ctx)
	defer w.all.Wait()
	defer cancel()
	w.followed, w.idle = map[string]bool{}, make(chan struct{}, 1)
	f := moby.Filters{}.Add("label", composefile.LabelProject+"="+w.project).Add("type", "container").Add("event", "start", "die")
	since := instant(time.Now())
	news := w.c.Events(ctx, moby.EventsListOptions{Filters: f, Since: since})
	w.shownTo, w.far = map[string]string{}, map[string]string{}
	for i := range list {
		w.far[list[i].ID] = string(list[i].State)
		w.shownTo[list[i].ID] = since
		if w.meant(&list[i]) && !replaced(&list[i]) {
			w.p.register(shortName(&list[i]))
		}
	}
	for i := range list {
		w.follow(ctx, &list[i], w.logs)
	}
	w.poke()
	own, changed := w.s.node(ctx), make(chan *client.App)
	w.all.Go(func() {
		// What the engine does with the app may be the end, too, and no container tells
		// of it. Where none is kept there is nothing to be told.
		_ = w.c.AppFollow(ctx, w.project, func(app *client.App) error {
			select {
			case changed <- app:
			case <-ctx.Done():
			}
			return nil
		})
		w.poke()
	})
	// When nothing runs any more there may still be news on their way.
	quiet := time.NewTimer(time.Hour)
	defer quiet.Stop()
	for {
		select {
		case e := <-news.Messages:
			quiet.Stop()
			if w.event(ctx, &e) {
				return nil
			}
			w.poke()
		case app := <-changed:
			for _, e := range w.farNews(app, own) {
				if quiet.Stop(); w.event(ctx, &e) {
					return nil
				}
			}
			w.poke()
		case err := <-news.Err:
			return err
		case <-w.idle:
			if w.over(ctx) {
				quiet.Reset(late)
			}
		case <-quiet.C:
			if w.over(ctx) {
				return nil
			}
		case <-ctx.Done():
			return nil
		}
	}
}

// instant writes a time as the API has it.
func instant(t time.Time) string { return fmt.Sprintf("%d.%09d", t.Unix(), t.Nanosecond()) }

// late is how long news may be on their way.
const late = 200 * time.Millisecond

// finish lets a watcher that stays end when nothing runs.
func (w *watcher) finish() {
	w.mu.Lock()
	w.stays = false
	w.mu.Unlock()
	w.poke()
}

// busy tells whether a container's log is being shown.
func (w *watcher) busy(id string) bool {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.followed[id]
}

func (w *watcher) poke() {
	select {
	case w.idle <- struct{}{}:
	default:
	}
}

// follow shows a container's log, in the background, once.
func (w *watcher) follow(ctx context.Context, x *container.Summary, o moby.ContainerLogsOptions) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.meant(x) || w.followed[x.ID] {
		return
	}
	w.followed[x.ID] = true
	o.Follow = true
	w.all.Go(func() {
		if err := w.p.show(ctx, w.c, x, o); err != nil && ctx.Err() == nil {
			w.p.status(shortName(x), "log: "+err.Error())
		}
		w.mu.Lock()
		delete(w.followed, x.ID)
		w.mu.Unlock()
		w.poke()
	})
}

// event takes note of one; true ends the watch.
func (w *watcher) event(ctx context.Context, e *events.Message) bool {
	a := e.Actor.Attributes
	if a[composefile.LabelService] == "" || strings.EqualFold(a[composefile.LabelOneOff], "true") {
		return false
	}
	x := &container.Summary{ID: e.Actor.ID, Names: []string{"/" + a["name"]}, Labels: a}
	if !w.meant(x) {
		return false
	}
	switch e.Action {
	case events.ActionStart:
		w.p.register(shortName(x))
		o := w.logs
		// What it wrote in the life before was shown. (It may write before it is told
		// of as started.)
		o.Tail, o.Since = "all", w.shownTo[x.ID]
		if !w.busy(x.ID) {
			w.follow(ctx, x, o)
			return false
		}
		go func() {
			// The log of its last life is read to its end first.
			w.drain(ctx, x.ID)
			w.follow(ctx, x, o)
		}()
	case events.ActionDie:
		w.shownTo[x.ID] = instant(time.Unix(0, e.TimeNano))
		code, _ := strconv.Atoi(a["exitCode"]) // the engine writes a number
		if w.exited != nil {
			w.drain(ctx, x.ID)
			w.p.status(shortName(x), fmt.Sprintf("exited with code %d", code))
			return w.exited(x, code)
		}
	}
	return false
}

// drain waits for the log of a container that has ended to be read, not for long.
func (w *watcher) drain(ctx context.Context, id string) {
	end := time.Now().Add(time.Second)
	for time.Now().Before(end) && w.busy(id) {
		select {
		case <-time.After(10 * time.Millisecond):
		case <-ctx.Done():
			return
		}
	}
}

// over tells whether nothing runs that is meant, nor will by itself.
func (w *watcher) over(ctx context.Context) bool {
	w.mu.Lock()
	goesOn := w.stays || len(w.followed) > 0
	w.mu.Unlock()
	if goesOn {
		return false
	}
	list, err := w.s.containers(ctx, w.project, pick{})
	if err != nil {
		return ctx.Err() == nil && !errdefs.IsUnavailable(err)
	}
	for i := range list {
		if w.meant(&list[i]) {
			return false
		}
	}
	app, err := w.c.App(ctx, w.project)
	if err != nil {
		return true
	}
	for _, sv := range app.Services {
		for _, t := range sv.Tasks {
			ended := t.State == "complete" || t.State == "shutdown" || t.State == "failed" || t.State == "rejected" || t.State == "orphaned"
			x := &container.Summary{Names: []string{t.Name}, Labels: map[string]string{composefile.LabelService: sv.Name, composefile.LabelProject: w.project, composefile.LabelNumber: strconv.FormatUint(t.Slot, 10)}}
			if w.meant(x) && !ended && !t.Halted && t.Desired != "shutdown" && t.Desired != "remove" {
				return false
			}
		}
	}
	return app.Phase != "changing"
}
