// Package request is what a client can ask of the builder. It knows nothing of
// how it is done, so that who only asks does not link that.
package request

import (
	"io"
	"net/http"
	"time"

	"github.com/docker/go-units"
	"github.com/moby/moby/api/types/registry"
)

// Build is one build.
type Build struct {
	ID      string // client's name of it, for Cancel; may be empty
	Session string // of the client, for contexts, secrets and outputs; may be empty

	// Context is a tar archive, packed or not; nil: Remote says where it is.
	// The builder closes it.
	Context io.ReadCloser
	// Remote is a URL of git or HTTP, or "client-session".
	Remote string

	Dockerfile string // path in the context; empty: "Dockerfile"
	Tags       []string
	Target     string
	Args       map[string]*string // nil: not set
	Labels     map[string]string
	CacheFrom  []string
	NoCache    bool
	Pull       bool
	Platform   string
	Network    string   // "", "default", "none", "host"
	ExtraHosts []string // "name:address"
	Outputs    []Output // none: an image

	// Limits of each step; 0 and empty: none.
	Memory, MemorySwap             int64 // bytes; MemorySwap -1: no limit
	CPUShares, CPUPeriod, CPUQuota int64 // periods and quotas in microseconds
	CpusetCpus, CpusetMems         string
	ShmSize                        int64 // bytes
	CgroupParent                   string
	Ulimits                        []*units.Ulimit

	// Auth has the credentials of registries, by host.
	Auth map[string]registry.AuthConfig
}

// Output is a place for the result.
type Output struct {
	Type  string
	Attrs map[string]string
}

// Told is what a client is told while its build goes on. Its methods are called
// one at a time.
type Told interface {
	// Stream is a piece of text.
	Stream(text string)
	// Aux is something for programs: "moby.image.id" or "" with the image's id,
	// "moby.buildkit.trace" with bytes.
	Aux(id string, value any)
}

// ImageID is told with Aux at the end.
type ImageID struct{ ID string }

// StepError is a step that ended with a code. Its words are those of the
// classic builder.
type StepError struct {
	Command string
	Code    int
	Detail  string // the builder's own words
}

// Prune says what of the cache goes. What is in use never does.
type Prune struct {
	All           bool // also what images and sources of steps are made of
	UnusedFor     time.Duration
	ReservedSpace int64 // bytes that may stay
	MaxUsedSpace  int64 // bytes above which it goes
	MinFreeSpace  int64 // bytes of the disk that are to be free
	// Filters are lists of values by name: id, parents, type, description,
	// inuse, shared, private.
	Filters map[string][]string
}

// Pruned is what went.
type Pruned struct {
	IDs   []string
	Bytes int64
}

// Hijacker is a connection to take over from HTTP.
type Hijacker interface {
	http.ResponseWriter
	http.Hijacker
}
