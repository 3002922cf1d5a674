package seccomp

import (
	"bytes"
	"cmp"
	"crypto/sha256"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"io"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"

	"escale.dev/escale/internal/sys/atomicfile"
	"github.com/opencontainers/runtime-spec/specs-go"
	"golang.org/x/sys/unix"
)

// A file of the cache: magic, digest of the profile, flags, number of instructions,
// instructions, digest of all that. Numbers have the host's byte order: the directory
// is of one machine, and of one boot where it lies in /run.
const (
	cacheMagic  = "escale-bpf 1\n"
	cacheSuffix = ".bpf"
	cacheHead   = len(cacheMagic) + sha256.Size + 4 + 4
	// maxCached bounds the directory. Hosts have few profiles, but clients may send any
	// number of them.
	maxCached = 64
)

// Cached is Compile with what it made kept in dir, a file a profile, named after the
// profile's digest. dir is made if it is not there (0700) and belongs to this package
// alone; it may be removed at any time, and several processes may use it at once. A file
// that is broken, or that others than the caller could write, is made anew. That the
// cache cannot be written is no error: the program was compiled. Errors are Compile's.
func Cached(dir string, s *specs.LinuxSeccomp) (*Program, error) {
	if s == nil || s.DefaultAction == "" && len(s.Syscalls) == 0 {
		return nil, nil
	}
	key := digest(s)
	path := filepath.Join(dir, hex.EncodeToString(key[:])+cacheSuffix)
	if p, err := readCached(path, key); err == nil {
		return p, nil
	}
	p, err := Compile(s)
	if err != nil {
		return nil, err
	}
	if err := os.MkdirAll(dir, 0o700); err == nil {
		evict(dir)
		// Not durable: what a power cut tears, the next reader sees.
		_ = atomicfile.Write(path, p.encode(key), 0o600, atomicfile.Options{})
	}
	return p, nil
}

var errBroken = errors.New("broken")

func readCached(path string, key [sha256.Size]byte) (*Program, error) {
	f, err := os.OpenFile(path, os.O_RDONLY|unix.O_NOFOLLOW|unix.O_NONBLOCK, 0)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	var st unix.Stat_t
	if err := unix.Fstat(int(f.Fd()), &st); err != nil {
		return nil, err
	}
	if st.Mode&unix.S_IFMT != unix.S_IFREG || st.Mode&0o022 != 0 || int(st.Uid) != os.Geteuid() {
		return nil, errBroken
	}
	b, err := io.ReadAll(io.LimitReader(f, int64(cacheHead+maxInstructions*instruction+sha256.Size+1)))
	if err != nil {
		return nil, err
	}
	return decode(b, key)
}

func (p *Program) encode(key [sha256.Size]byte) []byte {
	b := append([]byte(cacheMagic), key[:]...)
	b = binary.NativeEndian.AppendUint32(b, p.Flags)
	b = binary.NativeEndian.AppendUint32(b, uint32(p.Len()))
	b = append(b, p.Filter...)
	sum := sha256.Sum256(b)
	return append(b, sum[:]...)
}

func decode(b []byte, key [sha256.Size]byte) (*Program, error) {
	if len(b) < cacheHead+sha256.Size || !bytes.HasPrefix(b, append([]byte(cacheMagic), key[:]...)) {
		return nil, errBroken
	}
	body := b[:len(b)-sha256.Size]
	n := binary.NativeEndian.Uint32(body[cacheHead-4:])
	if n == 0 || n > maxInstructions || len(body)-cacheHead != int(n)*instruction {
		return nil, errBroken
	}
	if sum := sha256.Sum256(body); !bytes.Equal(sum[:], b[len(body):]) {
		return nil, errBroken
	}
	return &Program{Flags: binary.NativeEndian.Uint32(body[cacheHead-8:]), Filter: body[cacheHead:]}, nil
}

// evict makes room for one: the oldest go, and with them what crashed writers left.
func evict(dir string) {
	entries, err := os.ReadDir(dir)
	if err != nil || len(entries) < maxCached {
		return
	}
	_ = atomicfile.Collect(dir)
	type aged struct {
		name string
		time int64
	}
	var files []aged
	for _, e := range entries {
		if info, err := e.Info(); err == nil && strings.HasSuffix(e.Name(), cacheSuffix) {
			files = append(files, aged{e.Name(), info.ModTime().UnixNano()})
		}
	}
	slices.SortFunc(files, func(a, b aged) int { return cmp.Compare(a.time, b.time) })
	for len(files) >= maxCached {
		_ = os.Remove(filepath.Join(dir, files[0].name))
		files = files[1:]
	}
}

// compiler counts what changes programs of the same profile, beside the table.
const compiler = 1

// digest is a profile's, with all that its program depends on. Every text has its
// length and every list its count before it, so no two profiles look alike.
func digest(s *specs.LinuxSeccomp) [sha256.Size]byte {
	b := make([]byte, 0, 16<<10)
	number := func(n uint64) { b = binary.AppendUvarint(b, n) }
	text := func(s string) { number(uint64(len(s))); b = append(b, s...) }
	errno := func(e *uint) {
		if e == nil {
			number(0)
			return
		}
		number(1)
		number(uint64(*e))
	}
	text(runtime.GOARCH)
	number(compiler)
	number(syscallsSum)
	text(string(s.DefaultAction))
	errno(s.DefaultErrnoRet)
	number(uint64(len(s.Architectures)))
	for _, a := range s.Architectures {
		text(string(a))
	}
	if s.Flags == nil {
		number(0)
	} else {
		number(uint64(len(s.Flags)) + 1)
	}
	for _, f := range s.Flags {
		text(string(f))
	}
	number(uint64(len(s.Syscalls)))
	for _, c := range s.Syscalls {
		number(uint64(len(c.Names)))
		for _, n := range c.Names {
			text(n)
		}
		text(string(c.Action))
		errno(c.ErrnoRet)
		number(uint64(len(c.Args)))
		for _, a := range c.Args {
			number(uint64(a.Index))
			number(a.Value)
			number(a.ValueTwo)
			text(string(a.Op))
		}
	}
	return sha256.Sum256(b)
}
