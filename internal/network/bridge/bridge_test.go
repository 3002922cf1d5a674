package bridge_test

import (
	"testing"

	"escale.dev/escale/internal/network"
	"escale.dev/escale/internal/network/bridge"
	"escale.dev/escale/internal/network/networktest"
	"escale.dev/escale/internal/sys/netns/netnstest"
)

func TestMain(m *testing.M) { netnstest.Main(m) }

func TestDriver(t *testing.T) {
	networktest.Test(t, networktest.Subject{
		New: func(*testing.T) network.Driver {
			cfg := network.DefaultConfig()
			cfg.Instance = "suite"
			return bridge.New(cfg)
		},
		Links: true, HostLinks: true,
	})
}
