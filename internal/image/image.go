// Package image keeps images: a containerd content store and overlay
// snapshotter under one namespace, and our own record of each image.
package image

import (
	"time"

	dockerspec "github.com/moby/docker-image-spec/specs-go/v1"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// Namespace is the one containerd namespace for images, builds and containers.
const Namespace = "escale"

// Image is an image on this machine.
type Image struct {
	ID          string   // digest of its config: "sha256:<64 hex>"
	RepoTags    []string // familiar form, "debian:latest"; empty: dangling
	RepoDigests []string // familiar form, "debian@sha256:…"
	Config      dockerspec.DockerOCIImage
	Comment     string // of the config blob, beside what OCI names
	Size        int64  // bytes of all layers, unpacked
	Layers      []Layer
	LastTagged  time.Time
	ChainID     string             // key of the committed top snapshot; empty for an image without layers
	Target      ocispec.Descriptor // its manifest
	// Index is what the name that the image was got by stands for, when that is
	// an index of several manifests; in a list the first one of a tag; else zero.
	Index ocispec.Descriptor
}

// Layer is one layer of an image; images that begin with the same layers share them.
type Layer struct {
	ChainID string // tells it from a layer of the same content elsewhere
	Size    int64  // bytes of its files
}

// ImportOptions says how a root filesystem becomes an image.
type ImportOptions struct {
	Ref      string   // name to give it; empty: none
	Message  string   // becomes the comment
	Changes  []string // Dockerfile instructions: CMD ENTRYPOINT ENV EXPOSE USER VOLUME WORKDIR LABEL HEALTHCHECK STOPSIGNAL ONBUILD
	Platform string   // "linux/amd64"; empty: the host's
	Size     int64    // of the archive in bytes, for Progress; 0: not known
	Progress func(Progress)
}

// LoadOptions says how an archive is loaded.
type LoadOptions struct {
	Quiet    bool
	Platform string
	// Loaded is told each image: "Loaded image: debian:latest" or "Loaded image ID: sha256:…".
	Loaded   func(line string)
	Progress func(Progress)
}

// Progress is one step of long work.
type Progress struct {
	ID             string // short layer id; may be empty
	Status         string // "Loading layer", "Importing"
	Current, Total int64  // bytes; Total 0: unknown
}

// RemoveOptions says what a removal may do.
type RemoveOptions struct {
	Force   bool
	NoPrune bool // keep untagged parents
	// Users lists the containers that use an image.
	Users func(imageID string) []User
}

// User is a container that uses an image.
type User struct {
	Container string // full id
	Running   bool
}

// Deleted is one step of a removal: exactly one of the fields is set.
type Deleted struct{ Untagged, Deleted string }

// PruneOptions says what a prune takes.
type PruneOptions struct {
	All   bool             // also tagged images that no container uses
	Match func(Image) bool // nil: every one
	Users func(id string) []User
}

// Pruned is what a prune took.
type Pruned struct {
	Deleted []Deleted
	Bytes   int64 // disk space given back
}

// HistoryItem is a line of an image's history, newest first.
type HistoryItem struct {
	ID        string // "<missing>" but for the image itself
	Created   time.Time
	CreatedBy string
	Tags      []string
	Size      int64
	Comment   string
}
