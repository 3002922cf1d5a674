// Package wire is the protocol between the engine and a container's monitor,
// escale-shim. Both link it; the monitor must stay small, so it imports nothing.
//
// # Frames
//
// A connection carries frames, in both directions:
//
//	length  4 bytes, big-endian: of all that follows, at most MaxFrame
//	type    1 byte
//	fields  any number of: tag 1 byte, length 4 bytes big-endian, value
//
// Numbers are big-endian of one to eight bytes, booleans a number, texts are
// bytes. A tag may come several times (arguments); where one value is meant,
// the first counts.
//
// # Birth
//
// A monitor is started without a container: the connection to the engine is its
// descriptor 3, working directory and standard streams mean nothing, and its first argument
// is Unnamed. The engine then sends Hello, Hold for what is to be kept open, if need be several, and
// Become, which makes it a container's. It ends when the connection does before its container is started.
//
// # Conversation
//
// The client opens with Hello and its Version; the monitor answers Hello with
// its own. After that every request bears a number (tag Request) and is
// answered once with OK or Error under the same number, not necessarily in
// order: Wait is answered when the process has ended. Requests are taken up in
// the order in which they come. After the OK to Attach the connection carries
// no more frames but the bare bytes of the process' standard streams; see
// runtime.Task.Attach for their form.
//
// # Versions
//
// A monitor lives as long as its container, so engine and monitor may be of
// different age. Whoever reads skips tags it does not know and treats a missing
// one as zero; a request of an unknown type is answered with Error Unsupported.
// New tags and types therefore need no new Version; one is due only when the
// meaning of an old one changes, and both sides then speak the lower of the two.
package wire

// Version of the protocol as this package speaks it.
const Version = 1

// MaxFrame is the greatest length of a frame in bytes, the type included.
const MaxFrame = 4 << 20

// Names of what a monitor keeps in its container's run directory.
const (
	SocketName  = "shim.sock" // where it listens
	MonitorName = "monitor"   // "pid start-time boot-id" of the monitor, while there is something to kill
	StartedName = "started"   // the same of the container's process, once it runs
	StderrName  = "shim.err"  // the monitor's own last words
	AliveName   = "alive"     // its lock is held while a monitor has the directory
	RootName    = "oci"       // the OCI runtime's --root
	ExitPrefix  = "exit-"     // in the state directory: the exit record of a generation
)

// Unnamed is the first argument of a monitor that has no container yet. Become puts the
// container's id over it, as much as there is room for: the command line shows whose it is.
const Unnamed = "prepared, of no container yet                                   "

// Type of a frame.
type Type uint8

// The frames. Those before OK are requests, but for Hello.
const (
	Hello  Type = 1 // Version
	Config Type = 2 // as Become, of a monitor that was born with RunDir, stderr and descriptors
	Start  Type = 3 // → Pid
	Exec   Type = 4 // Process, File, Terminal, Rows, Cols, OpenStdin → Pid
	Signal Type = 5 // Process, Number
	Resize Type = 6 // Process, Rows, Cols
	Wait   Type = 7 // Process → Code, Seconds, Nanos, OOM
	Status Type = 8 // → ID, Generation, Pid, StartTime, Monitor, State, Process…
	Attach Type = 9 // Process, Stdin, Stdout, Stderr

	// Held asks for copies of the descriptors that are kept open for the container.
	// They come in the order of the launch, along with one or several OK, which all
	// bear their Number: as many as there are in the end.
	Held Type = 10

	// Hold brings descriptors along that are kept open for the container as well. Those that
	// come before Become are its first, and the first of all is the lock of AliveName.
	Hold Type = 11

	// Become is all of runtime.Launch. Held says how many descriptors have come. The monitor enters
	// RunDir, opens StderrName there as its standard error, and listens.
	Become Type = 12

	// 13 was used by engines that had an OCI runtime started ahead of its call.

	// Fork, in place of Start, has the monitor be the parent of what the engine sees through itself
	// until it is the container's program: Arg, Env, Flags (CLONE_NEW* of clone(2)), Number, InCgroup → Pid.
	// Number descriptors come along: the program to be executed, one for those standard streams that are the null
	// device, the others from the fourth on, and with InCgroup a cgroup to be born in. Until
	// Ran or Fail the child is not collected, whatever has become of it: its pid is its own. When the
	// connection ends before that it is killed.
	Fork Type = 14

	// Terminal brings the controlling side of the process' terminal along.
	Terminal Type = 15

	// Ran says that the child is the container's program → Pid.
	Ran Type = 16

	// Fail says that the container cannot be started: the child, if there is one, is killed, and the
	// monitor ends → Number, the child's wait status; 0 without one.
	Fail Type = 17

	OK    Type = 64
	Error Type = 65 // Kind, Text, and for KindRuntime: Code, Log, Stderr
)

// Tag of a field.
type Tag uint8

// The fields.
const (
	TagRequest    Tag = 1
	TagVersion    Tag = 2
	TagKind       Tag = 3
	TagText       Tag = 4
	TagID         Tag = 5
	TagGeneration Tag = 6
	TagBundle     Tag = 7
	TagRunDir     Tag = 8
	TagStateDir   Tag = 9
	TagRuntime    Tag = 10
	TagArg        Tag = 11 // repeated
	TagTerminal   Tag = 12
	TagRows       Tag = 13
	TagCols       Tag = 14
	TagOpenStdin  Tag = 15
	TagStdinOnce  Tag = 16
	TagLogPath    Tag = 17
	TagLogSize    Tag = 18
	TagLogFiles   Tag = 19
	TagLogAttrs   Tag = 20
	TagOOMFile    Tag = 21 // the file whose "oom_kill" line counts the container's kills
	TagGrace      Tag = 22 // seconds that a client may stall after the end
	TagProcess    Tag = 23 // "" the container's own, else an exec; repeated in Status
	TagFile       Tag = 24 // the exec's process.json
	TagPid        Tag = 25
	TagStartTime  Tag = 26
	TagMonitor    Tag = 27
	TagState      Tag = 28
	TagNumber     Tag = 29
	TagCode       Tag = 30
	TagSeconds    Tag = 31
	TagNanos      Tag = 32
	TagOOM        Tag = 33
	TagStdin      Tag = 34
	TagStdout     Tag = 35
	TagStderr     Tag = 36 // Attach: a boolean; Error: what the runtime printed
	TagLog        Tag = 37 // the end of the runtime's log
	TagHeld       Tag = 38 // how many descriptors are given to the monitor to keep
	TagPassing    Tag = 39 // the exit record need not be durable
	TagEnv        Tag = 40 // repeated
	TagFlags      Tag = 41
	TagInCgroup   Tag = 42
)

// Kinds of error.
const (
	KindInternal    = 1
	KindNotFound    = 2
	KindInvalid     = 3
	KindConflict    = 4
	KindUnsupported = 5
	KindRuntime     = 6 // the OCI runtime refused
)

// States of the container's process, in Status.
const (
	StateConfigured = 1
	StateStarting   = 2
	StateRunning    = 3
	StateEnded      = 4
)

// Writer builds frames, one after another, in one buffer. The zero value is
// ready.
type Writer struct {
	buf   []byte
	frame int // where the open frame begins
}

// Begin opens a frame.
func (w *Writer) Begin(t Type) {
	w.frame = len(w.buf)
	w.buf = append(w.buf, 0, 0, 0, 0, byte(t))
}

// Uint adds a number; zero needs no space on the wire.
func (w *Writer) Uint(t Tag, v uint64) {
	if v == 0 {
		return
	}
	w.buf = append(w.buf, byte(t), 0, 0, 0, 8,
		byte(v>>56), byte(v>>48), byte(v>>40), byte(v>>32), byte(v>>24), byte(v>>16), byte(v>>8), byte(v))
}

// Bool adds a boolean.
func (w *Writer) Bool(t Tag, v bool) {
	if v {
		w.Uint(t, 1)
	}
}

// Text adds a text; an empty one needs no space on the wire.
func (w *Writer) Text(t Tag, s string) {
	if s != "" {
		w.head(t, len(s))
		w.buf = append(w.buf, s...)
	}
}

// Texts adds each of several texts, empty ones too.
func (w *Writer) Texts(t Tag, list []string) {
	for _, s := range list {
		w.head(t, len(s))
		w.buf = append(w.buf, s...)
	}
}

// Bytes adds bytes.
func (w *Writer) Bytes(t Tag, b []byte) {
	if len(b) > 0 {
		w.head(t, len(b))
		w.buf = append(w.buf, b...)
	}
}

func (w *Writer) head(t Tag, n int) {
	w.buf = append(w.buf, byte(t), byte(n>>24), byte(n>>16), byte(n>>8), byte(n))
}

// End closes the frame.
func (w *Writer) End() {
	n := len(w.buf) - w.frame - 4
	b := w.buf[w.frame:]
	b[0], b[1], b[2], b[3] = byte(n>>24), byte(n>>16), byte(n>>8), byte(n)
}

// Data is all frames written since the last Reset; valid until the next call.
func (w *Writer) Data() []byte { return w.buf }

// Reset empties the buffer.
func (w *Writer) Reset() { w.buf = w.buf[:0] }

// Message is a received frame. It shares memory with what it was read from.
type Message struct {
	Type Type
	body []byte
}

type protocolError string

func (e protocolError) Error() string { return string(e) }

// What a broken frame is refused with.
const (
	ErrTooLong   = protocolError("frame too long")
	ErrMalformed = protocolError("malformed frame")
)

// Next takes the first frame from b. n is its length on the wire; 0 without an
// error when b does not hold all of it yet.
func Next(b []byte) (m Message, n int, err error) {
	if len(b) < 4 {
		return m, 0, nil
	}
	size := length(b)
	if size > MaxFrame {
		return m, 0, ErrTooLong
	}
	if size < 1 {
		return m, 0, ErrMalformed
	}
	if len(b) < 4+size {
		return m, 0, nil
	}
	m = Message{Type: Type(b[4]), body: b[5 : 4+size]}
	for rest := m.body; len(rest) > 0; {
		if len(rest) < 5 {
			return Message{}, 0, ErrMalformed
		}
		v := length(rest[1:])
		if v > len(rest)-5 {
			return Message{}, 0, ErrMalformed
		}
		rest = rest[5+v:]
	}
	return m, 4 + size, nil
}

// length reads a length, which never exceeds what an int holds: 4 GiB become
// more than any bound where int has 32 bits.
func length(b []byte) int {
	n := uint32(b[0])<<24 | uint32(b[1])<<16 | uint32(b[2])<<8 | uint32(b[3])
	if n > 1<<30 {
		return 1 << 30
	}
	return int(n)
}

// Clone is a copy with memory of its own.
func (m Message) Clone() Message {
	return Message{Type: m.Type, body: append([]byte(nil), m.body...)}
}

// Each calls f with every field in its order.
func (m Message) Each(f func(Tag, []byte)) {
	for rest := m.body; len(rest) > 0; {
		n := length(rest[1:])
		f(Tag(rest[0]), rest[5:5+n])
		rest = rest[5+n:]
	}
}

// Bytes is the first value with the tag, nil without one. It shares the
// message's memory.
func (m Message) Bytes(t Tag) []byte {
	for rest := m.body; len(rest) > 0; {
		n := length(rest[1:])
		if Tag(rest[0]) == t {
			return rest[5 : 5+n : 5+n]
		}
		rest = rest[5+n:]
	}
	return nil
}

// Text is a copy of the first value with the tag.
func (m Message) Text(t Tag) string { return string(m.Bytes(t)) }

// Texts is a copy of every value with the tag.
func (m Message) Texts(t Tag) (list []string) {
	m.Each(func(tag Tag, v []byte) {
		if tag == t {
			list = append(list, string(v))
		}
	})
	return list
}

// Uint is the number with the tag, 0 without one or when it has more than
// eight bytes.
func (m Message) Uint(t Tag) (v uint64) {
	b := m.Bytes(t)
	if len(b) > 8 {
		return 0
	}
	for _, c := range b {
		v = v<<8 | uint64(c)
	}
	return v
}

// Bool is the boolean with the tag.
func (m Message) Bool(t Tag) bool { return m.Uint(t) != 0 }
