package vm

import (
	"archive/tar"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"escale.dev/escale/test/internal/harness"
)

// compare looks at what is there after a boot.
func (c *cutter) compare(ctx context.Context, t *testing.T, round int, m *Machine, api *harness.API) {
	blame := func(format string, args ...any) { t.Errorf("after cut %d: %s", round, fmt.Sprintf(format, args...)) }
	var list []struct {
		ID, State string
		Names     []string
	}
	if err := api.Do(ctx, "GET", "/containers/json?all=1", nil, &list); err != nil {
		blame("%v", err)
		return
	}
	there := map[string]bool{}
	going := 0
	for _, l := range list {
		name := strings.TrimPrefix(l.Names[0], "/")
		if strings.HasPrefix(name, passingPrefix) {
			going++ // the engine is at it: of its folder compareDisk sees the end
			continue
		}
		there[name] = true
		b := c.boxes[name]
		if b == nil {
			blame("container %s is nobody's", name)
			continue
		}
		if err := compareBox(ctx, api, l.ID, b, c.gone); err != nil {
			blame("container %s: %v", name, err)
		}
		b.id, b.created = l.ID, true
	}
	for name, b := range c.boxes {
		switch {
		case there[name] && b.removal == 2:
			blame("container %s is back after its remove was acknowledged", name)
		case !there[name] && b.created && b.removal == 0:
			blame("container %s is lost: its create was acknowledged", name)
		}
		if !there[name] {
			delete(c.boxes, name)
		}
	}
	c.compareImages(ctx, blame, api)
	c.compareDisk(ctx, blame, m, api, len(list)-going)
	if code, err := runOnce(ctx, api); err != nil || code != 41 {
		blame("a container of the image: exit code %d, %v", code, err)
	}
}

// compareBox compares one container with what is known of it, and takes note
// of what a request that was cut off has done. cut is when the power went.
func compareBox(ctx context.Context, api *harness.API, id string, b *box, cut time.Time) error {
	in, err := api.Inspect(ctx, id)
	if err != nil {
		return err
	}
	st := in.State
	if b.id != "" && b.id != id {
		return fmt.Errorf("has the id %s, which was %s", id, b.id)
	}
	if b.again {
		return compareAgain(ctx, api, id, b)
	}
	if st.Running || st.Pid != 0 {
		return fmt.Errorf("runs as %d after a boot", st.Pid)
	}
	switch {
	case b.running && st.Status == "created" && cut.Sub(b.started) < settled:
		// What nothing is to come of may be forgotten.
	case b.running && st.Status != "exited":
		return fmt.Errorf("is %s; its start was acknowledged", st.Status)
	case b.code >= 0 && (st.Status != "exited" || st.ExitCode != b.code):
		return fmt.Errorf("is %s with exit code %d; wait had told %d", st.Status, st.ExitCode, b.code)
	case b.running && b.stays && b.removal == 0 && st.ExitCode != 255:
		return fmt.Errorf("ran when the power went, and has exit code %d", st.ExitCode)
	case b.running && !b.stays && b.removal == 0 && st.ExitCode != 255 && st.ExitCode != b.own:
		return fmt.Errorf("returns %d, or the power went: exit code %d", b.own, st.ExitCode)
	case !b.running && b.code < 0 && !b.flight && st.Status != "created":
		return fmt.Errorf("is %s; it was never started", st.Status)
	}
	if _, _, err := api.Logs(ctx, id); err != nil {
		return fmt.Errorf("log: %w", err)
	}
	// From here on this is what is known.
	b.running, b.flight, b.code = false, false, -1
	if st.Status == "exited" {
		b.code = st.ExitCode
	}
	b.removal = 0
	return nil
}

// settled is how long a file system may take to write what nobody waits for: ext4
// commits every five seconds.
const settled = 10 * time.Second

// compareAgain looks whether a container whose policy has it come back does so: an
// acknowledged start is never forgotten. Then it is stopped, and stays so.
func compareAgain(ctx context.Context, api *harness.API, id string, b *box) error {
	for end := time.Now().Add(30 * time.Second); ; time.Sleep(200 * time.Millisecond) {
		in, err := api.Inspect(ctx, id)
		if err != nil {
			return err
		}
		if b.running && b.removal == 0 && !in.State.Running {
			if time.Now().Before(end) {
				continue
			}
			return fmt.Errorf("is %s and does not come back; its start was acknowledged", in.State.Status)
		}
		break
	}
	if st, _, err := api.Raw(ctx, "POST", "/containers/"+id+"/stop?t=0", nil); err != nil || st != 204 && st != 304 {
		return fmt.Errorf("stop: status %d, %v", st, err)
	}
	in, err := api.Inspect(ctx, id)
	if err != nil {
		return err
	}
	b.again, b.running, b.flight, b.removal, b.code = false, false, false, 0, -1
	if in.State.Status == "exited" {
		b.code = in.State.ExitCode
	}
	return nil
}

// compareImages exports what images hold and compares it with what was sent.
func (c *cutter) compareImages(ctx context.Context, blame func(string, ...any), api *harness.API) {
	for name, want := range c.images {
		got, err := contentOf(ctx, api, name+":1")
		if err != nil {
			blame("image %s, whose import was acknowledged: %v", name, err)
		} else if got != want {
			blame("image %s is not what was imported", name)
		}
	}
}

// contentOf makes a container of an image and hashes its one file.
func contentOf(ctx context.Context, api *harness.API, ref string) (string, error) {
	var made struct{ ID string }
	if err := api.Do(ctx, "POST", "/containers/create", map[string]any{"Image": ref, "Cmd": []string{"none"}}, &made); err != nil {
		return "", err
	}
	defer api.Do(context.WithoutCancel(ctx), "DELETE", "/containers/"+made.ID+"?force=1", nil, nil)
	res, err := api.Open(ctx, "GET", "/containers/"+made.ID+"/archive?path=/blob", nil)
	if err != nil {
		return "", err
	}
	defer res.Body.Close()
	if res.StatusCode != 200 {
		return "", fmt.Errorf("archive: %s", res.Status)
	}
	r := tar.NewReader(res.Body)
	if _, err := r.Next(); err != nil {
		return "", err
	}
	h := sha256.New()
	if _, err := io.Copy(h, r); err != nil {
		return "", err
	}
	return fmt.Sprintf("%x", h.Sum(nil)), nil
}

// compareDisk looks for what no record owns, and reads every blob against its digest.
func (c *cutter) compareDisk(ctx context.Context, blame func(string, ...any), m *Machine, api *harness.API, containers int) {
	bad, err := m.Sh(ctx, `cd /data/escale/content/blobs/sha256 && for b in *; do [ "$(sha256sum <$b | cut -d' ' -f1)" = $b ] || echo $b; done`)
	if err != nil || bad != "" {
		blame("blobs that are not what they are called: %s %v", bad, err)
	}
	var vols struct{ Volumes []struct{ Name string } }
	if err := api.Do(ctx, "GET", "/volumes", nil, &vols); err != nil {
		blame("%v", err)
		return
	}
	for name := range c.volumes {
		if !slices.ContainsFunc(vols.Volumes, func(v struct{ Name string }) bool { return v.Name == name }) {
			blame("volume %s is lost: its create was acknowledged", name)
		}
	}
	// What is deleted behind the engine's back has a minute, at this machine's speed.
	var left error
	for end := time.Now().Add(time.Minute); ; time.Sleep(time.Second) {
		if left = c.leftovers(ctx, m, containers, len(vols.Volumes)); left == nil {
			return
		}
		if time.Now().After(end) {
			blame("left over: %v", left)
			return
		}
	}
}

// leftovers compares counts of what lies on the disk with the records.
func (c *cutter) leftovers(ctx context.Context, m *Machine, containers, volumes int) error {
	var errs []error
	for _, x := range []struct {
		what, line string
		want       int
	}{
		{"folders of containers", "ls -A /data/escale/containers | wc -l", containers},
		{"folders of volumes", "find /data/escale/volumes -mindepth 1 -maxdepth 1 -type d | wc -l", volumes},
		{"uploads", "ls -A /data/escale/content/ingest 2>/dev/null | wc -l", 0},
		{"temporaries", "find /data/escale -maxdepth 3 -name '*.tmp*' | wc -l", 0},
		{"run directories", "ls -A /run/escale/containers 2>/dev/null | wc -l", 0},
	} {
		out, err := m.Sh(ctx, x.line)
		if n, _ := strconv.Atoi(out); err != nil || n != x.want {
			errs = append(errs, fmt.Errorf("%s: %s, there should be %d (%v)", x.what, out, x.want, err))
		}
	}
	return errors.Join(errs...)
}

func runOnce(ctx context.Context, api *harness.API) (int, error) {
	var made struct{ ID string }
	spec := map[string]any{"Image": image, "Cmd": []string{"sh", "-c", "exit 41"}}
	if err := api.Do(ctx, "POST", "/containers/create", spec, &made); err != nil {
		return 0, err
	}
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/start", nil, nil); err != nil {
		return 0, err
	}
	var code struct{ StatusCode int }
	if err := api.Do(ctx, "POST", "/containers/"+made.ID+"/wait", nil, &code); err != nil {
		return 0, err
	}
	return code.StatusCode, api.Do(ctx, "DELETE", "/containers/"+made.ID, nil, nil)
}

// clear removes all there is through the API; then the disk must hold nothing but the image.
func (c *cutter) clear(ctx context.Context, t *testing.T, m *Machine, api *harness.API) {
	for name, b := range c.boxes {
		if err := api.Do(ctx, "DELETE", "/containers/"+b.id+"?force=1&v=1", nil, nil); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	var vols struct{ Volumes []struct{ Name string } }
	if err := api.Do(ctx, "GET", "/volumes", nil, &vols); err != nil {
		t.Error(err)
	}
	for _, v := range vols.Volumes {
		if !c.volumes[v.Name] && !strings.HasPrefix(v.Name, "vol-") {
			t.Errorf("volume %s is left without its container", v.Name)
		}
	}
	var images []struct {
		ID       string
		RepoTags []string
	}
	if err := api.Do(ctx, "GET", "/images/json?all=1", nil, &images); err != nil {
		t.Error(err)
	}
	for _, i := range images {
		if !slices.Contains(i.RepoTags, image) {
			if err := api.Do(ctx, "DELETE", "/images/"+i.ID+"?force=1", nil, nil); err != nil {
				t.Errorf("image %s: %v", i.ID, err)
			}
		}
	}
	var snapshots, blobs string
	for end := time.Now().Add(time.Minute); time.Now().Before(end); time.Sleep(time.Second) {
		snapshots, _ = m.Sh(ctx, "ls /data/escale/snapshots/snapshots | wc -l")
		blobs, _ = m.Sh(ctx, "ls /data/escale/content/blobs/sha256 | wc -l")
		if snapshots == "1" && (blobs == "2" || blobs == "3") {
			return
		}
	}
	t.Errorf("with one image of one layer left: %s snapshots, %s blobs", snapshots, blobs)
}
