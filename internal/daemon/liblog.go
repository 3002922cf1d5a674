package daemon

import (
	"context"
	"log/slog"
	"maps"
	"slices"

	ctdlog "github.com/containerd/log"
	"github.com/sirupsen/logrus"
)

// library sends what libraries log by logrus to the engine's own log, in its form.
type library struct{ log *slog.Logger }

// routeLibraries routes it, for the whole process. What is less than an error is
// no concern of ours: containerd's libraries warn of much.
func routeLibraries(log *slog.Logger) {
	_ = ctdlog.SetLevel("error") // a level it knows
	logrus.SetFormatter(library{log.With("component", "library")})
}

// Format is logrus's hook into what is written: nothing, for it is in our log.
func (l library) Format(e *logrus.Entry) ([]byte, error) {
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background() // detached: a line of the log has no caller
	}
	var attrs []slog.Attr
	for _, k := range slices.Sorted(maps.Keys(e.Data)) {
		attrs = append(attrs, slog.Any(k, e.Data[k]))
	}
	l.log.LogAttrs(ctx, libraryLevel(e), e.Message, attrs...)
	return nil, nil
}

// libraryLevel is what a library's line weighs here.
func libraryLevel(e *logrus.Entry) slog.Level {
	_, registry := e.Data["go.version"]
	switch {
	case registry: // it takes every 404 for an error, and what went wrong is in the answers, which are logged
		return slog.LevelDebug
	case e.Message == "healthcheck failed fatally": // BuildKit's, of a client that has left
		return slog.LevelDebug
	case e.Level <= logrus.ErrorLevel:
		return slog.LevelError
	case e.Level == logrus.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelDebug
}
