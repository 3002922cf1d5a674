package container

import (
	"context"
	"encoding/json"
	"maps"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"escale.dev/escale/internal/logs"
	"escale.dev/escale/internal/logs/ship"
	"escale.dev/escale/internal/runtime"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// Logs are bounded unless the client says otherwise: five files of 10 MB.
const (
	defaultLogSize  = 10 << 20
	defaultLogFiles = 5
	// localLogSize is Docker's bound for its driver "local", which also keeps what
	// goes to a server.
	localLogSize = 20 << 20
)

// logPath is where Docker keeps the json-file log, because tools look there.
func (m *core) logPath(id ID) string {
	return filepath.Join(m.store.path(id), string(id)+"-json.log")
}

// logDefaults completes and checks the log configuration.
func (m creator) logDefaults(h *container.HostConfig) error {
	lc := &h.LogConfig
	if lc.Type == "" {
		lc.Type = m.defaults().LogDriver
	}
	if lc.Config == nil {
		lc.Config = map[string]string{}
	}
	for k, v := range m.defaults().LogOpts {
		// Bounds of the file beside a server are the engine's for every driver.
		if _, own := lc.Config[k]; !own && (lc.Type == m.defaults().LogDriver || strings.HasPrefix(k, "cache-")) {
			lc.Config[k] = v
		}
	}
	return m.cfg.Logs.Check(lc.Type, lc.Config)
}

// logFile says how the monitor writes the log of a container: for every driver but
// "none", since what goes to a server is read from this file.
func (m *core) logFile(rec *Record) runtime.LogFile {
	driver, opts := rec.HostConfig.LogConfig.Type, rec.HostConfig.LogConfig.Config
	f := runtime.LogFile{Path: m.logPath(rec.ID), MaxSize: defaultLogSize, MaxFiles: defaultLogFiles}
	size, files := "max-size", "max-file"
	switch driver {
	case "none":
		return runtime.LogFile{MaxFiles: 1}
	case "json-file":
		f.Attrs = logAttrs(rec)
		if _, ok := opts[size]; ok {
			f.MaxFiles = 1
		}
	case "local":
		f.MaxSize = localLogSize
	default:
		f.MaxSize = localLogSize
		size, files = "cache-max-size", "cache-max-file"
	}
	if v, ok := opts[size]; ok {
		f.MaxSize, _ = units.FromHumanSize(v) // checked at create; -1 is unbounded
	}
	if v, ok := opts[files]; ok {
		f.MaxFiles, _ = strconv.Atoi(v)
	}
	return f
}

// readable reports whether clients may read the log.
func readable(rec *Record) bool {
	lc := &rec.HostConfig.LogConfig
	hidden, _ := strconv.ParseBool(lc.Config["cache-disabled"]) // checked at create
	return lc.Type != "none" && (lc.Type == "json-file" || lc.Type == "local" || !hidden)
}

// logInfo is what a log driver is told of a container.
func logInfo(rec *Record, path string) ship.Info {
	return ship.Info{
		Config: rec.HostConfig.LogConfig.Config, ContainerID: string(rec.ID), ContainerName: "/" + rec.Name,
		ContainerEntrypoint: rec.Path, ContainerArgs: rec.Args, ContainerImageID: rec.ImageID, ContainerImageName: rec.Config.Image,
		ContainerCreated: rec.Created, ContainerEnv: rec.Config.Env, ContainerLabels: rec.Config.Labels,
		LogPath: path, DaemonName: "escale",
	}
}

// logAttrs is the "attrs" object of each line: labels, variables and the tag
// that the options name.
func logAttrs(rec *Record) string {
	info := logInfo(rec, rec.LogPath)
	attrs, err := info.ExtraAttributes(nil)
	if err != nil {
		return "" // refused at create
	}
	if tag, err := info.Tag(""); err == nil && tag != "" {
		attrs["tag"] = tag
	}
	if len(attrs) == 0 {
		return ""
	}
	b, err := json.Marshal(attrs)
	if err != nil {
		return ""
	}
	return string(b)
}

// ship begins to send the log of a container on, if its driver does.
func (m *core) ship(e *entry) error {
	rec := e.view().Record
	return m.cfg.Logs.Begin(ship.Log{
		ID: string(rec.ID), Driver: rec.HostConfig.LogConfig.Type, Path: m.logPath(rec.ID), MaxFiles: m.logFile(&rec).MaxFiles,
		State: filepath.Join(m.store.path(rec.ID), "log-position"), Info: logInfo(&rec, m.logPath(rec.ID)),
	}, e.endOfLog())
}

// shipAll goes on with what an earlier engine has left to send.
func (m *core) shipAll(entries []*entry) {
	for _, e := range entries {
		if st := e.state(); st.Generation == 0 || st.Status == Removing {
			continue
		}
		if err := m.ship(e); err != nil {
			m.log.Error("log is not sent on", "container", e.id.Short(), "error", err)
		}
	}
}

// Logs opens the log of a container. terminal tells that it has no streams to
// tell apart.
func (m *Manager) Logs(_ context.Context, ref string, o logs.ReadOptions) (logs.Reader, bool, error) {
	e, err := m.store.find(ref)
	if err != nil {
		return nil, false, err
	}
	v := e.view()
	if v.State.Status == Removing || v.State.Status == Dead {
		return nil, false, kindf(errConflict, "can not get logs from container which is dead or marked for removal")
	}
	if !readable(&v.Record) {
		return nil, false, kindf(errNotImplemented, "configured logging driver does not support reading")
	}
	o.Ended = e.endOfLog()
	r, err := logs.Open(m.logPath(v.ID), m.logFile(&v.Record).MaxFiles, o)
	if err == nil && o.Follow {
		r = e.follow(r)
	}
	return r, v.Config.Tty, err
}

// follower is a reader that its container knows of, until it is closed.
type follower struct {
	logs.Reader
	e *entry
}

// follow notes who follows the log, so that a removal leaves it what it has not read yet.
func (e *entry) follow(r logs.Reader) logs.Reader {
	f := &follower{r, e}
	e.mu.Lock()
	defer e.mu.Unlock()
	e.followers[f] = struct{}{}
	return f
}

// Close ends the reader.
func (f *follower) Close() error {
	f.e.mu.Lock()
	delete(f.e.followers, f)
	f.e.mu.Unlock()
	return f.Reader.Close()
}

// holdLog makes those who follow the log of a container that is removed open its files.
func (m *runner) holdLog(e *entry) {
	e.mu.Lock()
	all := slices.Collect(maps.Keys(e.followers))
	e.mu.Unlock()
	for _, f := range all {
		if err := f.Hold(); err != nil {
			m.log.Warn("holding the log of a removed container", "container", e.id.Short(), "error", err)
		}
	}
}

// endOfLog is closed when the present run can write no more.
func (e *entry) endOfLog() <-chan struct{} {
	e.mu.Lock()
	defer e.mu.Unlock()
	if e.run != nil {
		return e.run.ended
	}
	closed := make(chan struct{})
	close(closed)
	return closed
}
