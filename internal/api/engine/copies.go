package engine

import (
	"io"
	"net/http"
	"strconv"
	"time"

	"escale.dev/escale/internal/container"
	"github.com/moby/moby/api/types/jsonstream"
)

// copyRoutes are Escale's own, for volumes: docs/api/escale.yaml describes them.
type copyRoutes struct{ archiveRoutes }

func (c copyRoutes) routes() []route {
	return []route{
		{http.MethodGet, "/escale/volumes/{name}/archive", c.backup},
		{http.MethodPut, "/escale/volumes/{name}/archive", c.restore},
		{http.MethodPost, "/escale/volumes/{name}/clone", c.clone},
	}
}

// sizeHeader tells, ahead of an archive, how many bytes the volume's files have.
const sizeHeader = "Escale-Volume-Size"

// stallTime is how long a client may take none of what it asked for while containers
// stand still for it.
const stallTime = time.Minute

// steadyWriter gives up a client that stands still.
type steadyWriter struct{ w *response }

func (s steadyWriter) Write(p []byte) (int, error) {
	ctl := http.NewResponseController(s.w.ResponseWriter)
	_ = ctl.SetWriteDeadline(time.Now().Add(stallTime)) // tests have responses without a connection
	return s.w.Write(p)
}

func (c copyRoutes) backup(w *response, r *request) error {
	o := container.Backup{Compression: r.query.get("compression"), NoPause: r.query.bool("noPause")}
	err := c.cfg.VolumeCopies.Backup(r.Context(), r.name, o, func(total int64) (io.Writer, error) {
		w.Header().Set("Content-Type", "application/x-tar")
		w.Header().Set(sizeHeader, strconv.FormatInt(total, 10))
		return steadyWriter{w}, nil
	})
	return c.cutOff(w, r, err)
}

// replacing is what restore and clone are asked.
func replacing(r *request) container.RestoreVolume {
	return container.RestoreVolume{Force: r.query.bool("force"), NoPause: r.query.bool("noPause")}
}

func (c copyRoutes) restore(w *response, r *request) error {
	defer drain(w, r)()
	if err := c.cfg.VolumeCopies.Restore(r.Context(), r.name, r.Body, replacing(r)); err != nil {
		return err
	}
	w.WriteHeader(http.StatusNoContent)
	return nil
}

// clone tells how it goes on, as pulls do; what is refused at once has a status.
func (c copyRoutes) clone(w *response, r *request) error {
	to := r.query.get("to")
	if to == "" {
		return invalidf("bad parameter: 'to' cannot be empty")
	}
	out := &progressStream{w: w}
	err := c.cfg.VolumeCopies.Clone(r.Context(), r.name, to, replacing(r), func(copied, total int64) {
		out.send(progressLine{Message: jsonstream.Message{
			ID: to, Status: "Copying", Progress: &jsonstream.Progress{Current: min(copied, total), Total: total},
		}})
	})
	if err != nil && w.status == 0 {
		return err
	}
	if err != nil {
		out.fail(err)
		return nil
	}
	out.send(progressLine{Message: jsonstream.Message{ID: to, Status: "Cloned"}})
	return nil
}
