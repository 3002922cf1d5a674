package mounts

import (
	"reflect"
	"strings"
	"testing"

	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"

	"escale.dev/escale/internal/runtime/native/plan"
)

func TestParse(t *testing.T) {
	for options, want := range map[string]Parsed{
		"":                     {},
		"bind,ro":              {Bind: true, Set: unix.MOUNT_ATTR_RDONLY},
		"rbind,rprivate,rw":    {Bind: true, Recursive: true, Clear: unix.MOUNT_ATTR_RDONLY, Propagation: []uintptr{unix.MS_PRIVATE | unix.MS_REC}},
		"ro,rw":                {Clear: unix.MOUNT_ATTR_RDONLY},
		"rw,ro":                {Set: unix.MOUNT_ATTR_RDONLY},
		"nosuid,nodev,noexec":  {Set: unix.MOUNT_ATTR_NOSUID | unix.MOUNT_ATTR_NODEV | unix.MOUNT_ATTR_NOEXEC},
		"rro,rnosuid":          {RecSet: unix.MOUNT_ATTR_RDONLY | unix.MOUNT_ATTR_NOSUID},
		"rrw":                  {RecClear: unix.MOUNT_ATTR_RDONLY},
		"noatime":              {Set: unix.MOUNT_ATTR_NOATIME, Clear: unix.MOUNT_ATTR__ATIME},
		"noatime,strictatime":  {Set: unix.MOUNT_ATTR_STRICTATIME, Clear: unix.MOUNT_ATTR__ATIME},
		"noatime,relatime":     {Clear: unix.MOUNT_ATTR__ATIME},
		"rnoatime":             {RecSet: unix.MOUNT_ATTR_NOATIME, RecClear: unix.MOUNT_ATTR__ATIME},
		"slave,shared":         {Propagation: []uintptr{unix.MS_SLAVE, unix.MS_SHARED}},
		"size=64k,mode=1777":   {Params: []plan.Param{{Key: "size", Value: "64k"}, {Key: "mode", Value: "1777"}}},
		"newinstance,sync":     {Params: []plan.Param{{Key: "newinstance"}, {Key: "sync"}}},
		"async,defaults,loud":  {},
		"acl,noacl,iversion":   {},
		"remount,tmpcopyup":    {Again: true, CopyUp: true},
		"ridmap":               {MapIDs: true, MapIDsBelow: true},
		"idmap":                {MapIDs: true},
		"lowerdir=a=b:c,ratio": {Params: []plan.Param{{Key: "lowerdir", Value: "a=b:c"}, {Key: "ratio"}}},
	} {
		if got := Parse(strings.Split(options, ",")); !reflect.DeepEqual(got, want) {
			t.Errorf("%s:\n got %+v\nwant %+v", options, got, want)
		}
	}
	if !IsDev(&specs.Mount{Destination: "/dev/", Options: []string{"rbind"}}) || IsDev(&specs.Mount{Destination: "/dev", Type: "tmpfs"}) || IsDev(&specs.Mount{Destination: "/dev/x", Type: "bind"}) {
		t.Error("/dev is told wrongly")
	}
}

func TestPropagation(t *testing.T) {
	for name, want := range map[string]uintptr{"": 0, "private": unix.MS_PRIVATE, "rshared": unix.MS_SHARED | unix.MS_REC, "rslave": unix.MS_SLAVE | unix.MS_REC, "runbindable": unix.MS_UNBINDABLE | unix.MS_REC} {
		if got, err := Propagation(name); got != want || err != nil {
			t.Errorf("%q: %x, %v", name, got, err)
		}
	}
	for _, name := range []string{"r", "rr", "public", "ro"} {
		if _, err := Propagation(name); err == nil {
			t.Errorf("%q is one", name)
		}
	}
}

// What the kernel would refuse, or what would do something else than was asked for,
// comes out of no list of options.
func FuzzParse(f *testing.F) {
	f.Add("ro,noatime,rstrictatime,bind")
	f.Add("rw,size=1,=,r,,rrelatime")
	f.Fuzz(func(t *testing.T, s string) {
		p := Parse(strings.Split(s, ","))
		const atime = unix.MOUNT_ATTR__ATIME
		for _, c := range [][2]uint64{{p.Set, p.Clear}, {p.RecSet, p.RecClear}} {
			if c[0]&c[1]&^uint64(atime) != 0 {
				t.Errorf("%q: set and cleared: %x %x", s, c[0], c[1])
			}
			if c[0]&atime != 0 && c[1]&atime != atime {
				t.Errorf("%q: access times are set beside others: %x %x", s, c[0], c[1])
			}
		}
		for _, param := range p.Params {
			if strings.Contains(param.Key, "=") || param.Key == "ro" || param.Key == "bind" {
				t.Errorf("%q: parameter %q", s, param.Key)
			}
		}
	})
}
