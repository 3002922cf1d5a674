package image

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strconv"

	"github.com/containerd/containerd/v2/core/snapshots/storage"
	"github.com/containerd/errdefs"
)

// setAside renames the directories of snapshots that the metadata does not know:
// an engine killed while it made one leaves its directory, and the number in its
// name is given out again. Under the new name the collector deletes them in its
// own time; deleting them by number could take the next owner's.
func setAside(ctx context.Context, ms *storage.MetaStore, dir string) error {
	known := map[string]string{}
	err := ms.WithTransaction(ctx, false, func(ctx context.Context) (err error) {
		known, err = storage.IDMap(ctx)
		return err
	})
	if err != nil && !errdefs.IsNotFound(err) { // a new store knows nothing
		return err
	}
	list, err := os.ReadDir(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	for _, d := range list {
		if _, err := strconv.ParseUint(d.Name(), 10, 64); err != nil {
			continue
		}
		if _, ok := known[d.Name()]; ok {
			continue
		}
		if err := os.Rename(filepath.Join(dir, d.Name()), freeName(dir, d.Name())); err != nil {
			return err
		}
	}
	return nil
}

// freeName is a name in dir that nothing has, for what the number named.
func freeName(dir, number string) string {
	for i := 0; ; i++ {
		path := filepath.Join(dir, "new-orphan-"+number+"-"+strconv.Itoa(i))
		if _, err := os.Lstat(path); errors.Is(err, os.ErrNotExist) {
			return path
		}
	}
}
