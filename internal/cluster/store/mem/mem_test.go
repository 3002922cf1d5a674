package mem

import (
	"testing"

	"escale.dev/escale/internal/cluster/store"
	"escale.dev/escale/internal/cluster/store/storetest"
)

func TestStore(t *testing.T) {
	storetest.Run(t, false, func(*testing.T, string) store.Store { return New(store.NewState()) })
}
