package native

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"os"
	"strings"
	"unsafe"

	"golang.org/x/sys/unix"
)

// aheadArg, alone but for blanks behind it, has the program be started before it is known what it
// is to do: it waits for that at its descriptor 3, a socket of the type SOCK_SEQPACKET. One
// message tells: words divided by NUL, of which the first is the working directory and the
// others are the command line, and three descriptors, the standard streams. The words take the place of the
// argument, as many as the blanks make room for: the command line shows what is under way.
const aheadArg = "ahead"

func isAhead(args []string) bool {
	return len(args) == 2 && strings.TrimRight(args[1], " ") == aheadArg
}

const (
	aheadFD   = 3
	aheadSize = 64 << 10 // bytes of a message, at most
)

// ahead blocks until it is told what to do, and gives the command line, of which arg is shown till then; io.EOF: whoever
// started it has ended, or the socket's patience (SO_RCVTIMEO).
func ahead(arg string) ([]string, error) {
	text, rights := make([]byte, aheadSize), make([]byte, unix.CmsgSpace(3*4))
	var n, oob int
	for {
		var err error
		var flags int
		n, oob, flags, _, err = unix.Recvmsg(aheadFD, text, rights, 0)
		if err == unix.EINTR {
			continue
		}
		if err == unix.EAGAIN { // it has waited as long as the socket has it wait
			return nil, io.EOF
		}
		if err == nil && flags&(unix.MSG_TRUNC|unix.MSG_CTRUNC) != 0 {
			err = errors.New("more than a message holds")
		}
		if err != nil {
			return nil, fmt.Errorf("waiting for what to do: %w", err)
		}
		break
	}
	if n == 0 {
		return nil, io.EOF
	}
	list, err := unix.ParseSocketControlMessage(rights[:oob])
	if err != nil || len(list) != 1 {
		return nil, errors.New("told what to do without standard streams")
	}
	fds, err := unix.ParseUnixRights(&list[0])
	if err != nil || len(fds) != 3 {
		return nil, errors.New("told what to do without three standard streams")
	}
	for i, fd := range fds {
		if err := unix.Dup3(fd, i, 0); err != nil {
			return nil, os.NewSyscallError("dup3", err)
		}
		_ = unix.Close(fd) // its copy is in use
	}
	_ = unix.Close(aheadFD) // nothing more comes
	words := bytes.Split(text[:n], []byte{0})
	if len(words) < 2 {
		return nil, errors.New("told to do nothing")
	}
	if err := unix.Chdir(string(words[0])); err != nil {
		return nil, &os.PathError{Op: "chdir", Path: string(words[0]), Err: err}
	}
	// The strings of os.Args are the memory in which the kernel looks for them (goargs of the Go runtime).
	shown := unsafe.Slice(unsafe.StringData(arg), len(arg))
	clear(shown[copy(shown, text[len(words[0])+1:n]):])
	args := []string{"escale-runtime"}
	for _, w := range words[1:] {
		args = append(args, string(w))
	}
	return args, nil
}
