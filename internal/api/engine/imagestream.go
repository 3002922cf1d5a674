package engine

import (
	"cmp"
	"encoding/json"
	"io"
	"net/http"
	"net/url"
	"slices"
	"strings"
	"sync"

	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/sys/errtext"
	"github.com/containerd/platforms"
	"github.com/moby/moby/api/types/jsonstream"
)

// progressStream sends lines of JSON as work goes on; its methods may be called
// from several goroutines.
type progressStream struct {
	mu  sync.Mutex
	w   *response
	err error // the client has gone: work is ended by its context
}

// progressLine is jsonstream.Message with the error's text beside, for clients
// before 1.48.
type progressLine struct {
	jsonstream.Message
	Text string `json:"error,omitempty"`
}

func (p *progressStream) send(line progressLine) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if p.err != nil {
		return
	}
	if p.w.status == 0 {
		p.w.Header().Set("Content-Type", "application/json")
		p.w.WriteHeader(http.StatusOK)
	}
	b, err := json.Marshal(line)
	if err == nil {
		_, err = p.w.Write(append(b, '\r', '\n'))
	}
	if err == nil {
		err = p.w.flush()
	}
	p.err = err
}

func (p *progressStream) step(s image.Progress) {
	p.send(progressLine{Message: jsonstream.Message{
		ID: s.ID, Status: s.Status, Progress: &jsonstream.Progress{Current: s.Current, Total: s.Total},
	}})
}

func (p *progressStream) fail(err error) {
	p.send(progressLine{Message: jsonstream.Message{Error: &jsonstream.Error{Message: errtext.Of(err)}}, Text: errtext.Of(err)})
}

func (p *progressStream) begun() bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.w.status != 0
}

// maxDrain is how much of an archive that was refused is still read, in bytes:
// many clients look for the answer only when all is sent.
const maxDrain = 32 << 20

// drain lets an answer begin while the body is still being read, and returns
// what reads the rest of a body that was not wanted to its end.
func drain(w *response, r *request) func() {
	// HTTP/1.0 and test recorders have no such mode; there the rest is lost.
	_ = http.NewResponseController(w.ResponseWriter).EnableFullDuplex()
	return func() {
		if w.status != 0 {
			_ = w.flush() // the client may see the answer while it sends
		}
		_, _ = io.CopyN(io.Discard, r.Body, maxDrain) // whatever ends it ends the request
	}
}

// create pulls an image, or imports a root file system.
func (i imageRoutes) create(w *response, r *request) error {
	q := r.query
	out := &progressStream{w: w}
	if from := q.get("fromImage"); from != "" {
		return i.pull(out, r, from)
	}
	src := q.get("fromSrc")
	if src == "" {
		return invalidf("one of fromImage and fromSrc is needed")
	}
	from, err := importSource(src)
	if err != nil {
		return err
	}
	platform, err := platformParam(q)
	if err != nil {
		return err
	}
	ref, err := targetName(q.get("repo"), q.get("tag"))
	if err != nil {
		return err
	}
	o := image.ImportOptions{
		Ref: ref, Message: q.get("message"), Changes: q.all("changes"), Platform: platform, Progress: out.step,
	}
	if from != nil {
		return i.importURL(out, r, *from, o)
	}
	defer drain(w, r)()
	o.Message = cmp.Or(o.Message, "Imported from -")
	return i.importFrom(out, r, r.Body, o)
}

// importFrom imports the archive that body is.
func (i imageRoutes) importFrom(out *progressStream, r *request, body io.Reader, o image.ImportOptions) error {
	img, err := i.cfg.Images.Import(r.Context(), body, o)
	if err != nil {
		if !out.begun() {
			return err
		}
		out.fail(err)
		return nil
	}
	out.send(progressLine{Message: jsonstream.Message{Status: img.ID}})
	return nil
}

// importURL imports the archive that a web server sends. A client that goes ends it.
func (i imageRoutes) importURL(out *progressStream, r *request, from url.URL, o image.ImportOptions) error {
	file, size, err := i.cfg.Registries.Download(r.Context(), from)
	if err != nil {
		return err
	}
	defer file.Close()
	o.Message, o.Size = cmp.Or(o.Message, "Imported from "+from.Redacted()), max(size, 0)
	out.send(progressLine{Message: jsonstream.Message{Status: "Downloading from " + from.Redacted()}})
	return i.importFrom(out, r, file, o)
}

// importSource reads whence to import: nil is the request's body. A URL without a scheme
// is one of http.
func importSource(src string) (*url.URL, error) {
	if src == "-" {
		return nil, nil
	}
	if !strings.Contains(src, "://") {
		src = "http://" + src
	}
	u, err := url.Parse(src)
	if err != nil || u.Scheme != "http" && u.Scheme != "https" || u.Host == "" {
		return nil, invalidf("invalid import source %q", src)
	}
	return u, nil
}

func (i imageRoutes) load(w *response, r *request) error {
	platform, err := platformObject(r.query)
	if err != nil {
		return err
	}
	defer drain(w, r)()
	out := &progressStream{w: w}
	o := image.LoadOptions{
		Quiet: r.query.boolOr("quiet", true), Platform: platform,
		Loaded: func(line string) {
			out.send(progressLine{Message: jsonstream.Message{Stream: strings.TrimSuffix(line, "\n") + "\n"}})
		},
	}
	if !o.Quiet {
		o.Progress = out.step
	}
	if err := i.cfg.Images.Load(r.Context(), r.Body, o); err != nil {
		i.log.Debug("load", "error", err)
		out.fail(err)
		return nil
	}
	if !out.begun() {
		w.Header().Set("Content-Type", "application/json")
		w.WriteHeader(http.StatusOK)
	}
	return nil
}

// platformObject reads a platform in the form {"os":"linux","architecture":"arm64"},
// or as "linux/arm64". At most one can be asked for.
func platformObject(q params) (string, error) {
	all := q.all("platform")
	switch {
	case len(all) == 0 || all[0] == "":
		return "", nil
	case len(all) > 1:
		return "", invalidf("only one platform can be selected")
	case !strings.HasPrefix(all[0], "{"):
		return platformParam(q)
	}
	var p struct{ OS, Architecture, Variant string }
	if err := json.Unmarshal([]byte(all[0]), &p); err != nil {
		return "", invalidf("invalid platform: %s", err)
	}
	if p.OS == "" || p.Architecture == "" {
		return "", invalidf("invalid platform %s: os and architecture are needed", all[0])
	}
	parsed, err := platforms.Parse(strings.TrimSuffix(p.OS+"/"+p.Architecture+"/"+p.Variant, "/"))
	if err != nil {
		return "", invalidf("invalid platform %s: %s", all[0], err)
	}
	return platforms.Format(parsed), nil
}

// lazyTar begins the answer with the first byte of the archive, so that an error
// before it still gets its status.
type lazyTar struct{ w *response }

func (t lazyTar) Write(p []byte) (int, error) {
	if t.w.status == 0 {
		t.w.Header().Set("Content-Type", "application/x-tar")
		t.w.WriteHeader(http.StatusOK)
	}
	return t.w.Write(p)
}

func (i imageRoutes) save(w *response, r *request) error {
	names := []string{r.name}
	if r.name == "" {
		names = slices.DeleteFunc(slices.Clone(r.query.all("names")), func(n string) bool { return n == "" })
		if len(names) == 0 {
			return invalidf("no image names given: the query needs names=")
		}
	}
	platform, err := platformObject(r.query)
	if err != nil {
		return err
	}
	if err := i.cfg.Images.Save(r.Context(), lazyTar{w}, names, platform); err != nil {
		if w.status == 0 {
			return err
		}
		i.log.Error("saving images", "images", names, "error", err)
		panic(http.ErrAbortHandler) // half an archive must not look whole
	}
	return nil
}
