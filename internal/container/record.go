package container

import (
	"context"
	"slices"
	"time"

	"escale.dev/escale/internal/network"
	"github.com/moby/moby/api/types/container"
	"github.com/moby/moby/api/types/mount"
	apinetwork "github.com/moby/moby/api/types/network"
)

// ID is a container's identity: 64 hexadecimal digits.
type ID string

// Short is the form people see: the first 12 digits.
func (id ID) Short() string {
	if len(id) > 12 {
		return string(id[:12])
	}
	return string(id)
}

// RecordFormat is the version of Record on disk (docs/formats.md).
const RecordFormat = 1

// Record is all that is kept of a container: containers/<id>/container.json.
// What a client asked for stays as it was sent (Config, HostConfig,
// Networking); what the engine decided or saw stands beside it.
type Record struct {
	Format  int
	ID      ID
	Name    string // without a leading slash
	Created time.Time

	ImageID  string // config digest, "sha256:…"; Config.Image holds the name as asked
	Platform string // "linux"
	Path     string // the command that runs: entrypoint and command joined
	Args     []string

	Config     *container.Config
	HostConfig *container.HostConfig
	Networking map[string]*apinetwork.EndpointSettings // as asked, by network name
	NoNetworks bool                                    `json:",omitempty"` // it was disconnected from all

	Mounts []Mount
	// Inherited are, by destination, the --mount options of mount points that
	// came from other containers by --volumes-from.
	Inherited map[string]mount.Mount `json:",omitempty"`
	// Others are the destinations of volumes that --volumes-from gave: nothing of
	// the image is copied into them.
	Others []string `json:",omitempty"`
	// Filled are the destinations of volumes that got what the image has when the
	// container was made, as far as they were empty: no start copies again.
	Filled []string `json:",omitempty"`
	// PlainBinds are the destinations of binds whose source was reached without
	// a symbolic link when the container was made: at a start one is refused.
	PlainBinds []string `json:",omitempty"`

	Endpoints []network.Endpoint // of the last start; empty when not running
	LogPath   string             // empty when the driver keeps no file here

	State           State
	RestartCount    int
	ManuallyStopped bool // a client stopped it: restart policies rest
	RemoveVolumes   bool // its anonymous volumes go with it, once removal began
	AppArmorProfile string
	Owner           *Owner `json:",omitempty"` // who keeps it; nil: whoever made it
}

// Owner is the orchestrator that keeps a container, for one of its tasks. That a
// container has its labels says nothing: clients and images can have them, too.
type Owner struct {
	Node, Task string
	Restart    container.RestartPolicy // what the container gets when it is let go
}

// passing tells of a container with --rm that no engine which comes up after a power
// cut would keep, whatever it had done by then (Resume): nothing of it has to survive
// one. With a volume its record does, which says what goes along.
func (r *Record) passing() bool {
	return r.HostConfig.AutoRemove && r.Owner == nil && !slices.ContainsFunc(r.Mounts, func(p Mount) bool {
		return p.Type != mount.TypeBind && p.Type != mount.TypeTmpfs
	})
}

// Mount is a resolved mount point of a container.
type Mount = container.MountPoint

// Status is where a container stands in its life.
type Status string

// The states of a container; see the table of legal moves in state.go.
const (
	Created    Status = "created"
	Starting   Status = "starting" // intent of a start, noted before the kernel is touched (intent.go); shown as created or exited
	Running    Status = "running"
	Paused     Status = "paused"
	Restarting Status = "restarting"
	Exited     Status = "exited"
	Removing   Status = "removing"
	Dead       Status = "dead"
)

// State is what a container does now and how its last run ended.
type State struct {
	Status     Status
	Generation uint64 // counts starts
	Pid        int
	PidStart   uint64 // start time of Pid in clock ticks since boot (proc(5) stat field 22)
	BootID     string // boot during which Pid lived
	Monitor    int    // pid of the monitor
	Cgroup     string `json:",omitempty"` // of the last start, as the specification has it
	StartedAt  time.Time
	FinishedAt time.Time
	ExitCode   int
	Error      string
	OOMKilled  bool
	Health     *Health // nil without a health check
}

// Health is the state of a container's health check.
type Health struct {
	Status        string // starting, healthy, unhealthy
	FailingStreak int
	Log           []*container.HealthcheckResult // the last five
}

// Running reports whether a process is there, paused or not.
func (s State) Running() bool { return s.Status == Running || s.Status == Paused }

// View is a Record as a reader gets it, with what only the running engine knows.
type View struct {
	Record
	ExecIDs []string
}

// Exec is an exec instance as a reader gets it.
type Exec struct {
	ID          string
	Container   ID
	Config      ExecConfig
	Running     bool
	ExitCode    *int // nil until it has ended
	Pid         int
	CanRemove   bool
	DetachKeys  string
	Entrypoint  string
	Arguments   []string
	ConsoleSize [2]uint16
}

// ExecConfig is what a client asked of an exec.
type ExecConfig struct {
	Cmd          []string
	Env          []string
	WorkingDir   string
	User         string
	Tty          bool
	AttachStdin  bool
	AttachStdout bool
	AttachStderr bool
	Privileged   bool
	DetachKeys   string
	ConsoleSize  [2]uint16 // rows, columns
}

// Create is what a client asks of a new container.
type Create struct {
	Name       string // empty: one is made up
	Config     *container.Config
	HostConfig *container.HostConfig
	Networking *apinetwork.NetworkingConfig
	Platform   string
	Owner      *Owner // nil: a client's
	ImageID    string // of the image, if Config.Image only shows its name
	// TakesOver are volumes that take the place of anonymous ones, by destination.
	TakesOver map[string]string
}

// CreateResult is the answer to Create.
type CreateResult struct {
	ID       ID
	Warnings []string
}

// Stop says how to stop a container. Signal "" is the container's own, Timeout
// nil the container's own (10 s by default), negative: wait for ever; in seconds.
type Stop struct {
	Signal  string
	Timeout *int
	// Before, if not nil, is called once nothing stands in the way, before anything
	// is done; its error is that of the stop.
	Before func(context.Context, *Record) error
	// Join waits for a stop that somebody else has under way, rather than to send a
	// signal of its own; what still runs then is stopped.
	Join bool

	forRemoval bool // its events are those of a removal: no stop
}

// Remove says what may go with a container.
type Remove struct {
	Force   bool                                 // kill it first
	Volumes bool                                 // its anonymous volumes too
	Before  func(context.Context, *Record) error // as in Stop
}

// WaitResult is how a wait ended.
type WaitResult struct {
	ExitCode int
	Err      error
}

// Attach says how a client attaches.
type Attach struct {
	Stdin, Stdout, Stderr bool
	Stream                bool   // follow live
	Logs                  bool   // first replay the log
	DetachKeys            string // "" is ctrl-p,ctrl-q
}
