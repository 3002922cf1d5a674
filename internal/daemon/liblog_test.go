package daemon

import (
	"bytes"
	"errors"
	"log/slog"
	"strings"
	"testing"

	"github.com/sirupsen/logrus"
)

// What libraries log is in the engine's log and in its form; what is none of an
// administrator's concern is there for who debugs.
func TestLibraryLog(t *testing.T) {
	var said bytes.Buffer
	lib := logrus.New()
	lib.SetOutput(&said)
	lib.SetLevel(logrus.DebugLevel)
	lib.SetFormatter(library{slog.New(slog.NewTextHandler(&said, &slog.HandlerOptions{Level: slog.LevelDebug}))})
	for _, c := range []struct {
		log  func()
		want string
	}{
		{func() { lib.WithError(errors.New("no space")).WithField("at", 7).Error("commit") }, `level=ERROR msg=commit at=7 error="no space"`},
		{func() { lib.Warn("odd") }, "level=WARN msg=odd"},
		{func() { lib.Info("well") }, "level=DEBUG msg=well"},
		{func() { lib.Error("healthcheck failed fatally") }, `level=DEBUG msg="healthcheck failed fatally"`},
		{func() { lib.WithField("go.version", "go1").Error("response completed with error") }, `level=DEBUG msg="response completed with error" go.version=go1`},
	} {
		said.Reset()
		c.log()
		if _, got, _ := strings.Cut(strings.TrimSpace(said.String()), " "); got != c.want {
			t.Errorf("said %q, want %q", got, c.want)
		}
	}
}
