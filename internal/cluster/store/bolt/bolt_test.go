package bolt

import (
	"path/filepath"
	"testing"

	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, true, func(t *testing.T, dir string) store.Store {
		s, err := Open(filepath.Join(dir, "state.db"))
		if err != nil {
			t.Fatal(err)
		}
		return s
	})
}
