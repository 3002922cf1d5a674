package kill

import (
	"archive/tar"
	"bytes"
	"context"
	"crypto/md5"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net/http"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// applications is how many images the registry has to be pulled.
const applications = 4

// errCut is the end of a request that an engine did not answer to the end.
var errCut = errors.New("cut off")

// worker does one piece of work after the other until the engine is killed.
type worker struct {
	*yard
	n      int
	api    *harness.API
	rng    *rand.Rand
	dir    string
	pieces []piece
	owned  map[string]*owned // by name; nobody else changes these images
	cutOff *piece
}

// piece is work that can be asked for again when it was cut off.
type piece struct {
	name string
	do   func(ctx context.Context) error
}

// owned is what a worker knows of an image of its own.
type owned struct {
	texts []string // what it says when it runs: one, or several after a kill
	may   bool     // it may be missing: a kill fell into its making or removal
}

func (w *worker) work(ctx context.Context) {
	for ctx.Err() == nil {
		p := w.pieces[w.rng.IntN(len(w.pieces))]
		err := p.do(context.WithoutCancel(ctx))
		w.mu.Lock()
		switch {
		case err == nil:
			w.done++
		case errors.Is(err, errCut):
			w.cut++
			w.cutOff = &p
		default:
			w.t.Errorf("%s: %v", p.name, err)
		}
		w.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// look inspects all images of the worker's and runs one.
func (w *worker) look(ctx context.Context) {
	var whole []string
	for name, o := range w.owned {
		err := w.api.Do(ctx, "GET", "/images/"+name+"/json", nil, nil)
		switch {
		case err == nil:
			whole = append(whole, name)
		case harness.Status(err) == http.StatusNotFound && o.may:
			delete(w.owned, name)
		default:
			w.t.Errorf("image %s: %v", name, err)
		}
	}
	if len(whole) == 0 {
		return
	}
	name := whole[w.rng.IntN(len(whole))]
	o := w.owned[name]
	text, err := w.run(ctx, name)
	w.ran++
	for _, want := range o.texts {
		if text == want && err == nil {
			o.texts, o.may = []string{want}, false
			return
		}
	}
	w.t.Errorf("image %s says %q, %v; want one of %q", name, text, err, o.texts)
}

// run runs an image and gives what it says.
func (w *worker) run(ctx context.Context, name string) (string, error) {
	var made struct{ ID string }
	if err := w.api.Do(ctx, "POST", "/containers/create", map[string]any{"Image": name}, &made); err != nil {
		return "", err
	}
	w.e.Note(made.ID)
	err := w.api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil)
	if err == nil {
		err = w.api.Do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, nil)
	}
	var out []byte
	if err == nil {
		out, _, err = w.api.Logs(ctx, made.ID)
	}
	return string(out), errors.Join(err, w.api.Do(ctx, "DELETE", "/containers/"+made.ID+"?force=1&v=1", nil, nil))
}

// making notes that an image is about to become another one, and gives what to
// call when it has.
func (w *worker) making(name, text string) func() {
	o := w.owned[name]
	if o == nil {
		o = &owned{may: true}
		w.owned[name] = o
	}
	o.texts = append(o.texts, text)
	return func() { w.owned[name] = &owned{texts: []string{text}} }
}

// variant is one of a few builds, so that they share steps with others.
func (w *worker) variant(i int) (files map[string]string, text string) {
	data := strings.Repeat(fmt.Sprintf("file %d\n", i), 100_000)
	from := base
	if i >= 4 {
		from = fmt.Sprintf("%s/k/app:%d", w.reg.Host(), i%applications)
	}
	dockerfile := "FROM " + from + "\n" +
		"RUN --mount=type=cache,target=/c echo x >> /c/log; echo " + fmt.Sprint(i%2) + " > /first; usleep 100000\n" +
		"COPY f /f\n" +
		"RUN head -c 3000000 /dev/zero > /big; md5sum < /f > /sum; usleep 200000\n" +
		"CMD [\"cat\",\"/first\",\"/sum\"]\n"
	return map[string]string{"Dockerfile": dockerfile, "f": data}, fmt.Sprintf("%d\n%x  -\n", i%2, md5.Sum([]byte(data)))
}

// builds are six images, made by build.
func (w *worker) builds(what string, build func(ctx context.Context, name string, files map[string]string) error) (list []piece) {
	for i := range 6 {
		list = append(list, piece{fmt.Sprintf("%s %d", what, i), func(ctx context.Context) error {
			name := fmt.Sprintf("kill-%d:%d", w.n, i)
			files, text := w.variant(i)
			made := w.making(name, text)
			if err := build(ctx, name, files); err != nil {
				return err
			}
			made()
			return nil
		}})
	}
	return list
}

// classic builds as classic clients do, and removes.
func (w *worker) classic() []piece {
	list := w.builds("build", func(ctx context.Context, name string, files map[string]string) error {
		body, err := archive(files)
		if err != nil {
			return err
		}
		return w.stream(ctx, "/build?t="+name, nil, bytes.NewReader(body))
	})
	return append(list, piece{"rmi", func(ctx context.Context) error { return w.remove(ctx, fmt.Sprintf("kill-%d:%d", w.n, w.rng.IntN(6))) }})
}

// command builds with `escale build`, into the store and into a folder.
func (w *worker) command() []piece {
	list := w.builds("escale build", func(ctx context.Context, name string, files map[string]string) error {
		return w.escale(ctx, files, "-t", name)
	})
	return append(list, piece{"escale build --output local", func(ctx context.Context) error {
		files, _ := w.variant(1)
		out := filepath.Join(w.dir, "out")
		if err := w.escale(ctx, files, "--output", "type=local,dest="+out); err != nil {
			return err
		}
		got, err := os.ReadFile(filepath.Join(out, "f"))
		if err == nil && string(got) != files["f"] {
			err = fmt.Errorf("%d bytes of %d in the folder", len(got), len(files["f"]))
		}
		return errors.Join(err, os.RemoveAll(out))
	}})
}

// escale runs `escale build` in a folder with these files.
func (w *worker) escale(ctx context.Context, files map[string]string, args ...string) error {
	dir := filepath.Join(w.dir, "context")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	for name, data := range files {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(data), 0o644); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, harness.Patience(time.Minute))
	defer cancel()
	pid := w.e.Pid()
	cmd := exec.CommandContext(ctx, filepath.Join(harness.BinDir(), "escale"), append(append([]string{"-H", w.e.Host(), "build", "--progress", "plain"}, args...), dir)...)
	cmd.Env = append(os.Environ(), "DOCKER_CONFIG="+w.dir, "HOME="+w.dir, "TMPDIR="+w.dir)
	out, err := cmd.CombinedOutput()
	switch {
	case err == nil:
		return nil
	case ctx.Err() != nil:
		return fmt.Errorf("no end within a minute: %s", out)
	case w.killed(pid):
		if len(out) == 0 || strings.Contains(string(out), "panic") {
			return fmt.Errorf("%w, and said %q", err, out)
		}
		return errCut
	}
	return fmt.Errorf("%w: %s", err, out)
}

// killed tells whether the engine that had a pid was killed. It waits a moment for that: a
// process has closed its connections before it is seen to have ended.
func (w *worker) killed(pid int) bool {
	for end := time.Now().Add(harness.Patience(2 * time.Second)); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		if !alive(pid) || w.e.Pid() != pid {
			return true
		}
	}
	return false
}

func alive(pid int) bool {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return err == nil && !bytes.Contains(b, []byte(") Z "))
}

// transfers pulls, pushes and removes.
func (w *worker) transfers() []piece {
	var list []piece
	for i := range applications {
		name := fmt.Sprintf("%s/k/app:%d", w.reg.Host(), i)
		_, text := w.variant(i)
		list = append(list, piece{"pull", func(ctx context.Context) error {
			made := w.making(name, text)
			if err := w.stream(ctx, "/images/create?fromImage="+url.QueryEscape(name), nil, nil); err != nil {
				return err
			}
			made()
			return nil
		}}, piece{"rmi of a pulled one", func(ctx context.Context) error { return w.remove(ctx, name) }})
	}
	return append(list, piece{"push", func(ctx context.Context) error { return w.push(ctx, base, "k/pushed", fmt.Sprint(w.rng.IntN(3))) }})
}

// offer builds an application and pushes it.
func (w *worker) offer(ctx context.Context, i int) error {
	files, _ := w.variant(i)
	body, err := archive(files)
	if err != nil {
		return err
	}
	if err := w.stream(ctx, fmt.Sprintf("/build?t=app:%d", i), nil, bytes.NewReader(body)); err != nil {
		return err
	}
	return w.push(ctx, fmt.Sprintf("app:%d", i), "k/app", fmt.Sprint(i))
}

// push pushes an image, and looks whether all of it has arrived.
func (w *worker) push(ctx context.Context, image, repo, tag string) error {
	name := w.reg.Host() + "/" + repo
	if err := w.api.Do(ctx, "POST", "/images/"+image+"/tag?repo="+url.QueryEscape(name)+"&tag="+tag, nil, nil); err != nil {
		return cutOr(err)
	}
	header := http.Header{"X-Registry-Auth": {"e30="}}
	if err := w.stream(ctx, "/images/"+name+"/push?tag="+tag, header, nil); err != nil {
		return err
	}
	var m struct {
		Config struct{ Digest string }
		Layers []struct{ Digest string }
	}
	if err := json.Unmarshal(w.reg.Manifest(repo, tag), &m); err != nil {
		return fmt.Errorf("the manifest that was pushed: %w", err)
	}
	for _, l := range append(m.Layers, m.Config) {
		if w.reg.Blob(repo, l.Digest) == nil {
			return fmt.Errorf("blob %s was pushed, and is not there", l.Digest)
		}
	}
	return cutOr(w.api.Do(ctx, "DELETE", "/images/"+name+":"+tag, nil, nil))
}

// pruning collects while others work.
func (w *worker) pruning() []piece {
	ask := func(path string) func(context.Context) error {
		return func(ctx context.Context) error {
			select {
			case <-ctx.Done():
			case <-time.After(time.Duration(w.rng.Int64N(int64(400 * time.Millisecond)))):
			}
			return cutOr(w.api.Do(ctx, "POST", path, nil, nil))
		}
	}
	return []piece{
		{"builder prune", ask("/build/prune")}, {"builder prune -a", ask("/build/prune?all=1")}, {"image prune", ask("/images/prune")},
		{"save", func(ctx context.Context) error {
			resp, err := w.api.Open(ctx, "GET", "/images/get?names="+base, nil)
			if err != nil {
				return cutOr(err)
			}
			defer resp.Body.Close()
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				return errCut
			}
			return nil
		}},
	}
}

// remove removes an image of the worker's, if there is one.
func (w *worker) remove(ctx context.Context, name string) error {
	o := w.owned[name]
	if o == nil {
		return nil
	}
	before := o.may
	o.may = true
	err := w.api.Do(ctx, "DELETE", "/images/"+name+"?force=1", nil, nil)
	switch {
	case err == nil, harness.Status(err) == http.StatusNotFound && before:
		delete(w.owned, name)
		return nil
	}
	return cutOr(err)
}

// cutOr tells an answer from none.
func cutOr(err error) error {
	if err != nil && harness.Status(err) == 0 {
		return errCut
	}
	return err
}

// stream asks for something that answers by a stream of messages, to their end.
func (w *worker) stream(ctx context.Context, path string, header http.Header, body io.Reader) error {
	h := http.Header{"Content-Type": {"application/x-tar"}}
	for k, v := range header {
		h[k] = v
	}
	var b any
	if body != nil {
		b = body
	}
	resp, err := w.api.Ask(ctx, "POST", path, h, b)
	if err != nil {
		return errCut
	}
	defer resp.Body.Close()
	if resp.StatusCode != http.StatusOK {
		text, err := io.ReadAll(resp.Body)
		if err != nil {
			return errCut
		}
		return fmt.Errorf("%d: %s", resp.StatusCode, text)
	}
	var said string
	for dec := json.NewDecoder(resp.Body); ; {
		var m struct{ Stream, Status, Error string }
		switch err := dec.Decode(&m); {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return errCut
		case m.Error != "":
			return fmt.Errorf("%s; before that: %s", m.Error, said)
		}
		said += m.Stream
	}
}

// archive packs a build context.
func archive(files map[string]string) ([]byte, error) {
	var b bytes.Buffer
	tw := tar.NewWriter(&b)
	for name, data := range files {
		if err := tw.WriteHeader(&tar.Header{Typeflag: tar.TypeReg, Name: name, Mode: 0o644, Size: int64(len(data)), ModTime: time.Unix(1700000000, 0)}); err != nil {
			return nil, err
		}
		if _, err := io.WriteString(tw, data); err != nil {
			return nil, err
		}
	}
	return b.Bytes(), tw.Close()
}
