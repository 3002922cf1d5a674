package container

import (
	"os"
	"path/filepath"
)

// initEntries are what every start needs in a root: points to mount on, and marks of
// containers. Docker makes them in a layer of each container's own, so that they are
// no change of it; modes are Docker's. A path that ends in a slash is a directory; to
// is where a symbolic link leads.
var initEntries = []struct{ path, to string }{
	{path: "/dev/"},
	{path: "/dev/pts/"},
	{path: "/dev/shm/"},
	{path: "/dev/console"},
	{path: "/etc/"},
	{path: "/etc/hostname"},
	{path: "/etc/hosts"},
	{path: "/etc/mtab", to: "/proc/mounts"},
	{path: "/etc/resolv.conf"},
	{path: "/proc/"},
	{path: "/sys/"},
	{path: "/" + dockerenv},
}

// InitLayerVersion changes with what InitLayer makes.
const InitLayerVersion = "1"

// InitLayer makes what every start needs in a root, in dir, which is empty: what lies
// below the layers of all images, so that no start has to make it again. What an image
// has under these names hides it.
func InitLayer(dir string) error {
	for _, e := range initEntries {
		path := filepath.Join(dir, e.path)
		var err error
		switch {
		case e.to != "":
			err = os.Symlink(e.to, path)
		case e.path[len(e.path)-1] == '/':
			err = os.Mkdir(path, 0o755)
		default:
			err = os.WriteFile(path, nil, 0o755)
		}
		if err == nil && e.to == "" {
			err = os.Chmod(path, 0o755) // whatever the umask
		}
		if err != nil {
			return err
		}
	}
	return nil
}

// placed tells the names that a start makes in the root, for what the engine
// itself mounts there, where the layer below has been hidden: they do not count as
// changes; volumes and binds do.
func placed(mounts []Mount) func(string) bool {
	own := map[string]bool{"/dev/mqueue": true}
	for _, e := range initEntries {
		own[filepath.Clean(e.path)] = true
	}
	for _, p := range mounts {
		delete(own, p.Destination)
	}
	return func(name string) bool { return own[name] }
}
