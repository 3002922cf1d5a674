package e2e

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// try is one call of a client: what it is given, and what must come of it.
type try struct {
	args string // split at blanks; ' quotes
	code int
	out  string // regular expression over standard output
	err  string // the same over standard error
}

// run lets a client do it.
func (c try) run(t *testing.T, client, host string, vars map[string]string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	expand := func(s string) string {
		return os.Expand(s, func(name string) string {
			if v, ok := vars[name]; ok {
				return v
			}
			return "$" + name
		})
	}
	cmd := exec.CommandContext(ctx, client, words(expand(c.args))...)
	cmd.Env = append(os.Environ(), "DOCKER_HOST="+host, "DOCKER_CLI_HINTS=false", "DOCKER_CONFIG="+vars["W"]+"/.docker")
	cmd.Dir = vars["W"]
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	err := cmd.Run()
	code := cmd.ProcessState.ExitCode()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		t.Fatalf("%s: %v", c.args, err)
	}
	ok := code == c.code
	for re, text := range map[string]string{expand(c.out): stdout.String(), expand(c.err): stderr.String()} {
		ok = ok && regexp.MustCompile("(?m)"+re).MatchString(text)
	}
	if !ok {
		t.Errorf("%s\ncode %d, want %d\nstdout: %s\nwant: %s\nstderr: %s\nwant: %s", c.args, code, c.code, stdout.String(), c.out, stderr.String(), c.err)
	}
}

// words splits a command line; what stands in ' ' is one word.
func words(s string) []string {
	var out []string
	for i, part := range strings.Split(s, "'") {
		if i%2 == 1 {
			out = append(out, part)
		} else {
			out = append(out, strings.Fields(part)...)
		}
	}
	return out
}

// table runs tries through each client against the engine that the scripts share.
func table(t *testing.T, vars map[string]string, tries []try) {
	t.Helper()
	host := sharedHost(t)
	for name, path := range clients() {
		t.Run(name, func(t *testing.T) {
			vars := map[string]string{"IMG": image, "N": "e2e-table-" + name + "-" + strings.ToLower(filepath.Base(t.Name())), "W": vars["W"]}
			defer removeNamed(host, vars["N"])
			for _, c := range tries {
				c.run(t, path, host, vars)
			}
		})
	}
}

// mountpoint mounts a tmpfs and gives it a propagation.
func mountpoint(t *testing.T, path string, propagation uintptr) {
	t.Helper()
	if err := os.MkdirAll(path, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := unix.Mount("e2e", path, "tmpfs", 0, "size=1m"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := unix.Unmount(path, unix.MNT_DETACH); err != nil {
			t.Errorf("clean-up: %s: %v", path, err)
		}
	})
	if err := unix.Mount("", path, "", propagation, ""); err != nil {
		t.Fatal(err)
	}
}

// mountTree is a directory of the host with mounts of every propagation.
func mountTree(t *testing.T) string {
	t.Helper()
	needs(t)
	if foreign != "" {
		t.Skip("another's engine: its words for mounts may be older")
	}
	w := t.TempDir()
	for _, dir := range []string{"src/sub", "nest"} {
		if err := os.MkdirAll(filepath.Join(w, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.WriteFile(w+"/src/f", []byte("hi\n"), 0o644); err != nil {
		t.Fatal(err)
	}
	mountpoint(t, w+"/src/sub", unix.MS_PRIVATE)
	mountpoint(t, w+"/private", unix.MS_PRIVATE)
	mountpoint(t, w+"/shared", unix.MS_SHARED)
	mountpoint(t, w+"/slave", unix.MS_SHARED)
	return w
}

const peers = ` $IMG sh -c 'grep " /d " /proc/self/mountinfo | grep -oE "shared|master" | sort -u | tr "\n" " "; echo end'`

// TestBindKinds: propagation, recursion and what is refused, as the kernel has it.
func TestBindKinds(t *testing.T) {
	w := mountTree(t)
	write := ` $IMG sh -c 'grep -c " /d/sub" /proc/mounts; touch /d/x 2>&1; touch /d/sub/x 2>&1 && rm /d/sub/x && echo wrote'`
	table(t, map[string]string{"W": w}, []try{
		{args: "run --rm -v $W/shared:/d" + peers, out: "^end$"},
		{args: "run --rm -v $W/shared:/d:private" + peers, out: "^end$"},
		{args: "run --rm -v $W/shared:/d:rprivate" + peers, out: "^end$"},
		{args: "run --rm -v $W/shared:/d:shared" + peers, out: "^shared end$"},
		{args: "run --rm -v $W/shared:/d:rshared" + peers, out: "^shared end$"},
		{args: "run --rm -v $W/shared:/d:slave" + peers, out: "^master end$"},
		{args: "run --rm -v $W/shared:/d:rslave" + peers, out: "^master end$"},
		{args: "run --rm --mount type=bind,src=$W/shared,dst=/d,bind-propagation=rslave" + peers, out: "^master end$"},
		{args: "run --rm --mount type=bind,src=$W/private,dst=/d,bind-propagation=rshared $IMG true", code: 125, err: "path $W/private is mounted on $W/private but it is not a shared mount"},
		{args: "run --rm -v $W/private:/d:slave $IMG true", code: 125, err: "path $W/private is mounted on $W/private but it is not a shared or slave mount"},
		{args: "run --rm --mount type=bind,src=$W/private,dst=/d,bind-propagation=foo $IMG true", code: 125, err: `invalid mount config for type "bind": invalid propagation mode: foo`},
		// what lies below, and whether it can be written
		{args: "run --rm -v $W/src:/d" + write, out: "^1\nwrote$"},
		{args: "run --rm -v $W/src:/d:ro" + write, code: 1, out: "^1\n.*/d/x: Read-only.*\n.*/d/sub/x: Read-only"},
		{args: "run --rm --mount type=bind,src=$W/src,dst=/d,ro,bind-recursive=enabled" + write, code: 1, out: "^1\n.*\n.*/d/sub/x: Read-only"},
		{args: "run --rm --mount type=bind,src=$W/src,dst=/d,ro,bind-recursive=writable" + write, out: "^1\n.*/d/x: Read-only.*\nwrote$"},
		{args: "run --rm --mount type=bind,src=$W/src,dst=/d,ro,bind-recursive=readonly,bind-propagation=rprivate" + write, code: 1, out: "^1\n.*\n.*/d/sub/x: Read-only"},
		{args: "run --rm --mount type=bind,src=$W/src,dst=/d,bind-recursive=disabled" + write, out: "^0\nwrote$"},
		{args: "run --rm --mount type=bind,src=$W/src,dst=/d,bind-recursive=readonly $IMG true", code: 125, err: "option 'bind-recursive=readonly' requires 'readonly' to be specified in conjunction"},
		{args: "run --rm --mount type=bind,src=$W/src,dst=/d,bind-recursive=foo $IMG true", code: 125, err: "invalid value for bind-recursive: foo"},
		// sources and targets
		{args: "run --rm -v $W/src/f:/new/deep/file $IMG cat /new/deep/file", out: "^hi$"},
		{args: "run --rm -v ./src:/d $IMG cat /d/f", out: "^hi$"},
		{args: "run --rm -v $W/src:/d/x -v $W/nest:/d $IMG sh -c 'cat /d/x/f'", out: "^hi$"},
		{args: "run --rm -v $W/made/$N:/d $IMG sh -c 'stat -c %a:%u /d'", out: "^755:0$"},
		{args: "run --rm --mount type=bind,src=$W/nosuch,dst=/d $IMG true", code: 125, err: `invalid mount config for type "bind": bind source path does not exist: $W/nosuch`},
		{args: "run --rm --mount type=bind,src=rel,dst=/d $IMG true", code: 125, err: "invalid mount path: 'rel' mount path must be absolute"},
		{args: "run --rm --mount type=bind,dst=/d $IMG true", code: 125, err: `field Source must not be empty`},
		{args: "run --rm --mount type=bind,src=$W,dst=rel $IMG true", code: 125, err: "invalid mount path: 'rel' mount path must be absolute"},
		{args: "run --rm --mount type=bind,src=$W,dst=/ $IMG true", code: 125, err: "invalid specification: destination can't be '/'"},
		{args: "run --rm --mount type=foo,dst=/d $IMG true", code: 125, err: `invalid mount config for type "foo": mount type unknown`},
		{args: "run --rm --mount type=bind,src=$W,dst=/d,volume-nocopy $IMG true", code: 125, err: `cannot mix 'volume-\*' options with mount type 'bind'`},
		{args: "run --rm -v $W/src/f:/etc $IMG true", code: 125, err: `error mounting "$W/src/f" to rootfs at "/etc".*Are you trying to mount a directory onto a file`},
		// twice at one place
		{args: "run --rm -v $W/src:/d -v $W/nest:/d $IMG true", code: 125, err: "Duplicate mount point: /d$"},
		{args: "run --rm -v $W/src:/d/ --mount type=bind,src=$W/nest,dst=/d/. $IMG true", code: 125, err: `Duplicate mount point: /d/\.$`},
		{args: "run --rm -v $W/src:/d --tmpfs /d $IMG true", code: 125, err: "Duplicate mount point: /d$"},
		// modes
		{args: "run --rm -v $W/src:/d:z,ro,cached $IMG cat /d/f", out: "^hi$"},
		{args: "run --rm -v $W/src:/d:Z,delegated $IMG cat /d/f", out: "^hi$"},
		{args: "run --rm -v $W/src:/d:consistent $IMG cat /d/f", out: "^hi$"},
		{args: "run --rm -v $W/src:/d:ro,rw $IMG true", code: 125, err: "invalid mode: ro,rw"},
		{args: "run --rm -v $W/src:/d:nocopy $IMG true", code: 125, err: `invalid mount config for type "bind": field VolumeOptions must not be specified`},
		{args: "run --rm -v vol:/d:rshared $IMG true", code: 125, err: `invalid mount config for type "volume": field BindOptions must not be specified`},
		{args: "run --rm -v $W/src:ro $IMG true", code: 125, err: "invalid volume specification: '$W/src:ro'"},
		{args: "run --rm -v $W/src:/a:/b $IMG true", code: 125, err: "(?i)invalid mode: /b"},
	})
}

// TestOtherMountKinds: volumes with options, subpaths, tmpfs, images.
func TestOtherMountKinds(t *testing.T) {
	w := mountTree(t)
	table(t, map[string]string{"W": w}, []try{
		{args: "run --rm --mount type=volume,dst=/d,volume-opt=type=tmpfs,volume-opt=device=tmpfs,volume-opt=o=size=3m $IMG sh -c 'df -k /d | tail -1'", out: " 3072 "},
		{args: "run --rm --mount type=volume,dst=/d,volume-opt=type=tmpfs $IMG true", code: 125, err: `missing required option: "device"`},
		{args: "run --rm --mount type=volume,dst=/d,volume-opt=foo=bar $IMG true", code: 125, err: `invalid option: "foo"`},
		{args: "run --rm --mount type=volume,dst=/d,volume-opt=size=10m $IMG true", code: 125, err: "quota size requested but no quota support"},
		{args: "run --rm --mount type=volume,dst=/d,volume-driver=foo $IMG true", code: 125, err: `error looking up volume plugin foo: plugin "foo" not found`},
		{args: "run --rm --volume-driver foo $IMG true"},
		{args: "run --rm -v vol:/d --volume-driver foo $IMG true", code: 125, err: `create vol: error looking up volume plugin foo: plugin "foo" not found`},
		{args: "run --rm -v /d --volume-driver foo $IMG true", code: 125, err: `error looking up volume plugin foo: plugin "foo" not found`},
		{args: "run --rm --mount type=volume,dst=/etc,volume-nocopy $IMG sh -c 'ls /etc | grep -c passwd'", code: 1, out: "^0$"},
		{args: "run --rm --mount type=volume,dst=/etc $IMG sh -c 'ls /etc | grep -c passwd'", out: "^1$"},
		{args: "run --rm --mount type=volume,dst=/d,volume-subpath=x $IMG true", code: 125, err: "must not set Subpath when using anonymous volumes"},
		{args: "run --rm --mount type=volume,src=v,dst=/d,volume-subpath=../x $IMG true", code: 125, err: "subpath must be a relative path within the volume"},
		{args: "run --rm --mount type=volume,dst=/d,readonly $IMG true", code: 125, err: "must not set ReadOnly mode when using anonymous volumes"},
		// a subpath is found within the volume, whatever links there are
		{args: "create --name $N -v /vol $IMG true"},
		{args: "run --rm --volumes-from $N $IMG sh -c 'mkdir -p /vol/a/b; echo in >/vol/a/f; ln -s /a /vol/link; ln -s ../../../../../../../../etc /vol/out'"},
		{args: "run --rm --volumes-from $N:ro $IMG touch /vol/x", code: 1, err: "Read-only"},
		{args: "run --rm --volumes-from $N:rshared $IMG true", code: 125, err: "invalid mode: rshared"},
		{args: "run --rm --volumes-from $N:nocopy $IMG true", code: 125, err: "invalid mode: nocopy"},
		{args: "rm -v $N"},
		{args: "run --rm --mount type=tmpfs,dst=/d,tmpfs-size=2m,tmpfs-mode=700 $IMG sh -c 'grep \" /d \" /proc/mounts; stat -c %a /d'", out: "size=2048k.*\n700$"},
		{args: "run --rm --mount type=tmpfs,dst=/d,readonly $IMG touch /d/x", code: 1, err: "Read-only"},
		{args: "run --rm --mount type=tmpfs,src=x,dst=/d $IMG true", code: 125, err: "field Source must not be specified"},
		{args: "run --rm --mount type=image,src=$IMG,dst=/d $IMG sh -c 'cat /d/etc/passwd; touch /d/x'", code: 1, out: "^root:", err: "WARNING: Image mount is an experimental feature(.|\n)*Read-only"},
		{args: "run --rm --mount type=image,src=$IMG,dst=/d,image-subpath=etc $IMG cat /d/passwd", out: "^root:"},
		{args: "run --rm --mount type=image,src=$IMG,dst=/d,image-subpath=nosuch $IMG true", code: 127, err: "cannot access path .*nosuch: no such file or directory"},
		{args: "run --rm --mount type=image,src=nosuch,dst=/d $IMG true", code: 125, err: "No such image: nosuch:latest"},
		{args: "run --rm --mount type=image,dst=/d $IMG true", code: 125, err: "field Source must not be empty"},
	})
}
