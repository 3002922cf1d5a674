package image

import (
	"encoding/json"
	"fmt"
	"sort"
	"time"

	"github.com/containerd/errdefs"
	"github.com/distribution/reference"
	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
	bolt "go.etcd.io/bbolt"
)

// formatVersion is that of the records below; see docs/formats.md.
const formatVersion = "1"

var (
	bucketOwn    = []byte("escale")  // beside containerd's buckets
	bucketImages = []byte("images")  // in bucketOwn: image id → JSON of a record
	keyVersion   = []byte("version") // in bucketOwn
)

// layerRecord is one layer of an image, bottom first.
type layerRecord struct {
	DiffID  digest.Digest      `json:"diffID"`
	ChainID digest.Digest      `json:"chainID"` // key of its snapshot, but for a built image's
	Blob    ocispec.Descriptor `json:"blob"`    // as stored, packed or not
	Size    int64              `json:"size"`    // bytes of its files
}

// record is what is kept of an image beside its blobs. It is never changed in
// place: readers hold on to it without a lock.
type record struct {
	ID         digest.Digest      `json:"id"`
	Tags       []string           `json:"tags,omitempty"`    // full form, sorted
	Digests    []string           `json:"digests,omitempty"` // full form, sorted
	Target     ocispec.Descriptor `json:"target"`
	Config     ocispec.Descriptor `json:"config"`
	Layers     []layerRecord      `json:"layers,omitempty"`
	LastTagged time.Time          `json:"lastTagged,omitzero"`
	// Snapshot is the key of the top snapshot where that is not named after the
	// chain of its layers: a build names its snapshots itself.
	Snapshot string `json:"snapshot,omitempty"`
	// Indexes are the indexes of several manifests, this image's among them, that
	// tags stand for, by tag in full form. The image's lease holds all of them.
	Indexes map[string]ocispec.Descriptor `json:"indexes,omitempty"`
	// Tops are indexes by which the image was pulled, without what else they list, so that
	// others can have it by their digests. The image's lease holds them.
	Tops []ocispec.Descriptor `json:"tops,omitempty"`
	// Boot is the boot id under which the layers were unpacked, until they are
	// known to be on the disk.
	Boot string `json:"boot,omitempty"`

	unknown map[string]json.RawMessage // fields of a later version
	image   Image
}

// recordFields names the JSON fields that record knows.
var recordFields = []string{"id", "tags", "digests", "target", "config", "layers", "lastTagged", "snapshot", "indexes", "tops", "boot"}

func decodeRecord(b []byte) (*record, error) {
	r := new(record)
	if err := json.Unmarshal(b, r); err != nil {
		return nil, err
	}
	if err := json.Unmarshal(b, &r.unknown); err != nil {
		return nil, err
	}
	for _, f := range recordFields {
		delete(r.unknown, f)
	}
	return r, nil
}

func (r *record) encode() ([]byte, error) {
	b, err := json.Marshal(r)
	if err != nil || len(r.unknown) == 0 {
		return b, err
	}
	all := map[string]json.RawMessage{}
	if err := json.Unmarshal(b, &all); err != nil {
		return nil, err
	}
	for k, v := range r.unknown {
		all[k] = v
	}
	return json.Marshal(all)
}

// clone makes a copy to change; slices and maps are replaced, never written to.
func (r *record) clone() *record {
	c := *r
	return &c
}

// chain is the key of the top snapshot; "" without layers.
func (r *record) chain() digest.Digest {
	if len(r.Layers) == 0 {
		return ""
	}
	if r.Snapshot != "" {
		return digest.Digest(r.Snapshot)
	}
	return r.Layers[len(r.Layers)-1].ChainID
}

// configJSON is what of a config blob concerns us beside what OCI names.
type configJSON struct {
	Comment string `json:"comment"`
}

// fill builds what callers see of the record from the bytes of its config.
func (r *record) fill(config []byte) error {
	var img Image
	if err := json.Unmarshal(config, &img.Config); err != nil {
		return err
	}
	var extra configJSON
	if err := json.Unmarshal(config, &extra); err != nil {
		return err
	}
	img.ID, img.Comment, img.Target = r.ID.String(), extra.Comment, r.Target
	img.ChainID = r.chain().String()
	for _, l := range r.Layers {
		img.Size += l.Size
		img.Layers = append(img.Layers, Layer{ChainID: l.ChainID.String(), Size: l.Size})
	}
	r.image = img
	r.name()
	return nil
}

// name puts the record's names into what callers see.
func (r *record) name() {
	r.image.RepoTags = familiar(r.Tags)
	r.image.RepoDigests = familiar(r.Digests)
	r.image.LastTagged = r.LastTagged
}

func familiar(full []string) []string {
	out := make([]string, 0, len(full))
	for _, f := range full {
		if named, err := reference.ParseNormalizedNamed(f); err == nil {
			out = append(out, reference.FamiliarString(named))
		}
	}
	return out
}

// with gives list and s, sorted, as a new slice.
func with(list []string, s string) []string {
	out := append(without(list, s), s)
	sort.Strings(out)
	return out
}

// without gives list less s as a new slice.
func without(list []string, s string) []string {
	out := make([]string, 0, len(list)+1)
	for _, l := range list {
		if l != s {
			out = append(out, l)
		}
	}
	return out
}

// initFormat makes our buckets, or refuses those of a later version.
func initFormat(tx *bolt.Tx) error {
	b, err := tx.CreateBucketIfNotExists(bucketOwn)
	if err != nil {
		return err
	}
	if v := b.Get(keyVersion); v != nil && string(v) != formatVersion {
		return fmt.Errorf("the records have format %s, this version of Escale knows %s; downgrading is not possible: %w",
			v, formatVersion, errdefs.ErrFailedPrecondition)
	}
	if err := b.Put(keyVersion, []byte(formatVersion)); err != nil {
		return err
	}
	_, err = b.CreateBucketIfNotExists(bucketImages)
	return err
}

// readRecords reads every record.
func readRecords(tx *bolt.Tx) ([]*record, error) {
	var out []*record
	err := tx.Bucket(bucketOwn).Bucket(bucketImages).ForEach(func(k, v []byte) error {
		r, err := decodeRecord(v)
		if err != nil {
			return fmt.Errorf("record of image %s: %w", k, err)
		}
		out = append(out, r)
		return nil
	})
	return out, err
}
