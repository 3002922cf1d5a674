package container

import (
	"context"
	"encoding/json"
	"errors"
	"io"
	"math"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"escale.dev/escale/internal/container/archive"
	"escale.dev/escale/internal/image/layer"
	"escale.dev/escale/internal/sys/atomicfile"
	"escale.dev/escale/internal/volume"
	"github.com/containerd/errdefs"
	"github.com/klauspost/compress/gzip"
	"github.com/klauspost/compress/zstd"
	"github.com/moby/moby/api/types/mount"
)

// Copies copies volumes: out of them, into them, and from one to another. Running
// containers that have the volume are paused meanwhile, unless it is said
// otherwise. It is a part of Manager, see Manager.Copies.
type Copies struct{ m *runner }

// Copies are the volumes' backups.
func (m *Manager) Copies() Copies { return Copies{m.runner} }

// Compressions are the ways in which a backup can be packed.
var Compressions = []string{"none", "gzip", "zstd"}

// Backup says how a volume is written into an archive.
type Backup struct {
	Compression string // one of Compressions; empty: none
	NoPause     bool   // let containers that have the volume run meanwhile
}

// RestoreVolume says how an archive takes the place of a volume's content.
type RestoreVolume struct {
	Force   bool // although the volume is not empty
	NoPause bool
}

// Backup writes all of a volume as a tar archive: owners, modes, times, extended
// attributes, hard links, devices, holes. open is called once the volume is there,
// with the bytes of its files, before the first byte. It blocks for disk and client.
// Kinds: NotFound, InvalidArgument.
func (c Copies) Backup(ctx context.Context, name string, o Backup, open func(total int64) (io.Writer, error)) error {
	if o.Compression != "" && !slices.Contains(Compressions, o.Compression) {
		return kindf(errInvalid, "unknown compression %q: want none, gzip or zstd", o.Compression)
	}
	return c.with(ctx, name, func(root *os.File) error {
		total, err := c.m.cfg.Volumes.Size(ctx, name)
		if err != nil {
			return err
		}
		resume, err := c.pause(ctx, name, o.NoPause)
		if err != nil {
			return err
		}
		defer resume()
		w, err := open(total)
		if err != nil {
			return err
		}
		packed, err := compress(w, o.Compression)
		if err != nil {
			return err
		}
		if err := archive.Backup(ctx, root, packed); err != nil {
			return errors.Join(err, packed.Close())
		}
		return packed.Close()
	})
}

// compress packs what is written.
func compress(w io.Writer, how string) (io.WriteCloser, error) {
	switch how {
	case "gzip":
		return gzip.NewWriter(w), nil
	case "zstd":
		return zstd.NewWriter(w, zstd.WithEncoderConcurrency(2))
	}
	return plain{w}, nil
}

type plain struct{ io.Writer }

// Close does nothing.
func (plain) Close() error { return nil }

// Restore puts the content of an archive, compressed or not, in the place of a volume's, all
// or nothing: with an error, or when the engine is killed, the volume is as it was,
// or as the archive has it. A volume that is not there is made. Kinds: Conflict for one
// that is not empty, without force; InvalidArgument for bad archives.
func (c Copies) Restore(ctx context.Context, name string, r io.Reader, o RestoreVolume) error {
	return c.replace(ctx, volume.Request{Name: name}, o, func(ctx context.Context, root *os.File) (*archive.Staging, error) {
		unpacked, _, err := layer.Decompress(ctx, r, math.MaxInt64)
		if err != nil {
			return nil, kindf(errInvalid, "reading the archive: %s", err)
		}
		defer unpacked.Close()
		return archive.Stage(ctx, root, unpacked)
	})
}

// Clone makes a volume what another is, under the rules of Restore; one that is not
// there is made, with the other's labels. told hears of the bytes that were copied.
func (c Copies) Clone(ctx context.Context, src, dst string, o RestoreVolume, told func(copied, total int64)) error {
	if src == dst {
		return kindf(errInvalid, "volume %s cannot be cloned to itself", src)
	}
	return c.with(ctx, src, func(from *os.File) error {
		v, err := c.m.cfg.Volumes.Get(ctx, src)
		if err != nil {
			return err
		}
		total, err := c.m.cfg.Volumes.Size(ctx, src)
		if err != nil {
			return err
		}
		labels := make(map[string]string, len(v.Labels))
		for k, value := range v.Labels {
			if k != volume.Anonymous {
				labels[k] = value
			}
		}
		return c.replace(ctx, volume.Request{Name: dst, Labels: labels}, o, func(ctx context.Context, root *os.File) (*archive.Staging, error) {
			resume, err := c.pause(ctx, src, o.NoPause)
			if err != nil {
				return nil, err
			}
			defer resume()
			return pipe(ctx, from, root, func(n int64) { told(n, total) })
		})
	})
}

// pipe stages all of one tree in another.
func pipe(ctx context.Context, from, to *os.File, told func(int64)) (*archive.Staging, error) {
	r, w := io.Pipe()
	go func() { w.CloseWithError(archive.Backup(ctx, from, w)) }()
	defer r.Close() // ends the writer, if it has not
	return archive.Stage(ctx, to, &counted{r: r, told: told})
}

// counted tells how much has been read, every megabyte.
type counted struct {
	r       io.Reader
	n, last int64
	told    func(int64)
}

func (c *counted) Read(b []byte) (int, error) {
	n, err := c.r.Read(b)
	if c.n += int64(n); c.n-c.last >= 1<<20 || err == io.EOF {
		c.last = c.n
		c.told(c.n)
	}
	return n, err
}

// with lets f at the content of a volume, which nobody removes or unmounts meanwhile.
func (c Copies) with(ctx context.Context, name string, f func(root *os.File) error) error {
	if _, err := c.m.cfg.Volumes.Get(ctx, name); err != nil {
		return err
	}
	return c.hold(ctx, volume.Request{Name: name}, f)
}

// recoverTime is how long a volume has to be mounted when the engine comes up.
const recoverTime = 20 * time.Second

// hold is with for a volume that is made when it is not there.
func (c Copies) hold(ctx context.Context, r volume.Request, f func(root *os.File) error) (err error) {
	user := "copy-" + string(newID())
	vols := c.m.cfg.Volumes
	v, err := vols.Acquire(ctx, r, user)
	if err != nil {
		return err
	}
	defer vols.Release(v.Name, user)
	path, err := vols.Mount(ctx, v.Name, user)
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, vols.Unmount(v.Name, user)) }()
	root, err := os.Open(path)
	if err != nil {
		return err
	}
	defer root.Close()
	return f(root)
}

// replace stages with stage what is to be a volume's content, and puts it in place.
func (c Copies) replace(ctx context.Context, r volume.Request, o RestoreVolume, stage func(context.Context, *os.File) (*archive.Staging, error)) error {
	if _, busy := c.m.restoring.LoadOrStore(r.Name, newOpLock()); busy {
		return kindf(errConflict, "the content of volume %s is being replaced already", r.Name)
	}
	defer c.m.restoring.Delete(r.Name)
	_, err := c.m.cfg.Volumes.Get(ctx, r.Name)
	made := errdefs.IsNotFound(err)
	if err != nil && !made {
		return err
	}
	err = c.hold(ctx, r, func(root *os.File) error {
		if err := archive.Recover(root); err != nil {
			return err
		}
		if empty, err := archive.Empty(root); err != nil || !empty && !o.Force {
			return errors.Join(err, kindf(errConflict, "volume %s is not empty: it is replaced with force only", r.Name))
		}
		note, err := c.note(r.Name)
		if err != nil {
			return err
		}
		staged, err := stage(ctx, root)
		if err != nil {
			os.Remove(note)
			return err
		}
		if err := c.commit(ctx, r.Name, staged, o.NoPause); err != nil {
			return err // the note lets the next engine finish or undo it
		}
		return os.Remove(note)
	})
	if err != nil && made {
		if gone := c.m.cfg.Volumes.Remove(c.m.ctx, r.Name, true); gone != nil {
			c.m.log.Warn("undoing a volume's restoration", "volume", r.Name, "error", gone)
		}
	}
	return err
}

// commit puts what was staged in place while no container changes the volume.
func (c Copies) commit(ctx context.Context, name string, staged *archive.Staging, noPause bool) error {
	resume, err := c.pause(ctx, name, noPause)
	if err != nil {
		return errors.Join(err, staged.Abort())
	}
	defer resume()
	if l, ok := c.m.restoring.Load(name); ok && l.(*opLock).lock(c.m.ctx) == nil {
		defer l.(*opLock).unlock()
	}
	return staged.Commit()
}

// pause pauses the running containers that have a volume, each with a note for a
// later engine. What it returns lets them go on.
func (c Copies) pause(ctx context.Context, name string, noPause bool) (resume func(), err error) {
	var done undoStack
	defer func() {
		if err != nil {
			done.run()
		}
	}()
	if noPause {
		return func() {}, nil
	}
	all := c.m.store.all()
	slices.SortFunc(all, func(a, b *entry) int { return strings.Compare(string(a.id), string(b.id)) })
	for _, e := range all {
		v := e.view()
		if !slices.ContainsFunc(v.Mounts, func(p Mount) bool { return p.Type == mount.TypeVolume && p.Name == name }) {
			continue
		}
		if err := e.committing.lock(ctx); err != nil {
			return nil, err
		}
		if err := e.op.lock(ctx); err != nil {
			e.committing.unlock()
			return nil, err
		}
		st := e.state()
		if st.Status != Running {
			e.op.unlock()
			e.committing.unlock()
			continue
		}
		done.add(e.committing.unlock)
		thaw, err := Files(c).pauseFor(e, st.Generation)
		e.op.unlock()
		if err != nil {
			return nil, err
		}
		done.add(func() {
			if e.op.lock(c.m.ctx) == nil {
				defer e.op.unlock()
			} // the engine ends: then nobody else does anything either
			thaw()
		})
	}
	return done.run, nil
}

// restoration is the note of a volume whose content is being replaced.
type restoration struct {
	Version int // 1
	Volume  string
}

// note writes down that a volume is being restored, for an engine that comes after
// this one was killed.
func (c Copies) note(name string) (path string, err error) {
	b, err := json.Marshal(restoration{1, name})
	if err != nil {
		return "", err
	}
	path = filepath.Join(c.m.cfg.RestoreDir, string(newID())+".json")
	return path, atomicfile.Write(path, b, 0o600, atomicfile.Options{Sync: true})
}

// recoverAll finishes or undoes the restorations that an engine before this one had in
// hand. It blocks for the volumes to be mounted; one that cannot be now is tried
// when it is used, and by the next engine.
func (c Copies) recoverAll(ctx context.Context) {
	dir := c.m.cfg.RestoreDir
	if err := os.MkdirAll(dir, 0o700); err != nil {
		c.m.log.Warn("notes of restorations", "path", dir, "error", err)
	}
	if err := atomicfile.Collect(dir); err != nil {
		c.m.log.Warn("collecting", "path", dir, "error", err)
	}
	for _, name := range names(dir) {
		path := filepath.Join(dir, name)
		var r restoration
		b, err := os.ReadFile(path)
		if err == nil {
			err = json.Unmarshal(b, &r)
		}
		if err != nil || r.Volume == "" {
			c.m.log.Error("a note of a volume's restoration cannot be read: it is left alone", "path", path, "error", err)
			continue
		}
		if err := c.recover(ctx, r.Volume); err != nil {
			c.m.log.Error("finishing the restoration of a volume", "volume", r.Volume, "error", err)
			continue
		}
		os.Remove(path)
	}
}

func (c Copies) recover(ctx context.Context, name string) error {
	ctx, cancel := context.WithTimeout(ctx, recoverTime)
	defer cancel()
	if _, err := c.m.cfg.Volumes.Get(ctx, name); errdefs.IsNotFound(err) {
		return nil // it is gone, and all in it
	}
	return c.hold(ctx, volume.Request{Name: name, Held: true}, archive.Recover)
}

// settle sees to it that a container finds a volume, mounted at path, as it is to be: a
// restoration that an engine before this one had in hand is finished or undone, and
// one that is just being put in place is waited for.
func (m *core) settle(ctx context.Context, name, path string) error {
	if l, ok := m.restoring.Load(name); ok {
		if err := l.(*opLock).lock(ctx); err != nil {
			return err
		}
		l.(*opLock).unlock()
		return nil
	}
	if !archive.Unfinished(path) {
		return nil
	}
	root, err := os.Open(path)
	if err != nil {
		return err
	}
	defer root.Close()
	return archive.Recover(root)
}
