package engine

import (
	"encoding/base64"
	"encoding/json"
	"io"
	"net/http"

	"escale.dev/escale/internal/container"
	apicontainer "github.com/moby/moby/api/types/container"
)

// archiveRoutes answer for the files of containers.
type archiveRoutes struct{ *Server }

func (a archiveRoutes) routes() []route {
	return []route{
		{http.MethodHead, "/containers/{name...}/archive", a.stat},
		{http.MethodGet, "/containers/{name...}/archive", a.read},
		{http.MethodPut, "/containers/{name...}/archive", a.write},
		{http.MethodGet, "/containers/{name...}/changes", a.changes},
		{http.MethodGet, "/containers/{name...}/export", a.export},
		{http.MethodPost, "/commit", a.commit},
	}
}

// statHeader carries what a path is, as JSON in base64.
const statHeader = "X-Docker-Container-Path-Stat"

func setStat(w *response, st apicontainer.PathStat) error {
	b, err := json.Marshal(st)
	if err != nil {
		return err
	}
	w.Header().Set(statHeader, base64.StdEncoding.EncodeToString(b))
	return nil
}

// pathOf is the path that a request is about.
func pathOf(r *request) (string, error) {
	if p := r.query.get("path"); p != "" {
		return p, nil
	}
	return "", invalidf("bad parameter: 'path' cannot be empty")
}

func (a archiveRoutes) stat(w *response, r *request) error {
	p, err := pathOf(r)
	if err != nil {
		return err
	}
	st, err := a.cfg.Archives.Stat(r.Context(), r.name, p)
	if err != nil {
		return err
	}
	if err := setStat(w, st); err != nil {
		return err
	}
	w.WriteHeader(http.StatusOK)
	return nil
}

func (a archiveRoutes) read(w *response, r *request) error {
	p, err := pathOf(r)
	if err != nil {
		return err
	}
	err = a.cfg.Archives.Read(r.Context(), r.name, p, func(st apicontainer.PathStat) (io.Writer, error) {
		w.Header().Set("Content-Type", "application/x-tar")
		return w, setStat(w, st)
	})
	return a.cutOff(w, r, err)
}

// cutOff ends an answer that has begun and cannot be completed: half an archive
// must not look whole.
func (a archiveRoutes) cutOff(w *response, r *request, err error) error {
	if err == nil || w.status == 0 {
		return err
	}
	if r.Context().Err() == nil {
		a.log.Error("sending files", "path", r.URL.Path, "error", err)
	}
	panic(http.ErrAbortHandler)
}

func (a archiveRoutes) write(w *response, r *request) error {
	p, err := pathOf(r)
	if err != nil {
		return err
	}
	defer drain(w, r)()
	o := container.WriteFiles{
		NoOverwriteDirNonDir: r.query.bool("noOverwriteDirNonDir"),
		CopyUIDGID:           r.query.bool("copyUIDGID"),
	}
	if err := a.cfg.Archives.Write(r.Context(), r.name, p, r.Body, o); err != nil {
		return err
	}
	w.Header().Set("Content-Length", "0")
	w.WriteHeader(http.StatusOK)
	return nil
}

func (a archiveRoutes) changes(w *response, r *request) error {
	list, err := a.cfg.Archives.Changes(r.Context(), r.name)
	if err != nil {
		return err
	}
	b, err := json.Marshal(list) // nothing changed is null, as Docker says it
	if err != nil {
		return err
	}
	writeBytes(w, http.StatusOK, append(b, '\n'))
	return nil
}

// exportWriter begins the answer with the first byte of the archive.
type exportWriter struct{ w *response }

func (t exportWriter) Write(p []byte) (int, error) {
	if t.w.status == 0 {
		t.w.Header().Set("Content-Type", "application/octet-stream")
	}
	return t.w.Write(p)
}

func (a archiveRoutes) export(w *response, r *request) error {
	return a.cutOff(w, r, a.cfg.Archives.Export(r.Context(), r.name, exportWriter{w}))
}
