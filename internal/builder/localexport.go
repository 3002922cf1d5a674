package builder

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"strconv"
	"time"

	"github.com/moby/buildkit/cache"
	"github.com/moby/buildkit/client"
	"github.com/moby/buildkit/exporter"
	"github.com/moby/buildkit/exporter/containerimage/exptypes"
	localexporter "github.com/moby/buildkit/exporter/local"
	"github.com/moby/buildkit/exporter/util/epoch"
	"github.com/moby/buildkit/session"
	"github.com/moby/buildkit/session/filesync"
	"github.com/moby/buildkit/util/staticfs"
	"github.com/tonistiigi/fsutil"
	fstypes "github.com/tonistiigi/fsutil/types"
	"google.golang.org/grpc/metadata"
)

// folderExporter leaves results in a folder of the client's, as BuildKit's own
// exporter does, which it is but for the transfer: see sendTree.
type folderExporter struct {
	exporter.Exporter
	sessions *session.Manager
}

// Resolve implements exporter.Exporter.
func (e folderExporter) Resolve(ctx context.Context, id int, attrs map[string]string) (exporter.ExporterInstance, error) {
	i, err := e.Exporter.Resolve(ctx, id, attrs)
	if err != nil {
		return nil, err
	}
	x := &folderExport{ExporterInstance: i, sessions: e.sessions}
	if _, err := x.opts.Load(attrs); err != nil {
		return nil, err
	}
	x.mode, err = client.ParseLocalExporterMode(attrs["mode"])
	return x, err
}

// folderExport is one export into a folder.
type folderExport struct {
	exporter.ExporterInstance
	sessions *session.Manager
	opts     localexporter.CreateFSOpts
	mode     client.LocalExporterMode
}

// part is what an export has of one platform; "" stands for the only one.
type part struct {
	platform     string
	ref          cache.ImmutableRef
	attestations []exporter.Attestation
	opts         localexporter.CreateFSOpts
}

// sessionPatience is how long a client may take to open its session.
const sessionPatience = 5 * time.Second

// Export implements exporter.ExporterInstance.
func (x *folderExport) Export(ctx context.Context, src *exporter.Source, info exporter.ExportBuildInfo) (map[string]string, exporter.FinalizeFunc, exporter.DescriptorReference, error) {
	brief, cancel := context.WithTimeout(ctx, sessionPatience)
	defer cancel()
	caller, err := x.sessions.Get(brief, info.SessionID, false)
	if err != nil {
		return nil, nil, nil, err
	}
	parts, err := x.parts(src)
	if err != nil {
		return nil, nil, nil, err
	}
	return nil, nil, nil, x.send(ctx, caller, info.SessionID, parts, len(src.Refs) > 0)
}

// parts takes a result apart by its platforms.
func (x *folderExport) parts(src *exporter.Source) ([]part, error) {
	many := len(src.Refs) > 0
	if _, ok := src.Metadata[exptypes.ExporterPlatformsKey]; many && !ok {
		return nil, errors.New("unable to export multiple refs, missing platforms mapping")
	}
	ps, err := exptypes.ParsePlatforms(src.Metadata)
	if err != nil {
		return nil, err
	}
	if !many && len(ps.Platforms) > 1 {
		return nil, errors.New("unable to export multiple platforms without map")
	}
	opts := x.opts
	if opts.Epoch == nil {
		at, err := epoch.ParseSource(src, nil)
		if err != nil {
			return nil, err
		}
		if at != nil {
			opts.Epoch = &epoch.Epoch{Value: at}
		}
	}
	if len(ps.Platforms) == 0 {
		return []part{{ref: src.Ref, opts: opts}}, nil
	}
	var parts []part
	for _, p := range ps.Platforms {
		ref, ok := src.FindRef(p.ID)
		if !ok {
			return nil, fmt.Errorf("there is no result for %s", p.ID)
		}
		one := part{platform: p.ID, ref: ref, attestations: src.Attestations[p.ID], opts: opts}
		if opts.Epoch == nil {
			at, err := epoch.ParseSource(src, &p)
			if err != nil {
				return nil, err
			}
			one.opts.Epoch = &epoch.Epoch{Value: at}
		}
		parts = append(parts, one)
	}
	return parts, nil
}

// send sends the parts: one after the other, or all in one transfer when the client
// is to delete what is in none of them.
func (x *folderExport) send(ctx context.Context, caller session.Caller, sessionID string, parts []part, many bool) (err error) {
	var undo []func() error
	defer func() {
		for _, f := range undo {
			err = errors.Join(err, f())
		}
	}()
	now, owner := time.Now().Truncate(time.Second), map[string]string{}
	var trees []fsutil.FS
	var folders []fsutil.Dir
	for _, p := range parts {
		tree, done, err := localexporter.CreateFS(ctx, sessionID, p.platform, p.ref, p.attestations, now, many, p.opts)
		if err != nil {
			return err
		}
		if done != nil {
			undo = append(undo, done)
		}
		if x.opts.UsePlatformSplit(many) {
			folders = append(folders, fsutil.Dir{FS: tree, Stat: p.folder()})
		} else if err := claim(ctx, tree, p.platform, owner); err != nil {
			return err
		}
		trees = append(trees, tree)
	}
	if x.mode == client.LocalExporterModeDelete {
		tree := merged(trees)
		if len(folders) > 0 {
			if tree, err = fsutil.SubDirFS(folders); err != nil {
				return err
			}
		}
		return x.sendOne(ctx, caller, "copying files", tree, filesync.WithExporterMultiPlatformTransfer())
	}
	for i, tree := range trees {
		label := "copying files"
		if len(folders) > 0 {
			label += " " + parts[i].platform
			if tree, err = fsutil.SubDirFS(folders[i : i+1]); err != nil {
				return err
			}
		}
		if err := x.sendOne(ctx, caller, label, tree); err != nil {
			return err
		}
	}
	return nil
}

// folder is the one that a platform's files are in.
func (p *part) folder() *fstypes.Stat {
	st := &fstypes.Stat{Mode: uint32(os.ModeDir | 0o755), Path: localexporter.PlatformIDToPath(p.platform)}
	if p.opts.Epoch != nil && p.opts.Epoch.Value != nil {
		st.ModTime = p.opts.Epoch.Value.UnixNano()
	}
	return st
}

// merged lays trees over each other.
func merged(trees []fsutil.FS) fsutil.FS {
	all := trees[0]
	for _, t := range trees[1:] {
		all = staticfs.NewMergeFS(all, t)
	}
	return all
}

// claim notes whose the files of a tree are; no two platforms may have the same.
func claim(ctx context.Context, tree fsutil.FS, platform string, owner map[string]string) error {
	return tree.Walk(ctx, "", func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			if errors.Is(err, fs.ErrNotExist) {
				return nil
			}
			return err
		}
		if d.IsDir() {
			return nil
		}
		if other, ok := owner[path]; ok {
			return fmt.Errorf("cannot overwrite %s from %s with %s when split option is disabled", path, other, platform)
		}
		owner[path] = platform
		return nil
	})
}

func (x *folderExport) sendOne(ctx context.Context, caller session.Caller, label string, tree fsutil.FS, opts ...filesync.CopyToCallerOpt) error {
	progress, done := localexporter.NewProgressHandler(ctx, label)
	defer done()
	return sendTree(ctx, caller, strconv.Itoa(x.ID()), tree, progress, opts...)
}

// sendTree sends a tree of files to the folder that a client has under an
// exporter's number. It blocks until all of it is there.
//
// BuildKit's way of doing the same can stand still for ever. The receiver asks for
// every file by a message; its sender reads no further ones while 128 wait to be
// served. When as many are under way as HTTP/2's window takes, the rest waits in the
// client's queue of frames for that stream, and behind it what would widen the window
// of the other direction: then no file is sent any more, and so no request read. It
// takes some 6000 files that are slower to read than to name. Hence requests are
// read here as they come.
func sendTree(ctx context.Context, caller session.Caller, id string, tree fsutil.FS, progress func(int, bool), opts ...filesync.CopyToCallerOpt) error {
	if method := session.MethodURL(filesync.FileSend_ServiceDesc.ServiceName, "diffcopy"); !caller.Supports(method) {
		return fmt.Errorf("method %s not supported by the client", method)
	}
	ctx, cancel := context.WithCancel(caller.Context(ctx))
	defer cancel()
	meta, ok := metadata.FromOutgoingContext(ctx)
	if !ok {
		meta = metadata.MD{}
	}
	for _, o := range opts {
		o(meta)
	}
	meta["buildkit-attachable-exporter-id"] = []string{id}
	stream, err := filesync.NewFileSendClient(caller.Conn()).DiffCopy(metadata.NewOutgoingContext(ctx, meta))
	if err != nil {
		return err
	}
	e := newEager(stream, tree)
	return fsutil.Send(stream.Context(), e, e, progress)
}
