package none_test

import (
	"testing"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/networktest"
	"escale.dev/escale/internal/network/none"
	"escale.dev/escale/internal/sys/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func TestDriver(t *testing.T) {
	networktest.Test(t, networktest.Subject{
		New:   func(*testing.T) network.Driver { return none.New() },
		Links: false,
	})
}
