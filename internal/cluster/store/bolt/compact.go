package bolt

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"escale.dev/escale/internal/sys/atomicfile"
	"go.etcd.io/bbolt"
)

// A file is written anew when it is opened, if it is of bigFrom bytes at least and what is
// in it has less than one in sparse of them: bbolt gives nothing back by itself.
const (
	bigFrom = 4 << 20
	sparse  = 4
)

// part is how much is written at once, in bytes: all of it is in memory until then.
const part = 1 << 20

// newFile is where the smaller file is made, beside the one whose name it gets.
func newFile(path string) string { return path + ".new" }

// tidy removes what a compaction that was cut off has left.
func tidy(path string) error {
	if err := os.Remove(newFile(path)); !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// bloated tells whether a file is much larger than so many bytes of content.
func bloated(path string, content int64) (bool, error) {
	info, err := os.Stat(path)
	return err == nil && info.Size() >= bigFrom && content*sparse < info.Size(), err
}

// compact writes a store into a file of its size, which takes the old one's place once it
// is durable, and gives it, open. Both files are locked until then. Without room on the
// disk it gives the old one: nothing is lost but space.
func compact(db *bbolt.DB) (*bbolt.DB, error) {
	path := db.Path()
	o := options()
	o.NoSync = true
	small, err := bbolt.Open(newFile(path), 0o600, o)
	if err != nil {
		return db, errors.Join(fmt.Errorf("compaction: %w", err), tidy(path))
	}
	if err = bbolt.Compact(small, db, part); err == nil {
		err = small.Sync()
	}
	if err == nil {
		err = os.Rename(newFile(path), path)
	}
	if err != nil {
		return db, errors.Join(fmt.Errorf("compaction: %w", err), small.Close(), tidy(path))
	}
	small.NoSync = false
	// From here on there is only the new one.
	return small, errors.Join(atomicfile.SyncDir(filepath.Dir(path)), db.Close())
}
