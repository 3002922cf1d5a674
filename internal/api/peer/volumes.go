package peer

import (
	"bufio"
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"hash"
	"io"
	"net/http"
	"net/url"
	"time"

	"escale.dev/escale/internal/cluster/move"
	"escale.dev/escale/internal/container"
	"github.com/containerd/errdefs"
)

// Volumes are those of a node, as moves have them. Its methods block.
type Volumes interface {
	// Volumes are those of a name; "": all.
	Volumes(ctx context.Context, name string) ([]move.Volume, error)
	// Do takes a step, as move.Nodes has them.
	Do(ctx context.Context, what string, s move.Step, told func(bytes, total int64)) error
	// Send writes the content of a volume that is on its way to a node, after open was called.
	// PermissionDenied when it is not.
	Send(ctx context.Context, s move.Step, to string, open func(container.Leaving) (io.Writer, error)) error
}

// The steps, as Volumes.Do takes them.
const (
	StepHold  = "hold"
	StepFetch = "fetch"
	StepFree  = "free"
	StepDrop  = "drop"
)

// Bounds of what is said of volumes.
const (
	maxStep     = 64 << 10         // bytes of a step
	maxHead     = 4 << 20          // bytes of what is said of a volume ahead of its content
	maxVolumes  = 32 << 20         // bytes of a list
	stepWait    = 30 * time.Second // for a step that copies nothing
	listWait    = 10 * time.Second
	contentWait = 2 * time.Minute // of silence amid a volume's content, that is given up
)

// digestTrailer bears the SHA-256 of a volume's content, with its head: without it, or with
// another, it was cut off or spoilt.
const digestTrailer = "Escale-Digest"

// volumes tells which there are.
func (s *Server) volumes(w http.ResponseWriter, r *http.Request) error {
	list, err := s.cfg.Volumes.Volumes(r.Context(), r.URL.Query().Get("name"))
	if err != nil {
		return err
	}
	return answerJSON(w, list)
}

// stepLine is a line of the answer to a step that copies. The last one has End.
type stepLine struct {
	Bytes  int64  `json:"bytes,omitempty"`
	Total  int64  `json:"total,omitempty"`
	End    bool   `json:"end,omitempty"`
	Status int    `json:"status,omitempty"` // 0: it is done
	Error  string `json:"error,omitempty"`
}

// volumeStep takes a step of a move.
func (s *Server) volumeStep(w http.ResponseWriter, r *http.Request) error {
	var step move.Step
	b, err := io.ReadAll(http.MaxBytesReader(w, r.Body, maxStep))
	if err == nil {
		err = json.Unmarshal(b, &step)
	}
	if err != nil || step.Move == "" || step.Volume == "" {
		return fmt.Errorf("step %.200q of a move: %w", b, errdefs.ErrInvalidArgument)
	}
	what := r.URL.Query().Get("do")
	switch what {
	case StepHold, StepFree, StepDrop:
		if err := s.cfg.Volumes.Do(r.Context(), what, step, nil); err != nil {
			return err
		}
		return answerJSON(w, struct{}{})
	case StepFetch:
	default:
		return fmt.Errorf("step %.20q of a move: %w", what, errdefs.ErrInvalidArgument)
	}
	w.Header().Set("Content-Type", "application/x-ndjson")
	out := http.NewResponseController(w)
	say := func(l stepLine) {
		b, err := json.Marshal(l)
		if err == nil {
			_ = out.SetWriteDeadline(time.Now().Add(sendWait))
			_, _ = w.Write(append(b, '\n')) // who has gone has ended the request's context
			_ = out.Flush()
		}
	}
	say(stepLine{})
	err = s.cfg.Volumes.Do(r.Context(), what, step, func(bytes, total int64) { say(stepLine{Bytes: bytes, Total: total}) })
	last := stepLine{End: true}
	if err != nil {
		last.Status, last.Error = statusOf(err), err.Error()[:min(len(err.Error()), maxWords)]
	}
	say(last)
	return nil
}

func statusOf(err error) int {
	for _, k := range statuses {
		if k.is(err) {
			return k.status
		}
	}
	return http.StatusInternalServerError
}

// volumeContent sends a volume to the node that it goes to: a line of JSON with what is to be known
// of it, the archive, and the digest of all of that behind it.
func (s *Server) volumeContent(w http.ResponseWriter, r *http.Request) error {
	p, err := s.cfg.Keeper.PeerOf(*r.TLS)
	if err != nil {
		return err
	}
	q := r.URL.Query()
	out := http.NewResponseController(w)
	defer context.AfterFunc(r.Context(), func() { _ = out.SetWriteDeadline(time.Unix(1, 0)) })()
	sum := sha256.New()
	begun := false
	err = s.cfg.Volumes.Send(r.Context(), move.Step{Move: q.Get("move"), Volume: q.Get("volume")}, p.Node, func(l container.Leaving) (io.Writer, error) {
		head, err := json.Marshal(l)
		if err != nil {
			return nil, err
		}
		begun = true
		w.Header().Set("Content-Type", "application/octet-stream")
		to := io.MultiWriter(patient{w, out}, sum)
		_, err = to.Write(append(head, '\n'))
		return to, err
	})
	if err != nil && begun {
		panic(http.ErrAbortHandler) // half of it must not look whole
	}
	if err == nil {
		w.Header().Set(http.TrailerPrefix+digestTrailer, hex.EncodeToString(sum.Sum(nil)))
	}
	return err
}

// patient gives up a node that takes nothing for long.
type patient struct {
	w   io.Writer
	out *http.ResponseController
}

// Write implements io.Writer.
func (p patient) Write(b []byte) (int, error) {
	_ = p.out.SetWriteDeadline(time.Now().Add(contentWait)) // it can be set on every stream
	return p.w.Write(b)
}

// Volumes are those of a name that a node has; "": all. Unavailable, DataLoss.
func (d *Dialer) Volumes(ctx context.Context, node, name string) (list []move.Volume, err error) {
	ctx, cancel := context.WithTimeoutCause(ctx, listWait, errSilent(node))
	defer cancel()
	res, err := d.do(ctx, http.MethodGet, node, pathVolumes, url.Values{"name": {name}}, nil)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	b, err := io.ReadAll(io.LimitReader(res.Body, maxVolumes+1))
	switch {
	case ctx.Err() != nil:
		return nil, context.Cause(ctx)
	case err != nil:
		return nil, fmt.Errorf("node %s: %w: %w", node, err, errdefs.ErrUnavailable)
	case len(b) > maxVolumes:
		return nil, fmt.Errorf("node %s: it tells of volumes in more than %d bytes: %w", node, maxVolumes, errdefs.ErrDataLoss)
	}
	if err := json.Unmarshal(b, &list); err != nil {
		return nil, fmt.Errorf("node %s: %w: %w", node, err, errdefs.ErrDataLoss)
	}
	return list, nil
}

func errSilent(node string) error {
	return fmt.Errorf("node %s does not answer: %w", node, errdefs.ErrUnavailable)
}

// VolumeStep has a node take a step of a move. A fetch takes as long as it takes, and told hears
// how far it is; it is given up by the node when ctx ends. Errors have the kinds that the node
// says, or Unavailable.
func (d *Dialer) VolumeStep(ctx context.Context, node, what string, s move.Step, told func(bytes, total int64)) error {
	b, err := json.Marshal(s)
	if err != nil {
		return err
	}
	if what != StepFetch {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, stepWait, errSilent(node))
		defer cancel()
	}
	res, err := d.do(ctx, http.MethodPost, node, pathVolume, url.Values{"do": {what}}, bytes.NewReader(b))
	if err != nil {
		return err
	}
	defer res.Body.Close()
	if what != StepFetch {
		return nil
	}
	in := bufio.NewScanner(res.Body)
	in.Buffer(make([]byte, 0, lineRoom), maxStep)
	for in.Scan() {
		var l stepLine
		switch err := json.Unmarshal(in.Bytes(), &l); {
		case err != nil:
			return fmt.Errorf("node %s: %w: %w", node, err, errdefs.ErrDataLoss)
		case l.End && l.Status == 0:
			return nil
		case l.End:
			return fmt.Errorf("node %s: %s: %w", node, l.Error, kindOf(l.Status))
		case told != nil:
			told(l.Bytes, l.Total)
		}
	}
	if ctx.Err() != nil {
		return context.Cause(ctx)
	}
	return fmt.Errorf("node %s disconnected unexpectedly: %w", node, errdefs.ErrUnavailable)
}

// VolumeContent opens the content of a volume on the node that holds it for a move to this one. What is
// read to its end without an error is whole, and what that node has sent. Who asks closes it.
// NotFound, PermissionDenied, Unavailable, DataLoss.
func (d *Dialer) VolumeContent(ctx context.Context, s move.Step) (container.Leaving, io.ReadCloser, error) {
	if s.Addr != "" && nodeName(s.Peer) {
		d.hint(Place{Node: s.Peer, Addr: s.Addr})
	}
	var l container.Leaving
	ctx, cancel := context.WithCancelCause(ctx)
	silent := time.AfterFunc(contentWait, func() { cancel(errSilent(s.Peer)) })
	res, err := d.do(ctx, http.MethodGet, s.Peer, pathVolume, url.Values{"move": {s.Move}, "volume": {s.Volume}}, nil)
	if err != nil {
		silent.Stop()
		cancel(nil)
		return l, nil, err
	}
	c := &volumeContent{ctx: ctx, cancel: cancel, silent: silent, res: res, node: s.Peer, sum: sha256.New()}
	c.in = bufio.NewReaderSize(io.TeeReader(res.Body, c.sum), piece)
	if err := c.head(&l); err != nil {
		return l, nil, errors.Join(err, c.Close())
	}
	c.silent.Stop()
	return l, c, nil
}

// volumeContent reads what volumeContent of a Server sends.
type volumeContent struct {
	ctx    context.Context // of the request
	cancel context.CancelCauseFunc
	silent *time.Timer // ends the request; it runs while something is waited for
	res    *http.Response
	node   string
	sum    hash.Hash
	in     *bufio.Reader
}

// head reads the line ahead of the archive.
func (c *volumeContent) head(l *container.Leaving) error {
	var line []byte
	for {
		part, err := c.in.ReadSlice('\n')
		line = append(line, part...)
		switch {
		case len(line) > maxHead:
			return fmt.Errorf("node %s: what it says of a volume is too long: %w", c.node, errdefs.ErrDataLoss)
		case err == bufio.ErrBufferFull:
			continue
		case err != nil:
			return c.broken(err)
		}
		if err := json.Unmarshal(line, l); err != nil {
			return fmt.Errorf("node %s: %w: %w", c.node, err, errdefs.ErrDataLoss)
		}
		return nil
	}
}

func (c *volumeContent) broken(err error) error {
	if c.ctx.Err() != nil {
		return context.Cause(c.ctx)
	}
	return fmt.Errorf("node %s: %w: %w", c.node, err, errdefs.ErrUnavailable)
}

// Read implements io.Reader.
func (c *volumeContent) Read(p []byte) (int, error) {
	c.silent.Reset(contentWait)
	n, err := c.in.Read(p)
	c.silent.Stop()
	switch {
	case err == nil:
		return n, nil
	case err != io.EOF:
		return n, c.broken(err)
	}
	if got := hex.EncodeToString(c.sum.Sum(nil)); got != c.res.Trailer.Get(digestTrailer) {
		return n, fmt.Errorf("node %s: what it sent is %s, it says %.80q: %w", c.node, got, c.res.Trailer.Get(digestTrailer), errdefs.ErrDataLoss)
	}
	return n, io.EOF
}

// Close implements io.Closer.
func (c *volumeContent) Close() error {
	c.silent.Stop()
	err := c.res.Body.Close()
	c.cancel(nil)
	return err
}
