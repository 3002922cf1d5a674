package image

import (
	"context"

	"github.com/opencontainers/go-digest"
	ocispec "github.com/opencontainers/image-spec/specs-go/v1"
)

// sharedConfig is an image's config as the pulls under way that need it have it.
type sharedConfig struct {
	users int           // guarded by Remotes.mu
	turn  chan struct{} // full while one of them fetches; guards data
	data  []byte        // nil: not fetched
}

// useConfig joins those who need a config. After the last left it is forgotten.
func (m *Remotes) useConfig(d digest.Digest) (c *sharedConfig, leave func()) {
	m.mu.Lock()
	defer m.mu.Unlock()
	c = m.configs[d]
	if c == nil {
		c = &sharedConfig{turn: make(chan struct{}, 1)}
		m.configs[d] = c
	}
	c.users++
	return c, func() {
		m.mu.Lock()
		defer m.mu.Unlock()
		if c.users--; c.users == 0 {
			delete(m.configs, d)
		}
	}
}

// get fetches the config, or waits for who does. A fetch that fails is its caller's
// alone: the next in line tries, with its own login and its own patience.
func (c *sharedConfig) get(ctx context.Context, src Source, bounds *transfers, d ocispec.Descriptor) ([]byte, error) {
	select {
	case c.turn <- struct{}{}:
		defer func() { <-c.turn }()
	case <-ctx.Done():
		return nil, context.Cause(ctx)
	}
	if c.data != nil {
		return c.data, nil
	}
	data, err := smallBlob(ctx, src, bounds, d)
	if err == nil {
		c.data = data
	}
	return data, err
}
