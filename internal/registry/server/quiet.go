package server

import (
	"context"
	"log/slog"

	"github.com/sirupsen/logrus"
)

// routed sends what the library logs to our log, where each of its lines is of
// the level debug: it takes every 404 for an error, and what went wrong is in
// the answers, which we log ourselves. Others who use logrus are let through.
type routed struct {
	next logrus.Formatter
	log  *slog.Logger
}

// Format is logrus's hook into what is written; nothing for the library's lines.
func (f routed) Format(e *logrus.Entry) ([]byte, error) {
	if _, ok := e.Data["go.version"]; !ok {
		return f.next.Format(e)
	}
	ctx := e.Context
	if ctx == nil {
		ctx = context.Background() // detached: a line of the log has no caller
	}
	f.log.Log(ctx, slog.LevelDebug, e.Message, "err", e.Data["err.message"], "detail", e.Data["err.detail"])
	return nil, nil
}

// quieten routes the library's log, once a process.
func quieten(log *slog.Logger) {
	std := logrus.StandardLogger()
	if _, ok := std.Formatter.(routed); !ok {
		std.SetFormatter(routed{std.Formatter, log})
	}
}
