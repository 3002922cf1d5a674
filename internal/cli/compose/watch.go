package compose

import (
	"archive/tar"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/compose-spec/compose-go/v2/types"
	"github.com/fsnotify/fsnotify"
	"github.com/moby/moby/api/types/container"
	moby "github.com/moby/moby/client"
	"github.com/moby/patternmatcher"
	"github.com/moby/patternmatcher/ignorefile"
	"github.com/spf13/cobra"

	"escale.dev/escale/client"
	composefile "escale.dev/escale/internal/compose"
)

type watchOptions struct{ quiet, prune, noUp bool }

func watchCommand(s *session) *cobra.Command {
	var o watchOptions
	cmd := command("watch [OPTIONS] [SERVICE...]", "Bring changes of the sources into containers, as develop.watch says", func(ctx context.Context, args []string) error {
		lo := s.options()
		lo.Enabled = args
		p, err := load(ctx, lo)
		if err != nil {
			return err
		}
		names := p.ServiceNames()
		if len(args) > 0 {
			names = args
		}
		if !o.noUp {
			ch, err := apps{s}.prepare(ctx, upOptions{wanted: wanted{build: true, quietBuild: o.quiet, pull: "policy"}}, args)
			if err != nil {
				return err
			}
			if s.flags.dry {
				return apps{s}.show(ctx, ch)
			}
			if err := (apps{s}).yield(ctx, ch); err != nil {
				return err
			}
			if err := (apps{s}).place(ctx, ch, upOptions{}); err != nil {
				return err
			}
		}
		return watching{s}.watch(ctx, p, names, o)
	})
	cmd.Flags().BoolVar(&o.quiet, "quiet", false, "Show nothing of builds")
	cmd.Flags().BoolVar(&o.prune, "prune", true, "Remove images without a name that rebuilds leave")
	cmd.Flags().BoolVar(&o.noUp, "no-up", false, "Do not build and start first")
	return cmd
}

// rule is one trigger of a service.
type rule struct {
	service      types.ServiceConfig
	trigger      types.Trigger
	ignore, only *patternmatcher.PatternMatcher
	file         bool // the path is one file
	absent       bool // nothing is there yet
}

// quiet is how long nothing must change before what has changed is acted on: editors
// write a file in several steps.
const quiet = 300 * time.Millisecond

// watch follows the sources of services until ctx is done.
func (s watching) watch(ctx context.Context, p *types.Project, names []string, o watchOptions) error {
	rules, err := rulesOf(p, names)
	if err != nil {
		return err
	}
	if len(rules) == 0 {
		return errors.New("none of the selected services is configured for watch, see develop.watch")
	}
	w, err := fsnotify.NewWatcher()
	if err != nil {
		return err
	}
	defer w.Close()
	for _, r := range rules {
		if err := r.begin(w); err != nil {
			return err
		}
		if r.trigger.InitialSync && strings.HasPrefix(string(r.trigger.Action), "sync") {
			files, err := r.files()
			if err != nil {
				return err
			}
			if err := s.act(ctx, p, r, files, o); err != nil {
				return err
			}
		}
	}
	fmt.Fprintln(s.err, "Watch enabled")
	changed := map[string]bool{}
	timer := time.NewTimer(time.Hour)
	defer timer.Stop()
	for {
		select {
		case e := <-w.Events:
			if e.Op == fsnotify.Chmod {
				continue
			}
			if notice(w, rules, e, changed) {
				timer.Reset(quiet)
			}
		case err := <-w.Errors:
			return err
		case <-timer.C:
			s.acts(ctx, p, rules, changed, o)
			changed = map[string]bool{}
		case <-ctx.Done():
			return ctx.Err()
		}
	}
}

// acts does what the rules say for what has changed. A rebuild makes the other actions
// on its service needless.
func (s watching) acts(ctx context.Context, p *types.Project, rules []*rule, changed map[string]bool, o watchOptions) {
	rebuilt := map[string]bool{}
	for _, first := range []bool{true, false} {
		for _, r := range rules {
			if first != (r.trigger.Action == types.WatchActionRebuild) || rebuilt[r.service.Name] {
				continue
			}
			var paths []string
			for path := range changed {
				if r.matches(path) {
					paths = append(paths, path)
				}
			}
			if len(paths) == 0 {
				continue
			}
			slices.Sort(paths)
			rebuilt[r.service.Name] = first
			if err := s.act(ctx, p, r, paths, o); err != nil && ctx.Err() == nil {
				fmt.Fprintf(s.err, "watch: service %q: %s\n", r.service.Name, err)
			}
		}
	}
}

// rulesOf reads the triggers of services.
func rulesOf(p *types.Project, names []string) ([]*rule, error) {
	var out []*rule
	for _, name := range names {
		sv, err := p.GetService(name)
		if err != nil {
			return nil, err
		}
		if sv.Develop == nil {
			continue
		}
		for _, t := range sv.Develop.Watch {
			r := &rule{service: sv, trigger: t}
			if t.Action == types.WatchActionRebuild && sv.Build == nil {
				return nil, fmt.Errorf("service %q: develop.watch: rebuild wants a build section", name)
			}
			if err := r.look(); err != nil {
				return nil, fmt.Errorf("service %q: develop.watch: %w", name, err)
			}
			ignore := append([]string{".git"}, t.Ignore...)
			if sv.Build != nil {
				more, err := dockerignore(sv.Build.Context, t.Path)
				if err != nil {
					return nil, err
				}
				ignore = append(ignore, more...)
			}
			if r.ignore, err = patternmatcher.New(ignore); err != nil {
				return nil, fmt.Errorf("service %q: develop.watch: ignore: %w", name, err)
			}
			if len(t.Include) > 0 {
				if r.only, err = patternmatcher.New(t.Include); err != nil {
					return nil, fmt.Errorf("service %q: develop.watch: include: %w", name, err)
				}
			}
			out = append(out, r)
		}
	}
	return out, nil
}

// dockerignore gives the patterns of a context's .dockerignore, where the path that is
// watched is the context.
func dockerignore(context, path string) ([]string, error) {
	if filepath.Clean(context) != filepath.Clean(path) {
		return nil, nil
	}
	f, err := os.Open(filepath.Join(context, ".dockerignore"))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	} else if err != nil {
		return nil, err
	}
	defer f.Close()
	return ignorefile.ReadAll(f)
}

// matches tells whether a path is meant.
func (r *rule) matches(path string) bool {
	if r.absent {
		return false
	}
	if r.file {
		return path == r.trigger.Path
	}
	rel, err := filepath.Rel(r.trigger.Path, path)
	if err != nil || rel == ".." || strings.HasPrefix(rel, "../") {
		return false
	}
	if rel == "." {
		return false
	}
	if off, err := r.ignore.MatchesOrParentMatches(rel); err != nil || off {
		return false
	}
	if r.only == nil {
		return true
	}
	on, err := r.only.MatchesOrParentMatches(rel)
	return err == nil && on
}

// add watches a directory and those below it, but for those that are ignored.
func (r *rule) add(w *fsnotify.Watcher, path string) error {
	if r.file {
		// Its directory: editors put a new file in its place.
		return w.Add(filepath.Dir(r.trigger.Path))
	}
	return filepath.WalkDir(path, func(p string, d fs.DirEntry, err error) error {
		switch {
		case err != nil && p == path:
			return err
		case err != nil || !d.IsDir():
			return nil
		}
		if rel, err := filepath.Rel(r.trigger.Path, p); err == nil && rel != "." {
			if off, err := r.ignore.MatchesOrParentMatches(rel); err == nil && off {
				return filepath.SkipDir
			}
		}
		return w.Add(p)
	})
}

// files are all that are meant.
func (r *rule) files() ([]string, error) {
	if r.file {
		return []string{r.trigger.Path}, nil
	}
	var out []string
	err := filepath.WalkDir(r.trigger.Path, func(p string, d fs.DirEntry, err error) error {
		if err == nil && !d.IsDir() && r.matches(p) {
			out = append(out, p)
		}
		return err
	})
	return out, err
}

// act does what a trigger says for paths that have changed.
func (s watching) act(ctx context.Context, p *types.Project, r *rule, paths []string, o watchOptions) error {
	if r.trigger.Action == types.WatchActionRebuild {
		return s.rebuild(ctx, r, o)
	}
	list, err := s.containers(ctx, p.Name, pick{services: []string{r.service.Name}})
	if err != nil {
		return err
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	if r.trigger.Action != types.WatchActionRestart {
		for i := range list {
			if err := s.sync(ctx, c, &list[i], r, paths); err != nil {
				return err
			}
		}
		fmt.Fprintf(s.err, "Syncing service %q after %d changes were detected\n", r.service.Name, len(paths))
	}
	switch r.trigger.Action {
	case types.WatchActionRestart, types.WatchActionSyncRestart:
		for i := range list {
			if _, err := c.ContainerRestart(ctx, list[i].ID, moby.ContainerRestartOptions{}); err != nil {
				return err
			}
		}
		fmt.Fprintf(s.err, "service %q restarted\n", r.service.Name)
	case types.WatchActionSyncExec:
		for i := range list {
			if err := s.hook(ctx, c, &list[i], r.trigger.Exec); err != nil {
				return err
			}
		}
	}
	return nil
}

// rebuild builds a service's image anew and has the engine exchange its containers.
func (s watching) rebuild(ctx context.Context, r *rule, o watchOptions) error {
	fmt.Fprintf(s.err, "Rebuilding service %q after changes were detected...\n", r.service.Name)
	up := upOptions{noDeps: true, wanted: wanted{build: true, quietBuild: o.quiet, pull: "policy"}}
	ch, err := apps(s).prepare(ctx, up, []string{r.service.Name})
	if err != nil {
		return err
	}
	if err := apps(s).place(ctx, ch, up); err != nil {
		return err
	}
	fmt.Fprintf(s.err, "service %q successfully built\n", r.service.Name)
	if !o.prune {
		return nil
	}
	c, err := s.client()
	if err != nil {
		return err
	}
	f := moby.Filters{}.Add("dangling", "true").Add("label", composefile.LabelProject+"="+ch.project.Name, composefile.LabelService+"="+r.service.Name)
	_, err = c.ImagePrune(ctx, moby.ImagePruneOptions{Filters: f})
	return err
}

// sync brings files into a container, and takes away those that have gone.
func (s watching) sync(ctx context.Context, c *client.Client, x *container.Summary, r *rule, paths []string) error {
	var b bytes.Buffer
	var gone []string
	w := tar.NewWriter(&b)
	for _, path := range paths {
		to := r.trigger.Target
		if !r.file {
			rel, err := filepath.Rel(r.trigger.Path, path)
			if err != nil {
				return err
			}
			to = filepath.Join(to, rel)
		}
		if err := pack(w, path, strings.TrimPrefix(to, "/")); errors.Is(err, fs.ErrNotExist) {
			gone = append(gone, to)
		} else if err != nil {
			return err
		}
	}
	if err := w.Close(); err != nil {
		return err
	}
	if len(gone) < len(paths) {
		if _, err := c.CopyToContainer(ctx, x.ID, moby.CopyToContainerOptions{DestinationPath: "/", Content: &b}); err != nil {
			return err
		}
	}
	if len(gone) == 0 {
		return nil
	}
	return s.hook(ctx, c, x, types.ServiceHook{Command: append([]string{"rm", "-rf"}, gone...), User: "0"})
}

// pack adds a file or directory to an archive.
func pack(w *tar.Writer, path, name string) error {
	info, err := os.Lstat(path)
	if err != nil {
		return err
	}
	link := ""
	if info.Mode()&fs.ModeSymlink != 0 {
		if link, err = os.Readlink(path); err != nil {
			return err
		}
	}
	h, err := tar.FileInfoHeader(info, link)
	if err != nil {
		return err
	}
	h.Name, h.Uid, h.Gid, h.Uname, h.Gname = name, 0, 0, "", ""
	if err := w.WriteHeader(h); err != nil || !info.Mode().IsRegular() {
		return err
	}
	f, err := os.Open(path)
	if err != nil {
		return err
	}
	defer f.Close()
	_, err = io.CopyN(w, f, info.Size())
	return err
}

// watching brings changes of sources into containers.
type watching struct{ *session }
