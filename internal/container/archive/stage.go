package archive

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"strings"

	"golang.org/x/sys/unix"
)

// What a restoration has in hand lies in the tree that is to be replaced, since only
// there renaming is sure to work. The name tells how far it has come:
const (
	stagingName = ".escale-restore"
	stagingOut  = stagingName + ".out" // all is there; what the tree had is being moved away
	stagingIn   = stagingName + ".in"  // and what is to be in its place comes in
)

// The directories in it.
const (
	stagedNew  = "new"
	stagedOld  = "old"
	stagedTime = "time" // has the time that the tree's own directory is to have
)

// Staging is a tree that is to take the place of another's content, all or nothing.
// Whoever can write to the tree meanwhile can spoil it, but nothing outside.
type Staging struct {
	root *os.File
	dir  *os.File // of what is to come
}

// Stage reads an archive, as Backup writes them, into a directory aside; the content of
// the tree stays as it is until Commit. A restoration that was cut off before is
// finished or undone first. With an error nothing of the archive is left.
// Kinds: InvalidArgument for a bad archive.
func Stage(ctx context.Context, root *os.File, r io.Reader) (*Staging, error) {
	if err := Recover(root); err != nil {
		return nil, err
	}
	fd := int(root.Fd())
	if err := unix.Mkdirat(fd, stagingName, 0o700); err != nil {
		return nil, &os.PathError{Op: "mkdir", Path: stagingName, Err: err}
	}
	s := &Staging{root: root}
	err := s.fill(ctx, r)
	if err != nil {
		return nil, errors.Join(err, s.Abort())
	}
	return s, nil
}

func (s *Staging) fill(ctx context.Context, r io.Reader) error {
	for _, name := range []string{stagedNew, stagedOld} {
		if err := unix.Mkdirat(int(s.root.Fd()), stagingName+"/"+name, 0o755); err != nil {
			return &os.PathError{Op: "mkdir", Path: name, Err: err}
		}
	}
	fd, err := directoryAt(int(s.root.Fd()), stagingName, stagedNew)
	if err != nil {
		return err
	}
	s.dir = os.NewFile(uintptr(fd), stagedNew)
	if err := Unpack(ctx, s.dir, r); err != nil {
		return err
	}
	if err := s.noteTime(fd); err != nil {
		return err
	}
	return unix.Syncfs(fd)
}

// Unpack reads an archive, as Backup writes them, into an empty tree, and r to its end. With an
// error the tree has part of it. Kinds: InvalidArgument for a bad archive, or one that was cut off.
func Unpack(ctx context.Context, root *os.File, r io.Reader) error {
	stream := &ender{r: r}
	if err := Write(ctx, root, "/", stream, WriteOptions{Exact: true}); err != nil {
		return err
	}
	if stream.ended { // between two entries, where the library sees no harm
		return badArchive(io.ErrUnexpectedEOF)
	}
	// To the end of what is behind the archive: a checksum may stand there.
	if _, err := io.Copy(io.Discard, r); err != nil {
		return badArchive(err)
	}
	names, err := list(int(root.Fd()))
	if err != nil {
		return err
	}
	for _, name := range names {
		if isStaging(name) {
			return invalidf("bad name in the archive: %q is Escale's own", name)
		}
	}
	return nil
}

// noteTime keeps the time of the directory that is to come: taking out of it what is in
// it changes that.
func (s *Staging) noteTime(fd int) error {
	var st unix.Stat_t
	if err := unix.Fstat(fd, &st); err != nil {
		return err
	}
	name := stagingName + "/" + stagedTime
	if err := unix.Mknodat(int(s.root.Fd()), name, unix.S_IFREG|0o600, 0); err != nil {
		return &os.PathError{Op: "create", Path: name, Err: err}
	}
	return unix.UtimesNanoAt(int(s.root.Fd()), name, []unix.Timespec{st.Mtim, st.Mtim}, unix.AT_SYMLINK_NOFOLLOW)
}

// ender tells whether a stream has been read to its end. That of a whole archive has
// not: two blocks of zeros end it.
type ender struct {
	r     io.Reader
	ended bool
}

func (e *ender) Read(b []byte) (int, error) {
	n, err := e.r.Read(b)
	if n > 0 && err == io.EOF {
		err = nil // it comes again
	}
	e.ended = e.ended || err == io.EOF
	return n, err
}

// directoryAt opens a directory by its steps, none of which is a link.
func directoryAt(fd int, steps ...string) (int, error) {
	how := unix.OpenHow{
		Flags:   unix.O_RDONLY | unix.O_DIRECTORY | unix.O_NOFOLLOW | unix.O_CLOEXEC,
		Resolve: unix.RESOLVE_BENEATH | unix.RESOLVE_NO_SYMLINKS | unix.RESOLVE_NO_XDEV,
	}
	name := strings.Join(steps, "/")
	for {
		found, err := unix.Openat2(fd, name, &how)
		switch err {
		case nil:
			return found, nil
		case unix.EINTR, unix.EAGAIN:
		default:
			return -1, &os.PathError{Op: "open", Path: name, Err: err}
		}
	}
}

// Abort drops what was staged. Idempotent.
func (s *Staging) Abort() error {
	s.close()
	return remove(int(s.root.Fd()), stagingName)
}

func (s *Staging) close() {
	if s.dir != nil {
		s.dir.Close()
		s.dir = nil
	}
}

// Commit puts what was staged in the place of what the tree had, by renaming, and
// deletes that. When it fails half-way, or is killed, Recover finishes it.
func (s *Staging) Commit() error {
	s.close()
	fd := int(s.root.Fd())
	if err := unix.Renameat(fd, stagingName, fd, stagingOut); err != nil {
		return &os.PathError{Op: "rename", Path: stagingName, Err: err}
	}
	return finish(fd)
}

// Empty tells whether a tree has no content; what every new file system has, and what
// restorations have in hand, is none.
func Empty(root *os.File) (bool, error) {
	names, err := list(int(root.Fd()))
	if err != nil {
		return false, err
	}
	for _, name := range names {
		if !isStaging(name) && name != "lost+found" {
			return false, nil
		}
	}
	return true, nil
}

// Recover finishes a restoration that was cut off after all was there, and undoes one
// that was cut off before. Without one it costs three looks.
func Recover(root *os.File) error {
	fd := int(root.Fd())
	if there(fd, stagingName) {
		if err := remove(fd, stagingName); err != nil {
			return fmt.Errorf("undoing a restoration that was cut off: %w", err)
		}
	}
	if !there(fd, stagingOut) && !there(fd, stagingIn) {
		return nil
	}
	if err := finish(fd); err != nil {
		return fmt.Errorf("finishing a restoration that was cut off: %w", err)
	}
	return nil
}

// Unfinished tells whether Recover has something to do in the tree at path.
func Unfinished(path string) bool {
	for _, name := range []string{stagingName, stagingOut, stagingIn} {
		var st unix.Stat_t
		if unix.Lstat(path+"/"+name, &st) == nil {
			return true
		}
	}
	return false
}

func there(fd int, name string) bool {
	var st unix.Stat_t
	return unix.Fstatat(fd, name, &st, unix.AT_SYMLINK_NOFOLLOW) == nil
}

// finish does what is left of a restoration from stagingOut on. Each step can be
// done again.
func finish(root int) error {
	if there(root, stagingOut) {
		old, err := directoryAt(root, stagingOut, stagedOld)
		if err != nil {
			return err
		}
		err = moveAll(root, old)
		unix.Close(old)
		if err != nil {
			return err
		}
		if err := syncThenRename(root, stagingOut, stagingIn); err != nil {
			return err
		}
	}
	fresh, err := directoryAt(root, stagingIn, stagedNew)
	if err != nil {
		return err
	}
	defer unix.Close(fresh)
	if err := moveAll(fresh, root); err != nil {
		return err
	}
	if err := dressAlike(root, fresh); err != nil {
		return err
	}
	if err := unix.Syncfs(root); err != nil {
		return err
	}
	// The deletion changes the directory's time, which is the archive's.
	var st unix.Stat_t
	if err := unix.Fstatat(root, stagingIn+"/"+stagedTime, &st, unix.AT_SYMLINK_NOFOLLOW); err != nil {
		return err
	}
	if err := remove(root, stagingIn); err != nil {
		return err
	}
	return unix.UtimesNanoAt(unix.AT_FDCWD, self(root), []unix.Timespec{st.Mtim, st.Mtim}, 0)
}

func syncThenRename(root int, from, to string) error {
	if err := unix.Syncfs(root); err != nil {
		return err
	}
	if err := unix.Renameat(root, from, root, to); err != nil {
		return &os.PathError{Op: "rename", Path: from, Err: err}
	}
	return unix.Syncfs(root)
}

// moveAll renames what is in one directory into another, but what restorations have
// in hand.
func moveAll(from, to int) error {
	names, err := list(from)
	if err != nil {
		return err
	}
	for _, name := range names {
		if isStaging(name) {
			continue
		}
		if err := unix.Renameat(from, name, to, name); err != nil && err != unix.ENOENT {
			return &os.PathError{Op: "rename", Path: name, Err: err}
		}
	}
	return nil
}

// dressAlike gives a directory the owner, attributes and mode of another.
func dressAlike(dir, like int) error {
	var st unix.Stat_t
	if err := unix.Fstat(like, &st); err != nil {
		return err
	}
	hdr := header(&st, "./")
	everyAttribute(like, hdr)
	u := &unpacker{o: WriteOptions{Exact: true}}
	var now unix.Stat_t
	if err := unix.Fstat(dir, &now); err != nil {
		return err
	}
	err := u.dress(dir, Owner{int(st.Uid), int(st.Gid)}, st.Mode&0o7777, hdr)
	if errors.Is(err, fs.ErrPermission) && now.Uid == st.Uid && now.Gid == st.Gid && now.Mode == st.Mode {
		return nil // a file server that lets nobody change its top, which need not be changed
	}
	return err
}
