package compose

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"

	"github.com/fsnotify/fsnotify"
)

// notice adds to changed what an event means to the rules, and tells whether that is anything.
func notice(w *fsnotify.Watcher, rules []*rule, e fsnotify.Event, changed map[string]bool) bool {
	found := false
	for _, r := range rules {
		if e.Has(fsnotify.Create|fsnotify.Remove|fsnotify.Rename) && r.hangs(e.Name) {
			if r.follow(w) != nil || r.absent { // it has gone, or is still to come
				continue
			}
			// A directory that came may have files already.
			files, _ := r.files() // of what has gone again somebody will tell
			for _, path := range files {
				changed[path], found = true, true
			}
			continue
		}
		if !r.matches(e.Name) {
			continue
		}
		changed[e.Name], found = true, true
		if !e.Has(fsnotify.Create) || r.add(w, e.Name) != nil {
			continue
		}
		_ = filepath.WalkDir(e.Name, func(path string, d fs.DirEntry, err error) error {
			if err == nil && !d.IsDir() && r.matches(path) {
				changed[path] = true
			}
			return nil
		})
	}
	return found
}

// look sees what is at the rule's path.
func (r *rule) look() error {
	info, err := os.Stat(r.trigger.Path)
	if r.absent = errors.Is(err, fs.ErrNotExist); r.absent {
		return nil
	}
	if err == nil {
		r.file = !info.IsDir()
	}
	return err
}

// begin follows the rule's path before anything is brought over. NotExist when nothing is there
// and what is there was to be brought over first.
func (r *rule) begin(w *fsnotify.Watcher) error {
	if r.absent && r.trigger.InitialSync {
		return &fs.PathError{Op: "develop.watch: initial_sync", Path: r.trigger.Path, Err: fs.ErrNotExist}
	}
	return r.follow(w)
}

// follow watches the rule's path, and until something is there the nearest directory above it
// that is.
func (r *rule) follow(w *fsnotify.Watcher) error {
	for {
		if err := r.look(); err != nil {
			return err
		}
		if !r.absent {
			return r.add(w, r.trigger.Path)
		}
		above := nearest(r.trigger.Path)
		if err := w.Add(above); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		// What came before it was watched nobody tells of.
		if nearest(r.trigger.Path) == above {
			return nil
		}
	}
}

// hangs tells whether the coming and going of a path is that of the rule's directory, or of what
// is above the rule's path.
func (r *rule) hangs(path string) bool {
	if path == r.trigger.Path {
		return r.absent || !r.file
	}
	return strings.HasPrefix(r.trigger.Path, path+string(filepath.Separator))
}

// nearest is the longest part of a path that is there.
func nearest(path string) string {
	for {
		if _, err := os.Stat(path); err == nil || path == filepath.Dir(path) {
			return path
		}
		path = filepath.Dir(path)
	}
}
