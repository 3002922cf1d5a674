package image

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/containerd/errdefs"
	bolt "go.etcd.io/bbolt"
)

func TestImport(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	img, err := s.Import(ctx, bytes.NewReader(makeTar(t, file{name: "a/"}, file{name: "a/f", data: "hello"})), ImportOptions{
		Ref: "debian", Message: "Imported from -", Changes: []string{`CMD ["bash"]`, "ENV A=b"}})
	if err != nil {
		t.Fatal(err)
	}
	if got := rootOf(t, s, img.ID); got != "a/f=hello" {
		t.Errorf("files: %s", got)
	}
	if img.Size != 5 || img.Comment != "Imported from -" || img.Config.OS != "linux" || img.Config.Created == nil || img.LastTagged.IsZero() ||
		strings.Join(img.RepoTags, " ") != "debian:latest" || strings.Join(img.Config.Config.Cmd, " ") != "bash" || len(img.RepoDigests) != 0 {
		t.Errorf("image: %+v", img)
	}
	h, err := s.History(ctx, "debian")
	if err != nil || len(h) != 1 || h[0].ID != img.ID || h[0].Comment != "Imported from -" || h[0].Size != 5 || h[0].Tags[0] != "debian:latest" {
		t.Errorf("history: %+v %v", h, err)
	}
	before := count(t, s)
	for name, tc := range map[string]struct {
		data []byte
		o    ImportOptions
		want string
	}{
		"noise":     {[]byte(strings.Repeat("noise", 1000)), ImportOptions{}, "archive/tar: invalid tar header"},
		"truncated": {makeTar(t, file{name: "f", data: strings.Repeat("x", 9000)})[:5000], ImportOptions{}, "unexpected EOF"},
		"bad gzip":  {append([]byte{0x1f, 0x8b, 8}, make([]byte, 50)...), ImportOptions{}, ""},
		"change":    {nil, ImportOptions{Changes: []string{"RUN x"}}, "RUN is not a valid change command"},
		"name":      {nil, ImportOptions{Ref: "UPPER"}, "invalid reference format: repository name (library/UPPER) must be lowercase"},
		"digest":    {nil, ImportOptions{Ref: "a@" + img.ID}, "cannot import digest reference"},
		"windows":   {nil, ImportOptions{Platform: "windows/amd64"}, "operating system is not supported"},
		"whiteout":  {makeTar(t, file{name: "x", data: "1"}, file{name: "d/.wh..."}), ImportOptions{}, ""},
	} {
		_, err := s.Import(ctx, bytes.NewReader(tc.data), tc.o)
		if err == nil || tc.want != "" && err.Error() != tc.want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("%s: %v", name, err)
		}
		if after := count(t, s); after != before {
			t.Errorf("%s leaves something: %+v, before %+v", name, after, before)
		}
	}
	// The client hangs up.
	pr, pw := io.Pipe()
	hung, cancel := context.WithCancel(ctx)
	go func() {
		pw.Write(makeTar(t, file{name: "f", data: strings.Repeat("x", 1<<20)})[:1<<19])
		cancel()
		pw.CloseWithError(io.ErrUnexpectedEOF)
	}()
	if _, err := s.Import(hung, pr, ImportOptions{}); err == nil {
		t.Error("an import whose client hung up succeeds")
	}
	if after := count(t, s); after != before {
		t.Errorf("hanging up leaves something: %+v, before %+v", after, before)
	}
	// An empty tar is an image without files, as with Docker.
	if _, err := s.Import(ctx, bytes.NewReader(nil), ImportOptions{}); err != nil {
		t.Errorf("empty: %v", err)
	}
}

func TestLookup(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	img := importTar(t, s, "reg.example:5000/a/b:v1", file{name: "f", data: "1"})
	hex := strings.TrimPrefix(img.ID, "sha256:")
	if err := s.Tag(ctx, hex[:12], "plain"); err != nil {
		t.Fatal(err)
	}
	for _, ref := range []string{"reg.example:5000/a/b:v1", "plain", "plain:latest", "docker.io/library/plain", img.ID, hex, hex[:12], "sha256:" + hex[:7]} {
		if got, err := s.Get(ctx, ref); err != nil || got.ID != img.ID {
			t.Errorf("%s: %s %v", ref, got.ID, err)
		}
	}
	other := hex[:len(hex)-1] + "0"
	if other == hex {
		other = hex[:len(hex)-1] + "1"
	}
	for ref, want := range map[string]string{
		"nosuch:1": "No such image: nosuch:1", "nosuch": "No such image: nosuch:latest", "plain:v2": "No such image: plain:v2",
		"sha256:" + other: "No such image: sha256:" + other, other: "No such image: sha256:" + other,
		"plain@sha256:" + other: "No such image: plain@sha256:" + other, "sha256:" + other[:5] + "zz": "",
	} {
		if _, err := s.Get(ctx, ref); err == nil || !errdefs.IsNotFound(err) && want != "" || want != "" && err.Error() != want {
			t.Errorf("%s: %v, want %s", ref, err, want)
		}
	}
	if _, err := s.Get(ctx, "UPPER"); !errdefs.IsInvalidArgument(err) {
		t.Errorf("UPPER: %v", err)
	}
	// Two images whose ids begin alike: enough of them to have a pair.
	for i := range 20 {
		importTar(t, s, "", file{name: "f", data: strings.Repeat("y", i)})
	}
	list, err := s.List(ctx)
	if err != nil || len(list) != 21 {
		t.Fatalf("%d images, %v", len(list), err)
	}
	for i := 1; i < len(list); i++ {
		if created(list[i]).After(created(list[i-1])) {
			t.Error("not the newest first")
		}
	}
	seen := map[byte]bool{}
	for _, i := range list {
		if c := i.ID[7]; seen[c] {
			if _, err := s.Get(ctx, "sha256:"+string(c)); err == nil || err.Error() != "ambiguous reference" {
				t.Errorf("ambiguous: %v", err)
			}
		} else {
			seen[c] = true
		}
	}
}

func TestTagAndRemove(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	empty := count(t, s)
	a := importTar(t, s, "x:1", file{name: "f", data: "a"})
	b := importTar(t, s, "y:1", file{name: "f", data: "b"})
	if err := s.Tag(ctx, "y:1", "x:1"); err != nil { // moves
		t.Fatal(err)
	}
	if got, _ := s.Get(ctx, a.ID); len(got.RepoTags) != 0 {
		t.Errorf("the name did not move: %v", got.RepoTags)
	}
	for target, want := range map[string]string{
		"x@" + a.ID: "refusing to create a tag with a digest reference", "sha256:x": "refusing to create an ambiguous tag using digest algorithm as name",
		"X": "invalid reference format: repository name (library/X) must be lowercase",
	} {
		if err := s.Tag(ctx, "y:1", target); err == nil || err.Error() != want || !errdefs.IsInvalidArgument(err) {
			t.Errorf("tag %s: %v", target, err)
		}
	}
	if err := s.Tag(ctx, "nosuch", "z"); err == nil || err.Error() != "No such image: nosuch:latest" {
		t.Errorf("tag: %v", err)
	}
	const running, stopped = "0123456789abcdef", "fedcba9876543210"
	use := func(u ...User) func(string) []User {
		return func(id string) []User {
			if id == b.ID {
				return u
			}
			return nil
		}
	}
	sb, none := b.ID[7:19], RemoveOptions{}
	for _, tc := range []struct {
		ref, want string
		o         RemoveOptions
	}{
		{"nosuch:1", "No such image: nosuch:1", none},
		{b.ID, "conflict: unable to delete " + sb + " (must be forced) - image is referenced in multiple repositories", none},
		{sb, "conflict: unable to delete " + sb + " (must be forced) - image is referenced in multiple repositories", none},
		{b.ID, "conflict: unable to delete " + sb + " (cannot be forced) - image is being used by running container 0123456789ab",
			RemoveOptions{Force: true, Users: use(User{running, true})}},
	} {
		if _, err := s.Remove(ctx, tc.ref, tc.o); err == nil || err.Error() != tc.want {
			t.Errorf("rmi %s: %v\nwant %s", tc.ref, err, tc.want)
		}
	}
	got, err := s.Remove(ctx, "y:1", RemoveOptions{Users: use(User{running, true})})
	if err != nil || len(got) != 1 || got[0].Untagged != "y:1" {
		t.Errorf("one of two names: %v %v", got, err)
	}
	want := `conflict: unable to remove repository reference "x:1" (must force) - container fedcba987654 is using its referenced image ` + sb
	if _, err = s.Remove(ctx, "x:1", RemoveOptions{Users: use(User{stopped, false})}); err == nil || err.Error() != want || !errdefs.IsConflict(err) {
		t.Errorf("last name: %v", err)
	}
	want = "conflict: unable to delete " + sb + " (must be forced) - image is being used by stopped container fedcba987654"
	if _, err = s.Remove(ctx, b.ID, RemoveOptions{Users: use(User{stopped, false})}); err == nil || err.Error() != want {
		t.Errorf("by id: %v", err)
	}
	if got, err = s.Remove(ctx, "x:1", none); err != nil || len(got) != 3 || got[0].Untagged != "x:1" || got[1].Deleted != b.ID || got[2].Deleted != b.ChainID {
		t.Errorf("removal: %v %v", got, err)
	}
	if got, err = s.Remove(ctx, a.ID[7:12], none); err != nil || len(got) != 2 || got[0].Deleted != a.ID {
		t.Errorf("removal by id: %v %v", got, err)
	}
	if after := count(t, s); after != empty {
		t.Errorf("left: %+v, before %+v", after, empty)
	}
}

func TestPrune(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	s := open(t, Config{})
	a := importTar(t, s, "", file{name: "f", data: strings.Repeat("a", 5000)})
	b := importTar(t, s, "", file{name: "f", data: "b"})
	c := importTar(t, s, "c", file{name: "f", data: "c"})
	users := func(id string) []User {
		if id == b.ID {
			return []User{{"c1", false}}
		}
		return nil
	}
	p, err := s.Prune(ctx, PruneOptions{Users: users, Match: func(i Image) bool { return i.ID != a.ID }})
	if err != nil || len(p.Deleted) != 0 || p.Bytes != 0 {
		t.Errorf("nothing matches: %+v %v", p, err)
	}
	if p, err = s.Prune(ctx, PruneOptions{Users: users}); err != nil || len(p.Deleted) != 2 || p.Deleted[0].Deleted != a.ID || p.Bytes < 10000 {
		t.Errorf("dangling: %+v %v", p, err)
	}
	if n := entries(t, filepath.Join(s.cfg.Root, "snapshots/snapshots")); n != 2 {
		t.Errorf("%d directories after prune", n)
	}
	if p, err = s.Prune(ctx, PruneOptions{All: true, Users: users}); err != nil || p.Deleted[0].Untagged != "c:latest" || p.Deleted[1].Deleted != c.ID {
		t.Errorf("all: %+v %v", p, err)
	}
	if list, _ := s.List(ctx); len(list) != 1 || list[0].ID != b.ID {
		t.Errorf("left: %v", list)
	}
}

// TestReopen: what is stored is there again; what was half-made is not.
func TestReopen(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, Config{Root: root})
	img := importTar(t, s, "keep:1", file{name: "f", data: "kept"})
	if err := s.Roots().Prepare(ctx, "c1", img.ID); err != nil {
		t.Fatal(err)
	}
	before := count(t, s)
	// As a killed engine leaves it: a lease, an open snapshot, half a blob, and
	// on the disk what no record knows of.
	w, err := s.begin(ctx)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.unpack(bytes.NewReader(makeTar(t, file{name: "f", data: "lost"})), true); err != nil {
		t.Fatal(err)
	}
	if _, err := w.unpack(bytes.NewReader([]byte(strings.Repeat("noise", 999))), true); err == nil {
		t.Fatal("noise unpacks")
	}
	s.Close()
	for _, d := range []string{"snapshots/snapshots/777/fs", "snapshots/snapshots/new-1/fs", "content/ingest/abc"} {
		if err := os.MkdirAll(filepath.Join(root, d), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if _, err := Open(ctx, Config{Root: filepath.Join(root, "meta.db")}); err == nil {
		t.Error("a file is taken for a store")
	}
	s = open(t, Config{Root: root})
	after := count(t, s)
	if after != before {
		t.Errorf("after reopening %+v, before %+v", after, before)
	}
	if got, err := s.Get(ctx, "keep:1"); err != nil || got.ID != img.ID || got.Size != 4 || !got.LastTagged.Equal(img.LastTagged) {
		t.Errorf("%+v %v", got, err)
	}
	if got := tree(t, s, "c1"); got != "f=kept" {
		t.Errorf("container: %s", got)
	}
	if _, err := Open(ctx, Config{Root: root}); !errdefs.IsUnavailable(err) {
		t.Errorf("opened twice: %v", err)
	}
	if err := s.Roots().Keep(ctx, nil); err != nil {
		t.Fatal(err)
	}
	if list, _ := s.Roots().Containers(ctx); len(list) != 0 {
		t.Errorf("kept: %v", list)
	}
}

// TestRepair: what was unpacked before a power cut is unpacked again.
func TestRepair(t *testing.T) {
	needRoot(t)
	ctx := context.Background()
	root := t.TempDir()
	s := open(t, Config{Root: root})
	base := makeTar(t, file{name: "d/"}, file{name: "d/f", data: "good"})
	lines, err := load(t, s, dockerArchive{layers: [][]byte{base, makeTar(t, file{name: "g", data: "top"})}, tags: []string{"r:1"}}.build(t))
	if err != nil || len(lines) != 1 {
		t.Fatal(lines, err)
	}
	if err := s.Roots().Prepare(ctx, "c1", "r:1"); err != nil {
		t.Fatal(err)
	}
	r, _ := s.lookup("r:1")
	dirs, err := s.layerDirs(s.namespace(ctx), r.chain(), "look")
	for errdefs.IsNotFound(err) { // the load's collection takes what no lease holds
		dirs, err = s.layerDirs(s.namespace(ctx), r.chain(), "look")
	}
	if err != nil {
		t.Fatal(err)
	}
	s.gc.stop() // which on a slow disk would note only now that the image is on it
	c := newChange(s)
	c.edit(r.ID).Boot = "another"
	if err := c.commit(ctx, nil); err != nil {
		t.Fatal(err)
	}
	s.Close()
	if err := errors.Join(os.Truncate(filepath.Join(dirs[1], "d/f"), 0), os.Remove(filepath.Join(dirs[0], "g"))); err != nil {
		t.Fatal(err)
	}
	s = open(t, Config{Root: root})
	if got := tree(t, s, "c1"); got != "d/f=good g=top" {
		t.Errorf("after the repair: %s", got)
	}
	if err := s.settle(ctx); err != nil {
		t.Fatal(err)
	}
	if r, _ := s.lookup("r:1"); r.Boot != "" {
		t.Error("still young after settling")
	}
}

// TestFormat: a later format is refused, fields of a later version survive.
func TestFormat(t *testing.T) {
	needRoot(t)
	root := t.TempDir()
	s := open(t, Config{Root: root})
	img := importTar(t, s, "a:1", file{name: "f"})
	s.Close()
	edit := func(fn func(b *bolt.Bucket) error) {
		t.Helper()
		db, err := bolt.Open(filepath.Join(root, "meta.db"), 0o600, nil)
		if err != nil {
			t.Fatal(err)
		}
		defer db.Close()
		if err := db.Update(func(tx *bolt.Tx) error { return fn(tx.Bucket(bucketOwn)) }); err != nil {
			t.Fatal(err)
		}
	}
	var fields map[string]any
	edit(func(b *bolt.Bucket) error {
		if err := json.Unmarshal(b.Bucket(bucketImages).Get([]byte(img.ID)), &fields); err != nil {
			return err
		}
		for name := range fields { // every field we write is one we know
			if !strings.Contains(" "+strings.Join(recordFields, " ")+" ", " "+name+" ") {
				t.Errorf("field %s is not in recordFields", name)
			}
		}
		fields["future"] = map[string]any{"a": 1}
		data, err := json.Marshal(fields)
		return errors.Join(err, b.Bucket(bucketImages).Put([]byte(img.ID), data))
	})
	s = open(t, Config{Root: root})
	if err := s.Tag(context.Background(), "a:1", "b:1"); err != nil {
		t.Fatal(err)
	}
	s.Close()
	edit(func(b *bolt.Bucket) error {
		if got := string(b.Bucket(bucketImages).Get([]byte(img.ID))); !strings.Contains(got, `"future":{"a":1}`) || !strings.Contains(got, "b:1") {
			t.Errorf("record: %s", got)
		}
		return b.Put(keyVersion, []byte("2"))
	})
	if _, err := Open(context.Background(), Config{Root: root}); !errdefs.IsFailedPrecondition(err) || !strings.Contains(err.Error(), "format 2") {
		t.Errorf("a later format: %v", err)
	}
}
