package systemd

import (
	"encoding/binary"
	"errors"
	"fmt"
	"math"
	"strings"
)

var errMessage = errors.New("message of D-Bus: malformed")

// size says how long the message is that begins with a fixed part of a header.
func size(b []byte) (int, error) {
	order, err := byteOrder(b[0])
	if err != nil {
		return 0, err
	}
	if b[3] != version {
		return 0, fmt.Errorf("message of D-Bus: version %d: not known", b[3])
	}
	body, fields := uint64(order.Uint32(b[4:])), uint64(order.Uint32(b[12:]))
	n := fixedSize + (fields+7)/8*8 + body
	if n > maxSize {
		return 0, fmt.Errorf("message of D-Bus: %d bytes are too many", n)
	}
	return int(n), nil
}

func byteOrder(mark byte) (binary.ByteOrder, error) {
	switch mark {
	case 'l':
		return binary.LittleEndian, nil
	case 'B':
		return binary.BigEndian, nil
	}
	return nil, errMessage
}

// decode reads a message, which is as long as size says.
func decode(b []byte) (*message, error) {
	order, err := byteOrder(b[0])
	if err != nil {
		return nil, err
	}
	m := &message{kind: b[1], serial: order.Uint32(b[8:])}
	body := len(b) - int(order.Uint32(b[4:]))
	d := &decoder{b: b[:body], at: 12, order: order}
	fields := d.value("a(yv)", 0)
	if d.err != nil {
		return nil, d.err
	}
	var types string
	for _, f := range fields.([]any) {
		field := f.([]any)
		v := field[1].(variant).value
		ok := true
		switch field[0].(byte) {
		case fieldPath:
			var p objectPath
			p, ok = v.(objectPath)
			m.path = string(p)
		case fieldInterface:
			m.iface, ok = v.(string)
		case fieldMember:
			m.member, ok = v.(string)
		case fieldErrorName:
			m.errorName, ok = v.(string)
		case fieldReplySerial:
			m.reply, ok = v.(uint32)
		case fieldDestination:
			m.dest, ok = v.(string)
		case fieldSender:
			m.sender, ok = v.(string)
		case fieldSignature:
			var s signatureText
			s, ok = v.(signatureText)
			types = string(s)
		}
		if !ok {
			return nil, errMessage
		}
	}
	d = &decoder{b: b[body:], order: order}
	for types != "" && d.err == nil {
		var one string
		if one, types, err = first(types, 0); err != nil {
			return nil, err
		}
		m.body = append(m.body, d.value(one, 0))
	}
	return m, d.err
}

// first splits the first complete type off a signature.
func first(s string, depth int) (one, rest string, err error) {
	if s == "" || depth > maxDepth {
		return "", "", errMessage
	}
	switch s[0] {
	case 'a':
		elem, rest, err := first(s[1:], depth+1)
		return "a" + elem, rest, err
	case '(', '{':
		end := map[byte]byte{'(': ')', '{': '}'}[s[0]]
		n := 0
		for rest = s[1:]; rest != "" && rest[0] != end; n++ {
			if _, rest, err = first(rest, depth+1); err != nil {
				return "", "", err
			}
		}
		if rest == "" || n == 0 {
			return "", "", errMessage
		}
		return s[:len(s)-len(rest)+1], rest[1:], nil
	}
	if !strings.Contains("ybnqiuxtdsogvh", s[:1]) {
		return "", "", errMessage
	}
	return s[:1], s[1:], nil
}

// decoder reads values. Once something is wrong all that it reads is nil.
type decoder struct {
	b     []byte
	at    int
	order binary.ByteOrder
	err   error
}

// take gives the next n bytes, after what aligns them.
func (d *decoder) take(n, alignment int) []byte {
	at := (d.at + alignment - 1) / alignment * alignment
	if d.err != nil || n < 0 || at > len(d.b) || n > len(d.b)-at {
		d.fail()
		return nil
	}
	d.at = at + n
	return d.b[at:d.at]
}

func (d *decoder) fail() any {
	if d.err == nil {
		d.err = errMessage
	}
	return nil
}

func (d *decoder) u32() uint32 {
	if b := d.take(4, 4); b != nil {
		return d.order.Uint32(b)
	}
	return 0
}

func (d *decoder) u64() uint64 {
	if b := d.take(8, 8); b != nil {
		return d.order.Uint64(b)
	}
	return 0
}

// text reads n bytes and the zero after them.
func (d *decoder) text(n int) string {
	b := d.take(n, 1)
	if end := d.take(1, 1); end == nil || end[0] != 0 {
		d.fail()
		return ""
	}
	return string(b)
}

func (d *decoder) signature() string {
	b := d.take(1, 1)
	if b == nil {
		return ""
	}
	return d.text(int(b[0]))
}

// value reads one of a complete type.
func (d *decoder) value(kind string, depth int) any {
	if d.err != nil || depth > maxDepth {
		return d.fail()
	}
	switch kind[0] {
	case 'y':
		if b := d.take(1, 1); b != nil {
			return b[0]
		}
		return d.fail()
	case 'b':
		return d.u32() != 0
	case 'n', 'q':
		if b := d.take(2, 2); b != nil {
			return d.order.Uint16(b)
		}
		return d.fail()
	case 'i':
		return int32(d.u32())
	case 'u', 'h':
		return d.u32()
	case 'x':
		return int64(d.u64())
	case 't':
		return d.u64()
	case 'd':
		return math.Float64frombits(d.u64())
	case 's':
		return d.text(int(d.u32()))
	case 'o':
		return objectPath(d.text(int(d.u32())))
	case 'g':
		return signatureText(d.signature())
	case 'v':
		one, rest, err := first(d.signature(), depth)
		if err != nil || rest != "" {
			return d.fail()
		}
		return variant{d.value(one, depth+1)}
	case 'a':
		return d.array(kind[1:], depth)
	}
	return d.fields(kind[1:len(kind)-1], depth)
}

// array reads elements of a complete type.
func (d *decoder) array(kind string, depth int) any {
	n := int(d.u32())
	alignment := map[byte]int{'(': 8, '{': 8, 'x': 8, 't': 8, 'd': 8, 'y': 1, 'g': 1, 'v': 1, 'n': 2, 'q': 2}[kind[0]]
	if alignment == 0 {
		alignment = 4
	}
	d.take(0, alignment)
	end := d.at + n
	if d.err != nil || n > len(d.b)-d.at {
		return d.fail()
	}
	list := []any{}
	for d.at < end && d.err == nil {
		list = append(list, d.value(kind, depth+1))
	}
	if d.at != end {
		return d.fail()
	}
	return list
}

// fields reads a struct, or an entry of a dictionary.
func (d *decoder) fields(kinds string, depth int) any {
	d.take(0, 8)
	var list []any
	for kinds != "" && d.err == nil {
		var one string
		var err error
		if one, kinds, err = first(kinds, depth); err != nil {
			return d.fail()
		}
		list = append(list, d.value(one, depth+1))
	}
	if d.err != nil {
		return nil
	}
	return list
}
