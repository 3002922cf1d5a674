package native

import (
	"errors"
	"fmt"
	"os"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/fork"
	"escale.dev/escale/internal/runtime/native/mounts"
)

// forkWhole starts the half inside in a user namespace, new or another's, or in none of its own,
// with a copy of our memory until it is the program.
func (o *outfit) forkWhole(exe int, fds []uintptr) (int, error) {
	p := o.program(exe, fds)
	flags := int(o.born())
	if o.user != nil {
		return fork.Join(p, o.user, flags)
	}
	return fork.New(p, flags, o.users)
}

// mapIDs has a tree show other owners than it has on disk (mount_setattr(2)).
func (p *preparation) mapIDs(m *specs.Mount, o *mounts.Parsed, tree int) error {
	own := len(m.UIDMappings)+len(m.GIDMappings) > 0
	if !o.MapIDs && !own {
		return nil
	}
	maps := &fork.Maps{UIDs: m.UIDMappings, GIDs: m.GIDMappings}
	var users *os.File
	var err error
	switch l := p.spec.Linux; {
	case own && (len(m.UIDMappings) == 0 || len(m.GIDMappings) == 0):
		return errors.New("id-mapped mounts need both uid and gid mappings")
	case !own && p.out.user != nil:
		users = p.out.user
	case !own && p.out.users == nil:
		return errors.New("id-mapped mounts without mappings need a user namespace")
	case !own:
		maps.UIDs, maps.GIDs = l.UIDMappings, l.GIDMappings
	}
	if users == nil {
		if users, err = fork.Namespace(maps); err != nil {
			return fmt.Errorf("id-mapped mount: %w", err)
		}
		defer users.Close()
	}
	attr := unix.MountAttr{Attr_set: unix.MOUNT_ATTR_IDMAP, Userns_fd: uint64(users.Fd())}
	if err := setTree(tree, &attr, o.MapIDsBelow); err != nil {
		return fmt.Errorf("id-mapped mount: %w", err)
	}
	return nil
}
