package volume

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"

	"github.com/containerd/errdefs"
	"github.com/moby/locker"
)

// Driver keeps volumes. Methods without a context work in memory; the others block
// for the disk, the kernel, or the program that keeps the volume, and Mount may
// outlast its context there. Errors have the kinds of containerd/errdefs.
type Driver interface {
	// Has tells whether a volume of the name is known, without asking anybody.
	Has(name string) bool
	// Acquire gives a volume, makes it when it is not there, and notes user as
	// one that holds it; "" is nobody.
	Acquire(ctx context.Context, r Request, user string) (Volume, error)
	// Get finds a volume. Kind: NotFound.
	Get(ctx context.Context, name string) (Volume, error)
	// List gives all volumes. Warnings tell what could not be asked.
	List(ctx context.Context) (list []Volume, warnings []string)
	// Size is the bytes of a volume's files; it looks at all of them.
	Size(ctx context.Context, name string) (int64, error)
	// Release ends what Acquire noted. Idempotent.
	Release(name, user string)
	// Remove deletes a volume. Kinds: NotFound, unless force; Conflict while
	// somebody holds it. Force forgets one whose keeper cannot be asked.
	Remove(ctx context.Context, name string, force bool) error
	// Mount makes that its data is at path as long as user has it. Idempotent for each user.
	Mount(ctx context.Context, name, user string) (path string, err error)
	// Unmount ends what Mount began. Idempotent.
	Unmount(name, user string) error
	// Settle ends what an engine before this one had mounted for users that have
	// not asked for it since.
	Settle()
}

// Set is the volumes of all drivers. A name is one volume's, whoever keeps it.
// Safe for concurrent use.
type Set struct {
	local, plugins Driver
	making         *locker.Locker // by name: whose it is to be is being found out
}

// NewSet makes a Set of the local volumes and those of plugins.
func NewSet(local, plugins Driver) *Set {
	return &Set{local: local, plugins: plugins, making: locker.New()}
}

// Create makes a volume, or gives the one that has the name. Kinds:
// InvalidArgument, NotFound (the driver), Conflict (another driver's).
func (s *Set) Create(ctx context.Context, r Request) (Volume, error) { return s.Acquire(ctx, r, "") }

// Acquire is Create for a user that holds the volume from then on.
func (s *Set) Acquire(ctx context.Context, r Request, user string) (Volume, error) {
	r.Labels = maps.Clone(r.Labels)
	if r.Name == "" {
		r.Name, r.Unnamed = NewName(), true
	}
	if r.Unnamed {
		if r.Labels == nil {
			r.Labels = map[string]string{}
		}
		r.Labels[Anonymous] = ""
		r.Driver = cmp.Or(r.Driver, Local)
	}
	s.making.Lock(r.Name)
	defer s.making.Unlock(r.Name)
	return s.keeper(ctx, &r).Acquire(ctx, r, user)
}

// keeper tells whose a volume is, or is to be.
func (s *Set) keeper(ctx context.Context, r *Request) Driver {
	switch {
	case s.plugins.Has(r.Name):
		return s.plugins
	case r.Driver == Local, s.local.Has(r.Name) && (r.Driver == "" || r.Held):
		return s.local
	case s.local.Has(r.Name):
		return taken{s.local}
	case r.Driver != "":
		return s.plugins
	case r.Held:
		return s.local
	}
	// A plugin may have it from elsewhere.
	if _, err := s.plugins.Get(ctx, r.Name); err == nil {
		return s.plugins
	}
	return s.local
}

// taken refuses to make what a local volume has the name of.
type taken struct{ Driver }

// Acquire refuses.
func (taken) Acquire(_ context.Context, r Request, _ string) (Volume, error) {
	return Volume{}, Taken(r.Name, Local)
}

// Taken is the refusal of a volume whose name another driver's volume has. Kind: Conflict.
func Taken(name, driver string) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf("create %s: driver '%s' already has volume '%s': volume name must be unique", name, driver, name))
}

// of is the driver that has a volume, or has to tell that it has not.
func (s *Set) of(name string) Driver {
	if s.local.Has(name) {
		return s.local
	}
	return s.plugins
}

// Get finds a volume. Kind: NotFound.
func (s *Set) Get(ctx context.Context, name string) (Volume, error) { return s.of(name).Get(ctx, name) }

// List gives all volumes, by name. Warnings tell whom it could not ask.
func (s *Set) List(ctx context.Context) ([]Volume, []string) {
	list, _ := s.local.List(ctx)
	more, warnings := s.plugins.List(ctx)
	for _, v := range more {
		if !s.local.Has(v.Name) {
			list = append(list, v)
		}
	}
	slices.SortFunc(list, func(a, b Volume) int { return cmp.Compare(a.Name, b.Name) })
	return list, warnings
}

// Size adds up the files of a volume; it walks all of them. Kind: NotFound.
func (s *Set) Size(ctx context.Context, name string) (int64, error) {
	return s.of(name).Size(ctx, name)
}

// Release notes that user no longer holds the volume.
func (s *Set) Release(name, user string) { s.of(name).Release(name, user) }

// Remove deletes a volume and its data. Kinds: NotFound, unless force; Conflict
// while somebody holds it.
func (s *Set) Remove(ctx context.Context, name string, force bool) error {
	s.making.Lock(name)
	defer s.making.Unlock(name)
	return s.of(name).Remove(ctx, name, force)
}

// Mount gives the place of a volume's data, which is there as long as user has
// it. It blocks as long as the kernel and a plugin take.
func (s *Set) Mount(ctx context.Context, name, user string) (string, error) {
	return s.of(name).Mount(ctx, name, user)
}

// Unmount ends what Mount began for user. Idempotent.
func (s *Set) Unmount(name, user string) error { return s.of(name).Unmount(name, user) }

// Settle unmounts what an engine before this one had mounted for containers that
// do not run any more. Called once those that run have what they need.
func (s *Set) Settle() {
	s.local.Settle()
	s.plugins.Settle()
}

// ErrNone is what a driver without volumes answers. Kind: NotFound.
func ErrNone(name string) error {
	return errdefs.ErrNotFound.WithMessage(fmt.Sprintf("get %s: no such volume", name))
}

// InUse is the refusal to remove a volume that somebody holds. Kind: Conflict.
func InUse(v *Volume) error {
	return errdefs.ErrConflict.WithMessage(fmt.Sprintf("remove %s: volume is in use - [%s]", v.Name, strings.Join(v.Users, ", ")))
}
