package engine

import (
	"context"
	"io"
	"net/http"
	"net/url"

	ask "escale.dev/escale/internal/builder/request"
	"escale.dev/escale/internal/container"
	"escale.dev/escale/internal/events"
	"escale.dev/escale/internal/image"
	"escale.dev/escale/internal/logs"
	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/volume"
	"github.com/distribution/reference"
	"github.com/moby/moby/api/types/build"
	apicontainer "github.com/moby/moby/api/types/container"
	apinetwork "github.com/moby/moby/api/types/network"
	"github.com/moby/moby/api/types/registry"
	"github.com/moby/moby/api/types/system"
)

// Containers is what the container and exec routes need. ref is a name, a full
// id or a unique prefix of one. Errors carry a kind of containerd/errdefs and
// Docker's words.
type Containers interface {
	Create(ctx context.Context, c container.Create) (container.CreateResult, error)
	Start(ctx context.Context, ref string) error // NotModified (container.ErrNotModified) when it runs already
	Stop(ctx context.Context, ref string, s container.Stop) error
	Restart(ctx context.Context, ref string, s container.Stop) error
	Kill(ctx context.Context, ref string, signal string) error
	Pause(ctx context.Context, ref string) error
	Unpause(ctx context.Context, ref string) error
	Wait(ctx context.Context, ref string, condition string) (<-chan container.WaitResult, error)
	Remove(ctx context.Context, ref string, r container.Remove) error
	Unlink(ctx context.Context, link string) error // link is "parent/alias"
	Rename(ctx context.Context, ref, name string) error
	Connect(ctx context.Context, ref, network string, settings *apinetwork.EndpointSettings) error
	Disconnect(ctx context.Context, ref, network string, force bool) error
	Resize(ctx context.Context, ref string, rows, cols uint16) error
	Get(ref string) (container.View, error)
	List() []container.View // newest first
	Size(ctx context.Context, ref string) (rw, rootfs int64, err error)
	// Attach blocks until the client detaches or the process ends. open is
	// called once everything is in order and returns the client's side: the
	// reader is its standard input (nil when not wanted), the writer gets raw
	// bytes for a terminal, else Docker's multiplexed frames. Before open an
	// error can still be answered with a status.
	Attach(ctx context.Context, ref string, a container.Attach, open func(terminal bool) (io.ReadWriteCloser, error)) error
	// Logs opens the container's log; the caller closes it. terminal tells that
	// lines go out raw.
	Logs(ctx context.Context, ref string, o logs.ReadOptions) (r logs.Reader, terminal bool, err error)

	ExecCreate(ctx context.Context, ref string, c container.ExecConfig) (string, error)
	// ExecStart runs an exec. open nil: detached, returns once it runs; else it
	// blocks like Attach.
	ExecStart(ctx context.Context, id string, consoleSize [2]uint16, open func(terminal bool) (io.ReadWriteCloser, error)) error
	ExecResize(ctx context.Context, id string, rows, cols uint16) error
	ExecGet(id string) (container.Exec, error)
}

// Watching is what the routes need that show a container at work.
type Watching interface {
	// Stats sends samples until ctx ends, send returns an error, or the
	// container is removed; a single one unless o.Stream.
	Stats(ctx context.Context, ref string, o container.StatsOptions, send func(*apicontainer.StatsResponse) error) error
	// Top lists the processes as ps does with psArgs, "" being "-ef".
	Top(ctx context.Context, ref, psArgs string) (apicontainer.TopResponse, error)
}

// Updates changes limits and the restart policy of a container.
type Updates interface {
	Update(ctx context.Context, ref string, u apicontainer.UpdateConfig) (warnings []string, err error)
}

// Archives moves files in and out of containers, running or not. Errors carry
// a kind and Docker's words.
type Archives interface {
	// Stat tells what path is in the container; a link is not followed.
	Stat(ctx context.Context, ref, path string) (apicontainer.PathStat, error)
	// Read writes path as a tar archive; open is called before the first byte.
	Read(ctx context.Context, ref, path string, open func(apicontainer.PathStat) (io.Writer, error)) error
	// Write puts a plain or compressed tar archive into the directory at path.
	Write(ctx context.Context, ref, path string, r io.Reader, o container.WriteFiles) error
	// Changes compares the container with its image.
	Changes(ctx context.Context, ref string) ([]apicontainer.FilesystemChange, error)
	// Commit makes an image of the container; its id is returned.
	Commit(ctx context.Context, ref string, o container.Commit) (string, error)
	// Export writes the container's root as a tar archive, without what is mounted in it.
	Export(ctx context.Context, ref string, w io.Writer) error
}

// Images is what the image routes need.
type Images interface {
	List(ctx context.Context) ([]image.Image, error)
	Get(ctx context.Context, ref string) (image.Image, error)
	Import(ctx context.Context, r io.Reader, o image.ImportOptions) (image.Image, error)
	Load(ctx context.Context, r io.Reader, o image.LoadOptions) error
	Save(ctx context.Context, w io.Writer, refs []string, platform string) error
	Parts(ctx context.Context, img image.Image) ([]image.Part, error)
	Tag(ctx context.Context, ref, target string) error
	Remove(ctx context.Context, ref string, o image.RemoveOptions) ([]image.Deleted, error)
	Prune(ctx context.Context, o image.PruneOptions) (image.Pruned, error)
	History(ctx context.Context, ref string) ([]image.HistoryItem, error)
}

// Volumes is what the volume routes need.
type Volumes interface {
	Create(ctx context.Context, r volume.Request) (volume.Volume, error)
	Get(ctx context.Context, name string) (volume.Volume, error)
	// List gives all, by name; warnings tell what could not be asked.
	List(ctx context.Context) (list []volume.Volume, warnings []string)
	Remove(ctx context.Context, name string, force bool) error
	// Size is the bytes of a volume's files; it looks at all of them.
	Size(ctx context.Context, name string) (int64, error)
}

// VolumeCopies copies volumes: out of them, into them, and from one to another.
// Errors carry a kind.
type VolumeCopies interface {
	// Backup writes a volume as a tar archive; open is called, with the bytes of its
	// files, before the first byte.
	Backup(ctx context.Context, name string, o container.Backup, open func(total int64) (io.Writer, error)) error
	// Restore puts an archive in the place of a volume's content, all or nothing.
	Restore(ctx context.Context, name string, r io.Reader, o container.RestoreVolume) error
	Clone(ctx context.Context, src, dst string, o container.RestoreVolume, told func(copied, total int64)) error
}

// Networks is what the network routes need.
type Networks interface {
	List() []network.Info // by name
	Inspect(ref string) (network.Info, error)
	Find(ref string) (network.Info, error) // Inspect without the containers
	Create(ctx context.Context, c network.Create) (network.Info, error)
	Remove(ctx context.Context, ref string) error
}

// PullOptions say how an image is pulled.
type PullOptions struct {
	All      bool   // every tag of the repository
	Platform string // "linux/amd64"; empty: the host's
	Auth     registry.AuthConfig
	Progress func(image.Progress)
	// Done is told each image, by the name that was pulled.
	Done func(name string, p image.Pulled)
}

// PushOptions say how images are pushed.
type PushOptions struct {
	Platform string // that the image must be for; empty: any
	Auth     registry.AuthConfig
	Progress func(image.Progress)
	Done     func(image.Pushed)
}

// Registries is what the routes that reach image registries need.
type Registries interface {
	// Login checks credentials with the registry they are for; token, if there
	// is one, is to be used instead of the password.
	Login(ctx context.Context, auth registry.AuthConfig) (token string, err error)
	Pull(ctx context.Context, ref reference.Named, o PullOptions) error
	// Push sends the image that ref names, or all tags of a name without one.
	Push(ctx context.Context, ref reference.Named, o PushOptions) error
	// Distribution tells what a registry has under a name.
	Distribution(ctx context.Context, ref reference.Named, auth registry.AuthConfig) (registry.DistributionInspect, error)
	// Download asks a web server for a file. size is in bytes, negative when the server
	// does not say.
	Download(ctx context.Context, from url.URL) (file io.ReadCloser, size int64, err error)
	// Search asks a registry for repositories by a word.
	Search(ctx context.Context, term string, limit int, auth registry.AuthConfig) ([]registry.SearchResult, error)
}

// Builder is what the build routes need. Errors carry a kind.
type Builder interface {
	// Build blocks until the image is there, and tells how it goes on. An
	// *ask.StepError is of a step that ended with a code.
	Build(ctx context.Context, o ask.Build, told ask.Told) error
	Cancel(id string) // a build that is not there is fine
	Prune(ctx context.Context, o ask.Prune) (ask.Pruned, error)
	DiskUsage(ctx context.Context) ([]build.CacheRecord, error) // oldest first
	// ServeSession and ServeGRPC take the connection over, and block until its
	// client leaves.
	ServeSession(ctx context.Context, w ask.Hijacker, r *http.Request) error
	ServeGRPC(ctx context.Context, w ask.Hijacker, r *http.Request) error
}

// System answers for the engine as a whole.
type System interface {
	Info(ctx context.Context) (*system.Info, error)
	Version(ctx context.Context) system.VersionResponse
	Ping() PingInfo
}

// Events is what the events route needs; what the routes themselves do is told
// there too.
type Events interface {
	Subscribe(ctx context.Context, s events.Subscription) (*events.Stream, error)
	Publish(m events.Message)
}

// PingInfo feeds the headers of /_ping.
type PingInfo struct {
	OSType         string
	Experimental   bool
	BuilderVersion string // "2": BuildKit, "1": the classic builder
	SwarmState     string // "inactive"
	SafeMode       bool   // the engine starts nothing by itself
}
