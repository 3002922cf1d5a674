package container

import (
	"context"
	"encoding/json"
	"path/filepath"
	"regexp"
	"strconv"
	"strings"

	"escale.dev/escale/internal/logs"
	"escale.dev/escale/internal/runtime"
	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/container"
)

// Logs are bounded unless the client says otherwise: five files of 10 MB.
const (
	defaultLogSize  = 10 << 20
	defaultLogFiles = 5
)

// logPath is where Docker keeps the json-file log, because tools look there.
func (m *core) logPath(id ID) string {
	return filepath.Join(m.store.path(id), string(id)+"-json.log")
}

// logDefaults completes and checks the log configuration.
func (m creator) logDefaults(h *container.HostConfig) error {
	lc := &h.LogConfig
	if lc.Type == "" {
		lc.Type = m.cfg.Defaults.LogDriver
	}
	if lc.Config == nil {
		lc.Config = map[string]string{}
	}
	if lc.Type == m.cfg.Defaults.LogDriver {
		for k, v := range m.cfg.Defaults.LogOpts {
			if _, own := lc.Config[k]; !own {
				lc.Config[k] = v
			}
		}
	}
	return CheckLog(lc.Type, lc.Config)
}

// CheckLog refuses a log driver or an option that is not known, in Docker's words.
func CheckLog(driver string, opts map[string]string) error {
	switch driver {
	case "json-file", "none":
	default:
		return kindf(errInvalid, "logger: no log driver named '%s' is registered", driver)
	}
	for k, v := range opts {
		switch k {
		case "max-size":
			if n, err := units.FromHumanSize(v); err != nil || (n <= 0 && v != "-1") {
				return kindf(errInvalid, "invalid value for max-size: %s", v)
			}
		case "max-file":
			if n, err := strconv.Atoi(v); err != nil || n < 1 {
				return kindf(errInvalid, "invalid value for max-file: %s: max-file cannot be less than 1", v)
			}
		case "labels-regex", "env-regex":
			if _, err := regexp.Compile(v); err != nil {
				return kindf(errInvalid, "invalid value for %s: %s", k, err)
			}
		case "compress", "mode", "max-buffer-size":
			// Accepted as Docker has them: the monitor never blocks a container
			// on its log and never compresses (docs/coverage.md).
		case "labels", "env", "tag":
		default:
			return kindf(errInvalid, "unknown log opt '%s' for %s log driver", k, driver)
		}
	}
	return nil
}

// logFile says how the monitor writes the log of a container.
func logFile(rec *Record) runtime.LogFile {
	opts := rec.HostConfig.LogConfig.Config
	f := runtime.LogFile{Path: rec.LogPath, MaxSize: defaultLogSize, MaxFiles: defaultLogFiles}
	if v, ok := opts["max-size"]; ok {
		f.MaxSize, _ = units.FromHumanSize(v) // checked at create; -1 is unbounded
		f.MaxFiles = 1
	}
	if v, ok := opts["max-file"]; ok {
		f.MaxFiles, _ = strconv.Atoi(v)
	}
	f.Attrs = logAttrs(rec, opts)
	return f
}

// logAttrs is the "attrs" object of each line: labels, variables and the tag
// that the options name.
func logAttrs(rec *Record, opts map[string]string) string {
	attrs := map[string]string{}
	env := map[string]string{}
	for _, kv := range rec.Config.Env {
		if name := envName(kv); len(kv) > len(name) {
			env[name] = kv[len(name)+1:]
		}
	}
	pick := func(from map[string]string, list, pattern string) {
		for _, k := range splitList(list) {
			if v, ok := from[k]; ok {
				attrs[k] = v
			}
		}
		if pattern == "" {
			return
		}
		rule, err := regexp.Compile(pattern)
		if err != nil {
			return // refused at create
		}
		for k, v := range from {
			if rule.MatchString(k) {
				attrs[k] = v
			}
		}
	}
	pick(rec.Config.Labels, opts["labels"], opts["labels-regex"])
	pick(env, opts["env"], opts["env-regex"])
	if tag, ok := opts["tag"]; ok {
		attrs["tag"] = expandTag(tag, rec)
	}
	if len(attrs) == 0 {
		return ""
	}
	b, _ := json.Marshal(attrs)
	return string(b)
}

// expandTag fills in the fields of a log tag ({{.Name}}, {{.ID}}, …).
func expandTag(tag string, rec *Record) string {
	return strings.NewReplacer(
		"{{.ID}}", rec.ID.Short(), "{{.FullID}}", string(rec.ID), "{{.Name}}", rec.Name,
		"{{.ImageName}}", rec.Config.Image, "{{.ImageID}}", rec.ImageID, "{{.ImageFullID}}", rec.ImageID,
		"{{.DaemonName}}", "escale",
	).Replace(tag)
}

func splitList(s string) []string {
	if s == "" {
		return nil
	}
	return strings.Split(s, ",")
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
	if v.LogPath == "" {
		return nil, false, kindf(errNotImplemented, "configured logging driver does not support reading")
	}
	o.Ended = e.endOfLog()
	r, err := logs.Open(v.LogPath, logFile(&v.Record).MaxFiles, o)
	return r, v.Config.Tty, err
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
