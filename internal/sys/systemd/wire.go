package systemd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

// Messages of D-Bus (D-Bus Specification, "Message Protocol").
const (
	methodCall   = 1
	methodReturn = 2
	errorReply   = 3
	signal       = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSender      = 7
	fieldSignature   = 8

	version   = 1
	fixedSize = 16      // of a header up to its fields' length
	maxSize   = 1 << 20 // bytes of a message that is taken
	maxDepth  = 32      // of values in values
)

// message is one, in either direction.
type message struct {
	kind      byte
	serial    uint32
	reply     uint32 // the call that it answers
	path      string
	iface     string
	member    string
	errorName string
	dest      string
	sender    string
	body      []any
}

// objectPath and signatureText are strings that D-Bus tells apart from others.
type (
	objectPath    string
	signatureText string
)

// variant is a value that brings its type along.
type variant struct{ value any }

// Property is one of a unit's, by the name that D-Bus has for it. Value is a string, bool, int32,
// int64, uint32, uint64, float64, or a list of strings, bytes, uint32s or Devices.
type Property struct {
	Name  string
	Value any
}

// Device is an entry of the property DeviceAllow.
type Device struct {
	Path   string // "/dev/char/1:3", or "char-136", "block-*" for many
	Access string // of "rwm"
}

// aux is what StartTransientUnit takes of further units; there never are any.
type aux struct {
	name       string
	properties []Property
}

// signature is the type of a value (D-Bus Specification, "Type System").
func signature(v any) (string, error) {
	switch v := v.(type) {
	case string:
		return "s", nil
	case objectPath:
		return "o", nil
	case signatureText:
		return "g", nil
	case bool:
		return "b", nil
	case int32:
		return "i", nil
	case int64:
		return "x", nil
	case uint32:
		return "u", nil
	case uint64:
		return "t", nil
	case float64:
		return "d", nil
	case []byte:
		return "ay", nil
	case []uint32:
		return "au", nil
	case []string:
		return "as", nil
	case []Device:
		return "a(ss)", nil
	case []Property:
		return "a(sv)", nil
	case []aux:
		return "a(sa(sv))", nil
	default:
		return "", fmt.Errorf("a value of type %T: no such in D-Bus", v)
	}
}

// encoder writes values, little end first, each at a multiple of its size.
type encoder struct {
	b   []byte
	err error
}

func (e *encoder) align(n int) {
	for len(e.b)%n != 0 {
		e.b = append(e.b, 0)
	}
}

func (e *encoder) u32(n uint32) {
	e.align(4)
	e.b = binary.LittleEndian.AppendUint32(e.b, n)
}

func (e *encoder) u64(n uint64) {
	e.align(8)
	e.b = binary.LittleEndian.AppendUint64(e.b, n)
}

func (e *encoder) text(s string) {
	if strings.Contains(s, "\x00") {
		e.err = fmt.Errorf("%q: no string of D-Bus", s)
	}
	e.u32(uint32(len(s)))
	e.b = append(append(e.b, s...), 0)
}

func (e *encoder) signature(s string) {
	e.b = append(append(append(e.b, byte(len(s))), s...), 0)
}

// array writes what write writes, after its length, which does not count what aligns the first.
func (e *encoder) array(alignment int, write func()) {
	e.u32(0)
	at := len(e.b)
	e.align(alignment)
	from := len(e.b)
	write()
	binary.LittleEndian.PutUint32(e.b[at-4:], uint32(len(e.b)-from))
}

func (e *encoder) variant(v any) {
	s, err := signature(v)
	if err != nil {
		e.err = err
		return
	}
	e.signature(s)
	e.value(v)
}

func (e *encoder) value(v any) {
	switch v := v.(type) {
	case string:
		e.text(v)
	case objectPath:
		e.text(string(v))
	case signatureText:
		e.signature(string(v))
	case bool:
		n := uint32(0)
		if v {
			n = 1
		}
		e.u32(n)
	case int32:
		e.u32(uint32(v))
	case int64:
		e.u64(uint64(v))
	case uint32:
		e.u32(v)
	case uint64:
		e.u64(v)
	case float64:
		e.u64(math.Float64bits(v))
	default:
		e.list(v)
	}
}

func (e *encoder) list(v any) {
	switch v := v.(type) {
	case []byte:
		e.array(1, func() { e.b = append(e.b, v...) })
	case []uint32:
		e.array(4, func() {
			for _, n := range v {
				e.u32(n)
			}
		})
	case []string:
		e.array(4, func() {
			for _, s := range v {
				e.text(s)
			}
		})
	case []Device:
		e.array(8, func() {
			for _, d := range v {
				e.align(8)
				e.text(d.Path)
				e.text(d.Access)
			}
		})
	case []Property:
		e.array(8, func() {
			for _, p := range v {
				e.align(8)
				e.text(p.Name)
				e.variant(p.Value)
			}
		})
	case []aux:
		e.array(8, func() {
			for _, a := range v {
				e.align(8)
				e.text(a.name)
				e.list(a.properties)
			}
		})
	default:
		_, e.err = signature(v)
	}
}

// encode writes a message.
func encode(m *message) ([]byte, error) {
	var body encoder
	var types string
	for _, v := range m.body {
		s, err := signature(v)
		if err != nil {
			return nil, err
		}
		types += s
		body.value(v)
	}
	e := encoder{b: []byte{'l', m.kind, 0, version}}
	e.u32(uint32(len(body.b)))
	e.u32(m.serial)
	e.array(8, func() {
		for _, f := range []struct {
			code byte
			v    any
		}{{fieldPath, objectPath(m.path)}, {fieldInterface, m.iface}, {fieldMember, m.member}, {fieldErrorName, m.errorName}, {fieldReplySerial, m.reply},
			{fieldDestination, m.dest}, {fieldSender, m.sender}, {fieldSignature, signatureText(types)}} {
			if f.v == objectPath("") || f.v == "" || f.v == uint32(0) || f.v == signatureText("") {
				continue
			}
			e.align(8)
			e.b = append(e.b, f.code)
			e.variant(f.v)
		}
	})
	e.align(8)
	if err := errors.Join(e.err, body.err); err != nil {
		return nil, err
	}
	if len(e.b)+len(body.b) > maxSize {
		return nil, errors.New("message of D-Bus: too long")
	}
	return append(e.b, body.b...), nil
}
