// Package atomicfile writes files that are either wholly the old or wholly the
// new ones, whenever the process or the machine dies. It imports little, so that
// the monitors can afford it too.
package atomicfile

import (
	"errors"
	"io"
	"os"
	"path/filepath"
	"strings"
	"syscall"
)

// Temporaries are named .NAME<infix>RANDOM in the directory of NAME: hidden, and
// impossible to take for anything else.
const infix = ".atomic-"

// attempts bounds how often Write begins again after a Collect in the same
// directory took its temporary away.
const attempts = 10

// Options chooses how durable a write is.
type Options struct {
	// Sync makes the new content survive a power cut once Write has returned, at
	// the price of two fsyncs. Without it the file is still replaced in one step
	// as processes see it, and survives the death of any process.
	Sync bool
}

// Write replaces path by a file with this content and exactly this mode, whatever
// the umask. It blocks for the disk if o.Sync is set. After an error path is as it
// was and no temporary is left, with one exception: if only the last step, the
// fsync of the directory, failed, path has the new content and may lose it in a
// power cut. A symbolic link at path is itself replaced. Errors are *os.PathError
// and *os.LinkError.
func Write(path string, data []byte, perm os.FileMode, o Options) error {
	dir, name := filepath.Split(path)
	if dir == "" {
		dir = "."
	}
	var err error
	for range attempts {
		if err = replace(dir, name, path, data, perm, o); !errors.Is(err, errTaken) {
			break
		}
	}
	if err != nil {
		return err
	}
	if o.Sync {
		return SyncDir(dir)
	}
	return nil
}

// errTaken says that the temporary vanished between its writing and its renaming.
var errTaken = errors.New("temporary file was collected")

func replace(dir, name, path string, data []byte, perm os.FileMode, o Options) error {
	f, err := os.CreateTemp(dir, "."+name+infix+"*")
	if err != nil {
		return err
	}
	tmp := f.Name()
	err = fill(f, data, perm, o.Sync)
	if cerr := f.Close(); err == nil {
		err = cerr
	}
	if err == nil {
		if err = os.Rename(tmp, path); err == nil {
			return nil
		}
		if _, serr := os.Lstat(tmp); errors.Is(serr, os.ErrNotExist) && errors.Is(err, os.ErrNotExist) {
			if _, serr := os.Stat(dir); serr == nil {
				return errors.Join(errTaken, err)
			}
		}
	}
	_ = os.Remove(tmp) // the first error is the one to tell
	return err
}

func fill(f *os.File, data []byte, perm os.FileMode, sync bool) error {
	if _, err := f.Write(data); err != nil {
		return err
	}
	if err := f.Chmod(perm); err != nil {
		return err
	}
	if sync {
		return f.Sync()
	}
	return nil
}

// SyncDir makes the names in dir durable: what was created, renamed or removed in it
// before stays so after a power cut. It blocks for the disk. File systems that cannot
// do it (EINVAL) need not and are no error.
func SyncDir(dir string) error {
	d, err := os.Open(dir)
	if err != nil {
		return err
	}
	defer d.Close()
	if err := d.Sync(); err != nil && !errors.Is(err, syscall.EINVAL) {
		return err
	}
	return nil
}

// IsTemp reports whether a file name (without directory) is that of a temporary of
// Write, live or left by a crash.
func IsTemp(name string) bool {
	return strings.HasPrefix(name, ".") && strings.Contains(name[1:], infix)
}

// Collect removes the temporaries that crashed writers left in dir (not below it).
// It may run beside living writers: one whose temporary it takes begins again. A
// missing dir is no error; of several errors the first is returned, after everything
// that could be removed was.
func Collect(dir string) error {
	d, err := os.Open(dir)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	} else if err != nil {
		return err
	}
	defer d.Close()
	var first error
	for {
		names, err := d.Readdirnames(256)
		for _, name := range names {
			if !IsTemp(name) {
				continue
			}
			rerr := os.Remove(filepath.Join(dir, name))
			if rerr != nil && !errors.Is(rerr, os.ErrNotExist) && first == nil {
				first = rerr
			}
		}
		if err == io.EOF {
			return first
		} else if err != nil {
			return err
		}
	}
}
